"""A policy of your own from the blocks: two experts, a training loss, and actions through an `InferenceSession`."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from moteur.flowmatch import ActionHead, BetaTime, StraightPath, flow_loss
from moteur.masks import Layout, Segment, structural_attention
from moteur.mot import Expert, MoT, rotary_angles
from moteur.recipes import Inputs
from moteur.runtime import InferenceSession


@dataclass(frozen=True)
class Config:
    """What a session reads of sizes (`moteur.recipes.Sizes`)."""

    variant: str = "small"
    views: int = 2
    times: int = 1
    frame_size: int = 32
    text_length: int = 8
    vocabulary: int = 100
    chunk: int = 10
    action_reduction: str = "valid"
    state_dim: int = 7
    action_dim: int = 7
    latent_shape: None = None
    image_tokens: int = 16
    image_patches: int = 16


class SmallVLA(nn.Module):
    """`see` reads pictures and words, `act` the state and noisy actions; they meet in every layer's attention."""

    foresight, dtype = None, torch.float32

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.path = config, StraightPath(noise_at=1)
        self.backbone = nn.ModuleDict({"text_embedding": nn.Embedding(100, 64), "patches": nn.Conv2d(3, 64, 8, 8)})
        shared = {"depth": 3, "heads": 4, "kv_heads": 2, "head_dim": 16}
        self.mot = MoT({"see": Expert(dim=64, mlp_dim=128, **shared), "act": Expert(dim=32, mlp_dim=64, **shared)})
        self.head = ActionHead(dim=32, state_dim=config.state_dim, action_dim=config.action_dim)
        self.seen = config.views * config.image_tokens + config.text_length
        self.layout = Layout([Segment("see", self.seen), Segment("state", 1), Segment("action", config.chunk)])

    def run(self, streams: dict[str, Tensor], first: int, **options: object) -> dict[str, Tensor]:
        """All layers over streams whose first token has the position `first`."""
        length = sum(tokens.shape[1] for tokens in streams.values())
        rotary = rotary_angles(torch.arange(first, first + length)[None], head_dim=16, base=10_000.0)
        return self.mot(streams, attention=partial(structural_attention, layout=self.layout), rotary=rotary, **options)

    def see(self, inputs: Inputs) -> Tensor:
        """Tokens of pictures, 4×4 a view, and of words."""
        pixels = inputs.frames[:, :, -1].flatten(0, 1).to(self.backbone.patches.weight.dtype) / 255
        cells = self.backbone.patches(pixels).flatten(2).mT
        pictures = cells.unflatten(0, inputs.frames.shape[:2]).flatten(1, 2)
        return torch.cat([pictures, self.backbone.text_embedding(inputs.instruction)], dim=1)

    def embed(self, inputs: Inputs, noisy: Tensor, time: Tensor | float) -> Tensor:
        """Tokens of the state and of noisy actions."""
        return torch.cat([self.head.embed_state(inputs.state), self.head.embed_actions(noisy, time)], dim=1)

    def forward(self, inputs: Inputs, actions: Tensor) -> Tensor:
        """Training loss: one joint pass."""
        time = BetaTime.released().sample((len(actions),))
        noisy, target = self.path.sample(torch.randn_like(actions), actions, time)
        hidden = self.run({"see": self.see(inputs), "act": self.embed(inputs, noisy, time)}, 0, outputs=("act",))
        return flow_loss(self.head.velocity(hidden["act"][:, 1:]), target)

    @torch.no_grad()
    def denoise(self, inputs: Inputs, _: None, noise: Tensor, *, steps: int | None = None, **how: object) -> Tensor:
        """Actions: what is seen once, then the flow over its keys and values."""
        empty = self.mot.new_cache(batch=len(noise), capacity=self.layout.length)
        self.run({"see": self.see(inputs)}, 0, cache=empty, outputs=())

        def velocity(noisy: Tensor, time: float) -> Tensor:
            hidden = self.run({"act": self.embed(inputs, noisy, time)}, self.seen, cache=empty.extended(self.seen))
            return self.head.velocity(hidden["act"][:, 1:])

        return self.path.solve(velocity, noise, steps=steps or 10, **how)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = SmallVLA(Config())
    frames = torch.randint(0, 256, (4, 2, 1, 3, 32, 32), dtype=torch.uint8)
    inputs = Inputs(frames, torch.randint(0, 100, (4, 8)), None, None, torch.randn(4, 7))  # no masks: all is there
    actions = inputs.state[:, None].expand(-1, 10, -1)  # to be learned: stay where you are
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        model(inputs, actions).backward()
        optimizer.step()
    acted = InferenceSession(model).act(inputs, generator=torch.Generator().manual_seed(0))
    print(f"mean distance from the taught actions: {(acted - actions).abs().mean():.2f}")
