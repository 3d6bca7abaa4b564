"""Losses against formulas written out in float64."""

import pytest
import torch
import torch.nn.functional as F

from normtrain.tasks import loss as loss_module
from normtrain.tasks.loss import summed_loss, training_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("bias", [None, torch.linspace(-2, 2, 11)])
def test_training_loss_is_the_smoothed_cross_entropy_of_real_tokens(
    smoothing: float, bias: torch.Tensor | None
) -> None:
    hidden, weight = torch.randn(2, 5, 8), torch.randn(11, 8)
    added = torch.zeros(11) if bias is None else bias
    target = torch.randint(1, 11, (2, 5))
    target[1, 3:] = 0
    found = training_loss(hidden, weight, target, smoothing, bias, ignore_index=0)
    total, count = 0.0, 0
    for row, step in (target != 0).nonzero().tolist():
        logits = (weight.double() @ hidden[row, step].double() + added).tolist()
        norm = torch.tensor(logits, dtype=torch.float64).logsumexp(0).item()
        log_probs = [x - norm for x in logits]
        truth = -log_probs[target[row, step]]
        total += (1 - smoothing) * truth + smoothing * -sum(log_probs) / len(log_probs)
        count += 1
    assert float(found) == pytest.approx(total / count, rel=1e-5)


def test_summed_loss_has_no_smoothing_and_no_padding() -> None:
    logits, target = torch.randn(2, 4, 7), torch.tensor([[3, 1, 6, 0], [2, 0, 0, 0]])
    expected = sum(
        -logits[r, t].double().log_softmax(0)[target[r, t]].item()
        for r, t in (target != 0).nonzero().tolist()
    )
    found = summed_loss(logits, target, ignore_index=0)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(expected, rel=1e-6)
    padded = torch.cat([logits, torch.randn(2, 3, 7)], 1)
    wider = torch.cat([target, torch.zeros(2, 3, dtype=torch.int64)], 1)
    assert float(summed_loss(padded, wider, ignore_index=0)) == pytest.approx(expected, rel=1e-6)


def both_gradients(
    smoothing: float, dtype: torch.dtype
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients of hidden, weight and bias: ours, and those of a float64 formula."""
    parts = [torch.randn(3, 9, 16), 0.3 * torch.randn(23, 16), torch.randn(23)]
    target = torch.randint(1, 23, (3, 9))
    target[0, 4:] = 0
    found = [part.to(dtype).requires_grad_() for part in parts]
    loss = 3 * training_loss(found[0], found[1], target, smoothing, found[2], ignore_index=0)
    grads = torch.autograd.grad(loss, found)
    exact = [part.detach().double().requires_grad_() for part in found]
    logits = exact[0] @ exact[1].T + exact[2]
    log_probs = logits - logits.logsumexp(-1, keepdim=True)
    real = target != 0
    truth = F.one_hot(target, 23).double() * (1 - smoothing) + smoothing / 23
    true_loss = -3 * (log_probs * truth).sum(-1)[real].mean()
    return [loss, *grads], [true_loss, *torch.autograd.grad(true_loss, exact)]


@pytest.mark.parametrize(
    ("dtype", "tolerance", "smoothing", "part"),  # one row at a time, five, all
    [
        (torch.float64, 1e-12, 0.0, 500),
        (torch.float64, 1e-12, 0.1, 1),
        (torch.float32, 1e-5, 0.0, 1 << 20),
        (torch.float32, 1e-5, 0.1, 500),
        (torch.bfloat16, 0.03, 0.0, 1),
        (torch.bfloat16, 0.03, 0.1, 1 << 20),
        (torch.float16, 4e-3, 0.0, 1 << 20),
        (torch.float16, 4e-3, 0.1, 500),
    ],
)
def test_gradients_are_those_of_the_formula(
    smoothing: float,
    dtype: torch.dtype,
    tolerance: float,
    part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss_module, "CACHED", part)
    for found, exact in zip(*both_gradients(smoothing, dtype), strict=True):
        error = (found.double() - exact).norm() / exact.norm()
        assert error < tolerance


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_large_and_small_logits(smoothing: float, scale: float) -> None:
    hidden = (scale * torch.randn(1, 6, 4)).requires_grad_()
    weight, target = torch.randn(9, 4), torch.randint(0, 9, (1, 6))
    loss = training_loss(hidden, weight, target, smoothing)
    exact = hidden.detach().double().requires_grad_()
    logits = F.linear(exact, weight.double()).flatten(0, 1)
    true = F.cross_entropy(logits, target.flatten(), label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), true, rtol=1e-5, atol=1e-6)
    (found,), (expected,) = torch.autograd.grad(loss, hidden), torch.autograd.grad(true, exact)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_vocabulary_larger_than_float16_counts() -> None:
    hidden = torch.ones(1, 2, 1, dtype=torch.float16)
    weight = torch.ones(70_000, 1, dtype=torch.float16, requires_grad=True)
    loss = training_loss(hidden, weight, torch.tensor([[3, 69_999]]), 0.0)
    assert float(loss.detach()) == pytest.approx(torch.tensor(70_000.0).log().item(), rel=1e-6)
    scale = 2.0**15  # as a gradient scaler's, without which float16 has no such gradients
    (gradient,) = torch.autograd.grad(scale * loss, weight)
    expected = torch.full((70_000, 1), scale / 70_000).double()
    expected[[3, 69_999]] -= scale / 2
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_under_autocast_operands_are_bfloat16_and_gradients_float32(smoothing: float) -> None:
    parts = [torch.randn(2, 6, 16), 0.3 * torch.randn(40, 16), torch.randn(40)]
    target = torch.randint(0, 40, (2, 6))
    wide = [part.clone().requires_grad_() for part in parts]
    with torch.autocast("cpu", torch.bfloat16):
        loss = training_loss(wide[0], wide[1], target, smoothing, wide[2])
    narrow = [part.bfloat16().requires_grad_() for part in parts]
    expected = training_loss(narrow[0], narrow[1], target, smoothing, narrow[2])
    assert torch.equal(loss, expected)
    found, true = torch.autograd.grad(loss, wide), torch.autograd.grad(expected, narrow)
    for one, other in zip(found, true, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other.float())


@pytest.mark.parametrize("trained", range(3))
def test_only_what_is_trained_gets_a_gradient(trained: int) -> None:
    parts = [torch.randn(2, 6, 8), torch.randn(11, 8), torch.randn(11)]
    target = torch.randint(0, 11, (2, 6))
    every = [part.clone().requires_grad_() for part in parts]
    training_loss(every[0], every[1], target, 0.1, every[2]).backward()
    some = [part.clone().requires_grad_(i == trained) for i, part in enumerate(parts)]
    training_loss(some[0], some[1], target, 0.1, some[2]).backward()
    assert [part.grad is not None for part in some] == [i == trained for i in range(3)]
    assert torch.equal(some[trained].grad, every[trained].grad)  # type: ignore[arg-type]


def test_a_graph_gone_through_twice_gives_the_same_gradient_twice() -> None:
    hidden, weight = torch.randn(1, 4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    loss = training_loss(hidden, weight, torch.randint(0, 5, (1, 4)), 0.1)
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, [hidden, weight]), strict=True):
        assert torch.equal(one, other)


def test_large_products_of_float16_stay_finite() -> None:
    hidden = torch.ones(1, 4, 2, dtype=torch.float16, requires_grad=True)
    weight = torch.full((70_000, 2), 8.0, dtype=torch.float16)
    loss = training_loss(hidden, weight, torch.tensor([[0, 1, 2, 3]]), 0.1)
    (found,) = torch.autograd.grad(2.0**15 * loss, hidden)
    assert torch.isfinite(found).all()
    # 0, but for rounding: all rows of the matrix are the same, and cancel
    assert found.abs().max() < 1e-3 * 8 * 2**15 / 4


def test_no_real_token_gives_nan() -> None:
    loss = training_loss(torch.randn(1, 2, 3), torch.randn(5, 3), torch.zeros(1, 2).long(), 0.0,
                         ignore_index=0)  # fmt: skip
    assert bool(loss.isnan())
