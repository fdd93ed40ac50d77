import math
from collections.abc import Callable

import pytest
import torch
from einops import EinopsError
from hypothesis import given, settings
from hypothesis import strategies as st

from moteur.tokenizers import ForesightHead, Grid, foresight_loss

GoldenTensors = Callable[[str], dict[str, torch.Tensor]]
CASES = ["all_cameras", "dropped_camera"]


def slow_compress(head: ForesightHead, latents: torch.Tensor) -> torch.Tensor:
    """Two plain convolutions, one token at a time."""
    batch, views, times, _, height, width = latents.shape
    cell = head.cell
    inner = head.project_in.weight[:, :, 0, 0]
    tokens = []
    for view in range(views):
        for time in range(times):
            for row in range(0, height, cell):
                for column in range(0, width, cell):
                    square = latents[:, view, time, :, row : row + cell, column : column + cell]
                    wide = torch.einsum("dc,bcij->bdij", inner, square) + head.project_in.bias[:, None, None]
                    tokens.append(torch.einsum("odij,bdij->bo", head.downsample.weight, wide) + head.downsample.bias)
    return torch.stack(tokens, dim=1).reshape(batch, -1, head.dim)


def slow_predict(head: ForesightHead, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Mean over times, one token to one square, layer norm and projection written out."""
    cell = head.cell
    grown = tokens.reshape(tokens.shape[0], *grid, head.dim).mean(2)
    result = tokens.new_zeros(tokens.shape[0], grid.views, head.latent_channels, grid.rows * cell, grid.columns * cell)
    for row in range(grid.rows):
        for column in range(grid.columns):
            square = (
                torch.einsum("bvd,doij->bvijo", grown[:, :, row, column], head.upsample.weight) + head.upsample.bias
            )
            centred = square - square.mean(-1, keepdim=True)
            normed = centred / (centred.square().mean(-1, keepdim=True) + head.norm.eps).sqrt()
            normed = normed * head.norm.weight + head.norm.bias
            latent = torch.einsum("bvijo,co->bvcij", normed, head.project_out.weight)
            latent = latent + head.project_out.bias[:, None, None]
            result[..., row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = latent
    return result


@pytest.mark.parametrize("case", CASES)
def test_tokens_equal_the_recorded_input_of_the_generation_expert(
    golden_tensors: GoldenTensors, head: ForesightHead, device: torch.device, case: str
) -> None:
    recorded = golden_tensors(f"internvla_a1_3b/{case}")
    tokens, grid = head.to(device).compress(recorded["cosmos.latent"][:, :, :2].to(device))
    assert grid == Grid(views=3, times=2, rows=4, columns=4)
    real = recorded["in.img_masks"].repeat_interleave(tokens.shape[1] // grid.views, dim=1)
    torch.testing.assert_close(tokens.cpu()[real], recorded["train.gen_in"][real], rtol=0, atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_predictions_equal_the_recorded_latents(
    golden_tensors: GoldenTensors, head: ForesightHead, device: torch.device, case: str
) -> None:
    recorded = golden_tensors(f"internvla_a1_3b/{case}")
    predicted = head.to(device).predict(recorded["train.gen_out"].to(device), Grid(3, 2, 4, 4))
    real = recorded["in.img_masks"]
    torch.testing.assert_close(predicted.cpu()[real], recorded["train.pred_latent"][real], rtol=0, atol=5e-5)


def test_predictions_at_inference_equal_the_recorded_latents(
    golden_tensors: GoldenTensors, head: ForesightHead, device: torch.device
) -> None:
    recorded = golden_tensors("internvla_a1_3b/all_cameras")
    predicted = head.to(device).predict(recorded["infer.gen_out"].to(device), Grid(3, 2, 4, 4))
    torch.testing.assert_close(predicted.cpu(), recorded["infer.pred_latent"], rtol=0, atol=5e-5)


@given(
    cell=st.sampled_from([1, 2, 4]),
    views=st.integers(1, 3),
    times=st.integers(1, 3),
    places=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=20, deadline=None)
def test_values_and_gradients_equal_the_slow_way(
    cell: int, views: int, times: int, places: tuple[int, int], seed: int
) -> None:
    rows, columns = places
    torch.manual_seed(seed)
    head = ForesightHead(dim=6, latent_channels=3, cell=cell, dtype=torch.float64)
    torch.nn.init.normal_(head.norm.weight)
    latents = torch.randn(2, views, times, 3, rows * cell, columns * cell, dtype=torch.float64, requires_grad=True)
    tokens, grid = head.compress(latents)
    assert grid == (views, times, rows, columns)
    slow_tokens = slow_compress(head, latents)
    torch.testing.assert_close(tokens, slow_tokens, rtol=0, atol=1e-12)
    predicted, slow_predicted = head.predict(tokens, grid), slow_predict(head, slow_tokens, grid)
    torch.testing.assert_close(predicted, slow_predicted, rtol=0, atol=1e-10)
    weights = torch.randn_like(predicted)
    inputs = [latents, *head.parameters()]
    fast = torch.autograd.grad((predicted * weights).sum(), inputs)
    slow = torch.autograd.grad((slow_predicted * weights).sum(), inputs)
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("axes", [(), (3,), (3, 2)])
@pytest.mark.parametrize("futures", [None, 1, 4])
def test_axes_that_are_left_out_and_futures_that_are_added_change_no_number(
    axes: tuple[int, ...], futures: int | None
) -> None:
    torch.manual_seed(0)
    head = ForesightHead(dim=6, latent_channels=5, cell=2, futures=futures, dtype=torch.float64)
    latents = torch.randn(2, *axes, 5, 4, 6, dtype=torch.float64)
    views, times = (*axes, 1, 1)[:2]
    full = latents.reshape(2, views, times, 5, 4, 6)
    tokens, grid = head(latents)
    assert grid == Grid(axes[0] if axes else None, times, 2, 3)
    torch.testing.assert_close(tokens, slow_compress(head, full), rtol=0, atol=1e-12)
    found = head.predict(tokens, grid)
    assert found.shape == (2, *axes[:1], *([] if futures is None else [futures]), 5, 4, 6)
    for future in range(futures or 1):
        # A head of one future frame, with the rows of the last map that belong to this one.
        alone = ForesightHead(dim=6, latent_channels=5, cell=2, dtype=torch.float64)
        rows = slice(5 * future, 5 * (future + 1))
        state = head.state_dict()
        alone.load_state_dict(state | {name: state[name][rows] for name in state if name.startswith("project_out.")})
        expected = slow_predict(alone, tokens, Grid(views, times, 2, 3))
        one = found if futures is None else found.select(-4, future)
        torch.testing.assert_close(one.reshape(expected.shape), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("views", "times"), [(None, 1), (3, 1), (2, 2)])
def test_the_position_of_a_token_is_where_its_latents_were(views: int | None, times: int) -> None:
    head = ForesightHead(dim=6, latent_channels=5, cell=2)
    latents = torch.randn(1, *([] if views is None else [views]), *([times] if times > 1 else []), 5, 4, 6)
    tokens, grid = head(latents)
    positions = grid.positions()
    assert positions.shape == (4, tokens.shape[1])
    assert grid.cells * (views or 1) == tokens.shape[1]
    for token, (view, time, row, column) in enumerate(positions.T.tolist()):
        spoiled = latents.clone().reshape(1, views or 1, times, 5, 4, 6)
        spoiled[0, view, time, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = float("nan")
        found, _ = head(spoiled.reshape(latents.shape))
        assert found.isnan().all(-1)[0].nonzero().flatten().tolist() == [token]


def test_calling_the_head_runs_its_hooks() -> None:
    head, called = ForesightHead(dim=6, cell=2), []
    head.register_forward_hook(lambda *_: called.append(True))
    latents = torch.randn(1, 16, 4, 4)
    assert torch.equal(head(latents)[0], head.compress(latents)[0])
    assert called == [True]


def test_no_future_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="futures: expected at least 1 or None, got 0"):
        ForesightHead(dim=8, futures=0)


@pytest.mark.parametrize("cell", [4, 8])
def test_a_tiny_model_has_tokens_from_64_pixel_images(device: torch.device, cell: int) -> None:
    head = ForesightHead(dim=32, cell=cell, device=device)
    tokens, grid = head.compress(torch.zeros(2, 3, 2, 16, 8, 8, device=device))
    assert grid == Grid(3, 2, 8 // cell, 8 // cell)
    assert tokens.shape == (2, math.prod(grid), 32)
    assert head.predict(tokens, grid).shape == (2, 3, 16, 8, 8)


def test_nothing_is_remembered_between_calls() -> None:
    head = ForesightHead(dim=8, cell=4)
    tokens, grid = head.compress(torch.randn(1, 1, 2, 16, 8, 8))
    expected = head.predict(tokens, grid)
    head.compress(torch.randn(3, 2, 1, 16, 4, 12))
    torch.testing.assert_close(head.predict(tokens, grid), expected, rtol=0, atol=0)
    assert set(head.state_dict()) == {
        f"{layer}.{kind}"
        for layer in ("project_in", "downsample", "upsample", "norm", "project_out")
        for kind in ("weight", "bias")
    }


def test_views_and_samples_do_not_mix(device: torch.device) -> None:
    head = ForesightHead(dim=8, cell=4, dtype=torch.float64, device=device)
    latents = torch.randn(2, 3, 2, 16, 8, 8, dtype=torch.float64, device=device)
    tokens, grid = head.compress(latents)
    spoiled = latents.clone()
    spoiled[1, 2] = float("nan")
    found, _ = head.compress(spoiled)
    untouched = found.isfinite().all(-1)
    assert untouched.sum() == tokens.shape[0] * math.prod(grid) - math.prod(grid[1:])
    torch.testing.assert_close(found[untouched], tokens[untouched], rtol=0, atol=1e-12)
    predicted = head.predict(found, grid)
    assert predicted.flatten(2).isfinite().all(-1).tolist() == [[True, True, True], [True, True, False]]


@pytest.mark.usefixtures("without_shape_checks")
def test_both_ends_compile_into_one_graph(head: ForesightHead, device: torch.device) -> None:
    head = head.to(device)

    def there_and_back(latents: torch.Tensor) -> torch.Tensor:
        return head.predict(*head.compress(latents))

    latents = torch.randn(2, 3, 2, 16, 16, 8, device=device)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(latents), there_and_back(latents))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_twice_the_two_convolutions_it_replaces(
    head: ForesightHead, device: torch.device, dtype: torch.dtype
) -> None:
    head = head.to(device, dtype)
    latents = torch.randn(2, 3, 2, 16, 32, 32, device=device).to(dtype)
    with torch.no_grad():
        tokens, _ = head.compress(latents)
        plain = head.downsample(head.project_in(latents.flatten(0, 2))).flatten(2).mT
        plain = plain.unflatten(0, (2, 6)).flatten(1, 2)
        exact, _ = head.double().compress(latents.double())
    assert tokens.dtype == dtype
    error = (tokens.double() - exact).square().mean().sqrt()
    assert error <= 2 * (plain.double() - exact).square().mean().sqrt()


def test_at_released_sizes_it_has_every_released_shape() -> None:
    head = ForesightHead(dim=1024, device="meta")
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "project_in.weight": (1024, 16, 1, 1),
        "project_in.bias": (1024,),
        "downsample.weight": (1024, 1024, 8, 8),
        "downsample.bias": (1024,),
        "upsample.weight": (1024, 1024, 8, 8),
        "upsample.bias": (1024,),
        "norm.weight": (1024,),
        "norm.bias": (1024,),
        "project_out.weight": (16, 1024),
        "project_out.bias": (16,),
    }
    tokens, grid = head.compress(torch.empty(1, 3, 2, 16, 32, 32, device="meta"))
    assert tokens.shape == (1, 96, 1024)
    assert head.predict(tokens, grid).shape == (1, 3, 16, 32, 32)


def test_grids_that_do_not_fit_are_refused() -> None:
    head = ForesightHead(dim=8, cell=4)
    for height, width in [(8, 6), (6, 8), (2, 8)]:
        message = rf"latents: expected height and width that are multiples of 4, got {height} x {width}"
        with pytest.raises(ValueError, match=message):
            head.compress(torch.zeros(1, 1, 1, 16, height, width))
    for tokens in (7, 12):
        with pytest.raises(EinopsError, match=rf"length {tokens}|{tokens} != "):
            head.predict(torch.zeros(1, tokens, 8), Grid(1, 2, 2, 2))


@pytest.mark.usefixtures("without_shape_checks")
def test_other_channels_and_axes_do_not_pass_in_silence() -> None:
    head = ForesightHead(dim=8, cell=4)
    with pytest.raises(RuntimeError):
        head.compress(torch.zeros(1, 1, 1, 4, 8, 8))
    for latents in (torch.zeros(16, 8, 8), torch.zeros(1, 1, 1, 1, 16, 8, 8)):
        shape = ", ".join(map(str, latents.shape))
        with pytest.raises(ValueError, match=rf"latents: expected the axes batch, view, .* got shape \({shape}\)"):
            head.compress(latents)
    for tokens in (torch.zeros(1, 8, 9), torch.zeros(8, 8)):
        with pytest.raises((RuntimeError, ValueError)):
            head.predict(tokens, Grid(1, 2, 2, 2))


@pytest.mark.parametrize("case", ["all_cameras", "dropped_camera"])
def test_loss_equals_the_recorded_one(golden_tensors: GoldenTensors, device: torch.device, case: str) -> None:
    recorded = golden_tensors(f"internvla_a1_3b/{case}")
    loss = foresight_loss(
        recorded["train.pred_latent"].to(device),
        recorded["cosmos.latent"][:, :, 2].to(device),
        recorded["in.img_masks"].to(device),
    )
    torch.testing.assert_close(loss.cpu(), recorded["train.loss_gen"].squeeze(), rtol=1e-6, atol=0)


@given(valid=st.lists(st.booleans(), min_size=6, max_size=6), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_loss_and_gradient_are_those_of_the_valid_views_alone(valid: list[bool], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    view_valid = torch.tensor(valid).reshape(2, 3)
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64, generator=generator)
    predicted[~view_valid] = float("nan")
    target[~view_valid] = float("inf")
    predicted.requires_grad_()
    loss = foresight_loss(predicted, target, view_valid)
    loss.backward()
    difference = predicted.detach()[view_valid] - target[view_valid]
    count = max(difference.numel(), 1)
    torch.testing.assert_close(loss.detach(), difference.square().sum() / count, rtol=1e-13, atol=0)
    expected = torch.zeros_like(predicted)
    expected[view_valid] = 2 * difference / count
    torch.testing.assert_close(predicted.grad, expected, rtol=1e-13, atol=0)
    assert (predicted.grad[~view_valid] == 0).all()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_loss_of_several_frames_is_over_the_frames_that_are_valid(axes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    predicted = torch.randn(2, 3, 4, 5, 6, 7, dtype=torch.float64, generator=generator)
    target = torch.randn(2, 3, 4, 5, 6, 7, dtype=torch.float64, generator=generator)
    valid = torch.rand(2, 3, 4, generator=generator)[(..., *[0] * (3 - axes))] < 0.6
    assert valid.any()
    assert not valid.all()
    expected = (predicted[valid] - target[valid]).square().mean()
    predicted[~valid] = float("nan")
    torch.testing.assert_close(foresight_loss(predicted, target, valid), expected, rtol=1e-12, atol=0)
    whole = foresight_loss(target + 1, target)
    torch.testing.assert_close(whole, torch.ones((), dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
def test_without_any_view_the_loss_and_its_gradient_are_zero(device: torch.device, fill: float) -> None:
    predicted = torch.full((2, 3, 4, 5, 6), fill, device=device, requires_grad=True)
    loss = foresight_loss(
        predicted, torch.full_like(predicted, fill), torch.zeros(2, 3, dtype=torch.bool, device=device)
    )
    loss.backward()
    assert loss.item() == 0
    assert (predicted.grad == 0).all()


def test_no_mask_means_every_view(device: torch.device) -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64, device=device)
    everywhere = torch.ones(2, 3, dtype=torch.bool, device=device)
    torch.testing.assert_close(foresight_loss(predicted, target), foresight_loss(predicted, target, everywhere))


def test_no_gradient_enters_the_target() -> None:
    predicted = torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    target = torch.randn(1, 1, 2, 2, 2, requires_grad=True)
    foresight_loss(predicted, target).backward()
    assert predicted.grad is not None
    assert target.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_adds_up_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    # 300² alone exceeds what float16 can hold.
    predicted = torch.full((2, 3, 16, 32, 32), 300.0, dtype=dtype, device=device)
    loss = foresight_loss(predicted, torch.zeros_like(predicted))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90_000)


@pytest.mark.usefixtures("without_shape_checks", "fresh_compiler")
def test_it_compiles_into_one_graph(device: torch.device) -> None:
    predicted, target = torch.randn(2, 2, 3, 4, 5, 6, device=device)
    view_valid = torch.tensor([[True, False, True], [False, False, True]], device=device)
    compiled = torch.compile(foresight_loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(predicted, target, view_valid), foresight_loss(predicted, target, view_valid))


@pytest.mark.usefixtures("without_shape_checks")
def test_shapes_that_do_not_fit_are_refused() -> None:
    # The run-time shape checker would refuse them first; users run without it.
    latents = torch.zeros(1, 2, 3, 4, 4)
    with pytest.raises(
        ValueError, match=r"target: expected shape \(1, 2, 3, 4, 4\) to fit predicted, got \(1, 2, 3, 4, 5\)"
    ):
        foresight_loss(latents, torch.zeros(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match=r"view_valid: expected shape \(1, 2\) to fit predicted, got \(1, 1\)"):
        foresight_loss(latents, latents, torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"boolean"):
        foresight_loss(latents, latents, torch.ones(1, 2))
