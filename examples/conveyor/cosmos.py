"""Train the small Cosmos tokenizer on the demonstrations' frames."""

import torch
from demonstrations import Demonstrations
from robot import ROBOT
from torch import Tensor
from tqdm import tqdm

from moteur.recipes import InternVLAA1
from moteur.recipes.training import Schedule, adamw, train_step


def train_tokenizer(
    model: InternVLAA1,
    demonstrations: Demonstrations,
    *,
    steps: int,
    batch: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    decoder_only: bool = False,
    progress: bool = True,
) -> list[float]:
    """Teach the model's encoder and decoder to copy frames; leave them frozen, with unit latents.

    The loss is the mean absolute error plus the mean squared error. Afterwards the two 1 x 1 convolutions on either
    side of the latents are rescaled, which changes no image, so that each channel has mean 0 and deviation 1.

    Args:
        model: A policy that holds the decoder.
        demonstrations: Where the frames come from.
        steps: Optimiser steps.
        batch: Frames of a step.
        rate: Peak learning rate.
        seed: Decides which frames are drawn.
        decoder_only: Leave the encoder as it is, for a policy that was trained on its latents.
        progress: Show a progress bar.

    Returns:
        The loss of each step.
    """
    assert model.foresight is not None
    encoder, decoder = model.foresight.encoder, model.foresight.decoder
    assert decoder is not None
    generator = torch.Generator().manual_seed(seed)
    trained = torch.nn.ModuleList([decoder] if decoder_only else [encoder, decoder]).requires_grad_(requires_grad=True)
    optimizer = adamw(trained, rate=rate)
    schedule = Schedule(steps=steps, warmup=min(50, steps // 10), final=0.05)
    count = len(demonstrations) * len(ROBOT.cameras)
    losses: list[float] = []
    with tqdm(total=steps, desc="tokenizer", unit="step", disable=not progress) as bar:
        for step in range(steps):
            index = torch.randint(count, (batch,), generator=generator)
            images = demonstrations.pictures(index).float() / 127.5 - 1
            error = decoder(encoder(images)) - images
            loss = error.abs().mean() + error.square().mean()
            train_step(optimizer, loss, rate=rate * schedule(step))
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.4f}", refresh=False)
    trained.requires_grad_(requires_grad=False)
    if not decoder_only:
        _standardise(model, demonstrations.pictures(torch.randint(count, (min(2048, count),), generator=generator)))
    return losses


@torch.no_grad()
def _standardise(model: InternVLAA1, frames: Tensor) -> None:
    """Move mean and deviation of each latent channel from the latents into the convolutions around them."""
    assert model.foresight is not None
    assert model.foresight.decoder is not None
    latents = torch.cat([model.foresight.encode(part.float() / 255) for part in frames.split(256)])
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3)) + 1e-6
    into, out = model.foresight.encoder.quant_conv, model.foresight.decoder.post_quant_conv
    assert into.bias is not None
    assert out.bias is not None
    into.weight.div_(deviation.view(-1, 1, 1, 1))
    into.bias.sub_(mean).div_(deviation)
    out.bias.add_(out.weight[:, :, 0, 0] @ mean)
    out.weight.mul_(deviation.view(1, -1, 1, 1))
