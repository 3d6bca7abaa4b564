"""Residual add, dropout and norm in one call, by the fused kernels and one after the other."""

import pytest
import torch
from torch import Tensor

from normtrain import kernels
from normtrain.kernels import native

BACKENDS = ["plain", "aten", *([] if native.unavailable() else ["native"])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_both_results_and_all_gradients(op: str, backend: str) -> None:
    torch.manual_seed(1)
    x, residual, weight, bias = (torch.randn(*s) for s in ((2, 5, 12), (2, 5, 12), (12,), (12,)))
    upstream = torch.randn(2, 2, 5, 12)

    def gradients(dtype: torch.dtype, fused: bool) -> list[Tensor]:
        leaves = [
            t.detach().to(dtype).clone().requires_grad_() for t in (x, residual, weight, bias)
        ]
        if fused:
            y, total = kernels.add_norm(op, *leaves, 1e-5)
        else:
            total = leaves[0] + leaves[1]
            centred = total - total.mean(-1, keepdim=True) if op == "layer_norm" else total
            scale = (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
            y = centred * scale * leaves[2] + leaves[3]
        torch.autograd.backward([y, total], list(upstream.to(dtype)))
        return [y.detach(), total.detach(), *(t.grad for t in leaves if t.grad is not None)]

    with kernels.use(backend):
        found = gradients(torch.float32, fused=True)
    wanted = gradients(torch.float64, fused=False)
    assert len(found) == len(wanted) == 6
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_drops_the_same_in_the_backward_and_follows_the_seed(backend: str) -> None:
    x, residual = torch.ones(50, 40, requires_grad=True), torch.zeros(50, 40)
    with kernels.use(backend):
        torch.manual_seed(3)
        _, total = kernels.add_norm("rms_norm", x, residual, None, None, 1e-5, p=0.25)
        total.sum().backward()
        torch.manual_seed(3)
        again = kernels.add_norm("rms_norm", x, residual, None, None, 1e-5, p=0.25)[1]
        other = kernels.add_norm("rms_norm", x, residual, None, None, 1e-5, p=0.25)[1]
    torch.testing.assert_close(x.grad, total.detach())
    assert total.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (total == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert torch.equal(total, again)
    assert not torch.equal(total, other)
