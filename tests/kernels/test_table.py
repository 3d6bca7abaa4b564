"""Every row of the table of fused norms, on every backend, against its formula in float64.

Without a GPU, ``test_triton.py`` runs this file in Triton's interpreter, in a process of its own.
"""

from collections.abc import Iterator

import pytest
import torch
from fused_cases import (
    BF16,
    CASES,
    F16,
    F32,
    Target,
    check,
    check_add,
    dropout_mask,
    gradient_like,
    in_float64,
    make,
    make_target,
    rows_of_all_sizes,
    supported,
    targets,
)
from fused_cases import assert_near as assert_rows_near
from torch import Tensor

from normtrain.kernels import native
from normtrain.kernels.table import KINDS, ROWS

DTYPES = [(F32, F32), (BF16, BF16), (F16, F16)]
MIXED = [(BF16, F32), (F16, F32)]
EXTENDED = pytest.mark.extended


@pytest.fixture(params=targets())
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    name, instruction_set = request.param
    case = request.node.callspec.params.get("case")
    if case is not None and case not in supported(name):
        pytest.skip(f"the table has no {name} kernel for {case}")
    before = native.use_instruction_set(instruction_set) if instruction_set else ""
    yield make_target(name)
    if before:
        native.use_instruction_set(before)


def test_the_codes_are_the_order_of_the_rows() -> None:
    assert [row.code for row in ROWS] == list(range(len(ROWS)))
    assert list(KINDS) == [row.kind for row in ROWS]


@pytest.mark.skipif(native.unavailable() is not None, reason="no native extension")
def test_the_extension_supports_what_the_table_says() -> None:
    exported = dict(enumerate(native._native.kinds()))
    expected = {r.code: (r.kind, r.saved["native"]) for r in ROWS if "native" in r.saved}
    assert exported == expected, "run 'python hatch_build.py' if the extension is older"


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("rms-partial", "l2-vector")])
def test_every_saved_statistic_is_written(
    case: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uninitialized memory is NaN here, so a column that a kernel does not write is found."""
    kind, parameters, scalars = make(case, 13, F32, target.device)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        x = torch.randn(5, 13).to(target.device)
        _, stats = target.backend.forward(kind, x, parameters, scalars)
    finally:
        torch.use_deterministic_algorithms(False)
    assert stats.shape == (5, len(KINDS[kind].saved[target.backend.name]))
    assert stats.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "parameter"),
    [*DTYPES, *(pytest.param(*mix, marks=EXTENDED) for mix in MIXED)],
    ids=str,
)
@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients(
    case: str, dtype: torch.dtype, parameter: torch.dtype, target: Target
) -> None:
    check(target, case, rows_of_all_sizes(13, dtype, target.device), parameter)


@EXTENDED
@pytest.mark.parametrize("case", CASES)
def test_lengths(case: str, target: Target) -> None:
    """One feature, whole vectors, long rows, many rows, no rows."""
    x = rows_of_all_sizes(1, F32, target.device)
    # scaling a huge row leaves out eps, which is all that a centred row of one feature has
    centred = case.split("-")[0] in ("layer", "detach", "ada", "l1")
    check(target, case, x[x.abs().flatten() < 2**30] if centred else x, F32)
    check(target, case, rows_of_all_sizes(64, F32, target.device), F32)
    if target.backend.name == "native":
        check(target, case, rows_of_all_sizes(1000, BF16, "cpu", ordinary=70), F32)
    kind, parameters, scalars = make(case, 6, F32, target.device)
    x = torch.empty(0, 6, device=target.device)
    y, stats = target.backend.forward(kind, x, parameters, scalars)
    dx, grads = target.backend.backward(kind, x, x, parameters, stats, scalars)
    assert y.shape == dx.shape == (0, 6)
    for grad, given in zip(grads, parameters, strict=True):
        assert (grad is None) == (given is None)
        assert grad is None or (grad.shape == given.shape and not grad.any())


@pytest.mark.parametrize("d", [10, 63])
@pytest.mark.parametrize("case", ["layer", "l1"])
def test_constant_rows_give_zeros(case: str, d: int, target: Target) -> None:
    """The rounding of a mean must not look like a deviation."""
    kind, _, scalars = make(case, d, F32, target.device)
    for value in (37.3, 1234.567, 333333.33, -1e-3):
        x = torch.full((2, d), value, device=target.device)
        y, _ = target.backend.forward(kind, x, (None, None, None), scalars)
        assert y.abs().max().item() <= 1e-3


@pytest.mark.parametrize("case", ["layer", "l1", "ada"])
def test_one_large_feature_costs_the_others_no_precision(case: str, target: Target) -> None:
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(2))
    x[:, 0], x[1, :] = 1e5, x[1].flip(0)
    kind, parameters, scalars = make(case, 64, F32, target.device)
    y, _ = target.backend.forward(kind, x.to(target.device), parameters, scalars)
    wanted, _, _ = in_float64(kind, x.to(target.device), parameters, scalars, y)
    torch.testing.assert_close(y.double(), wanted, rtol=3e-6, atol=3e-7)


def test_features_outside_the_statistic_may_be_far_larger(target: Target) -> None:
    small = torch.tensor([1.0, -2.0, 0.5, 1.0])
    large = 3e38 * torch.tensor([1.0, -1, 1, -0.7])
    scales = (10.0, 300.0, 1e6, 1e10, 1e18, 1e25, 1e37)
    x = torch.stack([torch.cat([scale * small, large]) for scale in scales]).to(target.device)
    kind, parameters, scalars = make("rms-partial", 8, F32, target.device)
    assert scalars.count == 4
    grad = gradient_like(x)
    y, stats = target.backend.forward(kind, x, parameters, scalars)
    dx, _ = target.backend.backward(kind, grad, x, parameters, stats, scalars)
    wanted, dwanted, _ = in_float64(kind, x, parameters, scalars, grad)
    for part in (slice(0, 4), slice(4, 8)):
        assert_rows_near(y[:, part], wanted[:, part])
        assert_rows_near(dx[:, part], dwanted[:, part])


@pytest.mark.parametrize("upstream", [1e-12, 1e15])
@pytest.mark.parametrize("case", ["layer", "rms", "l2"])
def test_large_and_tiny_gradients(case: str, upstream: float, target: Target) -> None:
    kind, parameters, scalars = make(case, 8, F32, target.device)
    x = rows_of_all_sizes(8, F32, target.device)
    grad = upstream * gradient_like(x)
    _, stats = target.backend.forward(kind, x, parameters, scalars)
    dx, _ = target.backend.backward(kind, grad, x, parameters, stats, scalars)
    _, dwanted, _ = in_float64(kind, x, parameters, scalars, grad)
    small = dwanted.abs().amax(-1) < 1e-36
    assert_rows_near(dx[~small], dwanted[~small])
    assert (dx[small].abs() < 2e-36).all()


ADD = [(None, F32, True), (0.3, F32, True), (0.5, BF16, False)]


@pytest.mark.parametrize(
    ("p", "dtype", "with_total"), [ADD[1], *(pytest.param(*a, marks=EXTENDED) for a in ADD[::2])]
)
@pytest.mark.parametrize("case", CASES)
def test_residual_add_dropout_and_norm(
    case: str, p: float | None, dtype: torch.dtype, with_total: bool, target: Target
) -> None:
    check_add(target, case, p, dtype, 13, with_total)
    check_add(target, case, p, dtype, 50, with_total)


def test_the_dropout_mask_is_a_function_of_the_row_seed(target: Target) -> None:
    seeds = torch.tensor([5, 6, 5, 5 + 2**32, -7], device=target.device)

    def mask_of(seeds: Tensor, d: int, p: float) -> Tensor:
        return dropout_mask(target, seeds, d, p)

    mask = mask_of(seeds, 2048, 0.25)
    assert torch.equal(mask[0], mask[2])
    for one, two in ((0, 1), (0, 3), (1, 4)):
        # independent masks agree with probability 0.75^2 + 0.25^2
        assert 0.57 < (mask[one] == mask[two]).double().mean() < 0.68
    assert torch.allclose(mask.unique(), torch.tensor([0.0, 1 / 0.75], device=target.device))
    assert ((mask > 0).double().mean(-1) - 0.75).abs().max() < 0.05
    assert torch.equal(mask_of(seeds[:2], 64, 0.25), mask[:2, :64])
    assert (mask_of(seeds[:1], 64, 0.0) == 1).all()
