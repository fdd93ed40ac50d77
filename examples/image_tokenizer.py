"""Encode frames, embed two of them as a few tokens, and score a prediction of the third, at toy sizes.

The weights are random, so the numbers mean nothing.

Run: python examples/image_tokenizer.py
"""

from dataclasses import replace

import torch

from moteur.tokenizers import Cosmos, CosmosSize, ForesightHead, foresight_loss

torch.manual_seed(0)
SIZE = replace(CosmosSize.ci8x8(), channels=32, multipliers=(1, 1), residual_blocks=1)

cosmos = Cosmos(SIZE)
head = ForesightHead(dim=64, cell=4)

# Two samples, three cameras, frames at t-15, t and t+15, as bytes.
frames = torch.randint(256, (2, 3, 3, 3, 64, 64), dtype=torch.uint8)
latents = cosmos.encode(frames)
print(f"frames {tuple(frames.shape)} -> latents {tuple(latents.shape)}, {SIZE.compression} times smaller")

tokens, grid = head(latents[:, :, :2])
print(f"past and present -> tokens {tuple(tokens.shape)}, {grid}")

# A real model runs a transformer here.
predicted = head.predict(tokens, grid)
print(f"tokens -> predicted latents {tuple(predicted.shape)}")

cameras = torch.tensor([[True, True, True], [True, True, False]])
loss = foresight_loss(predicted, latents[:, :, 2], cameras)
loss.backward()
gradient = head.project_in.weight.grad
print(f"loss over the five cameras there are: {loss.item():.4f}; the head learns: {gradient is not None}")
print(f"the frozen tokenizer does not: {all(p.grad is None for p in cosmos.parameters())}")

images = cosmos.decode(predicted.detach())
print(f"predicted pictures {tuple(images.shape)}, values from {images.min():.2f} to {images.max():.2f}")
