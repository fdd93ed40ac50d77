"""The Hub, without a network: its cache, revisions, and what would be uploaded."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from toy_checkpoints import states_equal
from toy_model import randomised

from moteur.recipes import InternVLAA1
from moteur.recipes.internvla_a1 import InternVLAA1 as Model

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def cache(any_model: Model, tmp_path: Path) -> Path:
    """The Hub's cache as its client leaves it: two revisions of one repository, the newer one with other weights."""
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    for (revision, commit), model in zip(COMMITS.items(), (randomised(any_model.config), any_model), strict=True):
        (repository / "refs" / revision).write_text(commit)
        model.save_pretrained(repository / "snapshots" / commit)
    newest = repository / "snapshots" / COMMITS["main"] / "config.json"
    newest.write_text(newest.read_text().replace('"steps": 3', '"steps": 9'))
    return tmp_path


def test_a_hub_id_is_loaded_from_the_cache_at_the_revision_asked_for(any_model: Model, cache: Path) -> None:
    where = {"cache_dir": cache, "local_files_only": True}
    assert InternVLAA1.from_pretrained("owner/name", **where).config.steps == 9
    for revision in ("v1", COMMITS["v1"]):
        loaded = InternVLAA1.from_pretrained("owner/name", revision=revision, **where)
        assert loaded.config == any_model.config
        assert states_equal(loaded, any_model)


def test_what_is_not_in_the_cache_is_not_fetched_when_that_is_forbidden(cache: Path) -> None:
    with pytest.raises(LocalEntryNotFoundError):
        InternVLAA1.from_pretrained("owner/other", cache_dir=cache, local_files_only=True)


def test_pushing_uploads_exactly_what_is_saved(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded: dict[str, bytes] = {}

    class Repository:
        repo_id = "owner/name"

    def create(_: HfApi, **options: object) -> Repository:
        assert options["repo_id"] == "owner/name"
        return Repository()

    def upload(_: HfApi, *, folder_path: Path, **options: object) -> str:
        assert options["commit_message"] == "first"
        assert options["delete_patterns"] == ["stats.json", "model.safetensors.index.json", "model-*-of-*.safetensors"]
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})
        return "https://example.org/commit"

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    card = {"weights_licence": "mine"}
    address = model.save_pretrained(
        tmp_path / "here", repo_id="owner/name", push_to_hub=True, model_card_kwargs=card, commit_message="first"
    )
    assert address == "https://example.org/commit"
    assert uploaded == {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert b"| these weights | mine |" in uploaded["README.md"]
    uploaded.clear()
    assert model.push_to_hub("owner/name", commit_message="first") == address
    assert set(uploaded) == {"README.md", "config.json", "model.safetensors"}
