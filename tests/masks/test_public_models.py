"""Patterns of public models as layouts, against the rule that each model's own code follows, on 100 random cases each.

Every `*_rule` below is a small function of ours that says what that code says.
"""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from moteur.masks import Layout, Segment, dense_attention, structural_attention

pytestmark = pytest.mark.usefixtures("without_shape_checks")  # they take most of the time, and are on in other tests
CASES = 100
Rule = Callable[[int, int], bool]


@pytest.fixture
def dice() -> random.Random:
    return random.Random(0)  # noqa: S311  # the same cases in every run


def told(length: int, rule: Rule) -> Tensor:
    return torch.tensor([[rule(query, key) for key in range(length)] for query in range(length)])


def agree(layout: Layout, expected: Tensor, case: int) -> None:
    """The dense mask is `expected`, (batch, query, key); in the first cases block mask and attention agree as well."""
    assert torch.equal(layout.dense(), expected)
    if case >= CASES // 10:
        return
    blocks, places = layout.block_mask(block_size=4), torch.arange(layout.length)
    samples = torch.arange(layout.batch)[:, None, None]
    assert torch.equal(blocks.mask_mod(samples, samples, places[:, None], places).expand_as(expected), expected)
    visited = blocks.to_dense()[:, 0].bool().repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert not (expected & ~visited[:, : layout.length, : layout.length]).any()
    if layout.ranks is None:
        draw = torch.Generator().manual_seed(layout.length)
        query, key, value = torch.randn(3, layout.batch, 1, layout.length, 4, generator=draw, dtype=torch.float64)
        actual, wanted = (attend(query, key, value, layout) for attend in (structural_attention, dense_attention))
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)  # a hundred roundings of 2e-16


def owners(lengths: Sequence[int]) -> list[int]:
    return [index for index, length in enumerate(lengths) for _ in range(length)]


def lengths_of(dice: random.Random, count: int, most: int = 4) -> list[int]:
    return [dice.randint(1, most) for _ in range(count)]


def block_start_rule(starts: Tensor, valid: Tensor) -> Tensor:
    """openpi `make_attn_mask` and LeRobot `make_att_2d_masks`: cumulative starts, valid queries and keys."""
    count = starts.long().cumsum(dim=1)
    return (count[:, None, :] <= count[:, :, None]) & valid[:, None, :] & valid[:, :, None]


def test_pi0_and_pi05_with_cameras_of_their_own_names(dice: random.Random) -> None:
    """openpi: images and prompt start no block; π0's state and the first action do, in π0.5 the first action alone."""
    for case in range(CASES):
        state = case % 2
        *cameras, text, action = lengths_of(dice, 4)
        segments = [Segment(f"camera {index}", length, block="prefix") for index, length in enumerate(cameras)]
        segments += [Segment("text", text, block="prefix"), Segment("state", state), Segment("action", action)]
        seen = torch.tensor([[dice.random() < 0.5 for _ in cameras] for _ in range(3)])
        words = torch.arange(text) < torch.tensor([[dice.randint(0, text)] for _ in range(3)])
        valid = {
            f"camera {index}": seen[:, index : index + 1].expand(3, length) for index, length in enumerate(cameras)
        }
        layout = Layout(segments, valid=valid | {"text": words})
        prefix = torch.cat([*valid.values(), words], dim=1)
        flags = torch.cat([prefix, torch.ones(3, state + action, dtype=torch.bool)], dim=1)
        starts = torch.tensor([[0] * prefix.shape[1] + [1] * state + [1] + [0] * (action - 1)] * 3)
        agree(layout, block_start_rule(starts, flags), case)


def test_pi0_fast_with_a_prompt_of_another_length_in_each_sample(dice: random.Random) -> None:
    """openpi: images and prompt see each other, the codes after them are causal; `token_ar_mask` is (batch, seq)."""
    for case in range(CASES):
        image, tokens = lengths_of(dice, 2, most=6)
        prompt = torch.tensor([[dice.randint(0, tokens)] for _ in range(3)])
        end = torch.tensor([[dice.randint(0, tokens)] for _ in range(3)])
        codes = torch.cat([torch.zeros(3, image, dtype=torch.bool), torch.arange(tokens) >= prompt], dim=1)
        valid = torch.cat([torch.ones(3, image, dtype=torch.bool), torch.arange(tokens) < end], dim=1)
        layout = Layout.from_block_starts(codes).with_valid({"tokens": valid})
        agree(layout, block_start_rule(codes, valid), case)
        named = [Segment("image", image), Segment("tokens", tokens)]
        assert torch.equal(
            Layout(named, valid={"tokens": valid[:, image:]}, ranks=layout.ranks).dense(), layout.dense()
        )


def test_smolvla_with_causal_actions(dice: random.Random) -> None:
    """LeRobot: images and prompt start no block, the state does, and so does every action."""
    for case in range(CASES):
        prefix, action = lengths_of(dice, 2)
        valid = torch.tensor([[dice.random() < 0.7 for _ in range(prefix)] for _ in range(2)])
        segments = [Segment("prefix", prefix), Segment("state", 1), Segment("action", action, causal=True)]
        flags = torch.cat([valid, torch.ones(2, 1 + action, dtype=torch.bool)], dim=1)
        starts = torch.tensor([[0] * prefix + [1] + [1] * action] * 2)
        agree(Layout(segments, valid={"prefix": valid}), block_start_rule(starts, flags), case)


def bagel_rule(split: list[int], kinds: list[str], sample: list[int]) -> Rule:
    """BAGEL `create_sparse_mask`: causal or within one full split; noise is seen by its own split alone; by sample."""

    def rule(query: int, key: int) -> bool:
        same, kind = split[query] == split[key], kinds[split[key]]
        before = key <= query or (same and kind != "causal")
        return before and (same or kind != "noise") and sample[query] == sample[key]

    return rule


def test_bagel_with_noise_packed(dice: random.Random) -> None:
    for case in range(CASES):
        samples = [lengths_of(dice, dice.randint(1, 4)) for _ in range(2)]
        lengths = [length for sample in samples for length in sample]
        kinds = [dice.choice(["causal", "full", "noise"]) for _ in lengths]
        split, sample = owners(lengths), owners([sum(sample) for sample in samples])
        segments = [
            Segment(f"{kind} {index}", length, causal=kind == "causal", private=kind == "noise")
            for index, (kind, length) in enumerate(zip(kinds, lengths, strict=True))
        ]
        layout = Layout(segments, documents=torch.tensor([sample]))
        agree(layout, told(len(split), bagel_rule(split, kinds, sample))[None], case)


def image_rule(part: list[int], images: list[bool], *, together: bool) -> Rule:
    """Causal, or both of one image; `together`: or both of any image.

    The first is Transfusion's `naive_attn_mask` in transfusion-pytorch and Gemma 3 in transformers, the second Molmo 2
    in transformers, which MolmoAct2 builds on.
    """
    return lambda query, key: (
        key <= query or (images[part[query]] and images[part[key]] and (together or part[query] == part[key]))
    )


@pytest.mark.parametrize("together", [False, True], ids=["transfusion and gemma 3", "molmoact2"])
def test_text_and_images_in_turn(dice: random.Random, *, together: bool) -> None:
    for case in range(CASES):
        lengths = lengths_of(dice, dice.randint(1, 6))
        images = [dice.random() < 0.5 for _ in lengths]
        segments = [
            Segment(f"image {index}", length, block="images" if together else None)
            if image
            else Segment(f"text {index}", length, causal=True)
            for index, (length, image) in enumerate(zip(lengths, images, strict=True))
        ]
        agree(Layout(segments), told(sum(lengths), image_rule(owners(lengths), images, together=together))[None], case)


def test_transfusion_with_images_elsewhere_in_each_sample(dice: random.Random) -> None:
    for case in range(CASES):
        masks: list[Tensor] = []
        ranks: list[list[int]] = []
        for _ in range(2):
            part = owners(lengths_of(dice, 12))[:12]
            images = [dice.random() < 0.4 for _ in range(12)]
            masks.append(told(12, image_rule(part, images, together=False)))
            ranks.append([part.index(part[place]) if images[part[place]] else place for place in range(12)])
        agree(Layout([Segment("tokens", 12)], ranks=torch.tensor(ranks)), torch.stack(masks), case)


def fastwam_rule(frames: int, tokens: int, mode: str) -> Rule:
    """FastWAM's Mixture-of-Transformers: the video by its mode, actions see themselves and the first frame alone."""
    video = frames * tokens

    def rule(query: int, key: int) -> bool:
        if query >= video:
            return key >= video or key < tokens
        in_time = key // tokens <= query // tokens
        allowed = {"bidirectional": True, "per_frame_causal": in_time, "first_frame_causal": in_time or query >= tokens}
        return key < video and allowed[mode]

    return rule


@pytest.mark.parametrize("mode", ["bidirectional", "per_frame_causal", "first_frame_causal"])
def test_fastwam_in_three_video_modes(dice: random.Random, mode: str) -> None:
    for case in range(CASES):
        frames, tokens, action = lengths_of(dice, 3)
        first, rest = {
            "bidirectional": ("video", "video"),
            "per_frame_causal": (None, None),
            "first_frame_causal": (None, "video"),
        }[mode]
        segments = [Segment("frame 0", tokens, block=first)]
        segments += [Segment(f"frame {index}", tokens, block=rest) for index in range(1, frames)]
        segments += [Segment("action", action, sees=["frame 0"])]
        agree(Layout(segments), told(frames * tokens + action, fastwam_rule(frames, tokens, mode))[None], case)


def octo_rule(kinds: list[tuple[str, int]]) -> Rule:
    """Octo's attention rules: task, observations up to the own time, and of readouts only those of the own name."""
    sees = {"task": {"task"}, "obs": {"task", "obs"}}

    def rule(query: int, key: int) -> bool:
        (asking, now), (asked, then) = kinds[query], kinds[key]
        return asked in sees.get(asking, {"task", "obs", asking}) and then <= now

    return rule


def test_octo_with_two_readouts(dice: random.Random) -> None:
    for case in range(CASES):
        task, *sizes = lengths_of(dice, 4, most=3)
        names, kinds = ("obs", "readout action", "readout value"), [("task", -1)] * task
        segments = [Segment("task", task)]
        for step in range(dice.randint(1, 3)):
            kinds += [(name, step) for name, size in zip(names, sizes, strict=True) for _ in range(size)]
            seen = ["task", *(f"obs {index}" for index in range(step + 1))]
            segments.append(Segment(f"obs {step}", sizes[0]))
            segments += [
                Segment(
                    f"{name} {step}", size, private=True, sees=[*seen, *(f"{name} {index}" for index in range(step))]
                )
                for name, size in zip(names[1:], sizes[1:], strict=True)
            ]
        agree(Layout(segments), told(len(kinds), octo_rule(kinds))[None], case)


def insulation_rule(part: list[str]) -> Rule:
    """π0.5 with knowledge insulation: codes and flow share the prefix and are strangers; codes are causal."""
    return lambda query, key: (
        part[key] == "prefix" or (part[key] == part[query] and (part[key] == "flow" or key <= query))
    )


def test_pi05_with_knowledge_insulation(dice: random.Random) -> None:
    """Restated from arXiv 2505.23705: no code of it is public."""
    for case in range(CASES):
        prefix, codes, flow = lengths_of(dice, 3)
        valid = torch.arange(prefix) < torch.tensor([[prefix], [dice.randint(0, prefix)]])
        segments = [
            Segment("prefix", prefix),
            Segment("codes", codes, causal=True, private=True),
            Segment("flow", flow),
        ]
        flags = torch.cat([valid, torch.ones(2, codes + flow, dtype=torch.bool)], dim=1)
        part = ["prefix"] * prefix + ["codes"] * codes + ["flow"] * flow
        expected = told(len(part), insulation_rule(part)) & flags[:, None, :] & flags[:, :, None]
        agree(Layout(segments, valid={"prefix": valid}), expected, case)


def window_rule(prefix: int, text: int, window: int) -> Rule:
    """transformers `sliding_window_overlay` over a causal mask; what is before the text stays in sight."""

    def rule(query: int, key: int) -> bool:
        if not prefix <= query < prefix + text:
            return key < prefix or query >= prefix
        return key <= query and (key < prefix or key > query - window)

    return rule


def test_a_sliding_window_alone_and_after_a_prefix(dice: random.Random) -> None:
    for case in range(CASES):
        text, window, action = dice.randint(1, 12), dice.randint(1, 6), dice.randint(0, 3)
        prefix = dice.randint(1, 4) if case % 2 else 0
        parts = [
            Segment("prefix", prefix),
            Segment("text", text, causal=True, window=window),
            Segment("action", action),
        ]
        agree(Layout(parts), told(prefix + text + action, window_rule(prefix, text, window))[None], case)
