"""Every size and constant of InternVLA-A1 in one frozen object."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class ExpertSize:
    """Widths that differ from expert to expert: the residual stream and the gated MLP's hidden layer."""

    dim: int
    mlp_dim: int


@dataclass(frozen=True)
class Qwen3VLVision:
    """Sizes of the Qwen3-VL vision tower.

    A view becomes `patch`×`patch` squares, each seen by `depth` blocks; a square of `merge`×`merge` of them is merged
    into one token of the understanding expert. `positions` is the length of the learned square position table,
    `deepstack` the blocks whose features the released checkpoint also merges, and nobody reads.
    """

    depth: int
    dim: int
    mlp_dim: int
    heads: int
    patch: int
    patch_frames: int
    merge: int
    positions: int
    rope_base: float
    deepstack: tuple[int, ...]
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class CosmosSize:
    """Sizes of the Cosmos continuous image tokenizer."""

    channels: int
    multipliers: tuple[int, ...]
    residual_blocks: int
    patch: int
    downsamplings: int
    z_channels: int
    latent_channels: int


@dataclass(frozen=True)
class TokenIds:
    """Vocabulary entries with a role of their own."""

    image: int
    vision_start: int
    vision_end: int
    pad: int


@dataclass(frozen=True)
class TimeSampling:
    """Beta(`alpha`, `beta`), scaled and shifted, read in the clock in which 0 is `data` or 0 is noise.

    The released code draws the *noise* share 0.999·Beta(1.5, 1) + 0.001, which lies near noise (`clock="noise"`). The
    paper's text reads the same distribution as the *data* share, which lies near data (`clock="data"`).
    """

    alpha: float = 1.5
    beta: float = 1.0
    scale: float = 0.999
    offset: float = 0.001
    clock: Literal["noise", "data"] = "noise"


@dataclass(frozen=True)
class InternVLAA1Config:
    """InternVLA-A1 at any size.

    Lengths are in tokens, frames or steps; images are square, in pixels; `gen=None` leaves the generation expert out.

    Attributes:
        depth: Layers of every expert.
        heads: Query heads, shared by all experts.
        kv_heads: Key and value heads, shared by all experts.
        head_dim: Size of a head.
        und: Widths of the understanding expert.
        gen: Widths of the generation expert, or None for the paper's ablation without foresight.
        act: Widths of the action expert.
        norm_eps: Added to the mean square in every RMS norm.
        rope_base: Base of the rotary angles.
        rope_sections: Frequencies that follow the time, height and width axes (interleaved M-RoPE).
        vocabulary: Rows of the text embedding.
        token_ids: Vocabulary entries with a role.
        vision: The vision tower.
        cosmos: The image tokenizer of the foresight target.
        views: Cameras.
        frame_size: Frames are resized with padding to this square first.
        text_length: The instruction is right-padded to this many tokens.
        history: Frames between the earlier and the current frame, and from there to the predicted one.
        foresight_size: The tokenizer sees frames of this square.
        foresight_cell: A square of this many latents makes one generation token.
        foresight_eps: Epsilon of the read-out's layer norm.
        chunk: Predicted action steps.
        state_dim: Largest proprioceptive state; shorter ones are padded with zeros.
        action_dim: Largest action; shorter ones are padded with zeros.
        min_period: Shortest period of the sinusoidal time features, in units of flow time.
        max_period: Longest one.
        steps: Euler steps of `act` unless asked otherwise.
        time: How flow time is drawn in training.
        foresight_weight: λ of L = L_action + λ·L_foresight.
        action_reduction: Which action elements the loss averages: "valid" ones, or all, as "released".
    """

    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    und: ExpertSize
    gen: ExpertSize | None
    act: ExpertSize
    norm_eps: float
    rope_base: float
    rope_sections: tuple[int, int, int]
    vocabulary: int
    token_ids: TokenIds
    vision: Qwen3VLVision
    cosmos: CosmosSize
    views: int
    frame_size: int
    text_length: int
    history: int
    foresight_size: int
    foresight_cell: int
    foresight_eps: float
    chunk: int
    state_dim: int
    action_dim: int
    min_period: float
    max_period: float
    steps: int
    time: TimeSampling
    foresight_weight: float
    action_reduction: Literal["valid", "released"]

    @staticmethod
    def preset(name: Literal["3B", "tiny"]) -> "InternVLAA1Config":
        """Sizes by name: the released "3B", or a "tiny" model that trains on a laptop's CPU.

        Raises:
            ValueError: If there is no preset of that name.

        >>> InternVLAA1Config.preset("3B").head_dim
        128
        """
        presets = {"3B": _released_3b, "tiny": _tiny}
        if name not in presets:
            raise ValueError(f"name: expected one of {sorted(presets)}, got {name!r}")
        return presets[name]()

    def without_foresight(self) -> "InternVLAA1Config":
        """The same model with the generation expert left out."""
        return replace(self, gen=None)


def _released_3b() -> InternVLAA1Config:
    return InternVLAA1Config(
        depth=28,
        heads=16,
        kv_heads=8,
        head_dim=128,
        und=ExpertSize(dim=2048, mlp_dim=6144),
        gen=ExpertSize(dim=1024, mlp_dim=3072),
        act=ExpertSize(dim=1024, mlp_dim=3072),
        norm_eps=1e-6,
        rope_base=5_000_000.0,
        rope_sections=(24, 20, 20),
        vocabulary=151_936,
        token_ids=TokenIds(image=151_655, vision_start=151_652, vision_end=151_653, pad=151_643),
        vision=Qwen3VLVision(
            depth=24,
            dim=1024,
            mlp_dim=4096,
            heads=16,
            patch=16,
            patch_frames=2,
            merge=2,
            positions=2304,
            rope_base=10_000.0,
            deepstack=(5, 11, 17),
            min_pixels=65_536,
            max_pixels=16_777_216,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=CosmosSize(
            channels=128,
            multipliers=(2, 4, 4),
            residual_blocks=2,
            patch=4,
            downsamplings=1,
            z_channels=16,
            latent_channels=16,
        ),
        views=3,
        frame_size=224,
        text_length=48,
        history=15,
        foresight_size=256,
        foresight_cell=8,
        foresight_eps=1e-5,
        chunk=50,
        state_dim=32,
        action_dim=32,
        min_period=4e-3,
        max_period=4.0,
        steps=10,
        time=TimeSampling(),
        foresight_weight=0.01,
        action_reduction="valid",
    )


def _tiny() -> InternVLAA1Config:
    return replace(
        _released_3b(),
        depth=4,
        heads=4,
        kv_heads=2,
        head_dim=32,
        und=ExpertSize(dim=128, mlp_dim=384),
        gen=ExpertSize(dim=96, mlp_dim=256),
        act=ExpertSize(dim=128, mlp_dim=384),
        rope_sections=(8, 4, 4),
        vocabulary=128,
        token_ids=TokenIds(image=3, vision_start=1, vision_end=2, pad=0),
        vision=Qwen3VLVision(
            depth=3,
            dim=128,
            mlp_dim=384,
            heads=4,
            patch=8,
            patch_frames=2,
            merge=2,
            positions=64,
            rope_base=10_000.0,
            deepstack=(),
            min_pixels=4096,
            max_pixels=4096,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        cosmos=CosmosSize(
            channels=32,
            multipliers=(1, 1, 2),
            residual_blocks=1,
            patch=4,
            downsamplings=1,
            z_channels=16,
            latent_channels=16,
        ),
        frame_size=64,
        text_length=12,
        foresight_size=64,
        foresight_cell=4,
        state_dim=8,
        action_dim=8,
    )
