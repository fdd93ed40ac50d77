"""A save that is cut off never leaves half a model that loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toy_checkpoints import states_equal
from toy_model import randomised, toy_config

from moteur.recipes import InternVLAA1

# Saves once for each step at which the process can die: children of one process, as importing torch takes seconds.
PROGRAM = """
import os, sys
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

for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        left = [None] * int(Path(folder).name)
        for owner, name in ((os, "replace"), (Path, "unlink")):
            setattr(owner, name, dying(getattr(owner, name), left))
        model.save_pretrained(folder)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
STEPS = 18


def test_a_save_killed_at_any_step_leaves_the_old_model_the_new_one_or_a_refusal(tmp_path: Path) -> None:
    old, new = InternVLAA1(toy_config()).eval(), randomised(toy_config())
    folders = [tmp_path / str(step) for step in range(STEPS)]
    for folder in folders:
        old.save_pretrained(folder)
    tests = Path(__file__).parents[2]
    run = subprocess.run(  # noqa: S603 -- our own program text
        [sys.executable, "-c", PROGRAM, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
        check=True,
        capture_output=True,
        text=True,
    )
    codes = [int(code) for code in run.stdout.split()]
    outcomes = [outcome(folder, old, new) for folder in folders]
    assert codes[0] == 9
    assert codes[-1] == 0
    assert outcomes == sorted(outcomes, key=["old", "refused", "new"].index)
    assert set(outcomes) == {"old", "refused", "new"}
    assert all(result == "new" for result, code in zip(outcomes, codes, strict=True) if code == 0)


def outcome(folder: Path, old: InternVLAA1, new: InternVLAA1) -> str:
    if not (folder / "config.json").exists():
        with pytest.raises(ValueError, match=r"expected a config\.json in it, got none"):
            InternVLAA1.from_pretrained(folder)
        return "refused"
    loaded = InternVLAA1.from_pretrained(folder)
    if loaded.statistics:
        assert states_equal(loaded, new)
        return "new"
    assert states_equal(loaded, old)
    return "old"
