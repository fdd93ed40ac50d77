"""What the recipe computes under the installed `transformers`, and how that differs from version to version.

Run by transformers_compat.sh: once in each environment to record (`record`, and `processors` where torchvision can be
imported), once to compare what was recorded (`compare`). Weights and inputs depend on their names alone, so every
environment sees the same ones.
"""

import argparse
import importlib.metadata
import json
import platform
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import torch
from moteur.recipes.backbones.towers import intern_vit, merged_tokens, qwen3_vl_tower
from moteur.recipes.patches import Qwen3VLPatches
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moteur.recipes import Inputs, InternVLAA1, InternVLAA1Config, Observation, Processor, Targets, preset

PACKAGES = ("transformers", "tokenizers", "huggingface_hub", "torch", "numpy", "safetensors")
WORDS = ["<pad>", "<unk>", "put", "the", "red", "block", "away"]


def drawn(name: str, *shape: int) -> Tensor:
    """Normal numbers that depend on `name` and `shape` alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def weighted(module: nn.Module) -> nn.Module:
    """Weights that all matter and keep activations in bounds: the same in every version, in whatever order built."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = drawn(name, *parameter.shape)
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(
                1 + 0.1 * noise if gain else noise * (0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
            )
    return module.eval()


def observation() -> Observation:
    """Cameras of three sizes, one of them missing in the second sample."""
    sizes = [(480, 640), (300, 170), (224, 224)]
    frames = [(drawn(f"view {size}", 2, 2, 3, *size).sigmoid() * 255).byte() for size in sizes]
    valid = torch.tensor([[True, True, True], [True, False, True]])
    return Observation(frames, drawn("state", 2, 3), ["put the red block away", "the block"], view_valid=valid)


def recorded_processor(variant: str) -> dict[str, Tensor]:
    """Ids, masks and pixels of the raw door at published sizes."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - only where transformers is installed
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    inputs = Processor(preset(variant), PreTrainedTokenizerFast(tokenizer_object=words))(observation())
    held = {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}
    return held | {"image_grid": torch.tensor(inputs.image_grid)}


def recorded_towers(dtype: torch.dtype) -> dict[str, Tensor]:
    """Both vision towers at full size."""
    with torch.no_grad():
        config = preset("3B")
        tower = weighted(qwen3_vl_tower(config.vision, dim=config.und.dim)).to(dtype)
        grid = torch.tensor([[1, 16, 16], [1, 8, 12]])
        qwen = merged_tokens(tower, drawn("patches", 256 + 96, 3 * 2 * 16 * 16).to(dtype), grid)
        del tower
        intern = weighted(intern_vit(preset("2B").vision)).to(dtype)(drawn("image", 1, 3, 448, 448).to(dtype))
    return {"3B tower": qwen, "2B tower": intern.last_hidden_state}


def recorded_recipe(config: InternVLAA1Config, inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    """The whole recipe at toy size: actions, foresight, loss, and the gradients that reach the vision tower."""
    model = weighted(InternVLAA1(config)).to(dtype)
    assert isinstance(model, InternVLAA1)
    floats = {name: value.to(dtype) for name, value in vars(inputs).items() if is_float(value)}
    inputs = replace(inputs, **floats).to("cpu")
    batch = inputs.state.shape[0]
    chunk = (batch, config.chunk, config.action_dim)
    noise = drawn("noise", *chunk).to(dtype)
    future = drawn("future", batch, config.views, 3, config.frame_size, config.frame_size).sigmoid().to(dtype)
    targets = Targets(actions=drawn("actions", *chunk).to(dtype), future_frames=future)
    actions, latents = model.act(inputs, noise=noise), model.imagine(inputs).latents
    losses = model.loss(inputs, targets, noise=noise, tau=torch.tensor([0.2, 0.7], dtype=dtype))
    losses.total.backward()
    tower = torch.cat([parameter.grad.flatten() for _, parameter in sorted(model.backbone.vision.named_parameters())])
    name = f"toy {config.variant}"
    held = {"actions": actions, "latents": latents, "loss": losses.total.detach()[None], "gradients": tower}
    return {f"{name} {key}": value for key, value in held.items()}


def is_float(value: object) -> bool:
    """Whether a value is a tensor of floats."""
    return isinstance(value, Tensor) and value.is_floating_point()


def record(out: Path) -> None:
    """Write what this environment computes, in float32 and in float64, and its versions."""
    from toy_model import random_inputs, toy_config, toy_config_2b  # noqa: PLC0415 - lies among the tests

    held = {
        f"exact/{variant} {key}": value
        for variant in ("3B", "2B")
        for key, value in recorded_processor(variant).items()
    }
    for dtype in (torch.float32, torch.float64):
        computed = recorded_towers(dtype)
        for config in (toy_config(), toy_config_2b()):
            computed |= recorded_recipe(config, random_inputs(config, 2, seed=1), dtype)
        held |= {f"{dtype}/{key}".removeprefix("torch."): value for key, value in computed.items()}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    save_file({name: value.contiguous() for name, value in held.items()}, out, metadata=versions)


def processors(out: Path) -> None:
    """Compare our pixels with the image processor of `transformers` for tensors, in this environment.

    It needs torchvision, whose compiled part does not fit a CPU-only torch: the two operators that its import asks for
    are declared here, and none is called.
    """
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from transformers.models import qwen2_vl  # noqa: PLC0415 - after the operators are declared

    # In 4.57 the plain name is the one for PIL images, in 5 the one for tensors.
    version = int(importlib.metadata.version("transformers").split(".")[0])
    theirs = qwen2_vl.Qwen2VLImageProcessorFast if version < 5 else qwen2_vl.Qwen2VLImageProcessor
    vision = replace(preset("3B").vision, max_pixels=2**20)  # the published limit binds in pictures of gigabytes alone
    processor = theirs(
        size={"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels},
        patch_size=vision.patch,
        temporal_patch_size=vision.patch_frames,
        merge_size=vision.merge,
        image_mean=list(vision.mean),
        image_std=list(vision.std),
        do_rescale=False,
    )
    found: dict[str, float] = {}
    for size in ((224, 224), (256, 256), (300, 100), (240, 16), (480, 640), (1250, 1000)):
        frames = drawn(f"frames {size}", 1, 2, 3, *size).sigmoid()
        frames[:, 1] = (frames[:, 1] > 0.5).float()
        ours, grid = Qwen3VLPatches(vision)(frames)
        expected = processor(images=list(frames.flatten(0, 1)), return_tensors="pt")
        assert expected["image_grid_thw"][:, 1:].tolist() == [list(one) for one in grid], size
        found[f"{size[0]}x{size[1]}"] = (ours.flatten(0, 1) - expected["pixel_values"]).abs().max().item()
    out.write_text(json.dumps({"class": theirs.__name__, "largest differences": found}))


def tests_of(report: Path) -> dict[str, int]:
    """How the tests of an environment went."""
    suite = ET.parse(report).getroot()[0]  # noqa: S314 - a file that pytest just wrote
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    skipped, whole = int(suite.attrib["skipped"]), int(suite.attrib["tests"])
    return {"passed": whole - failed - skipped, "skipped": skipped, "failed": failed}


def compare(folder: Path, out: Path) -> bool:
    """Write the differences; True if each is explained by float32 rounding, and what must be equal is."""
    sides = {
        path.parent.name.removeprefix("transformers-"): path for path in sorted(folder.glob("*/outputs.safetensors"))
    }
    (_, first), (_, second) = held = [(name, load_file(path)) for name, path in sides.items()]
    assert first.keys() == second.keys(), "the environments recorded different things"
    equal = {name: torch.equal(first[name], second[name]) for name in first if name.startswith("exact/")}
    rows, explained = {}, True
    for name in (name.removeprefix("float32/") for name in sorted(first) if name.startswith("float32/")):
        narrow, wide = ([side[f"{dtype}/{name}"].double() for _, side in held] for dtype in ("float32", "float64"))
        rounding = [(one - exact).abs().max().item() for one, exact in zip(narrow, wide, strict=True)]
        difference = (narrow[0] - narrow[1]).abs().max().item()
        explained &= difference <= 2 * max(rounding)
        rows[name] = {
            "shape": list(first[f"float32/{name}"].shape),
            "largest value": wide[0].abs().max().item(),
            "difference in float32": difference,
            "difference in float64": (wide[0] - wide[1]).abs().max().item(),
            "float32 from float64": dict(zip(sides, rounding, strict=True)),
        }
    found = {side: json.loads((path.parent / "processors.json").read_text()) for side, path in sides.items()}
    homes = [folder / "core", *(path.parent for path in sides.values())]
    tests = {home.name: tests_of(home / "tests.xml") for home in homes}
    fine = explained and all(equal.values()) and not any(result["failed"] for result in tests.values())
    fine &= not any(max(one["largest differences"].values()) for one in found.values())
    result = {
        "command": "make compat",
        "device": "cpu, 1 thread",
        "versions": {side: versions_of(path) for side, path in sides.items()},
        "the raw door (ids, masks, pixels, frames) is equal bit for bit": all(equal.values()),
        "differences are at most twice float32 rounding": explained,
        "outputs": rows,
        "pixels beside transformers' own image processor": found,
        "tests": tests,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return fine


def versions_of(path: Path) -> dict[str, str]:
    """The versions that were written beside the tensors."""
    size = int.from_bytes(path.read_bytes()[:8], "little")
    return dict(sorted(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"].items()))


def main() -> None:
    """Do one of the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["record", "processors", "compare"])
    parser.add_argument("--folder", type=Path, help="where the environments lie, for `compare`")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.action == "compare":
        sys.exit(not compare(arguments.folder, arguments.out))
    {"record": record, "processors": processors}[arguments.action](arguments.out)


if __name__ == "__main__":
    main()
