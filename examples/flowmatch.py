"""Train a tiny network to carry noise onto a circle, then compare solvers and numbers of steps.

Run: python examples/flowmatch.py
"""

import math

import torch
from torch import nn

from moteur.flowmatch import ActionHead, BetaTime, StraightPath, flow_loss

BATCH, STEPS = 512, 1500
PATH = StraightPath(noise_at=0)  # time 0 is noise, time 1 is data


class Field(nn.Module):
    """Velocity in the plane from a point and a time."""

    def __init__(self) -> None:
        super().__init__()
        self.head = ActionHead(dim=96, state_dim=1, action_dim=2, min_period=0.2)
        self.net = nn.Sequential(nn.SiLU(), nn.Linear(96, 96), nn.SiLU())

    def forward(self, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """Velocity (batch, 1, 2) at points (batch, 1, 2) and times (batch,), or at one time for all."""
        return self.head.velocity(self.net(self.head.embed_actions(x, t)))


def circle(generator: torch.Generator) -> torch.Tensor:
    """Points of the unit circle: chunks of one step and two action dimensions."""
    angle = 2 * math.pi * torch.rand(BATCH, 1, generator=generator)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def main() -> None:
    """Train for a few seconds, then integrate with each method."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    field, times = Field(), BetaTime(alpha=1.0, beta=1.0, scale=1.0, offset=0.0)
    optimizer = torch.optim.Adam(field.parameters(), lr=3e-3)
    for step in range(STEPS):
        data = circle(generator)
        noise = torch.randn(data.shape, generator=generator)
        t = times.sample((BATCH,), generator=generator)
        point, velocity = PATH.sample(noise, data, t)
        loss = flow_loss(field(point, t), velocity)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 300 == 0:
            print(f"step {step:4d}  loss {loss.item():.3f}")

    noise = torch.randn(BATCH, 1, 2, generator=generator)
    print(f"\nmean distance to the circle: noise {(noise.norm(dim=-1) - 1).abs().mean():.3f}")
    with torch.no_grad():
        for method, steps in (("euler", 2), ("euler", 10), ("euler", 40), ("midpoint", 10), ("heun", 10)):
            points = PATH.solve(field, noise, steps=steps, method=method)
            print(f"{method:>8} {steps:3d} steps      {(points.norm(dim=-1) - 1).abs().mean():.3f}")


if __name__ == "__main__":
    main()
