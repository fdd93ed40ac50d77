"""π0 and π0.5: beside one plain function of the same weights, other sizes, cached acting, missing cameras."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from pi0_oracle import euler, velocity
from toy_pi0 import oracle_arguments, pi0_inputs, random_pi0, toy_pi0

from moteur.flowmatch import Method
from moteur.recipes import Inputs, Pi0, Targets, preset
from moteur.recipes.inputs import each_tensor

VARIANTS = pytest.mark.parametrize("variant", ["pi0", "pi05"])
Variant = Literal["pi0", "pi05"]
FLOAT64 = {"rtol": 0, "atol": 1e-6}  # time features are rounded to float32


@VARIANTS
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_a_plain_function(variant: Variant, seed: int) -> None:
    model = random_pi0(toy_pi0(variant, action_reduction="released"), seed)
    inputs = pi0_inputs(model.config, seed=seed)
    own = torch.Generator().manual_seed(seed + 10)
    actions, noise = (torch.randn(3, 5, 3, generator=own, dtype=torch.float64) for _ in range(2))
    time = torch.rand(3, generator=own)
    loss = model(inputs, Targets(actions), noise=noise, time=time).total
    wide = time.double()[:, None, None]
    expected = velocity(noisy=wide * noise + (1 - wide) * actions, time=time, **oracle_arguments(model, inputs))
    truth = (expected - (noise - actions)).pow(2).mean()
    torch.testing.assert_close(loss, truth, **FLOAT64)


@VARIANTS
@pytest.mark.parametrize("seed", range(4))
def test_actions_are_those_of_euler_steps_that_compute_everything_anew(variant: Variant, seed: int) -> None:
    model = random_pi0(toy_pi0(variant), seed)
    inputs = pi0_inputs(model.config, seed=seed)
    noise = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = euler(noise=noise, steps=5, **oracle_arguments(model, inputs))
    torch.testing.assert_close(model.act(inputs, noise=noise, steps=5), expected, rtol=0, atol=1e-5)


@VARIANTS
def test_a_batch_is_its_samples_and_what_is_missing_changes_nothing(variant: Variant) -> None:
    model = random_pi0(toy_pi0(variant))
    inputs = pi0_inputs(model.config, batch=4)
    noise = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = model.act(inputs, noise=noise)
    for sample in range(4):
        alone = model.act(each_tensor(inputs, lambda x, at=sample: x[at : at + 1]), noise=noise[sample : sample + 1])
        torch.testing.assert_close(together[sample : sample + 1], alone, rtol=0, atol=1e-12)
    assert inputs.view_valid is not None
    assert inputs.attention_mask is not None
    gone = torch.where(inputs.view_valid[:, :, None, None, None, None], inputs.frames, torch.nan)
    words = torch.where(inputs.attention_mask, inputs.instruction, 7)
    assert torch.equal(model.act(replace(inputs, frames=gone, instruction=words), noise=noise), together)


@VARIANTS
@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_every_solver_takes_the_precomputed_norms(variant: Variant, method: Method) -> None:
    model = random_pi0(toy_pi0(variant))
    inputs = pi0_inputs(model.config)
    noise = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arguments = oracle_arguments(model, inputs)

    def plain(x: torch.Tensor, time: float) -> torch.Tensor:
        return velocity(noisy=x, time=torch.full((3,), time), **arguments)

    expected = model.path.solve(plain, noise, steps=3, method=method)
    torch.testing.assert_close(model.act(inputs, noise=noise, steps=3, method=method), expected, rtol=0, atol=1e-5)


@VARIANTS
def test_only_the_prompt_tells_pi05_the_state(variant: Variant) -> None:
    model = random_pi0(toy_pi0(variant))
    inputs = pi0_inputs(model.config)
    noise = torch.zeros(3, 5, 3, dtype=torch.float64)
    other = replace(inputs, state=inputs.state + 1)
    same = torch.equal(model.act(inputs, noise=noise), model.act(other, noise=noise))
    assert same == (variant == "pi05")


@VARIANTS
def test_a_step_of_training_reaches_every_parameter_that_is_not_frozen(variant: Variant) -> None:
    model = random_pi0(toy_pi0(variant), dtype=torch.float32).train()
    inputs = pi0_inputs(model.config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    model(inputs, Targets(torch.zeros(3, 5, 3)), generator=generator).total.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        "mot.experts.vlm.norm.weight",
        "mot.experts.vlm.layers.1.attention.output.weight",
        "mot.experts.vlm.layers.1.mlp_norm.weight",
        "mot.experts.vlm.layers.1.mlp.gate_up.weight",
        "mot.experts.vlm.layers.1.mlp.down.weight",
    }


def test_latents_are_refused() -> None:
    model = random_pi0(toy_pi0("pi0"))
    inputs = replace(pi0_inputs(model.config), latents=torch.zeros(3, 3, 2, 16, 4, 4))
    with pytest.raises(ValueError, match="latents: expected None for a model without foresight, got shape"):
        model.act(inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "pi1"}, "variant: expected 'pi0' or 'pi05', got pi1"),
        ({"prompt": "none"}, "prompt: expected 'words' or 'state', got none"),
        ({"kv_heads": 3}, "heads: expected a multiple of 3 key and value heads, got 8"),
        ({"head_dim": 7}, "head_dim: expected an even number"),
        ({"pad": -1}, "pad: expected an entry of a vocabulary of 257152, got -1"),
        ({"min_period": 5.0}, "min_period, max_period: expected shortest < longest"),
        ({"steps": 0}, "Pi0Config.steps: expected greater than 0, got 0"),
        ({"action_reduction": "all"}, "action_reduction: expected 'valid' or 'released', got all"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_a_configuration_that_fits_no_model_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(preset("pi0"), **changes)


def test_inputs_of_another_size_are_refused_by_name() -> None:
    model = random_pi0(toy_pi0("pi0"))
    inputs = pi0_inputs(model.config)
    words = torch.zeros(3, 7, dtype=torch.long)
    with pytest.raises(ValueError, match=r"instruction: expected at most 6 tokens, got 7"):
        model.act(Inputs(inputs.frames, words, None, inputs.view_valid, inputs.state))
    with pytest.raises(ValueError, match=r"frames: expected shape"):
        model.act(replace(inputs, frames=inputs.frames[..., :14, :14]))


def test_the_released_sizes_have_the_released_number_of_parameters() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in Pi0(preset(name)).parameters()) for name in ("pi0", "pi05")}
    unused = 257_152 * 1024  # gemma_expert.lm_head
    assert {name: count + unused for name, count in counts.items()} == {"pi0": 3_501_372_176, "pi05": 3_616_757_520}
