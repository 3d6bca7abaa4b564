"""Losses against formulas written out in float64."""

from __future__ import annotations

import pytest
import torch

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
