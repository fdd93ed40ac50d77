"""The Hub, without a network: its cache, revisions, the client's options, mistyped folders, and what is uploaded."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from toy_backbones import CONFIGS
from toy_checkpoints import released_tensors, states_equal
from toy_model import randomised

from moteur.data import LeRobotSet
from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints.load import load_foresight
from moteur.recipes.checkpoints.save import load_tokenizer
from moteur.runtime import InferenceSession, Policy
from moteur.tokenizers import CosmosEncoder, load_weights

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
BACKBONE, COSMOS = "owner/backbone", "nvidia/Cosmos-Tokenizer-CI8x8"


def repository(cache: Path, name: str, write: Callable[[str, Path], object]) -> None:
    """A repository in the Hub's cache as its client leaves it, with a snapshot of each revision."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for revision, commit in COMMITS.items():
        (folder / "refs" / revision).write_text(commit)
        write(revision, folder / "snapshots" / commit)


@pytest.fixture
def cache(folders: dict[str, Path], tmp_path: Path) -> Path:
    """v1 of backbone and tokenizer is what `folders` holds, main is zeros."""

    def write(folder: Path) -> Callable[[str, Path], None]:
        def snapshot(revision: str, target: Path) -> None:
            shutil.copytree(folder, target)
            for path in target.glob("*.safetensors") if revision == "main" else ():
                save_file({key: tensor.zero_() for key, tensor in load_file(path).items()}, path)

        return snapshot

    repository(tmp_path / "cache", BACKBONE, write(folders["3B"]))
    repository(tmp_path / "cache", COSMOS, write(folders["cosmos"]))
    return tmp_path / "cache"


def test_a_hub_id_is_loaded_from_the_cache_at_the_revision_asked_for(any_model: InternVLAA1, tmp_path: Path) -> None:
    newer = randomised(any_model.config)
    repository(
        tmp_path,
        "owner/name",
        lambda revision, folder: {"main": newer, "v1": any_model}[revision].save_pretrained(folder),
    )
    newest = tmp_path / "models--owner--name" / "snapshots" / COMMITS["main"] / "config.json"
    newest.write_text(newest.read_text().replace('"steps": 3', '"steps": 9'))
    where: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    loaded = InternVLAA1.from_pretrained("owner/name", **where)
    assert loaded.config.steps == 9
    assert loaded.loading_report.source == "owner/name"
    for revision in ("v1", COMMITS["v1"]):
        loaded = InternVLAA1.from_pretrained("owner/name", revision=revision, **where)
        assert loaded.config == any_model.config
        assert states_equal(loaded, any_model)
        assert loaded.loading_report.source == f"owner/name at {revision}"


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
    where: dict[str, Any] = {"cache_dir": cache, "local_files_only": True}
    options: dict[str, Any] = {"config": CONFIGS["3B"], "seed": 0, **where}
    for argument, load in (
        ("source", lambda: InternVLAA1.from_pretrained("owner/other", **where)),
        ("source", lambda: load_tokenizer("owner/other", **where)),
        ("source", lambda: InternVLAA1.from_backbone("owner/other", cosmos=COSMOS, **options)),
        ("cosmos", lambda: InternVLAA1.from_backbone(folders["3B"], cosmos="owner/other", **options)),
    ):
        message = (
            rf"^{argument}: expected a folder or a repository of the Hub, got 'owner/other'; there is no such folder"
        )
        with pytest.raises(FileNotFoundError, match=message):
            load()


def test_the_hubs_client_is_told_everything_for_backbone_and_tokenizer_alike(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def download(repository: str, **options: object) -> str:
        calls.append({"repository": repository, **options})
        return str(folders["3B" if repository == BACKBONE else "cosmos"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    client = {"cache_dir": "somewhere", "token": "secret", "force_download": True, "local_files_only": False}
    loaded = InternVLAA1.from_backbone(
        BACKBONE, config=CONFIGS["3B"], seed=0, cosmos=COSMOS, revision="r", cosmos_revision="c", **client
    )
    assert states_equal(loaded, start())
    backbone, cosmos = calls
    patterns = {"config.json", "model.safetensors", "model-*-of-*.safetensors", "preprocessor_config.json"}
    assert patterns <= set(backbone.pop("allow_patterns"))
    assert "encoder.safetensors" in cosmos.pop("allow_patterns")
    assert backbone == {"repository": BACKBONE, "revision": "r", **client}
    assert cosmos == {"repository": COSMOS, "revision": "c", **client}


@pytest.mark.parametrize("mistyped", ["no/such/folder", "nothing", Path("owner/name"), "ow ner/name", "./u1", "~/u1"])
def test_what_is_no_folder_and_no_hub_id_is_refused_without_asking_the_hub(
    mistyped: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    for load in (InternVLAA1.from_pretrained, load_tokenizer):
        with pytest.raises(
            ValueError, match=r"^source: expected a folder or a Hub id owner/name, got '.*'; there is no "
        ):
            load(mistyped)


def test_a_mistyped_folder_beside_others_is_refused_without_asking_the_hub_unless_a_revision_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    message = r"got 'runs/frist'; there is no such folder, and runs holds first\. .* on the Hub give revision=$"
    with pytest.raises(ValueError, match=message):
        InternVLAA1.from_pretrained("runs/frist")
    with pytest.raises(AssertionError, match="runs/frist"):
        InternVLAA1.from_pretrained("runs/frist", revision="main")


def asked(repository: str, **_: object) -> None:
    raise AssertionError(repository)


def test_a_hub_without_the_repository_is_an_error_that_says_there_is_no_such_folder_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot reach it.\nMore.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    message = "got 'u1/nosuch'; there is no such folder in .*, and the Hub's client says: Cannot reach it.$"
    with pytest.raises(FileNotFoundError, match=message):
        InternVLAA1.from_pretrained("u1/nosuch")


def test_a_revision_of_what_is_on_this_machine_is_refused_before_anything_is_read(
    folders: dict[str, Path], start: Callable[..., InternVLAA1], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"^revision: expected None for .*, which is on this machine, got 'v1'"):
        start(revision="v1")
    (tmp_path / "config.json").write_text(json.dumps({}))  # not looked at
    for cosmos in (folders["cosmos"], folders["cosmos"] / "cosmos.safetensors"):
        message = r"^cosmos_revision: expected None for .*, which is on this machine, got 'v1'"
        with pytest.raises(ValueError, match=message):
            start(cosmos=cosmos, cosmos_revision="v1")
        with pytest.raises(ValueError, match=message):
            InternVLAA1.from_pretrained(tmp_path, cosmos=cosmos, cosmos_revision="v1")
    with pytest.raises(ValueError, match=r"^cosmos_revision: expected None without cosmos=, got 'v1'"):
        start(cosmos=None, cosmos_revision="v1")
    for nowhere in ("nowhere", "a/b/c", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r"^cosmos: expected a file, a folder or a Hub id owner/name, got "):
            start(cosmos=nowhere)


def test_pushing_uploads_exactly_what_is_saved(
    model: InternVLAA1, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: dict[str, bytes] = {}
    said: dict[str, object] = {}

    class Repository:
        repo_id = "owner/name"

    def create(_: HfApi, **options: object) -> Repository:
        assert options == {"repo_id": "owner/name", "private": True, "exist_ok": True}
        return Repository()

    def upload(_: HfApi, *, folder_path: str, **options: object) -> str:
        said.update(options)
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    model.save_pretrained(tmp_path / "here", weights_licence="mine")
    address = model.push_to_hub(
        "owner/name", weights_licence="mine", private=True, commit_message="first", revision="b"
    )
    assert address == "https://example.org/commit"
    assert said["delete_patterns"] == ["stats.json", "model.safetensors.index.json", "model-*-of-*.safetensors"]
    assert (said["repo_id"], said["commit_message"], said["revision"]) == ("owner/name", "first", "b")
    card = uploaded.pop("README.md").decode()
    assert "| these weights | mine |" in card
    assert 'from_pretrained("owner/name")' in card
    assert uploaded == {
        path.name: path.read_bytes() for path in (tmp_path / "here").iterdir() if path.name != "README.md"
    }


@pytest.mark.parametrize("name", ["strct", "devise", "dtpe", "revison"])
def test_a_misspelt_option_is_refused_by_every_loader(name: str, model: InternVLAA1, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    wrong = {name: None}
    loaders = [
        partial(InternVLAA1.from_pretrained, tmp_path),
        partial(Policy.from_pretrained, tmp_path, tokenizer=len),
        partial(InferenceSession.from_pretrained, tmp_path),
        partial(load_foresight, tmp_path),
        partial(load_tokenizer, tmp_path),
        partial(load_weights, CosmosEncoder(model.config.cosmos), tmp_path),
        partial(InternVLAA1.from_backbone, tmp_path, config=model.config, seed=0, cosmos=None),
    ]
    for load in loaders:
        with pytest.raises(TypeError, match=f"unexpected arguments: {name}"):
            load(**wrong)


def test_an_empty_name_is_no_folder(monkeypatch: pytest.MonkeyPatch, model: InternVLAA1, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="source: expected a folder or a Hub id owner/name, got ''; there is no such"):
        InternVLAA1.from_pretrained("")


def test_a_mistyped_path_asks_nobody(monkeypatch: pytest.MonkeyPatch, model: InternVLAA1, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"source: expected a file, .* got .sets/nope.; there is no such folder"):
        load_weights(CosmosEncoder(model.config.cosmos), "sets/nope")
    with pytest.raises(ValueError, match="repo_id: expected owner/name on the Hub, got 'sets/nope', a path on this"):
        LeRobotSet.download("sets/nope")
