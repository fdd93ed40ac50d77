"""Load a model from a checkpoint or from a vision-language backbone."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar, Unpack, cast, runtime_checkable

import torch
from torch import Tensor, nn

from moteur.hub import HubOptions, Location
from moteur.recipes.checkpoints.backbone import PIXELS, check_backbone
from moteur.recipes.checkpoints.detect import named_models, open_checkpoint, robots_of
from moteur.recipes.checkpoints.folder import CONFIG, INDEX, SHARDS, SINGLE, STATISTICS, reading
from moteur.recipes.checkpoints.fresh import build_weightless, initialise
from moteur.recipes.checkpoints.keymap import (
    Config,
    KeyMap,
    backbone_keys,
    is_cosmos,
    is_understanding,
    newer_key,
    own_keys,
)
from moteur.recipes.checkpoints.pi0_statistics import PI0_PATTERNS
from moteur.recipes.checkpoints.precision import Dtype, chosen_dtypes, held_in, read_dtype
from moteur.recipes.checkpoints.report import LoadingReport, match, refuse
from moteur.recipes.checkpoints.tensors import Stored, check_finite, find_tensors, read_all
from moteur.recipes.checkpoints.transforms import Statistics
from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.cosmos import Foresight, tokenizer_alone
from moteur.tokenizers import CosmosDecoder, CosmosEncoder, load_weights

PATTERNS = (CONFIG, STATISTICS, SINGLE, INDEX, SHARDS, *PI0_PATTERNS)
"""Files of a Hub repository that a model is loaded from."""


@runtime_checkable
class Pretrained(Protocol):
    """What loading and saving ask of a model beside being an `nn.Module`."""

    config: Config
    statistics: Statistics
    loading_report: LoadingReport | None


Model = TypeVar("Model", bound=nn.Module)
_EMBEDDING = "backbone.text_embedding.weight"


class LoadOptions(HubOptions, total=False):
    """Keyword arguments of `load_pretrained`; see there."""

    revision: str | None
    config: Config | None
    cosmos: str | Path | None
    cosmos_revision: str | None
    dtype: torch.dtype | str | None
    device: torch.device | str
    decoder: bool | None
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
    configs: tuple[type[Config], ...] = (InternVLAA1Config,),
    revision: str | None = None,
    config: Config | None = None,
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
        kind: Class of the model; called as `kind(config)`, or `kind(config, decoder=True)`.
        source: A folder, or a Hub id `owner/name`.
        configs: Kinds of configuration that `kind` takes.
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
            incomplete or contradicts itself or the tensors; tensors that do not fit, or hold what is not finite (with
            `mapped` nobody looks). Files and tensors are named.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    given, asked = Location("source", source, revision, hub), read_dtype(dtype)
    tokenizer, place = _tokenizer(cosmos, cosmos_revision, hub), _device(device)
    with reading(given.folder(PATTERNS)) as folder:
        files, keys, notes = open_checkpoint(folder, config, asked, decoder=decoder)
        if not isinstance(keys.config, configs):
            raise ValueError(
                f"source: expected {named_models(*configs)}, got {named_models(type(keys.config))} in {given}"
            )
        model = _fill(
            build_weightless(kind, keys.config, decoder=keys.decoder),
            files,
            keys,
            source=str(given),
            cosmos=tokenizer,
            dtype=asked,
            device=place,
            seed=seed,
            strict=strict,
            mapped=mapped,
            notes=notes,
        )
        loaded = cast("Pretrained", model)
        loaded.statistics, remarks = robots_of(folder, keys)
        assert loaded.loading_report is not None
        loaded.loading_report = replace(loaded.loading_report, notes=(*loaded.loading_report.notes, *remarks))
    return model


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
        kind: Class of the model; called as `kind(config)`, or `kind(config, decoder=True)`.
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
    given, asked = Location("source", source, revision, hub), read_dtype(dtype)
    tokenizer, place = _tokenizer(cosmos, cosmos_revision, hub), _device(device)
    if config.gen is not None and tokenizer is None:
        raise ValueError("cosmos: expected where the Cosmos tokenizer is, which no backbone brings, got None")
    folder = given.folder((CONFIG, SINGLE, INDEX, SHARDS, *PIXELS))
    values, notes = check_backbone(folder, config, accept=accept)
    files: dict[str, Stored] = {}
    for name, stored in find_tensors(folder).items():
        if (key := newer_key(name)) in files:
            raise ValueError(f"{folder}: {name} and {files[key].name} are two names of one tensor; keep one")
        files[key] = stored
    text = values.get("text_config")
    tied = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    model = build_weightless(kind, config, decoder=decoder)
    return _fill(
        model,
        files,
        backbone_keys(config, tied=bool(values.get("tie_word_embeddings") if tied is None else tied)),
        source=str(given),
        cosmos=tokenizer,
        dtype=asked,
        device=place,
        seed=seed,
        notes=notes,
        fresh={name for name in model.state_dict() if not is_understanding(name) and not is_cosmos(name)},
    )


def load_foresight(
    source: str | Path | None,
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

    The weights, and with them the latents, are those of the whole model.

    Args:
        source: A folder, or a Hub id `owner/name`. None where there is no checkpoint yet: `config` and `cosmos` are
            needed then. The tokenizer computes in float32 unless `dtype` says otherwise, and the head is drawn.
        revision: As in `load_pretrained`, and so are all others.
        config: Sizes.
        cosmos: The Cosmos tokenizer.
        cosmos_revision: Its branch, tag or commit on the Hub.
        dtype: Number format.
        device: Device of the weights.
        **hub: Options of the Hub's client.

    Returns:
        The configuration of the model, and its `foresight`.

    Raises:
        ValueError: The model has no foresight, or as in `load_pretrained`.
        FileNotFoundError: A repository that the Hub does not have, or a Hub that cannot be reached.
    """
    if source is not None:
        model = load_pretrained(
            _ForesightAlone,
            source,
            revision=revision,
            config=config,
            decoder=False,
            cosmos=cosmos,
            cosmos_revision=cosmos_revision,
            dtype=dtype,
            device=device,
            **hub,
        )
        return model.config, model.foresight
    if config is None or cosmos is None:
        raise ValueError("source: expected a checkpoint, or None with config= and cosmos=, got None without both")
    tokenizer = _tokenizer(cosmos, cosmos_revision, hub)
    model = build_weightless(_ForesightAlone, config, decoder=False)
    drawn = {name for name in model.state_dict() if not is_cosmos(name)}
    asked, place, keys = read_dtype(dtype), _device(device), own_keys(config, ())
    _fill(model, {}, keys, source="none", cosmos=tokenizer, dtype=asked, device=place, seed=0, fresh=drawn)
    return config, model.foresight


class _ForesightAlone(nn.Module):
    """A model of which only the foresight is built; the other tensors of a file are left out."""

    def __init__(self, config: InternVLAA1Config) -> None:
        super().__init__()
        self.config = config
        self.foresight = tokenizer_alone(config)


def _device(device: torch.device | str) -> torch.device:
    """The device; a ValueError where PyTorch does not know it or has none here."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected one that works here, got {str(device)!r} ({reason})") from error


def _tokenizer(cosmos: str | Path | None, revision: str | None, hub: HubOptions) -> Location | None:
    """Where the Cosmos tokenizer is, if it is asked for."""
    if cosmos is not None:
        return Location("cosmos", cosmos, revision, hub, file=True)
    if revision is not None:
        raise ValueError(f"cosmos_revision: expected None without cosmos=, got {revision!r}")
    return None


def _fill(
    model: Model,
    files: dict[str, Stored],
    keys: KeyMap,
    *,
    source: str,
    cosmos: Location | None,
    dtype: Dtype,
    device: torch.device,
    seed: int,
    strict: bool = True,
    mapped: bool = False,
    notes: tuple[str, ...] = (),
    fresh: Collection[str] = (),
) -> Model:
    """Give every parameter of a model on the meta device its value: from the files, from Cosmos, or from the seed.

    Raises:
        ValueError: Tensors do not fit; the model must then be thrown away.
    """
    halves = {} if cosmos is None else _halves(model, files, keys)
    if cosmos is not None and not halves:
        raise ValueError(
            f"cosmos: expected None, the checkpoint holds all of the tokenizer it needs, got {cosmos.place}"
        )
    elsewhere = [prefix + name for prefix, half in halves.items() for name, _ in half.named_parameters()]
    given = {*elsewhere, *fresh}
    wanted, report = match(source, files, model, keys, given=given, notes=notes)
    drawn = set(fresh)
    if isinstance(model, _ForesightAlone):
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
    dtypes = chosen_dtypes(wanted, keys.config, dtype, as_saved=keys.own)
    embedding = wanted.get(_EMBEDDING) or tuple(files[key] for key in keys.sources(_EMBEDDING) if key in files)
    computing = (
        chosen_dtypes({_EMBEDDING: embedding}, keys.config, dtype, as_saved=keys.own)[_EMBEDDING]
        if embedding
        else torch.float32
    )

    def hold(name: str, values: Tensor) -> Tensor:
        return values.to(device, held_in(name, computing, keys.config, dtype, as_saved=keys.own))

    state = initialise(model, drawn, seed=seed, hold=hold)
    report = replace(report, fresh=tuple(state), elsewhere=tuple((name, str(cosmos)) for name in elsewhere))
    for prefix, half in halves.items():
        assert cosmos is not None
        name = prefix.split(".")[-2]
        path = cosmos.folder((f"{name}.safetensors", "cosmos.safetensors", f"{name}.jit"))
        half.to(dtype if isinstance(dtype, torch.dtype) else torch.bfloat16 if dtype else computing)
        load_weights(half.to_empty(device=device), path)
        state |= {prefix + name: parameter for name, parameter in half.named_parameters()}
    state |= read_all(wanted, dtypes, device, mapped=mapped)
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device)  # what is left are buffers that were computed
    if not mapped:
        check_finite(model.named_parameters())
    cast("Pretrained", model).loading_report = report
    return model.eval()


def _halves(model: nn.Module, files: Mapping[str, Stored], keys: KeyMap) -> dict[str, CosmosEncoder | CosmosDecoder]:
    """Halves of the tokenizer that the model has and the files lack, by the prefix of their names in the model."""
    halves = {f"{n}.": m for n, m in model.named_modules() if isinstance(m, CosmosEncoder | CosmosDecoder)}
    return {
        prefix: half
        for prefix, half in halves.items()
        if not any(key in files for name, _ in half.named_parameters() for key in keys.sources(prefix + name))
    }
