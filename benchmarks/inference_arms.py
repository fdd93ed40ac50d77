"""The arms of the inference benchmark: every way to act over one model, and what is asked of them."""

import time
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from census import census
from plain_policy import PlainPolicy
from random_model import FixedWords, observation, processed, random_model
from rivals import TextPrefill, Tower, image_tokens, prefill
from stages import split
from timing import Arm, give_back, in_turn, in_use_mib, spread
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from moteur.data import as_unit_floats
from moteur.recipes import Inputs, InternVLAA1Config, Processor
from moteur.recipes.checkpoints.precision import released_dtype
from moteur.runtime import InferenceSession

NOW = 15
SOLVERS = [(8, "euler"), (5, "euler"), (4, "euler"), (5, "midpoint"), (5, "heun"), (3, "midpoint"), (2, "midpoint")]
FINEST = (40, "midpoint")
FLOAT32_BOUND = 1e-4
_OPERATORS = 8


class Bench:
    """The arms over one model with random weights.

    Args:
        config: Its sizes.
        dtype: What the model holds its weights in.
        device: Where everything runs.
    """

    def __init__(self, config: InternVLAA1Config, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.model = random_model(self.config, dtype=self.dtype, device=self.device)
        self.inputs, self.noise = self.example(1)
        self.present = replace(self.inputs, frames=self.inputs.frames[:, :, 1:])
        self.reference = self._reference() if self.dtype == torch.bfloat16 else None
        give_back()
        before, start = in_use_mib(device), time.perf_counter()
        self.session = InferenceSession(self.model)
        made = time.perf_counter() - start
        give_back()
        self.setup = {
            "model_mib": round(sum(each.nbytes for each in self.model.parameters()) / 2**20),
            "session_mib": round(in_use_mib(device) - before),
            "session_made_in_s": round(made, 1),
            "session_computes_in": str(self.session.dtype).removeprefix("torch."),
        }
        first, now = self._encoded(self.inputs)
        self.latents = {0: first, NOW: now}

    def example(self, batch: int) -> tuple[Inputs, Tensor]:
        """An observation and noise."""
        inputs = processed(self.config, batch=batch).to(self.device)
        noise = torch.randn(
            batch, self.config.chunk, self.config.action_dim, generator=torch.Generator().manual_seed(2)
        )
        return inputs, noise.to(self.device)

    def _reference(self) -> Tensor:
        """The actions of the same bfloat16 weights, computed plainly in float32: widened in place, and narrowed."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.float()
        actions = PlainPolicy(self.model).act(self.inputs, noise=self.noise)
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(released_dtype(name, self.model.config))
        return actions

    def seen(self, *frames: int) -> None:
        """A running episode whose history holds these frames."""
        self.session.reset()
        for frame in frames:
            self._push(frame, self.latents[frame], self.inputs)

    def _push(self, frame: int, latents: Tensor, inputs: Inputs) -> None:
        """Push a frame whose latents are known: no time is spent on encoding it again."""
        with patch.object(self.session.model.foresight, "encode_views", return_value=latents):
            self.session.observe(inputs.frames[:, :, int(frame == NOW)], step=frame, encode=True)

    @torch.no_grad()
    def _encoded(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Latents of both times by the session."""
        foresight = self.session.model.foresight
        assert foresight is not None
        first, now = as_unit_floats(inputs.frames).unbind(dim=2)
        return foresight.encode(first), foresight.encode(now)

    def steady(self, **options: Any) -> Tensor:  # noqa: ANN401 -- options of `act`
        """A call in a running episode."""
        return self.session.act(self.present, noise=self.noise, step=NOW, **options)

    def arms(self) -> list[Arm]:
        """Every way to act, the yardstick first."""
        model, inputs, noise = self.model, self.inputs, self.noise
        arms = [Arm("plain", lambda: PlainPolicy(model).act(inputs, noise=noise))]
        if self.device.type == "cuda":
            compiled = PlainPolicy(model, compiled=True)
            arms.append(Arm("plain, compiled", lambda: compiled.act(inputs, noise=noise)))
        return [
            *arms,
            Arm("model.act", lambda: model.act(inputs, noise=noise)),
            Arm("session, stateless", lambda: self.session.act(inputs, noise=noise)),
            Arm("session, steady state", self.steady, before=lambda: self.seen(0)),
            Arm("session, frame pushed", self.steady, before=lambda: self.seen(0, NOW)),
        ]

    def agreement(self, arms: list[Arm]) -> dict[str, Any]:
        """Largest differences of the actions just computed, and whether they are within bounds."""
        plain, found = arms[0].result.float(), {}
        sessions = [arm.result for arm in arms if arm.name.startswith("session")]
        found["largest_action"] = plain.abs().max().item()
        found["session_arms_bit_identical"] = all(torch.equal(each, sessions[0]) for each in sessions)
        if self.reference is None:
            found["reference"], reference = "plain, in this run", plain
        else:
            found["reference"], reference = "plain, in float32, of the same bfloat16 weights", self.reference
        errors = {arm.name: (arm.result.float() - reference).abs().max().item() for arm in arms}
        found["max_abs_error"] = errors
        worst = max(error for name, error in errors.items() if name.startswith("session"))
        found["bound"] = FLOAT32_BOUND if self.reference is None else 1.5 * errors["plain"]
        found["within_bound"] = worst <= found["bound"] and found["session_arms_bit_identical"]
        return found

    def beside_transformers(self, rounds: int) -> dict[str, Any]:
        """Stages of the session, in turn with modules of `transformers` that compute the same."""
        inputs, acting = self.inputs, self.session.model
        tower = Tower(self.model)
        rivals = [
            Arm("vision tower, transformers", lambda: tower(inputs)),
            Arm("vision tower, session", lambda: image_tokens(acting, inputs)),
        ]
        if self.config.variant == "3B":
            assert inputs.attention_mask is not None
            text, stream = TextPrefill(self.model), self.model.context(inputs, None)[0]["und"]
            count = stream.tokens.shape[1] - int((~inputs.attention_mask).sum())
            same = replace(stream, tokens=stream.tokens.to(acting.dtype))
            rivals.append(Arm("und prefill, transformers", lambda: text(stream, count)[-1]))
            rivals.append(Arm("und prefill, session", lambda: prefill(acting, same, count)[-1]))
        stages: list[dict[str, float]] = []
        staged = Arm(
            "session",
            lambda: stages.append(split(self.steady, self.session)) or self.noise,
            before=lambda: self.seen(0),
        )
        in_turn([*rivals, staged], rounds=rounds, device=self.device, warmups=0)
        stages = stages[-rounds:]
        pairs = zip(rivals[::2], rivals[1::2], strict=True)
        differences = {
            theirs.name.partition(",")[0]: (theirs.result.float() - ours.result.float()).abs().max().item()
            for theirs, ours in pairs
        }
        return {
            "session": {name: spread([taken[name] / 1e3 for taken in stages]) for name in stages[0]},
            "rivals": {rival.name: spread(rival.seconds) for rival in rivals},
            "max_abs_difference": differences,
        }

    def preprocessing(self, rounds: int) -> dict[str, float]:
        """Pictures of three cameras and two times to tensors, on the CPU."""
        processor, seen = Processor(self.config, FixedWords(self.config)), observation(self.config, batch=1)
        arm = Arm("preprocess", lambda: processor(*seen).frames)
        in_turn([arm], rounds=rounds, device=self.device)
        return spread(arm.seconds)

    def census(self) -> dict[str, Any]:
        """What the calls consist of; on CUDA neither compiled nor recorded, as both hide what they launch."""
        kept, found = self.session, {}
        if self.device.type == "cuda":
            self.session = InferenceSession(self.model, graphs=False, compiled=False)
        for arm in self.arms():
            if arm.name != "plain, compiled":
                arm.before()
                found[arm.name] = census(arm.run).summary()
        self.session = kept
        return found

    def operators(self) -> dict[str, Any]:
        """Where the CPU time of a steady-state call goes: the share of each of PyTorch's operators."""
        self.seen(0)
        with profile(activities=[ProfilerActivity.CPU]) as taken:
            self.steady()
        times = {event.key: event.self_cpu_time_total for event in taken.key_averages()}
        whole = sum(times.values())
        largest = sorted(times, key=lambda name: -times[name])[:_OPERATORS]
        return {name: round(times[name] / whole, 4) for name in largest}

    def solvers(self, rounds: int) -> dict[str, Any]:
        """Fewer steps and other rules, in a running episode: time, and distance from 10 Euler steps."""
        self.seen(0, NOW)
        standard, finest = self.steady(), self.steady(steps=FINEST[0], method=FINEST[1])
        arms = [
            Arm(
                f"{steps} {method}",
                lambda steps=steps, method=method: self.steady(steps=steps, method=method),
                before=lambda: self.seen(0),
            )
            for steps, method in [(self.config.steps, "euler"), *SOLVERS]
        ]
        in_turn(arms, rounds=rounds, device=self.device, warmups=0)
        return {
            arm.name: spread(arm.seconds)
            | {
                "max_abs_from_standard": (arm.result - standard).abs().max().item(),
                "rms_from_standard": (arm.result - standard).square().mean().sqrt().item(),
                "rms_from_finest": (arm.result - finest).square().mean().sqrt().item(),
            }
            for arm in arms
        }

    def throughput(self, batch: int, rounds: int) -> dict[str, Any]:
        """A farm of simulators: many samples a call, and a session made for that many."""
        inputs, noise = self.example(batch)
        del self.session
        give_back()
        self.session = InferenceSession(self.model, batch=batch)
        latents, _ = self._encoded(inputs)
        present = replace(inputs, frames=inputs.frames[:, :, 1:])

        def running() -> None:
            self.session.reset()
            self._push(0, latents, inputs)

        arms = [
            Arm("plain", lambda: PlainPolicy(self.model).act(inputs, noise=noise)),
            Arm("session, stateless", lambda: self.session.act(inputs, noise=noise)),
            Arm(
                "session, steady state",
                lambda: self.session.act(present, noise=noise, step=NOW),
                before=running,
            ),
        ]
        in_turn(arms, rounds=rounds, device=self.device, warmups=0)
        found = {arm.name: arm.summary() for arm in arms}
        errors = {arm.name: (arm.result - arms[0].result).abs().max().item() for arm in arms[1:]}
        return {
            "batch": batch,
            "arms": found,
            "times_plain": {
                name: round(found["plain"]["median_ms"] / each["median_ms"], 2) for name, each in found.items()
            },
            "max_abs_error": errors,
            "within_bound": self.reference is not None or max(errors.values()) <= FLOAT32_BOUND,
        }
