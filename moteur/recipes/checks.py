"""The processed door: what does not fit the model is refused by name, what is masked cannot leak."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from moteur.recipes.config import InternVLAA1Config
from moteur.recipes.inputs import Inputs, Targets


def check_inputs(inputs: Inputs, config: InternVLAA1Config) -> None:
    """Refuse inputs that do not fit the model, before any compute.

    Shapes and dtypes are always checked. Values are read on the CPU only: elsewhere that would wait for a device.

    Raises:
        ValueError: For sizes that disagree with each other or the configuration, frames that are not floats, a state
            that is not finite, or not exactly one of frames and latents.
    """
    check_shapes(inputs, config)
    if config.gen is not None and (inputs.frames is None) == (inputs.latents is None):
        given = "neither" if inputs.frames is None else "both"
        raise ValueError(f"inputs: expected either frames or latents for the generation expert, got {given}")
    if _readable(inputs.state) and not torch.isfinite(inputs.state).all():
        raise ValueError(
            f"state: expected finite values, got {int((~torch.isfinite(inputs.state)).sum())} that are not"
        )


def check_shapes(inputs: Inputs, config: InternVLAA1Config) -> None:
    """Refuse inputs whose sizes or dtypes disagree with each other or the configuration; no value is read.

    Raises:
        ValueError: Naming the argument, what was expected and what arrived.
    """
    batch, views = inputs.state.shape[0], config.views
    expect_shape("image_grid", (len(inputs.image_grid),), (views,))
    expect_shape("view_valid", inputs.view_valid.shape, (batch, views))
    expect_shape("state", inputs.state.shape, (batch, config.state_dim))
    expect_shape("und_valid", inputs.und_valid.shape, tuple(inputs.input_ids.shape))
    expect_shape("input_ids", inputs.input_ids.shape[:1], (batch,))
    patches = sum(rows * columns for rows, columns in inputs.image_grid)
    expect_shape("pixel_values", inputs.pixel_values.shape[:2], (batch, patches))
    for name, seen in (("frames", inputs.frames), ("latents", inputs.latents)):
        if seen is not None:
            expect_shape(name, seen.shape[:3], (batch, views, 2))
            _expect_floats(name, seen)


def check_targets(targets: Targets, inputs: Inputs, config: InternVLAA1Config) -> None:
    """Refuse targets that do not fit the inputs and the model.

    Raises:
        ValueError: For sizes that disagree, futures that are not floats or given twice.
    """
    batch, views = inputs.state.shape[0], config.views
    expect_shape("targets.actions", targets.actions.shape, (batch, config.chunk, config.action_dim))
    for name, future in (("future_frames", targets.future_frames), ("future_latents", targets.future_latents)):
        if future is not None:
            expect_shape(f"targets.{name}", future.shape[:2], (batch, views))
            _expect_floats(f"targets.{name}", future)
    if targets.future_frames is not None and targets.future_latents is not None:
        raise ValueError("targets: expected future frames or future latents, got both")
    if targets.valid_future is not None:
        expect_shape("targets.valid_future", targets.valid_future.shape, (batch, views))


def blanked(inputs: Inputs) -> Inputs:
    """The same inputs with zeros in the pixels and latents of missing cameras, so that not even NaN can leak."""
    owner = [view for view, (rows, columns) in enumerate(inputs.image_grid) for _ in range(rows * columns)]
    seen = inputs.view_valid[:, torch.tensor(owner, device=inputs.view_valid.device)]
    return replace(
        inputs,
        pixel_values=torch.where(seen[..., None], inputs.pixel_values, 0),
        frames=None if inputs.frames is None else only(inputs.frames, inputs.view_valid),
        latents=None if inputs.latents is None else only(inputs.latents, inputs.view_valid),
    )


def only(values: Tensor, valid: Tensor) -> Tensor:
    """Values where `valid` holds, zeros elsewhere; `valid` has the leading axes of `values`."""
    return torch.where(valid.reshape(*valid.shape, *[1] * (values.ndim - valid.ndim)), values, 0)


def real_actions(targets: Targets) -> Tensor:
    """The actions, with zeros where one is not finite and no mask counts it: garbage in padding must stay there."""
    counted = torch.ones_like(targets.actions, dtype=torch.bool)
    if targets.valid_samples is not None:
        counted = counted & targets.valid_samples[:, None, None]
    if targets.valid_steps is not None:
        counted = counted & targets.valid_steps[:, :, None]
    if targets.valid_dims is not None:
        counted = counted & targets.valid_dims[:, None, :]
    return torch.where(counted | torch.isfinite(targets.actions), targets.actions, 0)


def expect_shape(name: str, actual: Iterable[int], expected: tuple[int, ...]) -> None:
    """Refuse a shape that is not the expected one, naming the argument.

    Raises:
        ValueError: If the shapes differ.
    """
    if tuple(actual) != expected:
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(actual)}")


def _expect_floats(name: str, values: Tensor) -> None:
    if not values.is_floating_point():
        raise ValueError(f"{name}: expected floats, got {values.dtype}")


def _readable(values: Tensor) -> bool:
    return values.device.type == "cpu" and not torch.compiler.is_compiling()
