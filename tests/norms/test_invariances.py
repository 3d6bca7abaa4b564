"""The papers' table of invariances, measured; and what they mean for the gradients.

Rows of the table are normalizers of a = W x, for a data set x of one case a row. Columns: what is
done to W or x. The first five rows are Table 1 of Zhang and Sennrich 2019 (arXiv:1910.07467).
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from variants import NAMES, SPECS, gradient, name_of, rows, sharp

from normtrain.norms import norm_info, norm_names

COLUMNS = (
    "weight matrix re-scaling",
    "weight matrix re-centring",
    "weight vector re-scaling",
    "dataset re-scaling",
    "dataset re-centring",
    "single case re-scaling",
)
Y, N = True, False
TABLE: dict[str, tuple[bool, ...]] = {
    "BatchNorm": (Y, N, Y, Y, Y, N),
    "WeightNorm": (Y, N, Y, N, N, N),
    "layernorm": (Y, Y, N, Y, N, Y),
    "rmsnorm": (Y, N, N, Y, N, Y),
    "prmsnorm": (Y, N, N, Y, N, Y),
    # The same table for the rest of the family: what centres over features is like LayerNorm,
    # what only divides is like RMSNorm, what knows no statistic is like nothing above.
    "adanorm": (Y, Y, N, Y, N, Y),
    "crmsnorm": (Y, N, N, Y, N, Y),
    "derf": (N, N, N, N, N, N),
    "detachnorm": (Y, Y, N, Y, N, Y),
    "dyt": (N, N, N, N, N, N),
    "fixnorm": (Y, N, N, Y, N, Y),
    "l1norm": (Y, Y, N, Y, N, Y),
    "layernorm-simple": (Y, Y, N, Y, N, Y),
    "linfnorm": (Y, Y, N, Y, N, Y),
    "none": (N, N, N, N, N, N),
    "scalenorm": (Y, N, N, Y, N, Y),
    "topknorm": (Y, Y, N, Y, N, Y),
}
CASES, INPUTS, DIM = 6, 7, 12


def _weight_vector(w: Tensor, delta: float) -> Tensor:
    """One row rescaled: the fourth, which every statistic below reads unless it is partial."""
    return torch.cat((w[:3], w[3:4] * delta, w[4:]))


# column: (W, x, factor, offset (INPUTS,)) changed
CHANGES: dict[str, Callable[[Tensor, Tensor, float, Tensor], tuple[Tensor, Tensor]]] = {
    "weight matrix re-scaling": lambda w, x, delta, off: (w * delta, x),
    "weight matrix re-centring": lambda w, x, delta, off: (w + off, x),
    "weight vector re-scaling": lambda w, x, delta, off: (_weight_vector(w, delta), x),
    "dataset re-scaling": lambda w, x, delta, off: (w, x * delta),
    "dataset re-centring": lambda w, x, delta, off: (w, x + off),
    "single case re-scaling": lambda w, x, delta, off: (w, torch.cat((x[:1] * delta, x[1:]))),
}


def _batch_norm(w: Tensor, x: Tensor) -> Tensor:
    a = x @ w.T
    return (a - a.mean(0)) / a.var(0, correction=0).sqrt()


def _weight_norm(w: Tensor, x: Tensor) -> Tensor:
    return x @ (w / w.norm(dim=1, keepdim=True)).T


def _outputs(row: str) -> Callable[[Tensor, Tensor], Tensor]:
    if row in ("BatchNorm", "WeightNorm"):
        return {"BatchNorm": _batch_norm, "WeightNorm": _weight_norm}[row]
    norm = sharp(row, DIM)
    return lambda w, x: norm(x @ w.T)


def test_the_table_has_every_registered_norm() -> None:
    assert set(TABLE) - {"BatchNorm", "WeightNorm"} == set(norm_names()) == set(NAMES)
    assert all(len(row) == len(COLUMNS) for row in TABLE.values())
    assert tuple(CHANGES) == COLUMNS


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", ["BatchNorm", "WeightNorm", *SPECS])
@pytest.mark.parametrize("delta", [3.0, 0.01])
def test_the_table_of_invariances(row: str, column: str, delta: float) -> None:
    w, x, off = rows(DIM, INPUTS) / 5, rows(CASES, INPUTS), rows(INPUTS)  # tanh is not flat yet
    outputs = _outputs(row)
    before, after = outputs(w, x), outputs(*CHANGES[column](w, x, delta, off))
    if TABLE[name_of(row)][COLUMNS.index(column)]:
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    else:
        assert (after - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("spec", SPECS)
def test_the_registry_says_what_is_measured(spec: str) -> None:
    norm, x = sharp(spec, 9), rows(5, 9)
    y = norm(x)
    factors, offsets = rows(5, 1).abs() + 1, rows(5, 1) + 3
    changed = {"scale": norm(x * factors), "shift": norm(x + offsets)}
    measured = {key for key, z in changed.items() if torch.allclose(z, y, rtol=1e-9, atol=1e-9)}
    assert set(norm_info(name_of(spec)).invariances) == measured


@pytest.mark.parametrize("name", [name for name in NAMES if TABLE[name][0]])
def test_scale_turns_the_sign_with_the_row(name: str) -> None:
    """Invariance is to factors above 0; below, the output turns round, but for AdaNorm's."""
    norm, x = sharp(name, 9), rows(5, 9)
    with torch.no_grad():
        for key, parameter in norm.named_parameters():
            if key == "bias":
                parameter.zero_()
    turned = torch.allclose(norm(-2 * x), -norm(x), rtol=1e-9, atol=1e-9)
    assert turned == (name != "adanorm")


SCALE_INVARIANT = [spec for spec in SPECS if TABLE[name_of(spec)][0]]


def _layer_gradients(spec: str, w: Tensor, x: Tensor, norm_seed: int) -> dict[str, Tensor]:
    """Gradients of a fixed loss of f(N(W x)) by W (``w``), the norm's parameters and N's input."""
    generator = torch.Generator().manual_seed(norm_seed)
    norm = sharp(spec, DIM)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.uniform_(0.5, 1.5, generator=generator)
    weights = torch.randn(CASES, DIM, dtype=torch.float64, generator=generator)
    w = w.clone().requires_grad_()
    a = x @ w.T
    a.retain_grad()
    (norm(a).tanh() * weights).sum().backward()
    found = {"w": w.grad, "a": a.grad, **{k: p.grad for k, p in norm.named_parameters()}}
    assert all(g is not None and g.abs().max() > 0 for g in found.values())
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("delta", [7.0, 0.03])
@pytest.mark.parametrize("spec", SCALE_INVARIANT)
def test_scaling_the_weights_divides_their_gradient_alone(spec: str, delta: float) -> None:
    """dL/dg and dL/db stay, dL/dW is divided by delta: the implicit learning rate adaptor."""
    w, x = rows(DIM, INPUTS), rows(CASES, INPUTS)
    before, after = (_layer_gradients(spec, factor * w, x, 3) for factor in (1.0, delta))
    for key, want in before.items():
        have = after[key] * delta if key in ("w", "a") else after[key]
        torch.testing.assert_close(have, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("delta", [7.0, 0.03])
@pytest.mark.parametrize("spec", SCALE_INVARIANT)
def test_scaling_the_input_changes_no_parameters_gradient(spec: str, delta: float) -> None:
    w, x = rows(DIM, INPUTS), rows(CASES, INPUTS)
    before, after = (_layer_gradients(spec, w, factor * x, 4) for factor in (1.0, delta))
    for key, want in before.items():
        have = after[key] * delta if key == "a" else after[key]
        torch.testing.assert_close(have, want, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("spec", ["dyt", "derf"])
def test_gradients_without_the_invariance_do_change(spec: str) -> None:
    """So that the two tests above can fail."""
    w, x = rows(DIM, INPUTS), rows(CASES, INPUTS)
    before, after = (_layer_gradients(spec, w, factor * x, 5) for factor in (1.0, 3.0))
    assert not torch.allclose(after["w"], before["w"], rtol=0.01)
    assert not torch.allclose(after["weight"], before["weight"], rtol=0.01)


@pytest.mark.parametrize("spec", SPECS)
def test_rows_do_not_touch_each_other(spec: str) -> None:
    norm = sharp(spec, 6)
    x, upstream = rows(4, 6), rows(4, 6)
    changed = x.clone()
    changed[2] = 1e3 * torch.arange(6)
    kept = [0, 1, 3]
    assert torch.equal(norm(changed)[kept], norm(x)[kept])
    before, after = (gradient(norm, values, upstream) for values in (x, changed))
    assert torch.equal(after[kept], before[kept])
