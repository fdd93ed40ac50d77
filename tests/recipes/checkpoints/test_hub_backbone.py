"""A backbone and the tokenizer from the Hub, without a network: revisions, the client's options, refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from toy_backbones import CONFIGS
from toy_checkpoints import released_tensors, states_equal

from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints import source as place

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
BACKBONE, COSMOS = "owner/backbone", "nvidia/Cosmos-Tokenizer-CI8x8"


@pytest.fixture
def cache(folders: dict[str, Path], tmp_path: Path) -> Path:
    """The Hub's cache as its client leaves it: v1 of both repositories is what `folders` holds, main is zeros."""
    for name, folder in {BACKBONE: folders["3B"], COSMOS: folders["cosmos"]}.items():
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        for revision, commit in COMMITS.items():
            (repository / "refs" / revision).write_text(commit)
            shutil.copytree(folder, repository / "snapshots" / commit)
        for path in (repository / "snapshots" / COMMITS["main"]).glob("*.safetensors"):
            save_file({key: tensor.zero_() for key, tensor in load_file(path).items()}, path)
    return tmp_path


def test_a_backbone_and_a_tokenizer_come_from_the_cache_at_the_revisions_asked_for(
    cache: Path, start: Callable[..., InternVLAA1]
) -> None:
    expected = start()

    def load(**revisions: str) -> InternVLAA1:
        return InternVLAA1.from_backbone(
            BACKBONE, config=CONFIGS["3B"], seed=0, cosmos=COSMOS, cache_dir=cache, local_files_only=True, **revisions
        )

    for revision in ("v1", COMMITS["v1"]):
        loaded = load(revision=revision, cosmos_revision=revision)
        assert states_equal(loaded, expected)
        assert {where for _, where in loaded.loading_report.elsewhere} == {f"{COSMOS} at {revision}"}
    newest = load(cosmos_revision="v1")
    assert newest.backbone.text_embedding.weight.count_nonzero() == 0
    assert newest.foresight.encoder.quant_conv.weight.equal(expected.foresight.encoder.quant_conv.weight)
    assert load(revision="v1").foresight.encoder.quant_conv.weight.count_nonzero() == 0


def test_a_checkpoint_without_the_tokenizer_takes_it_from_the_cache_at_its_own_revision(
    cache: Path, start: Callable[..., InternVLAA1], released: Callable[..., Path]
) -> None:
    expected = start()
    tensors = {name: tensor for name, tensor in released_tensors(expected).items() if "_enc_model" not in name}
    folder, where = released(expected, tensors=tensors), {"cache_dir": cache, "local_files_only": True}
    options: dict[str, Any] = {"config": CONFIGS["3B"], "cosmos": COSMOS, **where}
    assert states_equal(InternVLAA1.from_pretrained(folder, cosmos_revision="v1", **options), expected)
    newest = InternVLAA1.from_pretrained(folder, **options)
    assert newest.foresight.encoder.quant_conv.weight.count_nonzero() == 0


def test_what_is_not_in_the_cache_is_not_fetched_when_that_is_forbidden(cache: Path, folders: dict[str, Path]) -> None:
    options: dict[str, Any] = {"config": CONFIGS["3B"], "seed": 0, "cache_dir": cache, "local_files_only": True}
    with pytest.raises(LocalEntryNotFoundError):
        InternVLAA1.from_backbone("owner/other", cosmos=COSMOS, **options)
    with pytest.raises(LocalEntryNotFoundError):
        InternVLAA1.from_backbone(folders["3B"], cosmos="owner/other", **options)


def test_the_hubs_client_is_told_everything_for_backbone_and_tokenizer_alike(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def download(repository: str, **options: object) -> str:
        calls.append({"repository": repository, **options})
        return str(folders["3B" if repository == BACKBONE else "cosmos"])

    monkeypatch.setattr(place, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    client = {"cache_dir": "somewhere", "token": "secret", "force_download": True, "local_files_only": False}
    loaded = InternVLAA1.from_backbone(
        BACKBONE, config=CONFIGS["3B"], seed=0, cosmos=COSMOS, revision="r", cosmos_revision="c", **client
    )
    assert states_equal(loaded, start())
    backbone, cosmos = calls
    patterns = {"config.json", "model.safetensors", "model-*.safetensors", "preprocessor_config.json"}
    assert patterns <= set(backbone.pop("allow_patterns"))
    assert "encoder.safetensors" in cosmos.pop("allow_patterns")
    assert backbone == {"repository": BACKBONE, "revision": "r", **client}
    assert cosmos == {"repository": COSMOS, "revision": "c", **client}


def test_a_revision_of_what_is_on_this_machine_is_refused_before_anything_is_read(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^revision: only the Hub has revisions, and .* is a folder; got 'v1'"):
        start(revision="v1")
    for cosmos in (folders["cosmos"], folders["cosmos"] / "cosmos.safetensors"):
        message = r"^cosmos_revision: only the Hub has revisions, and .* is on this machine; got 'v1'"
        with pytest.raises(ValueError, match=message):
            start(cosmos=cosmos, cosmos_revision="v1")
        (tmp_path / "config.json").write_text(json.dumps({}))  # not looked at
        with pytest.raises(ValueError, match=message):
            InternVLAA1.from_pretrained(tmp_path, cosmos=cosmos, cosmos_revision="v1")
    with pytest.raises(ValueError, match=r"^cosmos_revision: expected None without cosmos=, got 'v1'"):
        start(cosmos=None, cosmos_revision="v1")
    for cosmos in ("nowhere", "a/b/c", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^cosmos: expected a file, a folder or a Hub id owner/name, got "):
            start(cosmos=cosmos)
