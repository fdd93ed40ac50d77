"""Without `transformers`: everything that does not need it works, and what needs it says what to install."""

import json
import subprocess
import sys
from types import ModuleType

import pytest

from moteur import optional

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "tokenizers", "accelerate"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""

EXAMPLES_OF_EVERY_MODULE = """
import doctest, importlib, json, pkgutil
import moteur

attempted, failed, absent = {}, [], []
for module in pkgutil.walk_packages(moteur.__path__, "moteur."):
    try:
        held = importlib.import_module(module.name)
    except ModuleNotFoundError as error:  # where the extra that reads robot data is absent too
        absent.append((module.name, error.name))
        continue
    results = doctest.testmod(held)
    part = ".".join(module.name.split(".")[:2])
    attempted[part] = attempted.get(part, 0) + results.attempted
    failed += [module.name] * bool(results.failed)
print(json.dumps([attempted, failed, absent]))
"""

RAW_DOOR = """
import json, torch
from moteur.recipes import InternVLAA1, Processor, preset

class Letters:
    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [[ord(letter) for letter in one] for one in text]}

found = {}
for name in ("3B", "2B", "tiny"):
    config = preset(name)
    frames = [torch.zeros(1, 2, 3, 48, 64, dtype=torch.uint8)] * 3
    inputs = Processor(config, Letters())(frames, torch.zeros(1, 4), ["go"])
    try:
        with torch.device("meta"):
            InternVLAA1(config)
        message = "none"
    except ImportError as error:
        message = str(error)
    found[name] = [config.views * config.image_tokens + inputs.instruction.shape[1], message]
print(json.dumps(found))
"""


def printed(program: str) -> object:
    """What a program prints in a process that cannot import `transformers`."""
    run = subprocess.run(  # noqa: S603 - our own program text
        [sys.executable, "-c", HIDDEN + program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_module_imports_and_every_example_in_a_docstring_runs() -> None:
    attempted, failed, absent = printed(EXAMPLES_OF_EVERY_MODULE)
    assert failed == []
    for module, missing in absent:
        assert module.startswith("moteur.data.")
        assert missing in {"pyarrow", "av", "PIL", "tqdm", "filelock", "cachetools"}
    for part in ("masks", "mot", "tokenizers", "flowmatch", "sampling", "recipes"):
        assert attempted[f"moteur.{part}"] > 0, part


def test_pictures_are_prepared_and_only_the_2b_model_names_an_extra_to_install() -> None:
    message = "transformers is not installed: pip install '.[vlm]' in a clone of moteur"
    assert printed(RAW_DOOR) == {"3B": [246, "none"], "2B": [816, message], "tiny": [3 * 18 + 16, "none"]}


def test_a_package_that_is_there_but_broken_is_not_called_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'its_dependency'", name="its_dependency")

    monkeypatch.setattr(optional, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="its_dependency"):
        optional.require("transformers.models", extra="vlm")
