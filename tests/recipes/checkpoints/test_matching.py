"""Pairing a file's tensors with a model's: every name accounted for once, at toy size and at the released sizes."""

import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_model import toy_config, toy_config_2b

from moteur.recipes import InternVLAA1, InternVLAA1Config, preset
from moteur.recipes.checkpoints.fresh import build_weightless
from moteur.recipes.checkpoints.keymap import KeyMap, released_keys
from moteur.recipes.checkpoints.precision import chosen_dtypes
from moteur.recipes.checkpoints.report import LoadingReport, match, refuse
from moteur.recipes.checkpoints.tensors import Stored
from moteur.recipes.config import Variant

PAGE = Path(__file__).parents[3] / "docs" / "recipes" / "weights.md"
ROW = re.compile(r"\| (?P<symbol>[^|]+) \| `(?P<ours>[\w.]+)` \| (?P<theirs>`[\w.…`, ]+`) \| (?P<shape>\d[\d ×,]*) \|")
CONFIGS: dict[Variant, InternVLAA1Config] = {"3B": toy_config(), "2B": toy_config_2b()}
MODELS = {variant: build_weightless(InternVLAA1, config, decoder=True) for variant, config in CONFIGS.items()}
STRANGE = ["value_head.weight", "model.cosmos_in_proj.extra", "lora_A", ""]
COUNTS = {"3B": (1443, 1, 18), "2B": (1456, 0, 3)}
VARIANTS = pytest.mark.parametrize("variant", ["3B", "2B"])


def stored_shapes(golden: Path, variant: Variant) -> dict[str, Stored]:
    shapes = json.loads((golden / f"released_shapes_{variant.lower()}.json").read_text())
    nowhere = golden / "README.md"
    return {name: Stored(nowhere, name, torch.bfloat16, tuple(shape), 0, 0) for name, shape in shapes.items()}


@given(variant=st.sampled_from(["3B", "2B"]), joined=st.booleans(), data=st.data())
def test_every_name_of_file_and_model_is_in_the_report_exactly_once(
    variant: Variant, joined: bool, data: st.DataObject
) -> None:
    model = MODELS[variant]
    keys = KeyMap("ours", CONFIGS[variant]) if joined else released_keys(CONFIGS[variant])
    made_of = {name: keys.shapes(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    shapes = {key: shape for parts in made_of.values() for key, shape in parts.items()}
    names = st.sets(st.sampled_from(sorted(shapes)), max_size=6)
    lost, bent, cast = data.draw(names), data.draw(names), data.draw(names)
    extra = data.draw(st.sets(st.sampled_from(STRANGE)))
    files = {
        name: Stored(
            path=Path(),
            name=name,
            dtype=torch.int64 if name in cast else torch.float32,
            shape=(*shape, 1) if name in bent else shape,
            start=0,
            size=0,
        )
        for name, shape in shapes.items()
        if name not in lost
    }
    files |= {name: Stored(Path(), name, torch.float32, (1,), 0, 0) for name in extra}
    wanted, report = match("file", files, model, keys)
    assert set(report.missing) == lost
    assert set(report.unexpected) == extra
    assert {name for name, _ in report.wrong_shape} == (bent | cast) - lost
    listed = [
        *report.loaded,
        *report.tied,
        *(name for name, _ in report.unused),
        *report.unexpected,
        *(name for name, _ in report.wrong_shape),
    ]
    assert sorted(listed) == sorted(files)
    assert set(wanted) == {name for name, parts in made_of.items() if not {*parts} & (lost | bent | cast)}
    assert [stored.name for parts in wanted.values() for stored in parts] == list(report.loaded)
    assert report.exact == (not (lost or bent or cast or extra))
    if not report.exact:
        with pytest.raises(ValueError, match="does not fit: file"):
            refuse(report, files)


@VARIANTS
def test_every_released_key_is_loaded_tied_or_unused_at_its_shape(golden: Path, variant: Variant) -> None:
    model = build_weightless(InternVLAA1, preset(variant), decoder=True)
    wanted, report = match("file", stored_shapes(golden, variant), model, released_keys(preset(variant)))
    assert (len(report.loaded), len(report.tied), len(report.unused)) == COUNTS[variant]
    assert report.exact
    assert set(wanted) == set(model.state_dict())
    dtypes = chosen_dtypes(wanted, preset(variant), None, as_saved=False)
    layers = preset(variant).depth
    assert sum(dtype == torch.float32 for dtype in dtypes.values()) == 3 * 2 * layers + 1 + 2  # norms, und's, read-out


@VARIANTS
def test_without_the_decoder_its_tensors_are_left_out_on_purpose(golden: Path, variant: Variant) -> None:
    model = build_weightless(InternVLAA1, preset(variant), decoder=False)
    keys = released_keys(preset(variant), decoder=False)
    _, report = match("file", stored_shapes(golden, variant), model, keys)
    assert report.exact
    decoder = [name for name, reason in report.unused if reason == "Cosmos decoder, not asked for"]
    assert len(decoder) + len(report.loaded) == COUNTS[variant][0]
    assert decoder


def test_a_printed_report_is_short_and_says_how_many_names_it_leaves_out() -> None:
    names = tuple(f"tensor.{index}" for index in range(100))
    unused = tuple((name, "no output of the model depends on it") for name in names)
    report = LoadingReport("folder", "moteur", loaded=names, unused=unused, missing=names, fresh=names[:8])
    assert str(report).splitlines() == [
        "folder (moteur layout)",
        "  loaded (100)",
        "  unused on purpose, no output of the model depends on it (100)",
        f"  missing (100): {', '.join(names[:8])}, and 92 more",
        f"  fresh (8): {', '.join(names[:8])}",
    ]


@VARIANTS
def test_constants_that_no_file_holds_are_computed_while_weights_take_no_memory(variant: Variant) -> None:
    before = torch.get_rng_state()
    light = build_weightless(InternVLAA1, CONFIGS[variant], decoder=True)
    assert torch.equal(torch.get_rng_state(), before)
    real = InternVLAA1(CONFIGS[variant], decoder=True)
    assert all(parameter.is_meta for parameter in light.parameters())
    buffers = dict(light.named_buffers())
    assert buffers.keys() == dict(real.named_buffers()).keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in real.named_buffers())


def test_every_row_of_the_page_names_the_tensors_that_the_code_reads_at_their_released_shapes(golden: Path) -> None:
    shapes = json.loads((golden / "released_shapes_3b.json").read_text())
    model, keys = build_weightless(InternVLAA1, preset("3B"), decoder=True).state_dict(), released_keys(preset("3B"))
    rows = [row.groupdict() for row in map(ROW.fullmatch, PAGE.read_text().splitlines()) if row]
    assert len(rows) >= 24
    for row in rows:
        theirs = row["theirs"].replace("`", "").replace("…", "model.qwen3_vl_with_expert").split(", ")
        for layer in ("0", "27"):
            name, stored = (
                row["ours"].replace(".N.", f".{layer}."),
                tuple(key.replace(".N.", f".{layer}.") for key in theirs),
            )
            assert keys.sources(name) == stored
            assert list(keys.shapes(name, tuple(model[name].shape)).values()) == [tuple(shapes[key]) for key in stored]
            assert row["shape"].replace(" ", "") == "×".join(map(str, model[name].shape))
    groups = {row["ours"].split(".")[0] for row in rows} | {row["ours"].split(".")[2] for row in rows}
    assert groups >= {"backbone", "mot", "foresight", "action", "und", "gen", "act"}
