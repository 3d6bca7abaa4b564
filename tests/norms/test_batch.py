"""L1, L-infinity and top-k batch norms against their formulas, and against PyTorch's BatchNorm."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.norms import batch
from normtrain.norms.batch import BatchNormBase

KINDS = {"l1": "L1BatchNorm", "linf": "LInfBatchNorm", "topk": "TopKBatchNorm"}
SHAPES = {"1d": (7, 3), "1d-length": (4, 3, 5), "2d": (2, 3, 4, 5), "3d": (2, 3, 2, 3, 4)}


def build(kind: str, suffix: str, features: int = 3, **options: Any) -> BatchNormBase:
    """A float64 norm with parameters a wrong formula can't hide behind."""
    options = {"dtype": torch.float64} | options
    norm = getattr(batch, KINDS[kind] + suffix[:2])(features, **options)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return norm


def deviation(values: Tensor, kind: str, k: int = 10) -> Tensor:
    """c * statistic of a vector, sorted rather than averaged."""
    away = (values - values.sum() / len(values)).abs().sort(descending=True).values
    if kind == "l1":
        return away.sum() / len(away) * 1.2533141373155003
    k = {"linf": 1, "topk": min(k, len(away))}[kind]
    bounds = 1 / math.sqrt(2), math.sqrt(math.pi * math.log(2))  # of E[max] / sqrt(ln n)
    constant = (bounds[0] + bounds[1]) / (2 * math.sqrt(math.log(len(away))))
    return away[:k].sum() / k * constant


def oracle(x: Tensor, norm: BatchNormBase, kind: str, eps: float = 1e-5) -> Tensor:
    """The norm in training, one channel at a time."""
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        flat = values.reshape(-1)
        y = (values - flat.sum() / len(flat)) / (deviation(flat, kind, getattr(norm, "k", 1)) + eps)
        channels.append(y * norm.weight[c] + norm.bias[c])
    return torch.stack(channels, dim=1)


def gradients(y: Tensor, x: Tensor, norm: nn.Module, upstream: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, [x, *norm.parameters()], upstream))


@pytest.mark.parametrize("layout", ["1d", "1d-length", "2d", "3d"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("l1", {}), ("l1", {"eps": 0.3}), ("linf", {}), ("topk", {}), ("topk", {"k": 3})],
)
def test_forward_and_gradients(kind: str, options: dict[str, Any], layout: str) -> None:
    norm = build(kind, layout, **options)
    x = (torch.randn(SHAPES[layout], dtype=torch.float64) * 2 + 0.7).requires_grad_()
    upstream = torch.randn_like(x)
    y, expected = norm(x), oracle(x, norm, kind, options.get("eps", 1e-5))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        gradients(y, x, norm, upstream), gradients(expected, x, norm, upstream), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    norm = build(kind, "1d", k=2) if kind == "topk" else build(kind, "1d")
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))
    assert torch.autograd.gradgradcheck(norm, (x,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, 0.3, 0.0, 1.0, None])
def test_running_statistics_move_as_in_torch(kind: str, momentum: float | None) -> None:
    norm = build(kind, "2d", momentum=momentum)
    theirs = nn.BatchNorm2d(3, momentum=momentum, dtype=torch.float64)
    scale = torch.ones(3, dtype=torch.float64)
    for step in range(1, 4):
        x = torch.randn(2, 3, 3, 3, dtype=torch.float64) * step + step
        norm(x)
        theirs(x)
        share = 1 / step if momentum is None else momentum
        measured = torch.stack([deviation(x[:, c].reshape(-1), kind) for c in range(3)])
        scale = (1 - share) * scale + share * measured
        torch.testing.assert_close(norm.running_mean, theirs.running_mean)
        torch.testing.assert_close(norm.running_scale, scale)
    assert norm.num_batches_tracked == 3
    norm.eval()
    x = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    before = copy.deepcopy(norm.state_dict())
    column = (1, 3, 1, 1)
    expected = (x - theirs.running_mean.view(column)) / (scale + 1e-5).view(column)
    expected = expected * norm.weight.view(column) + norm.bias.view(column)
    torch.testing.assert_close(norm(x), expected)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_without_running_statistics_eval_uses_the_batch(kind: str) -> None:
    norm = build(kind, "1d", track_running_stats=False)
    assert list(norm.state_dict()) == ["weight", "bias"]
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.equal(norm(x), norm.eval()(x))


@pytest.mark.parametrize(("n", "known"), [(64, 1.386), (1024, 1.423), (16384, 1.448)])
def test_linf_overestimates_gaussians_by_a_known_ratio(n: int, known: float) -> None:
    x = torch.randn(n, 2_000_000 // n + 300)
    norm = batch.LInfBatchNorm1d(x.shape[1], momentum=1.0)
    norm(x)
    ratio = norm.running_scale.mean() / x.var(0, correction=0).mean().sqrt()
    assert ratio.item() == pytest.approx(known, abs=0.04)  # many standard errors


def test_top_n_is_the_mean_and_top_1_the_maximum() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    every = build("topk", "1d", k=8, momentum=1.0, affine=False)
    more = build("topk", "1d", k=99, momentum=1.0, affine=False)
    one = build("topk", "1d", k=1, affine=False)
    constant = (1 + math.sqrt(math.pi * math.log(4))) / math.sqrt(8 * math.log(8))
    mean = (x - x.mean(0)).abs().mean(0)
    every(x)
    torch.testing.assert_close(every.running_scale, constant * mean)
    assert torch.equal(every(x), more(x))
    torch.testing.assert_close(one(x), build("linf", "1d", affine=False)(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_scale_of_the_weights_before_changes_nothing(kind: str, scale: float) -> None:
    """The output is that of the layer's direction; its gradient shrinks as its weight grows."""
    norm = build(kind, "1d", features=5, eps=1e-14)
    layer = nn.Linear(4, 5, dtype=torch.float64)
    x, upstream = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    y = norm(layer(x))
    (plain,) = torch.autograd.grad(y, layer.weight, upstream)
    factor = torch.tensor([scale, 1, 1 / scale, 2, 1], dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        layer.weight.mul_(factor)
    scaled = norm(layer(x))
    (grown,) = torch.autograd.grad(scaled, layer.weight, upstream)
    torch.testing.assert_close(scaled, y, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(grown * factor, plain, rtol=1e-6, atol=1e-8)
    along = (grown * layer.weight).sum(1) / (grown.norm(dim=1) * layer.weight.norm(dim=1))
    assert along.abs().max() < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("own", [True, False], ids=["same-dtype", "float32-weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision(kind: str, own: bool, dtype: torch.dtype) -> None:
    """One rounding of the float64 result: statistics are taken in float32, autocast or not."""
    norm = build(kind, "1d", dtype=dtype if own else torch.float32)
    wide = copy.deepcopy(norm).double()
    # exact in all dtypes, far from centred, and no two equally far from the mean
    squares = torch.arange(16.0).square() / 8
    x = torch.stack([squares[torch.randperm(16)] for _ in range(3)], 1).to(dtype).requires_grad_()
    upstream = torch.randn(16, 3).to(dtype)
    leaf = x.detach().double().requires_grad_()
    expected = oracle(leaf, wide, kind)
    expected.backward(upstream.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    y.backward(upstream)
    assert y.dtype == dtype
    near = max(torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(y.double(), expected, rtol=near, atol=near)
    torch.testing.assert_close(x.grad.double(), leaf.grad, rtol=2 * near, atol=2 * near)
    assert norm.eval()(x).dtype == dtype


EXTREMES = [(torch.float32, v) for v in (0.0, 3e38, 1e30, 1e19, 1e-40, 1e4)]
EXTREMES += [(torch.bfloat16, v) for v in (0.0, 3e38, 1e-38, 5.0)]
EXTREMES += [(torch.float16, v) for v in (0.0, 6.5e4, 6e-8)] + [(torch.float64, 1e308)]


@pytest.mark.parametrize(("dtype", "value"), EXTREMES)
@pytest.mark.parametrize("pattern", ["constant", "signs", "one", "beside"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_finite_input_stays_finite(
    kind: str, pattern: str, dtype: torch.dtype, value: float
) -> None:
    x = torch.full((6, 3), value, dtype=torch.float64)
    if pattern == "signs":
        x[::2] *= -1
    elif pattern == "one":
        x[1:] = 0
    elif pattern == "beside":  # one huge channel leaves the others as they are
        x[:, 1:] = torch.randn(6, 2)
    x = x.to(dtype).requires_grad_()
    norm = build(kind, "1d", dtype=dtype)
    y = norm(x)
    y.backward(torch.full_like(y, 1e-2))
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in norm.parameters())
    assert all(buffer.isfinite().all() for buffer in norm.buffers())
    if pattern in ("signs", "one"):
        scaled = x.detach().double() * (1e-200 if dtype == torch.float64 else 1.0)
        near = oracle(scaled, copy.deepcopy(norm).double(), kind)
        finfo = torch.finfo(dtype)
        if value > 1e-3:
            torch.testing.assert_close(y.double(), near, rtol=4 * finfo.eps, atol=4 * finfo.eps)


@pytest.mark.parametrize(("value", "share"), [(1e30, 1.0), (3e38, 0.1)])
def test_running_statistics_of_huge_channels(value: float, share: float) -> None:
    """They are the channel's own, or the largest number there is."""
    norm = batch.L1BatchNorm1d(1, momentum=share)
    norm(torch.tensor([[value], [-value], [0.0], [0.0], [value], [value]]))
    largest = torch.finfo(torch.float32).max
    exact = [(1 - share) + share * min(1.2533141 * value * 2 / 3, largest)]
    assert norm.running_scale.tolist() == pytest.approx(exact)
    assert norm.running_mean.tolist() == pytest.approx([share * value / 3])
    norm(torch.tensor([[value], [-value]]))
    beyond = min(1.2533141 * value, largest)
    exact = [(1 - share) * exact[0] + share * beyond]
    assert norm.running_scale.tolist() == pytest.approx(exact)


@pytest.mark.parametrize("kind", KINDS)
def test_eval_far_from_zero(kind: str) -> None:
    """Where x - mean is beyond float32, its ratio to the scale need not be."""
    norm = getattr(batch, KINDS[kind] + "1d")(2).eval()
    norm.running_mean.fill_(-3e38)
    norm.running_scale.fill_(3e38)
    x = torch.tensor([[3e38, -3e38]], requires_grad=True)
    y = norm(x)
    y.sum().backward()
    torch.testing.assert_close(y, torch.tensor([[2.0, 0.0]]))
    torch.testing.assert_close(x.grad * 3e38, torch.ones(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_channels_give_the_bias(kind: str) -> None:
    norm = build(kind, "2d")
    x = torch.full((2, 3, 2, 2), 0.5, dtype=torch.float64, requires_grad=True)
    y = norm(x)
    upstream = torch.randn_like(y)
    (grad,) = torch.autograd.grad(y, x, upstream)
    assert torch.equal(y, norm.bias.view(1, 3, 1, 1).expand_as(y))
    # the statistic's subgradient at 0 is 0: what is left is centring and 1/eps
    centred = upstream - upstream.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(grad, centred * norm.weight.view(1, 3, 1, 1) / 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_keeps_its_layout(kind: str) -> None:
    norm = build(kind, "2d")
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    y = norm(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    dense = x.clone().requires_grad_()
    expected = norm(dense)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(last.grad, dense.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_compiled_whole_and_equal(kind: str, training: bool) -> None:
    torch._dynamo.reset()
    norm = build(kind, "2d", momentum=None).train(training)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(twin, backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    for _ in range(2):
        expected, actual = norm(x), compiled(x)
        torch.testing.assert_close(actual, expected)
        for got, want in zip(
            gradients(actual, x, twin, upstream),
            gradients(expected, x, norm, upstream),
            strict=True,
        ):
            torch.testing.assert_close(got, want)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(norm.named_buffers()))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_state_meta_and_reset(kind: str) -> None:
    norm = build(kind, "1d")
    x = torch.randn(6, 3, dtype=torch.float64)
    norm(x)
    buffer = io.BytesIO()
    torch.save(norm.state_dict(), buffer)
    buffer.seek(0)
    loaded = build(kind, "1d")
    loaded.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    twins = [norm, copy.deepcopy(norm), loaded]
    for mode in (False, True):
        first, *others = [twin.train(mode)(x) for twin in twins]
        assert all(torch.equal(first, other) for other in others)
    meta = getattr(batch, KINDS[kind] + "1d")(3, device="meta", dtype=torch.bfloat16)
    assert {t.device.type for t in meta.state_dict().values()} == {"meta"}
    assert meta(torch.empty(4, 3, device="meta")).shape == (4, 3)
    real = meta.to_empty(device="cpu").float()
    real.reset_parameters()
    fresh = getattr(batch, KINDS[kind] + "1d")(3)
    assert {n: t.tolist() for n, t in real.state_dict().items()} == {
        n: t.tolist() for n, t in fresh.state_dict().items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("suffix", "shape", "message"),
    [
        ("1d", (4, 3, 2, 2), "2-D or 3-D input, got 4-D"),
        ("2d", (4, 3, 2), "4-D input, got 3-D"),
        ("3d", (4, 3, 2, 2), "5-D input, got 4-D"),
        ("", (4,), "at least 2-D"),
        ("2d", (4, 5, 2, 2), "3 channels in axis 1"),
        ("1d", (1, 3), "more than 1 value per channel"),
        ("2d", (1, 3, 1, 1), "more than 1 value per channel"),
        ("1d", (0, 3), "more than 1 value per channel"),
    ],
)
def test_wrong_inputs(kind: str, suffix: str, shape: tuple[int, ...], message: str) -> None:
    norm = build(kind, suffix)
    with pytest.raises(ValueError, match=message):
        norm(torch.zeros(shape, dtype=torch.float64))
    assert norm.num_batches_tracked == 0


def test_integers_are_refused_and_one_value_is_fine_in_eval() -> None:
    norm = batch.L1BatchNorm1d(3)
    with pytest.raises(ValueError, match=r"floating-point input, .*torch\.int64"):
        norm(torch.zeros(4, 3, dtype=torch.long))
    assert norm.eval()(torch.zeros(1, 3)).shape == (1, 3)
    assert norm(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps must be > 0"),
        ({"momentum": 1.5}, "momentum must be at most 1"),
        ({"momentum": "a"}, "momentum must be a finite number"),
        ({"k": 0}, "k must be a whole number"),
        ({"k": 2.5}, "k must be a whole number"),
        ({"process_group": object()}, "only used with sync=True"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch.TopKBatchNorm1d(3, **options)
    with pytest.raises(UserError, match="dim must be"):
        batch.TopKBatchNorm1d(0)


def test_options_show() -> None:
    norm = batch.TopKBatchNorm2d(3, 1e-3, None, k=4, bias=False, sync=True)
    assert norm.bias is None
    for part in ("3, eps=0.001", "momentum=None", "bias=False", "sync=True", "k=4"):
        assert part in repr(norm)
