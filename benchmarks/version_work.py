"""Run the work of one version of moteur in a process of its own, whenever the parent asks for it.

`before_after.py` starts two of these, each with another checkout first on `PYTHONPATH`: `python
benchmarks/version_work.py before|after PART FOLDER OPTIONS`. Each line of standard input is the name of an arm; the
answer is a line of JSON with the CPU seconds of one run. What an arm returned is saved as
`FOLDER/VERSION-ARM.pt`, so that the parent can compare.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH, BATCHES = 8, 3
Arm = Callable[[], dict[str, Tensor]]


class FixedWords:
    """Text tokenizer stand-in: 16 tokens for every text."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        """The same tokens for every text."""
        del add_special_tokens
        return {"input_ids": [list(range(10, 26)) for _ in text]}


class Version:
    """One version of moteur at work in another process, as the parent sees it."""

    def __init__(self, name: str, root: Path, part: str, folder: Path, options: dict[str, Any]) -> None:
        self.name, self.folder = name, folder
        self._process = subprocess.Popen(  # noqa: S603 -- our own program
            [sys.executable, __file__, name, part, str(folder), json.dumps(options)],
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._answer()
        assert Path(self.facts["file"]).is_relative_to(root), self.facts

    def run(self, arm: str) -> dict[str, float]:
        """CPU seconds of one run of an arm, and those of them outside the kernel."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{arm}\n")
        self._process.stdin.flush()
        return self._answer()

    def result(self, arm: str) -> dict[str, Tensor]:
        """What the last run of an arm returned."""
        return torch.load(self.folder / f"{self.name}-{arm}.pt")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of version {self.name!r} ended with {self._process.wait()}")
        return json.loads(line)


def session(version: Any, folder: Path, options: dict[str, Any]) -> tuple[dict[str, Arm], dict[str, Any]]:  # noqa: ANN401
    """Arms of the ways to act over the checkpoint in `FOLDER/checkpoint`."""
    recipes = importlib.import_module("moteur.recipes")
    config, dtype = sized(options), getattr(torch, options["dtype"])
    held = torch.float32 if dtype == torch.float32 else None  # None: bfloat16, with the released exceptions
    model = recipes.InternVLAA1.from_pretrained(folder / "checkpoint", config=config, dtype=held)
    model.eval().requires_grad_(requires_grad=False)
    draw = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (1, 3, 2, 3, 224, 224), dtype=torch.uint8, generator=draw)
    state = torch.randn(1, config.state_dim, generator=draw)
    noise = torch.randn(1, config.chunk, config.action_dim, generator=draw)
    inputs = version.make_inputs(config, FixedWords(), frames, state)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    running = version.Session(model, inputs, dtype=dtype, alone=options["sessions_only"])
    plain: dict[str, Arm] = {"plain": lambda: {"actions": model.act(inputs, noise=noise)}}
    if options["sessions_only"]:
        del model, plain["plain"]
    running.begin(noise)
    arms = plain | {
        "stateless": lambda: {"actions": running.stateless(noise)},
        "steady": lambda: {"actions": running.steady(noise)},
        "push": lambda: running.push() or {},
        "pushed": lambda: {"actions": running.pushed(noise)},
    }
    return arms, {"parameters": parameters, "session_computes_in": str(running.computes_in).removeprefix("torch.")}


def loader(version: Any, folder: Path, options: dict[str, Any]) -> tuple[dict[str, Arm], dict[str, Any]]:  # noqa: ANN401
    """Arms of the loader and of its collator alone, over the set in `FOLDER/set`."""
    del options
    config = importlib.import_module("moteur.recipes").preset("3B")
    loading = version.Loading(folder / "set", config, FixedWords(), batch=BATCH)
    samples = [loading.dataset[place] for place in range(BATCH)]

    def draw() -> dict[str, Tensor]:
        last = [batch for _, batch in zip(range(BATCHES), loading.batches(), strict=False)][-1]
        return compared(last)

    def compared(batch: Any) -> dict[str, Tensor]:  # noqa: ANN401
        tensors = loading.tensors(batch)
        return {name: tensors[name] for name in ("inputs.state", "targets.actions", "targets.valid_future")} | {
            "pictures": loading.pictures(batch)
        }

    tensors = loading.tensors(loading.collate(samples))
    sizes = {name: value.nbytes // BATCH for name, value in tensors.items() if value.nbytes >= 1000 * BATCH}
    facts = {"bytes_per_sample": sum(value.nbytes for value in tensors.values()) // BATCH, "largest_tensors": sizes}
    return {"loader": draw, "collator": lambda: compared(loading.collate(samples))}, facts


def statistics(version: Any, folder: Path, options: dict[str, Any]) -> tuple[dict[str, Arm], dict[str, Any]]:  # noqa: ANN401
    """The arm that computes statistics of the set in `FOLDER/numbers`."""
    del options

    def compute() -> dict[str, Tensor]:
        found = version.statistics_of([folder / "numbers"])
        fields = ("count", "mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99")
        return {
            f"{group}.{name}": torch.tensor(found[group][name], dtype=torch.float64)
            for group in ("state", "action")
            for name in fields
        }

    return {"statistics": compute}, {}


def sized(options: dict[str, Any]) -> Any:  # noqa: ANN401
    """The configuration of the 3B variant, cut in depth and vocabulary."""
    recipes = importlib.import_module("moteur.recipes")
    config = recipes.preset("3B")
    vision = replace(config.vision, depth=options["vision_depth"], deepstack=())
    tokens = replace(config.token_ids, image=3, vision_start=1, vision_end=2, pad=0)
    return replace(config, depth=options["depth"], vision=vision, vocabulary=options["vocabulary"], token_ids=tokens)


def main() -> None:
    """Make the arms, then run one for each line that arrives."""
    which, part, where, options = sys.argv[1:]
    answers, sys.stdout, folder = sys.stdout, sys.stderr, Path(where)
    torch.set_num_threads(1)
    version = importlib.import_module(f"version_{which}")
    arms, facts = {"session": session, "loader": loader, "statistics": statistics}[part](
        version, folder, json.loads(options)
    )
    file = str(importlib.import_module("moteur").__file__)
    print(json.dumps(facts | {"file": file, "arms": list(arms)}), file=answers, flush=True)
    for line in sys.stdin:
        name, begun, outside = line.strip(), time.process_time(), os.times().user
        with torch.inference_mode():
            result = arms[name]()
        taken = {"cpu_seconds": time.process_time() - begun, "user_seconds": os.times().user - outside}
        torch.save(result, folder / f"{which}-{name}.pt")
        print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
    main()
