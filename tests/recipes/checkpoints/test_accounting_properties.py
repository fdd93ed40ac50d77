"""Whatever a file lacks or has too much: every name appears in the report exactly once."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_model import toy_config, toy_config_2b

from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints.files import Stored
from moteur.recipes.checkpoints.layouts import released_layout
from moteur.recipes.checkpoints.matching import match, refuse
from moteur.recipes.checkpoints.meta import build_weightless
from moteur.recipes.checkpoints.released_names import released_name
from moteur.recipes.config import Variant

MODELS = {
    "3B": build_weightless(InternVLAA1, toy_config(), decoder=True),
    "2B": build_weightless(InternVLAA1, toy_config_2b(), decoder=True),
}
STRANGE = ["value_head.weight", "model.cosmos_in_proj.extra", "lora_A", ""]


@given(variant=st.sampled_from(["3B", "2B"]), data=st.data())
def test_every_name_of_file_and_model_is_in_the_report_exactly_once(variant: Variant, data: st.DataObject) -> None:
    model = MODELS[variant]
    shapes = {released_name(name, variant): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
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
    wanted, report = match("file", files, model, released_layout(variant))
    assert set(report.missing) == lost
    assert set(report.unexpected) == extra
    assert {misfit.name for misfit in report.wrong_shape} == (bent | cast) - lost
    listed = [
        *report.loaded,
        *report.tied,
        *(name for name, _ in report.unused),
        *report.unexpected,
        *(misfit.name for misfit in report.wrong_shape),
    ]
    assert sorted(listed) == sorted(files)
    assert len(wanted) == len(report.loaded)
    assert report.exact == (not (lost or bent or cast or extra))
    if not report.exact:
        with pytest.raises(ValueError, match="does not fit: file"):
            refuse(report, files)
