"""Saving: whole or not at all, with card and text tokenizer."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from toy_checkpoints import states_equal
from toy_model import randomised, toy_config
from transformers import PreTrainedTokenizerFast

from moteur.data import FieldStatistics, Robot, RobotStatistics, Source
from moteur.recipes import InternVLAA1
from moteur.recipes.checkpoints.report import LoadingReport
from moteur.recipes.checkpoints.save import load_tokenizer
from moteur.recipes.checkpoints.transforms import dump_transforms
from moteur.recipes.config import Variant
from moteur.runtime import InferenceSession
from moteur.runtime.kernels import PackedLinear

CPU = torch.device("cpu")

# Saves once for each call at which the process can die: children of one process, as importing torch takes seconds.
PROGRAM = """
import os, shutil, sys
from pathlib import Path
from toy_model import randomised, toy_config
model = randomised(toy_config())
model.statistics = {"arm": {"state": {"mean": [2.0]}}}

def dying(call, left):
    def wrapped(*args, **kwargs):
        if not left:
            os._exit(9)
        left.pop()
        return call(*args, **kwargs)
    return wrapped

os.fsync = lambda descriptor: None  # what a power failure would lose is no matter here
model.save_pretrained(Path(sys.argv[1]).with_name("warm"))
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        left = [None] * int(Path(folder).name)
        names = ("replace", "unlink", "rename", "write_text", "chmod", "mkdir")
        for owner, name in (*((Path, name) for name in names), (os, "fsync"), (shutil, "rmtree")):
            setattr(owner, name, dying(getattr(owner, name), left))
        model.save_pretrained(folder)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
CALLS = 40


def test_a_save_that_is_killed_at_any_call_leaves_the_old_model_or_the_new_one(tmp_path: Path) -> None:
    old, new = InternVLAA1(toy_config()).eval(), randomised(toy_config())
    folders = [tmp_path / str(call) for call in range(CALLS)]
    old.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "notes.txt").write_text("of somebody else")
    for folder in folders:
        shutil.copytree(tmp_path / "old", folder)
    tests = Path(__file__).parents[2]
    run = subprocess.run(  # noqa: S603 -- our own program text
        [sys.executable, "-c", PROGRAM, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        check=True,
        capture_output=True,
        text=True,
    )
    codes = [int(code) for code in run.stdout.split()]
    assert codes[0] == 9
    assert codes[-1] == 0
    outcomes = [outcome(folder, old, new) for folder in folders]
    assert outcomes == sorted(outcomes, key=["old", "new"].index)
    assert set(outcomes) == {"old", "new"}
    assert outcomes.count("new") > codes.count(0)  # some were killed when the new files counted already
    assert all(result == "new" for result, code in zip(outcomes, codes, strict=True) if code == 0)
    for folder in folders[::5]:
        old.save_pretrained(folder)  # the next save leaves nothing of a killed one, and the files of others
        assert outcome(folder, old, new) == "old"
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "model.safetensors", "README.md", "notes.txt"}


def outcome(folder: Path, old: InternVLAA1, new: InternVLAA1) -> str:
    loaded = InternVLAA1.from_pretrained(folder)
    if loaded.statistics:
        assert states_equal(loaded, new)
        return "new"
    assert states_equal(loaded, old)
    return "old"


def test_a_move_that_fails_is_finished_by_the_next_reader_that_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = randomised(toy_config()), randomised(toy_config(), seed=1)
    old.save_pretrained(tmp_path)
    replace = Path.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "model.safetensors":
            raise OSError(30, "Read-only file system")
        replace(source, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="Read-only"):
        new.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"was cut off, and it cannot be finished here \(.*Read-only file system\); load"
    ):
        InternVLAA1.from_pretrained(tmp_path)
    monkeypatch.undo()
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), new)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_only_looks_like_a_finished_save_moves_nothing_from_elsewhere(tmp_path: Path) -> None:
    model, elsewhere = randomised(toy_config()), tmp_path / "elsewhere"
    model.save_pretrained(tmp_path / "folder")
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text("{}")
    (elsewhere / ".names").write_text('["config.json"]')
    (tmp_path / "folder" / ".complete").symlink_to(elsewhere)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path / "folder"), model)
    assert (elsewhere / "config.json").read_text() == "{}"


# Two processes save different models into one folder, over and over, until they are killed.
SAVING = """
import sys
from toy_model import randomised, toy_config
model = randomised(toy_config(), seed=int(sys.argv[2]))
print("ready", flush=True)
while True:
    model.save_pretrained(sys.argv[1])
"""


def test_a_reader_beside_two_savers_sees_one_of_the_models_each_time(tmp_path: Path) -> None:
    models = [randomised(toy_config(), seed=seed) for seed in range(2)]
    models[0].save_pretrained(tmp_path)
    tests = Path(__file__).parents[2]
    savers = [
        subprocess.Popen(  # noqa: S603 -- our own program text
            [sys.executable, "-c", SAVING, str(tmp_path), str(seed)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
            stdout=subprocess.PIPE,
        )
        for seed in range(2)
    ]
    try:
        for saver in savers:
            assert saver.stdout is not None
            saver.stdout.readline()
        seen = []
        for _ in range(10):
            loaded = InternVLAA1.from_pretrained(tmp_path)
            seen += [seed for seed, model in enumerate(models) if states_equal(loaded, model)]
        assert len(seen) == 10
    finally:
        for saver in savers:
            saver.kill()
            saver.communicate()
    assert any(states_equal(InternVLAA1.from_pretrained(tmp_path), model) for model in models)


@pytest.mark.parametrize("odd", [float("nan"), torch.ones(2)])
def test_statistics_that_no_file_can_hold_are_refused_before_anything_is_written(tmp_path: Path, odd: object) -> None:
    model = randomised(toy_config())
    model.statistics = {"arm": {"state": odd}}
    with pytest.raises(ValueError, match="statistics: expected plain, finite values that JSON can hold"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_saved_files_can_be_read_by_whom_new_files_can(tmp_path: Path) -> None:
    randomised(toy_config()).save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert set(modes.values()) == {plain.stat().st_mode & 0o777}, modes


def words(*vocabulary: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    known = {word: index for index, word in enumerate(("<pad>", "<unk>", *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))  # noqa: S106  # a word, no secret
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")  # noqa: S106


def test_the_text_tokenizer_is_saved_and_loaded_with_the_weights(tmp_path: Path) -> None:
    model = InternVLAA1(toy_config())
    model.save_pretrained(tmp_path, tokenizer=words("fold", "the", "towel"))
    loaded = load_tokenizer(tmp_path)
    assert loaded(["the towel", "fold it"], add_special_tokens=False)["input_ids"] == [[3, 4], [2, 1]]
    model.save_pretrained(tmp_path)  # without a tokenizer: the one that is there stays
    assert load_tokenizer(str(tmp_path))(["towel"])["input_ids"] == [[4]]
    (tmp_path / "merges.txt").write_text("of a tokenizer of another kind")
    model.save_pretrained(tmp_path, tokenizer=words("pick"))
    assert load_tokenizer(tmp_path)(["pick"])["input_ids"] == [[2]]
    assert not (tmp_path / "merges.txt").exists()
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), model)


@pytest.mark.parametrize(
    ("variant", "usual"), [("3B", "Qwen/Qwen3-VL-2B-Instruct"), ("2B", "OpenGVLab/InternVL3-1B-hf")]
)
def test_a_checkpoint_without_a_text_tokenizer_says_which_one_to_use(
    variant: Variant, usual: str, tmp_path: Path
) -> None:
    InternVLAA1(toy_config()).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"expected a text tokenizer, got none; name one .* '{usual}' \({variant} variant\)$"
    ):
        load_tokenizer(tmp_path, variant=variant)
    with pytest.raises(ValueError, match=rf"'{usual}'"):
        load_tokenizer(tmp_path)


def test_any_tokenizer_that_writes_files_is_saved_in_the_same_step_or_not_at_all(tmp_path: Path) -> None:
    class Nested:
        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "templates").mkdir()
            (Path(folder) / "templates" / "one.jinja").write_text("1")

    class Failing:
        def save_pretrained(self, folder: str) -> None:
            Nested().save_pretrained(folder)
            raise OSError(28, "No space left on device")

    model = InternVLAA1(toy_config())
    model.save_pretrained(tmp_path, tokenizer=Nested())
    assert (tmp_path / "templates" / "one.jinja").read_text() == "1"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OSError, match="No space left"):
        randomised(toy_config()).save_pretrained(tmp_path, tokenizer=Failing())
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {path.relative_to(tmp_path).parts[0] for path in before}
    )


def test_the_card_names_the_licences_of_code_and_weights_and_is_kept_when_there(tmp_path: Path) -> None:
    model = InternVLAA1(toy_config())
    model.save_pretrained(tmp_path, weights_licence="CC BY-NC-SA 4.0")
    card = (tmp_path / "README.md").read_text()
    assert "| code that runs it (moteur) | Apache-2.0 |" in card
    assert "| these weights | CC BY-NC-SA 4.0 |" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    model.save_pretrained(tmp_path / "other")
    assert "| these weights | not stated by whoever saved this" in (tmp_path / "other" / "README.md").read_text()


def test_the_card_says_the_real_size_and_what_the_weights_started_from(tmp_path: Path) -> None:
    model = InternVLAA1(toy_config())
    count = sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(tmp_path / "fresh")
    card = ModelCard.load(tmp_path / "fresh" / "README.md")
    assert f"# InternVLA-A1, {count / 1e6:.1f} million parameters\n" in card.text
    assert (card.data.library_name, card.data.pipeline_tag, card.data.base_model) == ("moteur", "robotics", None)
    for source, layout, base in (
        ("owner/name at v1", "released 3B", "owner/name"),
        (str(tmp_path), "Qwen3-VL", "Qwen/Qwen3-VL-2B-Instruct"),
        (str(tmp_path), "moteur", None),
    ):
        model.loading_report = LoadingReport(source, layout)
        model.save_pretrained(tmp_path / layout)
        assert ModelCard.load(tmp_path / layout / "README.md").data.base_model == base


@pytest.mark.parametrize("tokenizer", [None, words("fold", "the", "towel")])
@pytest.mark.parametrize("several", [False, True])
def test_the_card_names_robots_and_tokenizer_and_its_code_ends_in_acting(
    tokenizer: PreTrainedTokenizerFast | None, several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config()
    model = InternVLAA1(config)
    fields = {
        group: FieldStatistics(9, (0.0,) * 3, (1.0,) * 3, (-1.0,) * 3, (1.0,) * 3) for group in ("state", "action")
    }
    robot = Robot(
        name="arm",
        state=(Source("observation.state", 3),),
        action=(Source("action", 3),),
        cameras=("observation.images.front", None, "observation.images.wrist"),
        joints=("x", "y", "gap"),
    )
    model.statistics = {
        **dump_transforms(config.transform(robot, RobotStatistics("arm", config.chunk, **fields))),
        **(RELEASED if several else {}),
    }
    model.save_pretrained(tmp_path, tokenizer=tokenizer)
    card = (tmp_path / "README.md").read_text()
    assert "| arm | `observation.images.front`, none, `observation.images.wrist` | 3 | 3: x, y, gap |" in card
    assert ("| aloha | as its built-in schema says | | |" in card) == several
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    if tokenizer is None:  # it cannot be downloaded here
        assert ', tokenizer="Qwen/Qwen3-VL-2B-Instruct")' in code
        compile(code, "card", "exec")
        return
    monkeypatch.chdir(tmp_path)
    done: dict[str, Any] = {}
    exec(code.replace("moteur.runtime import", "moteur.runtime.policy import"), done)  # noqa: S102
    assert done["commands"].actions.shape == (config.chunk, 3)
    assert done["commands"].names == ("x", "y", "gap")


RELEASED = {
    "aloha": {
        column: {name: [float(index)] * 14 for index, name in enumerate(("mean", "std", "min", "max"))}
        for column in ("observation.state", "action")
    }
}


class Adapted(nn.Linear):
    """A linear map with a low-rank term beside it, under names as adapters have them."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)


def changed(model: InternVLAA1, how: str) -> InternVLAA1:
    head = model.action
    if how == "adapter":
        head.action_in = Adapted(head.action_in)
    elif how == "other size":
        head.action_in = nn.Linear(head.action_in.in_features, head.action_in.out_features + 1)
    elif how == "quantised":
        head.action_in.weight = nn.Parameter(head.action_in.weight.to(torch.int8), requires_grad=False)
    elif how == "taken over":
        InferenceSession(
            model, kernel="onednn" if PackedLinear.available(CPU, torch.float32) else "aten", take_over=True
        )
    elif how == "not finite":
        with torch.no_grad():
            head.action_in.weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("adapter", r"got 1 that are others, new or missing: action\.action_in\.lora_A\.weight; merge adapters"),
        ("other size", r"got 2 that are others, new or missing: action\.action_in\.weight, action\.action_in\.bias;"),
        ("quantised", r"got 1 that are others, new or missing: action\.action_in\.weight;"),
        ("taken over", r"model: expected the tensors that its configuration stands for, got \d+ that are others"),
        ("not finite", r"action\.action_in\.weight: expected finite weights, got 1 that are not"),
    ],
)
def test_a_model_that_could_not_be_loaded_is_not_saved(how: str, message: str, tmp_path: Path) -> None:
    good = randomised(toy_config())
    good.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        changed(randomised(toy_config(), seed=1), how).save_pretrained(tmp_path)
    assert states_equal(InternVLAA1.from_pretrained(tmp_path), good)
