"""Loading, saving and sharing a model: huggingface_hub's mixin, with our files in its hooks."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from safetensors.torch import save_file
from torch import nn

from moteur.recipes.checkpoints.backbone import PATTERNS as OF_BACKBONE
from moteur.recipes.checkpoints.backbone import load_backbone
from moteur.recipes.checkpoints.card import model_card
from moteur.recipes.checkpoints.config_json import config_to_json
from moteur.recipes.checkpoints.files import INDEX, PATTERNS, SINGLE
from moteur.recipes.checkpoints.load import CONFIG, STATISTICS, Loaded, Options, load_folder, read_json
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.source import Hub, expect_source, place_of_cosmos
from moteur.recipes.checkpoints.statistics import Statistics, check_statistics
from moteur.recipes.checkpoints.whole import whole_folder
from moteur.recipes.config import InternVLAA1Config

# The mixin takes any keyword where we name ours, which a type checker calls incompatible. And the run-time shape checks
# cannot resolve Self in a method.
Model = TypeVar("Model", bound="Pretrained")


class Pretrained(ModelHubMixin):
    """What a model needs to come from files and go into them.

    Attributes:
        statistics: What each robot's data look like, as plain values; saved and loaded with the weights.
        loading_report: What became of every tensor when this model was loaded, or None if it was not.
    """

    config: InternVLAA1Config
    statistics: Statistics = MappingProxyType({})
    loading_report: LoadingReport | None = None

    @classmethod
    def from_pretrained(  # noqa: PYI019  # pyright: ignore[reportIncompatibleMethodOverride]  # see above
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
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
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Model:
        """Load a model from a folder or a Hub repository, in our own layout or that of the released checkpoints.

        Every tensor of the file and of the model is accounted for in `loading_report`; anything missing, left over or
        of another shape is an error, and then there is no model. No backbone is downloaded. Tensors are read into
        memory of their own, the files may change afterwards, unless `mapped` is asked for. The model is in
        evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or a Hub id `owner/name`.
            revision: Branch, tag or commit on the Hub. Name a commit: published weights have been replaced in place.
            config: Sizes to build, instead of what `config.json` says; needed for the released layout at other sizes
                than the released ones.
            decoder: Hold the Cosmos decoder. None: if the file is ours and has it.
            cosmos: Where the Cosmos tokenizer is, for a checkpoint that comes without: what `load_weights` of
                `moteur.tokenizers` takes.
            cosmos_revision: Branch, tag or commit of the tokenizer on the Hub.
            dtype: One format for all weights; "released" for bfloat16 with the released exceptions in float32; None
                for what the file holds. Of a released file in half precision, None also holds those exceptions in
                float32, which is exact.
            device: Where the weights go.
            strict: With False, tensors that the model has no place for are left out and missing ones drawn from
                `seed`, with a warning that names them. A wrong shape is an error all the same.
            seed: Of whatever has to be drawn.
            mapped: Let tensors be views of their files, as far as they need no conversion. Loading then takes next to
                no time and memory until the weights are used, and the files must not be changed in place while the
                model lives: its weights would change, or the process end.
            cache_dir: Of the Hub's client, for checkpoint and tokenizer, like the next three.
            token: The same.
            force_download: The same.
            local_files_only: The same: take nothing from the network.

        Raises:
            ValueError: Nothing of that name; a file that is missing, truncated or corrupt; a configuration that is
                incomplete or contradicts itself or the tensors; tensors that do not fit. Files and tensors are named.
        """
        expect_source("pretrained_model_name_or_path", pretrained_model_name_or_path, revision)
        hub = Hub(cache_dir, token, force_download, local_files_only)
        place = place_of_cosmos(cosmos, cosmos_revision, hub)
        if Path(pretrained_model_name_or_path).is_dir():
            read_json(Path(pretrained_model_name_or_path) / CONFIG)  # the mixin would fail without saying where
        return super().from_pretrained(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
            config=None,  # or the mixin would decode config.json on its own, leniently
            decoder=None,
            options=Options(
                config=config,
                decoder=decoder,
                cosmos=place,
                hub=hub,
                dtype=dtype,
                device=torch.device(device),
                strict=strict,
                seed=seed,
                mapped=mapped,
            ),
        )

    @classmethod
    def from_backbone(  # noqa: PYI019  # see above
        cls: type[Model],
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
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Model:
        """Start from a vision-language backbone: vision tower, text embedding and `und` are its own, the rest is fresh.

        Args:
            source: Folder or Hub id of a Qwen3-VL-2B (3B variant) or InternVL3-1B (2B variant; the `-hf` repository) in
                Hugging Face layout.
            config: Every size and constant. Each one that the backbone's `config.json` or processor states is compared.
            seed: Draws `gen`, `act` and the heads, each part on its own: same seed, same bits. The global random state
                is left as it was.
            cosmos: Where the Cosmos tokenizer is: what `load_weights` of `moteur.tokenizers` takes. None only for a
                configuration without foresight.
            revision: Branch, tag or commit of the backbone on the Hub.
            cosmos_revision: The same of the tokenizer.
            decoder: Hold the Cosmos decoder as well.
            accept: Fields of `config` that are meant to differ from the backbone, such as `rope_base`.
            dtype: As in `from_pretrained`.
            device: Where the weights go.
            cache_dir: Of the Hub's client, for backbone and tokenizer, like the next three.
            token: The same.
            force_download: The same.
            local_files_only: The same: take nothing from the network.

        Raises:
            ValueError: A number of the backbone is not ours, a tensor is missing, left over or of another shape, or a
                file is truncated or corrupt. Fields, tensors and files are named.
        """
        expect_source("source", source, revision)
        hub = Hub(cache_dir, token, force_download, local_files_only)
        options = Options(
            config=config,
            decoder=decoder,
            cosmos=place_of_cosmos(cosmos, cosmos_revision, hub),
            hub=hub,
            dtype=dtype,
            device=torch.device(device),
            strict=True,
            seed=seed,
            mapped=False,
        )
        folder = hub.folder(source, revision, OF_BACKBONE)
        return _with_report(load_backbone(cls, folder, options, accept=accept))

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]  # see above
        self,
        save_directory: str | Path,
        *,
        config: InternVLAA1Config | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,  # noqa: ANN401 -- handed on
    ) -> str | None:
        """Write `config.json`, `model.safetensors`, `stats.json` if there are statistics, and a model card.

        The files appear together when all are written; a save that is cut off leaves what was there, what is new, or
        a folder that `from_pretrained` refuses. A `README.md` that is there is kept.

        Args:
            save_directory: Made if needed.
            config: The model's own, or None.
            repo_id: Where to push; None takes the folder's name.
            push_to_hub: Upload as well.
            model_card_kwargs: `{"weights_licence": ...}`, to be named in the model card.
            **options: For `push_to_hub`.

        Returns:
            The address of the commit, if it was pushed.

        Raises:
            ValueError: Another configuration than the model's, or statistics that no file can hold.
        """
        if config not in {None, self.config}:
            raise ValueError("config: expected None or the configuration of this model, got another one")
        folder = Path(save_directory)
        with whole_folder(folder, last=CONFIG, stale=(STATISTICS, INDEX)) as stage:
            super().save_pretrained(stage, model_card_kwargs=model_card_kwargs)
            if (folder / "README.md").exists():
                (stage / "README.md").unlink()
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **options)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]  # the mixin's other arguments pass through
        self,
        repo_id: str,
        *,
        delete_patterns: list[str] | str | None = None,
        **options: Any,  # noqa: ANN401 -- handed on
    ) -> str:
        """Upload what `save_pretrained` writes, and remove what an earlier upload left behind, in one commit.

        Statistics and shards of other weights must not stay beside these; other files of the repository do.

        Args:
            repo_id: "owner/name"; made if needed.
            delete_patterns: What to remove, instead of old statistics, index and shards.
            **options: `commit_message`, `private`, `token`, `branch`, `create_pr`, `model_card_kwargs` and whatever
                else the mixin of huggingface_hub takes.

        Returns:
            The address of the commit.
        """
        stale = [STATISTICS, INDEX, "model-*-of-*.safetensors"]
        return super().push_to_hub(
            repo_id, delete_patterns=stale if delete_patterns is None else delete_patterns, **options
        )

    @classmethod
    def _from_pretrained(  # noqa: PYI019  # pyright: ignore[reportIncompatibleMethodOverride]  # see above
        cls: type[Model],
        *,
        model_id: str,
        revision: str | None,
        options: Options,
        **handed_over: object,  # what options.hub holds already, and more in huggingface_hub before 1.0
    ) -> Model:
        del handed_over
        folder = options.hub.folder(model_id, revision, PATTERNS)
        return _with_report(load_folder(cls, folder, options))

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in cast("nn.Module", self).state_dict().items()
        }
        save_file(tensors, save_directory / SINGLE, metadata={"format": "pt"})
        statistics = check_statistics(self.statistics)
        if statistics:
            _write(save_directory / STATISTICS, statistics)
        _write(save_directory / CONFIG, config_to_json(self.config))

    def generate_model_card(self, *, weights_licence: str | None = None) -> ModelCard:
        """The card that `save_pretrained` writes: licences of code and weights, named separately."""
        return model_card(self.config, weights_licence=weights_licence)


def _with_report(loaded: Loaded) -> Any:  # noqa: ANN401 -- a model of the class that was asked for
    model = cast("Pretrained", loaded.model)
    model.statistics, model.loading_report = loaded.statistics, loaded.report
    return model


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
