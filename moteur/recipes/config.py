"""Every size and constant of InternVLA-A1 in one frozen object."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from moteur.data import Robot, RobotStatistics, RobotTransform, Window
from moteur.flowmatch import BetaTime
from moteur.recipes.inputs import Sizes
from moteur.tokenizers import CosmosSize

Variant: TypeAlias = Literal["3B", "2B"]
"""Released variants: "3B" reads with Qwen3-VL, "2B" with InternVL3."""


@dataclass(frozen=True)
class ExpertSize:
    """Widths that differ from expert to expert: the residual stream and the gated MLP's hidden layer."""

    dim: int
    mlp_dim: int

    def __post_init__(self) -> None:
        expect_positive(self)


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
    kind: Literal["Qwen3VLVision"] = "Qwen3VLVision"

    def __post_init__(self) -> None:
        expect_positive(self, but=("deepstack", "mean"))
        expect(self.dim % (4 * self.heads) == 0, "vision.dim", f"a multiple of 4 × {self.heads} heads", self.dim)
        side = round(self.positions**0.5)
        expect(side**2 == self.positions, "vision.positions", "a square number", self.positions)
        taps = "different blocks of the tower"
        distinct = len(set(self.deepstack)) == len(self.deepstack)
        expect(
            distinct and all(0 <= tap < self.depth for tap in self.deepstack), "vision.deepstack", taps, self.deepstack
        )
        limits = (self.min_pixels, self.max_pixels)
        expect(limits[0] <= limits[1], "vision.min_pixels, max_pixels", "smallest <= largest", limits)

    def fitted(self, side: int) -> int:
        """The side that a square image is resized to: near its own, whole merged patches, pixels within the limits.

        Examples:
            >>> from moteur.recipes import preset
            >>> preset("3B").vision.fitted(224)  # 50,176 pixels are less than the least, 65,536
            256
        """
        unit = self.patch * self.merge
        nearest = round(side / unit) * unit
        if nearest**2 > self.max_pixels:
            shrink = math.sqrt(side * side / self.max_pixels)
            return max(unit, math.floor(side / shrink / unit) * unit)
        if nearest**2 < self.min_pixels:
            enlarge = math.sqrt(self.min_pixels / (side * side))
            return math.ceil(side * enlarge / unit) * unit
        return nearest


@dataclass(frozen=True)
class InternVLVision:
    """Sizes of InternViT and of the projector after it.

    A view is resized to `size`×`size` pixels and becomes `patch`×`patch` squares, each seen by `depth` blocks together
    with a class token that is dropped afterwards; pixel shuffle makes one token of the understanding expert from a
    square of `merge`×`merge` patches. `attention_bias` gives the tower's queries, keys and values biases: InternVL3's
    own have them, the released 2B model has none.
    """

    depth: int
    dim: int
    mlp_dim: int
    heads: int
    size: int
    patch: int
    merge: int
    norm_eps: float
    projector_eps: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    attention_bias: bool = False
    kind: Literal["InternVLVision"] = "InternVLVision"

    def __post_init__(self) -> None:
        expect_positive(self, but=("mean", "attention_bias"))
        expect(self.dim % self.heads == 0, "vision.dim", f"a multiple of {self.heads} heads", self.dim)
        token = self.patch * self.merge
        expect(self.size % token == 0, "vision.size", f"a multiple of patch × merge = {token}", self.size)


@dataclass(frozen=True)
class TokenIds:
    """Vocabulary entries with a role of their own; None where nothing stands before or after a view."""

    image: int
    vision_start: int | None
    vision_end: int | None
    pad: int


@dataclass(frozen=True)
class InternVLAA1Config:
    """InternVLA-A1 at any size.

    Lengths are in tokens, frames or steps; images are square, in pixels; `gen=None` leaves the generation expert out.

    Attributes:
        depth: Layers of every expert.
        heads: Query heads, shared by all experts.
        kv_heads: Key and value heads, shared by all experts.
        head_dim: Size of a head.
        und: Widths of the understanding expert: `dim` of its tokens, `mlp_dim` inside the gated MLP.
        gen: Widths of the generation expert, or None for the paper's ablation without foresight.
        act: Widths of the action expert.
        norm_eps: Added to the mean square in every RMS norm.
        qk_norm: RMS norm over each query and key head, as in Qwen3.
        qkv_bias: Biases of the query, key and value projections, as in Qwen2.
        rope_base: Base of the rotary angles.
        rope_sections: Frequencies that follow the time, height and width axes (interleaved M-RoPE), or None for plain
            rotary positions.
        vocabulary: Rows of the text embedding.
        text_scaling: Multiply the embeddings of the instruction by √(width of `und`).
        token_ids: Vocabulary entries with a role: `image`, `pad`, and `vision_start` and `vision_end` around a view.
        vision: The vision tower; its type decides the backbone, and with it the variant.
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
        time: How flow time is drawn in training; 1 is noise, as in the released code.
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
    qk_norm: bool
    qkv_bias: bool
    rope_base: float
    rope_sections: tuple[int, int, int] | None
    vocabulary: int
    text_scaling: bool
    token_ids: TokenIds
    vision: Annotated[Qwen3VLVision | InternVLVision, Field(discriminator="kind")]
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
    time: BetaTime
    foresight_weight: float
    action_reduction: Literal["valid", "released"]

    def __post_init__(self) -> None:
        expect_positive(self, but=("qk_norm", "qkv_bias", "rope_sections", "text_scaling", "foresight_weight"))
        kv_heads, half = self.kv_heads, self.head_dim // 2
        expect(self.heads % kv_heads == 0, "heads", f"a multiple of {kv_heads} key and value heads", self.heads)
        expect(self.head_dim % 2 == 0, "head_dim", "an even number, rotary angles turn pairs", self.head_dim)
        if self.rope_sections is not None:
            fits = len(self.rope_sections) == 3 and min(self.rope_sections) >= 0 and sum(self.rope_sections) == half  # noqa: PLR2004 -- time, height, width
            expect(fits, "rope_sections", f"three numbers that sum to head_dim / 2 = {half}", self.rope_sections)
        self._check_backbone()
        block = self.cosmos.compression * self.foresight_cell
        fits = self.gen is None or self.foresight_size % block == 0
        expect(fits, "foresight_size", f"a multiple of compression × foresight_cell = {block}", self.foresight_size)
        expect(self.act.dim % 2 == 0, "act.dim", "an even number, for sines and cosines of time", self.act.dim)
        periods = (self.min_period, self.max_period)
        expect(periods[0] < periods[1], "min_period, max_period", "shortest < longest", periods)
        expect(self.foresight_weight >= 0, "foresight_weight", "0 or more", self.foresight_weight)
        known = self.action_reduction in {"valid", "released"}
        expect(known, "action_reduction", "'valid' or 'released'", self.action_reduction)

    def _check_backbone(self) -> None:
        ids = self.token_ids
        marks = (ids.vision_start, ids.vision_end)
        if self.variant == "2B":
            plain = self.rope_sections is None
            expect(plain, "rope_sections", "None, InternVL3 has plain positions", self.rope_sections)
            bare = marks == (None, None)
            expect(bare, "token_ids.vision_start, vision_end", "None, nothing stands around a view", marks)
        else:
            expect(None not in marks, "token_ids.vision_start, vision_end", "a token before and after a view", marks)
        every = [token for token in (ids.image, ids.pad, *marks) if token is not None]
        inside = all(0 <= token < self.vocabulary for token in every)
        expect(inside, "token_ids", f"entries of a vocabulary of {self.vocabulary}", every)

    @property
    def variant(self) -> Variant:
        """The released variant whose parts this model has, whatever their sizes."""
        return "2B" if isinstance(self.vision, InternVLVision) else "3B"

    @property
    def experts(self) -> dict[str, ExpertSize]:
        """Widths of the experts that this model has, by name, in the order in which one may look at another."""
        sizes = {"und": self.und, "gen": self.gen, "act": self.act}
        return {name: size for name, size in sizes.items() if size is not None}

    @property
    def text_scale(self) -> float:
        """What the embeddings of the instruction are multiplied by."""
        return self.und.dim**0.5 if self.text_scaling else 1.0

    @property
    def times(self) -> int:
        """Times that the policy sees pictures of: t-15 and t, or t alone without a generation expert."""
        return 1 if self.gen is None else 2

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of the tokenizer's latents of one picture: channels, rows, columns."""
        side = self.foresight_size // self.cosmos.compression
        return self.cosmos.latent_channels, side, side

    @property
    def image_tokens(self) -> int:
        """Tokens of the understanding stream that one view takes, marks before and after it included."""
        if isinstance(self.vision, InternVLVision):
            return (self.vision.size // self.vision.patch // self.vision.merge) ** 2
        return (self.vision.fitted(self.frame_size) // self.vision.patch // self.vision.merge) ** 2 + 2

    @property
    def image_patches(self) -> int:
        """Patches of one view in the vision tower."""
        marks = 0 if isinstance(self.vision, InternVLVision) else 2
        return (self.image_tokens - marks) * self.vision.merge**2

    def transform(
        self,
        robot: Robot,
        statistics: RobotStatistics,
        *,
        mode: Literal["mean_std", "min_max", "quantiles", "none"] = "mean_std",
        images: Literal["uint8", "float32"] = "uint8",
    ) -> RobotTransform:
        """The transform of a robot's data at the sizes of this model.

        Args:
            robot: The robot's schema.
            statistics: Its statistics, over chunks of `chunk` steps.
            mode: Normalisation, see `RobotTransform`.
            images: What resized pictures are kept in, see `RobotTransform`.

        Raises:
            ValueError: If the robot has more dimensions than the model, or the statistics do not fit.
        """
        window = Window(offsets=(-self.history, 0, self.history), chunk=self.chunk)
        return robot_transform(self, robot, statistics, window=window, mode=mode, images=images)

    def without_foresight(self) -> "InternVLAA1Config":
        """The same model with the generation expert left out."""
        return replace(self, gen=None)


def robot_transform(
    config: Sizes,
    robot: Robot,
    statistics: RobotStatistics,
    *,
    window: Window,
    **options: Any,  # noqa: ANN401  # those of `RobotTransform`
) -> RobotTransform:
    """The transform of a robot's data at the sizes of a model; see `InternVLAA1Config.transform`."""
    check_robot(config, robot)
    dims = max(config.state_dim, config.action_dim)
    return RobotTransform(robot, statistics, window=window, size=config.frame_size, dims=dims, **options)


def check_robot(config: Sizes, robot: Robot) -> None:
    """Refuse a robot that has more dimensions than a model.

    Raises:
        ValueError: If it has.
    """
    for name, needed in (("state_dim", robot.state_dim), ("action_dim", robot.action_dim)):
        room = getattr(config, name)
        expect(needed <= room, name, f"at least {needed} for robot {robot.name!r}", room)


def expect(condition: bool, name: str, expected: str, actual: object) -> None:  # noqa: FBT001 -- it is the condition
    """Refuse a value unless the condition holds, naming the field, what was expected and what arrived."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual}")


def expect_positive(config: object, *, but: tuple[str, ...] = ()) -> None:
    """Refuse numbers of a configuration that are not positive, except in fields that may hold others.

    Raises:
        ValueError: Naming the first such field.
    """
    for name, value in vars(config).items():
        numbers = value if isinstance(value, tuple) else (value,)
        positive = all(number > 0 for number in numbers if isinstance(number, int | float))
        expect(name in but or positive, f"{type(config).__name__}.{name}", "greater than 0", value)
