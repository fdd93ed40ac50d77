"""Every size and constant of π0 and π0.5 in one frozen object."""

from dataclasses import dataclass
from typing import Literal

from moteur.data import Robot, RobotStatistics, RobotTransform, Window
from moteur.flowmatch import BetaTime
from moteur.recipes.config import ExpertSize, expect, expect_positive, robot_transform


@dataclass(frozen=True)
class SigLIPVision:
    """Sizes of the SigLIP vision tower: a square picture of `size` pixels becomes `patch`×`patch` squares."""

    depth: int
    dim: int
    mlp_dim: int
    heads: int
    size: int
    patch: int
    norm_eps: float

    def __post_init__(self) -> None:
        expect_positive(self)
        expect(self.dim % self.heads == 0, "vision.dim", f"a multiple of {self.heads} heads", self.dim)
        expect(self.size % self.patch == 0, "vision.size", f"a multiple of patch = {self.patch}", self.size)


@dataclass(frozen=True)
class Pi0Config:
    """π0 or π0.5 at any size. Lengths are in tokens or steps; images are square, in pixels.

    Attributes:
        variant: "pi0": the state is a token, and time a part of every action token. "pi05": the state is words of the
            prompt, and time drives the norms of the action expert.
        depth: Layers of both experts.
        heads: Query heads, shared by both experts.
        kv_heads: Key and value heads, shared by both experts.
        head_dim: Size of a head.
        vlm: Widths of the expert that reads pictures and prompt: `dim` of its tokens, `mlp_dim` inside the gated MLP.
        act: Widths of the action expert.
        norm_eps: Added to the mean square in every RMS norm.
        rope_base: Base of the rotary angles.
        vocabulary: Rows of the text embedding.
        pad: Token on the right of a short prompt.
        vision: The vision tower.
        views: Cameras.
        text_length: The prompt is right-padded to this many tokens.
        prompt: "words": the instruction. "state": the instruction and the state, in 256 bins a dimension.
        chunk: Predicted action steps.
        state_dim: Largest proprioceptive state; shorter ones are padded with zeros.
        action_dim: Largest action; shorter ones are padded with zeros.
        min_period: Shortest period of the sinusoidal time features, in units of flow time.
        max_period: Longest one.
        steps: Euler steps of `act` unless asked otherwise.
        time: How flow time is drawn in training; 1 is noise.
        action_reduction: Which action elements the loss averages: "valid" ones, or all, as "released".
    """

    variant: Literal["pi0", "pi05"]
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vlm: ExpertSize
    act: ExpertSize
    norm_eps: float
    rope_base: float
    vocabulary: int
    pad: int
    vision: SigLIPVision
    views: int
    text_length: int
    prompt: Literal["words", "state"]
    chunk: int
    state_dim: int
    action_dim: int
    min_period: float
    max_period: float
    steps: int
    time: BetaTime
    action_reduction: Literal["valid", "released"]

    def __post_init__(self) -> None:
        expect_positive(self, but=("pad",))
        expect(self.variant in {"pi0", "pi05"}, "variant", "'pi0' or 'pi05'", self.variant)
        expect(self.prompt in {"words", "state"}, "prompt", "'words' or 'state'", self.prompt)
        expect(
            self.heads % self.kv_heads == 0, "heads", f"a multiple of {self.kv_heads} key and value heads", self.heads
        )
        expect(self.head_dim % 2 == 0, "head_dim", "an even number, rotary angles turn pairs", self.head_dim)
        expect(self.act.dim % 2 == 0, "act.dim", "an even number, for sines and cosines of time", self.act.dim)
        expect(0 <= self.pad < self.vocabulary, "pad", f"an entry of a vocabulary of {self.vocabulary}", self.pad)
        periods = (self.min_period, self.max_period)
        expect(periods[0] < periods[1], "min_period, max_period", "shortest < longest", periods)
        known = self.action_reduction in {"valid", "released"}
        expect(known, "action_reduction", "'valid' or 'released'", self.action_reduction)

    @property
    def experts(self) -> dict[str, ExpertSize]:
        """Widths of the experts, in the order in which one may look at another."""
        return {"vlm": self.vlm, "act": self.act}

    @property
    def times(self) -> int:
        """Times that the policy sees pictures of: the present alone."""
        return 1

    @property
    def latent_shape(self) -> None:
        """None: these models have no latents of pictures."""
        return

    @property
    def frame_size(self) -> int:
        """Frames are resized with padding to this square first."""
        return self.vision.size

    @property
    def text_scale(self) -> float:
        """What the embeddings of the prompt are multiplied by."""
        return self.vlm.dim**0.5

    @property
    def image_tokens(self) -> int:
        """Tokens of the stream that one view takes."""
        return (self.vision.size // self.vision.patch) ** 2

    @property
    def image_patches(self) -> int:
        """Patches of one view in the vision tower."""
        return self.image_tokens

    def transform(
        self,
        robot: Robot,
        statistics: RobotStatistics,
        *,
        mode: Literal["mean_std", "min_max", "quantiles", "none"] | None = None,
        convention: Literal["openpi", "lerobot"] = "openpi",
        images: Literal["uint8", "float32"] = "uint8",
    ) -> RobotTransform:
        """The transform of a robot's data at the sizes of this model.

        Args:
            robot: The robot's schema.
            statistics: Its statistics, over chunks of `chunk` steps.
            mode: Normalisation, see `RobotTransform`. None: "mean_std" for π0, "quantiles" for π0.5.
            convention: Whose resizing and normalisation, see `RobotTransform`: that of the code which a checkpoint was
                trained with.
            images: What resized pictures are kept in, see `RobotTransform`.

        Raises:
            ValueError: If the robot has more dimensions than the model, or the statistics do not fit.
        """
        mode = mode or ("mean_std" if self.variant == "pi0" else "quantiles")
        window = Window(offsets=(0,), chunk=self.chunk)
        return robot_transform(self, robot, statistics, window=window, mode=mode, convention=convention, images=images)
