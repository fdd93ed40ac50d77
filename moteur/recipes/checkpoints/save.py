"""Save a model into a folder or to the Hub, with its model card, and load its text tokenizer."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias, Unpack, cast, runtime_checkable

from huggingface_hub import HfApi, ModelCardData
from safetensors.torch import save_file
from torch import Tensor, nn

from moteur.hub import HubOptions, Location, is_hub_id
from moteur.optional import require
from moteur.recipes.checkpoints.config_files import config_to_json, write_json
from moteur.recipes.checkpoints.folder import (
    CONFIG,
    INDEX,
    SHARDS,
    SINGLE,
    STATISTICS,
    TOKENIZER_FILES,
    reading,
    replacing,
)
from moteur.recipes.checkpoints.fresh import build_weightless
from moteur.recipes.checkpoints.keymap import Config, Release, is_decoder
from moteur.recipes.checkpoints.load import Pretrained
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.tensors import check_finite
from moteur.recipes.checkpoints.transforms import SETTINGS, Statistics, check_statistics
from moteur.recipes.pi0_config import Pi0Config

_PALIGEMMA = "google/paligemma-3b-pt-224"
TOKENIZERS: Mapping[Release, str] = {
    "3B": "Qwen/Qwen3-VL-2B-Instruct",
    "2B": "OpenGVLab/InternVL3-1B-hf",
    "pi0": _PALIGEMMA,
    "pi05": _PALIGEMMA,
}
"""Text tokenizer of the released weights, by variant: that of the backbone."""

TITLES: Mapping[Release, str] = {"3B": "InternVLA-A1", "2B": "InternVLA-A1", "pi0": "π0", "pi05": "π0.5"}
"""What the models are called, by variant."""

_README = "README.md"
_Schemas: TypeAlias = Mapping[str, Mapping[str, Any]]
_LICENCE = (
    "not stated by whoever saved this. Weights that derive from others carry the others' conditions: look at the "
    "licence of each file this model started from"
)


@runtime_checkable
class SavedTokenizer(Protocol):
    """A text tokenizer that can be saved, as those of `transformers` can."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write the tokenizer's files into a folder."""
        ...


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: SavedTokenizer | None = None,
    weights_licence: str | None = None,
) -> None:
    """Write a model into a folder, from which `from_pretrained` loads it bit for bit.

    Written are `config.json`, `model.safetensors`, `stats.json` if the model has statistics, the tokenizer's files and
    a model card; a `README.md` that is there is kept. The files are put in their places together when all are on the
    disk: a save that is cut off, at any moment, leaves what was there or what is new, and so does one beside readers.

    Args:
        model: An `InternVLAA1` or a `Pi0`.
        folder: Made if needed.
        tokenizer: Text tokenizer, to be loaded again with `load_tokenizer`. None keeps one that is there.
        weights_licence: Licence of the weights, for the model card.

    Raises:
        ValueError: Statistics that no file can hold; or tensors that are not those of the configuration, as with an
            adapter in place, or not finite. Nothing is written then.
    """
    _save(model, Path(folder), tokenizer=tokenizer, weights_licence=weights_licence, name=".")


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    tokenizer: SavedTokenizer | None = None,
    weights_licence: str | None = None,
    commit_message: str = "Upload the model",
    revision: str | None = None,
    create_pr: bool | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload what `save_pretrained` writes, in one commit.

    Statistics and shards that an earlier upload left are removed; other files of the repository stay.

    Args:
        model: An `InternVLAA1` or a `Pi0`.
        repo_id: "owner/name"; made if needed.
        tokenizer: Text tokenizer, as in `save_pretrained`.
        weights_licence: Licence of the weights, for the model card.
        commit_message: Message of the commit.
        revision: Branch to commit to.
        create_pr: Open a pull request instead.
        private: Make a new repository private.
        token: Access token of the Hub.

    Returns:
        Address of the commit.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
    with TemporaryDirectory() as folder:
        _save(model, Path(folder), tokenizer=tokenizer, weights_licence=weights_licence, name=repo_id)
        return str(
            api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=[STATISTICS, INDEX, SHARDS],
            )
        )


def load_tokenizer(
    source: str | Path, *, variant: Release | None = None, revision: str | None = None, **hub: Unpack[HubOptions]
) -> Any:  # noqa: ANN401  # transformers is an extra
    """Load a text tokenizer that was saved with a model, or alone, as `transformers.AutoTokenizer` does.

    Args:
        source: A folder, or a Hub id `owner/name`.
        variant: Variant of the model, for the message where there is no tokenizer.
        revision: Branch, tag or commit on the Hub.
        **hub: As in `load_pretrained`.

    Raises:
        ValueError: There is no tokenizer; the message says which one the released weights of the variant use.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    with reading(Location("source", source, revision, hub).folder(TOKENIZER_FILES)) as folder:
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            usual = {kind: name for kind, name in TOKENIZERS.items() if variant in {None, kind}}
            named = " or ".join(f"{name!r} ({kind} variant)" for kind, name in usual.items())
            raise ValueError(
                f"{source}: expected a text tokenizer, got none; name one with tokenizer=: released weights use {named}"
            )
        transformers = require("transformers", "vlm")
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def model_card(model: nn.Module, *, name: str, tokenizer: bool, weights_licence: str | None) -> str:
    """Text of the model card: how to act, robots, tokenizer, and the licences of code and weights separately."""
    pretrained = cast("Pretrained", model)
    config, statistics = pretrained.config, pretrained.statistics
    pi, title = isinstance(config, Pi0Config), TITLES[config.variant]
    data = ModelCardData(
        library_name="moteur",
        pipeline_tag="robotics",
        license="other",
        license_name="code-and-weights-differ",
        base_model=_base_model(pretrained.loading_report, config.variant),
        tags=["robotics", "vision-language-action", "pi0" if pi else "internvla-a1"],
    )
    usual = TOKENIZERS[config.variant]
    schemas = {robot: entry[SETTINGS]["robot"] for robot, entry in statistics.items() if entry.get(SETTINGS)}
    options = (', robot="{robot}"' if len(statistics) > 1 else "") + ("" if tokenizer else f', tokenizer="{usual}"')
    count = sum(parameter.numel() for parameter in model.parameters())
    kind = "without" if isinstance(config, Pi0Config) or config.gen is None else "with"
    foreign = (
        f"The vision tower and the expert that reads have the shape of `{usual}`; it"
        if pi
        else (
            f"The understanding expert has the shape of `{usual}`, the image tokenizer that of "
            "`nvidia/Cosmos-Tokenizer-CI8x8`; each"
        )
    )
    size = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"  # noqa: PLR2004
    return f"""---
{data.to_yaml()}
---

# {title}, {size} parameters

A vision-language-action policy {kind} foresight, in the architecture of the
{config.variant} variant: {config.views} cameras, the robot's state and an instruction in, {config.chunk} actions out.

{_acting(schemas, name, options, config.chunk, type(model).__name__)}

Text tokenizer: {"saved with the weights" if tokenizer else f"not saved with the weights; released ones use `{usual}`"}.

## Robots

{_robots(statistics, schemas)}

## Licences

| part | licence |
|---|---|
| code that runs it (moteur) | Apache-2.0 |
| these weights | {weights_licence or _LICENCE} |

{foreign}
was published under a licence of its own, and so were the {title} weights.

## Files

`config.json`: every size and constant. `model.safetensors`: the weights. `stats.json`, if there is one: schema,
statistics and preparation of each robot. `tokenizer*.json`, if there are any: the text tokenizer.
"""


def _save(
    model: nn.Module, folder: Path, *, tokenizer: SavedTokenizer | None, weights_licence: str | None, name: str
) -> None:
    pretrained = cast("Pretrained", model)
    statistics, tensors = check_statistics(pretrained.statistics), _tensors(model, pretrained.config)
    with replacing(folder) as stage:
        save_file(tensors, stage / SINGLE, metadata={"format": "pt"})
        if statistics:
            write_json(stage / STATISTICS, statistics)
        write_json(stage / CONFIG, config_to_json(pretrained.config))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(stage))
        if not (folder / _README).exists():
            held = tokenizer is not None or any((folder / file).is_file() for file in TOKENIZER_FILES)
            text = model_card(model, name=name, tokenizer=held, weights_licence=weights_licence)
            (stage / _README).write_text(text, encoding="utf-8")


def _tensors(model: nn.Module, config: Config) -> dict[str, Tensor]:
    """The tensors to save.

    Raises:
        ValueError: They are not those of a model that `config` describes, so that no file of them could be loaded: an
            adapter is in place, a map was replaced, or a session took the model over. Or one is not finite.
    """
    held = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    plain = _shapes(type(model), config, any(is_decoder(name) for name in held))
    shapes = {name: tuple(tensor.shape) for name, tensor in held.items() if tensor.is_floating_point()}
    odd = [name for name in {**plain, **held} if name not in plain or shapes.get(name) != plain[name]]
    if odd:
        raise ValueError(
            f"model: expected the tensors that its configuration stands for, got {len(odd)} that are others, new or "
            f"missing: {', '.join(odd[:4])}; merge adapters and put replaced maps back before saving"
        )
    check_finite(held.items())
    return {name: tensor.cpu().contiguous() for name, tensor in held.items()}


@lru_cache(maxsize=4)
def _shapes(kind: type[nn.Module], config: Config, decoder: bool) -> dict[str, tuple[int, ...]]:  # noqa: FBT001
    """Shape of every tensor of a model of this configuration; remembered, as training saves again and again."""
    model = build_weightless(kind, config, decoder=decoder)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _base_model(report: LoadingReport | None, variant: Release) -> str | None:
    """Hub id of what the weights started from, as far as the model knows it."""
    if report is None:
        return None
    if is_hub_id(report.source):
        return report.source.split(" at ")[0]
    return TOKENIZERS[variant] if report.layout in {"Qwen3-VL", "InternVL3"} else None


def _acting(schemas: _Schemas, name: str, options: str, chunk: int, kind: str) -> str:
    """Python code that loads the checkpoint and acts on the first robot whose schema is known."""
    if not schemas:
        return f"""No robot's schema is saved with these weights, so they cannot drive one as they are.

```python
from moteur.recipes import {kind}

model = {kind}.from_pretrained("{name}")
print(model.loading_report)
```"""
    robot, schema = next(iter(schemas.items()))
    options = options.format(robot=robot)
    state = sum(source["size"] for source in schema["state"])
    cameras = [camera for camera in schema["cameras"] if camera is not None]
    short = [camera.rpartition(".")[2] for camera in cameras]
    pictures = "".join(
        f'    "{camera}": np.zeros((480, 640, 3), dtype=np.uint8),\n'
        for camera in (short if len(set(short)) == len(short) else cameras)
    )
    return f"""```python
import numpy as np
from moteur.runtime import Policy

policy = Policy.from_pretrained("{name}"{options})
pictures = {{  # what the cameras see, height × width × 3
{pictures}}}
state = np.zeros({state}, dtype=np.float32)  # as {robot} measures it
commands = policy.act(pictures, state, "fold the towel")  # {chunk} steps, in the robot's own units
```"""


def _robots(statistics: Statistics, schemas: _Schemas) -> str:
    if not statistics:
        return "No robot's statistics are saved with these weights."
    rows = ["| robot | cameras, in the order of the views | state | actions |", "|---|---|---|---|"]
    for robot in statistics:
        if (schema := schemas.get(robot)) is None:
            rows.append(f"| {robot} | as its built-in schema says | | |")
            continue
        cameras = ", ".join("none" if camera is None else f"`{camera}`" for camera in schema["cameras"])
        state, action = (sum(source["size"] for source in schema[group]) for group in ("state", "action"))
        joints = f": {', '.join(schema['joints'])}" if schema.get("joints") else ""
        rows.append(f"| {robot} | {cameras} | {state} | {action}{joints} |")
    return "\n".join(rows)
