"""Load a model from a checkpoint or from a vision-language backbone."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, Unpack, cast, runtime_checkable

import torch
from torch import Tensor, nn

from moteur.recipes.checkpoints.backbone import PIXELS, check_backbone
from moteur.recipes.checkpoints.config_files import CONFIG, OWN_TYPE, config_from_json, read_json, read_released_config
from moteur.recipes.checkpoints.fresh import build_weightless, initialise
from moteur.recipes.checkpoints.keymap import (
    KeyMap,
    backbone_keys,
    is_cosmos,
    is_understanding,
    newer_key,
    own_keys,
    released_keys,
    released_variant,
    suggestion,
)
from moteur.recipes.checkpoints.precision import Dtype, chosen_dtypes, held_in, read_dtype
from moteur.recipes.checkpoints.report import LoadingReport, match, refuse
from moteur.recipes.checkpoints.source import HubOptions, check_source, local_folder, named
from moteur.recipes.checkpoints.tensors import INDEX, SHARDS, SINGLE, Stored, file_identity, find_tensors, read_all
from moteur.recipes.checkpoints.transforms import STATISTICS, Statistics, read_statistics
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.cosmos import Foresight, tokenizer_alone
from moteur.tokenizers import CosmosDecoder, CosmosEncoder, load_weights

PATTERNS = (CONFIG, STATISTICS, SINGLE, INDEX, SHARDS)
"""Files of a Hub repository that a model is loaded from."""


@runtime_checkable
class Pretrained(Protocol):
    """What loading and saving ask of a model beside being an `nn.Module`.

    Attributes:
        config: Every size and constant.
        statistics: What each robot's data look like, saved and loaded with the weights; see `dump_transforms`.
        loading_report: What became of every tensor when the model was loaded, or None.
    """

    config: InternVLAA1Config
    statistics: Statistics
    loading_report: LoadingReport | None


Model = TypeVar("Model", bound=nn.Module)
_EMBEDDING = "backbone.text_embedding.weight"


class LoadOptions(HubOptions, total=False):
    """Keyword arguments of `load_pretrained`; see there."""

    revision: str | None
    config: InternVLAA1Config | None
    decoder: bool | None
    cosmos: str | Path | None
    cosmos_revision: str | None
    dtype: torch.dtype | str | None
    device: torch.device | str
    strict: bool
    seed: int
    mapped: bool


class BackboneOptions(HubOptions, total=False):
    """Keyword arguments of `load_backbone` that have a default; see there."""

    revision: str | None
    cosmos_revision: str | None
    decoder: bool
    accept: Collection[str]
    dtype: torch.dtype | str | None
    device: torch.device | str


def load_pretrained(
    kind: Callable[..., Model],
    source: str | Path,
    *,
    revision: str | None = None,
    config: InternVLAA1Config | None = None,
    decoder: bool | None = None,
    cosmos: str | Path | None = None,
    cosmos_revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    strict: bool = True,
    seed: int = 0,
    mapped: bool = False,
    **hub: Unpack[HubOptions],
) -> Model:
    """Load a model from a folder or a Hub repository, in our own layout or that of the released checkpoints.

    Every tensor of the file and of the model is accounted for in `loading_report`; one that is missing, left over or of
    another shape is an error. Everything that can be checked is checked before a tensor is read, so a failure leaves no
    half-loaded model. No backbone is downloaded. The model is in evaluation mode.

    Args:
        kind: Class of the model; called as `kind(config, decoder=...)`.
        source: A folder, or a Hub id `owner/name`.
        revision: Branch, tag or commit on the Hub. Name a commit: published weights have been replaced in place.
        config: Sizes to build instead of those in `config.json`; needed for the released layout at sizes other than
            the released ones.
        decoder: Hold the Cosmos decoder. None holds it if the file is in our own layout and has it.
        cosmos: Folder, file or Hub id of the Cosmos tokenizer, for a checkpoint that comes without.
        cosmos_revision: Branch, tag or commit of the tokenizer on the Hub.
        dtype: One format for all weights, such as "bfloat16"; "released" for bfloat16 with the released exceptions in
            float32; None for what the file holds. For a released file in half precision, None also holds those
            exceptions in float32, which is exact.
        device: Device of the weights.
        strict: With False, tensors without a place in the model are left out and missing ones are drawn from `seed`,
            with a warning that names them. A wrong shape is an error all the same.
        seed: Seed of whatever is drawn.
        mapped: Make tensors views of their files where they need neither conversion nor joining. Loading then takes
            next to no time and memory until the weights are used, and the files must not be changed in place while
            the model lives.
        **hub: `cache_dir`, `token`, `force_download` and `local_files_only` of the Hub's client, for checkpoint and
            tokenizer.

    Raises:
        ValueError: Nothing of that name; a file that is missing, truncated or corrupt; a configuration that is
            incomplete or contradicts itself or the tensors; tensors that do not fit. Files and tensors are named.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    wanted = read_dtype(dtype)
    check_source("source", source, revision)
    _check_cosmos(cosmos, cosmos_revision)
    folder = local_folder("source", source, revision, PATTERNS, hub)
    before = file_identity(folder / CONFIG)
    values = read_json(folder / CONFIG)
    files = find_tensors(folder)
    own = values.get("type") == OWN_TYPE
    held = decoder
    if held is None:
        held = own and any(name.startswith("foresight.decoder.") for name in files)
    if own:
        stored = config_from_json(values)
        built, notes = config or stored, ()
        if built != stored:
            notes = ("the configuration is the one asked for, not the one that was saved",)
        keys = own_keys(built, files, decoder=held)
    else:
        built, notes = released_config(folder, values, files, config, wanted)
        keys = released_keys(built, decoder=held)
    model = build_weightless(kind, built, decoder=held)
    report = _fill(
        model,
        files,
        keys,
        source=named(source, revision),
        cosmos=cosmos,
        cosmos_revision=cosmos_revision,
        hub=hub,
        dtype=wanted,
        device=torch.device(device),
        strict=strict,
        seed=seed,
        mapped=mapped,
        notes=notes,
        as_saved=own,
    )
    statistics = read_statistics(folder)
    if file_identity(folder / CONFIG) != before:  # a save removes it first and puts it back last
        raise ValueError(f"{folder / CONFIG}: changed while the folder was read, by a save perhaps; load it again")
    return _finished(model, report, statistics)


def load_backbone(
    kind: Callable[..., Model],
    source: str | Path,
    *,
    config: InternVLAA1Config,
    seed: int,
    cosmos: str | Path | None,
    revision: str | None = None,
    cosmos_revision: str | None = None,
    decoder: bool = False,
    accept: Collection[str] = (),
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> Model:
    """Build a model on a vision-language backbone: vision tower, text embedding and `und` are its own, the rest fresh.

    Args:
        kind: Class of the model; called as `kind(config, decoder=...)`.
        source: Folder or Hub id of a Qwen3-VL-2B (3B variant) or InternVL3-1B (2B variant; the `-hf` repository) in
            Hugging Face layout.
        config: Every size and constant. Each one that the backbone's `config.json` or processor states is compared.
        seed: Draws `gen`, `act` and the heads, each part on its own: the same seed gives the same bits. The global
            random state stays as it was.
        cosmos: Folder, file or Hub id of the Cosmos tokenizer. None only for a configuration without foresight.
        revision: Branch, tag or commit of the backbone on the Hub.
        cosmos_revision: Branch, tag or commit of the tokenizer on the Hub.
        decoder: Hold the Cosmos decoder as well.
        accept: Fields of `config` that are meant to differ from the backbone, such as `rope_base`.
        dtype: As in `load_pretrained`.
        device: Device of the weights.
        **hub: As in `load_pretrained`.

    Raises:
        ValueError: A number of the backbone differs from `config`, a tensor is missing, left over or of another shape,
            or a file is truncated or corrupt. Fields, tensors and files are named.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    wanted = read_dtype(dtype)
    check_source("source", source, revision)
    _check_cosmos(cosmos, cosmos_revision)
    if config.gen is not None and cosmos is None:
        raise ValueError("cosmos: expected where the Cosmos tokenizer is, which no backbone brings, got None")
    folder = local_folder("source", source, revision, (CONFIG, SINGLE, INDEX, SHARDS, *PIXELS), hub)
    values, notes = check_backbone(folder, config, accept=accept)
    stored = find_tensors(folder)
    files: dict[str, Stored] = {}
    for name, tensor in stored.items():
        if (key := newer_key(name)) in files:
            raise ValueError(f"{folder}: {name} and {files[key].name} are two names of one tensor; keep one")
        files[key] = tensor
    text = values.get("text_config")
    tied = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    keys = backbone_keys(config, tied=bool(values.get("tie_word_embeddings") if tied is None else tied))
    model = build_weightless(kind, config, decoder=decoder)
    report = _fill(
        model,
        files,
        keys,
        source=named(source, revision),
        cosmos=cosmos,
        cosmos_revision=cosmos_revision,
        hub=hub,
        dtype=wanted,
        device=torch.device(device),
        seed=seed,
        notes=notes,
        fresh={name for name in model.state_dict() if not is_understanding(name) and not is_cosmos(name)},
    )
    return _finished(model, report, {})


def load_foresight(
    source: str | Path,
    *,
    revision: str | None = None,
    config: InternVLAA1Config | None = None,
    cosmos: str | Path | None = None,
    cosmos_revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> tuple[InternVLAA1Config, Foresight]:
    """Load the image tokenizer and the foresight head of a checkpoint, without the model around them.

    Args:
        source: As in `load_pretrained`.
        revision: As in `load_pretrained`.
        config: As in `load_pretrained`.
        cosmos: As in `load_pretrained`.
        cosmos_revision: As in `load_pretrained`.
        dtype: As in `load_pretrained`; the weights, and with them the latents, are those of the whole model.
        device: Device of the weights.
        **hub: As in `load_pretrained`.

    Returns:
        The configuration of the model, and its `foresight`.

    Raises:
        ValueError: The model has no foresight, or as in `load_pretrained`.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    wanted = read_dtype(dtype)
    check_source("source", source, revision)
    _check_cosmos(cosmos, cosmos_revision)
    folder = local_folder("source", source, revision, PATTERNS, hub)
    values, files = read_json(folder / CONFIG), find_tensors(folder)
    if own := values.get("type") == OWN_TYPE:
        built = config or config_from_json(values)
        keys = own_keys(built, files, decoder=False)
    else:
        built, _ = released_config(folder, values, files, config, wanted)
        keys = released_keys(built, decoder=False)
    model = build_weightless(_ForesightAlone, built, decoder=False)
    _fill(
        model,
        files,
        keys,
        source=named(source, revision),
        cosmos=cosmos,
        cosmos_revision=cosmos_revision,
        hub=hub,
        dtype=wanted,
        device=torch.device(device),
        seed=0,
        part=True,
        as_saved=own,
    )
    return built, model.foresight.eval()


class _ForesightAlone(nn.Module):
    """A model of which only the foresight is built."""

    def __init__(self, config: InternVLAA1Config, *, decoder: bool) -> None:
        super().__init__()
        assert not decoder
        self.foresight = tokenizer_alone(config)


def _fill(
    model: nn.Module,
    files: dict[str, Stored],
    keys: KeyMap,
    *,
    source: str,
    cosmos: str | Path | None,
    cosmos_revision: str | None,
    hub: HubOptions,
    dtype: Dtype,
    device: torch.device,
    seed: int,
    strict: bool = True,
    mapped: bool = False,
    notes: tuple[str, ...] = (),
    as_saved: bool = False,
    part: bool = False,
    fresh: Collection[str] = (),
) -> LoadingReport:
    """Give every parameter of a model on the meta device its value: from the files, from Cosmos, or from the seed.

    Raises:
        ValueError: Tensors do not fit; the model must then be thrown away.
    """
    halves = {} if cosmos is None else _halves(model, files, keys)
    if cosmos is not None and not halves:
        raise ValueError(f"cosmos: expected None, the checkpoint holds all of the tokenizer it needs, got {cosmos}")
    elsewhere = [prefix + name for prefix, half in halves.items() for name, _ in half.named_parameters()]
    given = {*elsewhere, *fresh}
    wanted, report = match(source, files, model, keys, given=given, notes=notes)
    drawn = set(fresh)
    if part:  # the other tensors are those of the rest of the model
        report = replace(report, unexpected=())
    if strict or report.wrong_shape:
        refuse(report, files)
    else:
        absent = [name for name in model.state_dict() if name not in wanted and name not in given]
        if lost := [name for name in absent if is_cosmos(name)]:
            raise ValueError(
                f"cosmos: expected where the tokenizer is, the file lacks {len(lost)} of its tensors ({lost[0]}, ...); "
                "it is frozen, and drawn from a seed it would stay noise"
            )
        drawn |= {*absent}
        if absent or report.unexpected:
            warnings.warn(f"strict=False: {report}", stacklevel=4)
    dtypes = chosen_dtypes(wanted, dtype, as_saved=as_saved)
    computing = dtypes.get(_EMBEDDING, torch.float32)
    if part and (embedding := files.get(keys.key(_EMBEDDING))) is not None:
        computing = chosen_dtypes({_EMBEDDING: (embedding,)}, dtype, as_saved=as_saved)[_EMBEDDING]

    def hold(name: str, values: Tensor) -> Tensor:
        return values.to(device, held_in(name, computing, dtype, as_saved=as_saved))

    state = initialise(model, drawn, seed=seed, hold=hold)
    order = tuple(state)
    for prefix, half in halves.items():
        assert cosmos is not None
        name = prefix.split(".")[-2]
        files_of_half = (f"{name}.safetensors", "cosmos.safetensors", f"{name}.jit")
        path = local_folder("cosmos", cosmos, cosmos_revision, files_of_half, hub)
        half.to(dtype if isinstance(dtype, torch.dtype) else torch.bfloat16 if dtype else computing)
        load_weights(half.to_empty(device=device), path)
        state |= {prefix + name: parameter for name, parameter in half.named_parameters()}
    state |= read_all(wanted, dtypes, device, mapped=mapped)
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device)  # what is left are buffers that were computed
    model.eval()
    place = "" if cosmos is None else named(cosmos, cosmos_revision)
    return replace(report, fresh=order, elsewhere=tuple((name, place) for name in elsewhere))


def _halves(model: nn.Module, files: Mapping[str, Stored], keys: KeyMap) -> dict[str, CosmosEncoder | CosmosDecoder]:
    """Halves of the tokenizer that the model has and the files lack, by the prefix of their names in the model."""
    halves = {f"{n}.": m for n, m in model.named_modules() if isinstance(m, CosmosEncoder | CosmosDecoder)}
    return {
        prefix: half
        for prefix, half in halves.items()
        if not any(key in files for name, _ in half.named_parameters() for key in keys.sources(prefix + name))
    }


def released_config(
    folder: Path, values: dict[str, Any], files: Mapping[str, Stored], config: InternVLAA1Config | None, dtype: Dtype
) -> tuple[InternVLAA1Config, tuple[str, ...]]:
    """Configuration of a released checkpoint from its `config.json` and the names of its tensors, and notes about it.

    Raises:
        ValueError: It is the checkpoint of another model, or a field contradicts another one or the tensors.
    """
    variant = released_variant(files)
    if variant is None:
        raise ValueError(
            f"{folder}: neither our own layout nor a released InternVLA-A1: config.json has type "
            f"{values.get('type')!r}, model_type {values.get('model_type')!r}, and of the tensors "
            f"{suggestion(files)}; they start {sorted(files)[:4]}"
        )
    if config is not None and config.variant != variant:
        raise ValueError(f"config: expected the {variant} variant, whose tensors {folder} holds, got {config.variant}")
    config, notes = read_released_config(values, variant, config=config)
    stored = files.get(released_keys(config).sources(_EMBEDDING)[0])
    stated = values.get("dtype", "bfloat16")
    if dtype is None and stored is not None and str(stored.dtype) != f"torch.{stated}":
        notes += (f"config.json says {stated}, the file holds {stored.dtype} and is kept so; choose with dtype=",)
    return config, notes


def _check_cosmos(cosmos: str | Path | None, revision: str | None) -> None:
    if cosmos is not None:
        check_source("cosmos", cosmos, revision, file=True)
    elif revision is not None:
        raise ValueError(f"cosmos_revision: expected None without cosmos=, got {revision!r}")


def _finished(model: Model, report: LoadingReport, statistics: Statistics) -> Model:
    pretrained = cast("Pretrained", model)
    pretrained.loading_report, pretrained.statistics = report, statistics
    return model
