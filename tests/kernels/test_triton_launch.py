"""The Triton kernels by tile sizes and lengths: in Triton's interpreter, or compiled on a GPU.

    TRITON_INTERPRET=1 python -m pytest -m "not slow" tests/kernels/test_triton_launch.py
    python -m pytest -m "not slow" tests/kernels/test_triton_launch.py            # on a GPU

The interpreter has to be chosen before Triton is imported, so ``test_triton.py`` runs this file in
a process of its own if there is no GPU.
"""

import importlib.util
import os

import pytest
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("no GPU: test_triton.py runs these in the interpreter", allow_module_level=True)

if INTERPRETED:
    import triton_bfloat16  # noqa: F401
from fused_cases import (  # noqa: E402
    BF16,
    F16,
    F32,
    assert_near,
    check,
    check_add,
    gradient_like,
    in_float64,
    make,
    make_target,
    rows_of_all_sizes,
    supported,
)

from normtrain.kernels import triton as launch  # noqa: E402

TARGET = make_target("triton")
DEVICE = TARGET.device
pytestmark = [pytest.mark.extended, *([] if INTERPRETED else [pytest.mark.gpu])]
ON_GPU = pytest.mark.skipif(INTERPRETED, reason="needs the compiled kernels, on a GPU")


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat rows of more than 8 features as too long for a program's registers."""
    monkeypatch.setattr(launch, "_FORWARD_BLOCK", 8)
    monkeypatch.setattr(launch, "_BACKWARD_BLOCK", 8)
    monkeypatch.setattr(launch, "_WIDE_BLOCK", 8)
    monkeypatch.setattr(launch, "_WIDE_TILE", (2, 8))


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize(
    "case", [c for c in supported("triton") if c not in ("detach-both", "l2-vector")]
)
def test_rows_longer_than_a_block(case: str) -> None:
    check(TARGET, case, rows_of_all_sizes(13, F32, DEVICE, ordinary=1)[::3].contiguous(), F32)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("case", ["layer", "rms-partial", "l1"])
def test_mixed_dtypes_longer_than_a_block(case: str) -> None:
    check(TARGET, case, rows_of_all_sizes(16, BF16, DEVICE, ordinary=1)[1::3].contiguous(), F32)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("case", ["layer", "tanh"])
def test_residual_add_longer_than_a_block(case: str) -> None:
    check_add(TARGET, case, 0.3, F32, 13, True)


@pytest.mark.parametrize("case", ["layer", "rms-partial", "l2", "tanh", "ada"])
def test_many_programs_share_the_rows(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than programs and an incomplete last tile; bitwise identical every time."""
    monkeypatch.setattr(launch, "backward_tile", lambda block: launch.Tile(2, 1, 2))
    monkeypatch.setattr(launch, "_most_programs", lambda device: 3)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    dx, grads = check(TARGET, case, x, F32)
    again = check(TARGET, case, x, F32)
    for one, two in zip((dx, *grads), (again[0], *again[1]), strict=True):
        assert one is two or (one is not None and two is not None and torch.equal(one, two))


def test_supported_inputs() -> None:
    x, serves = torch.empty(2, 3, device=DEVICE), TARGET.backend.serves
    assert serves(x)
    assert serves(x.half())
    assert not serves(x.double())
    assert not serves(x[:, :0])
    assert not serves(torch.empty(1, launch.LONGEST + 1, device="meta"))


# On a GPU: real tiles, real lengths, all programs at once.

LENGTHS = [100, 512, 768, 1024, 4096, 5001, 8192, 16384, 20000, 65536]
MIXES = [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16)]


@ON_GPU
@pytest.mark.parametrize("case", supported("triton"))
def test_real_lengths(case: str) -> None:
    for d in LENGTHS:
        count = max(3, min(6000, 2**23 // d))
        for dtype, parameter in MIXES:
            x = rows_of_all_sizes(d, dtype, DEVICE, ordinary=count)
            check(TARGET, case, x, parameter, bound=1e-4)


@ON_GPU
@pytest.mark.parametrize("d", [512, 768, 4096, 20000])
def test_residual_add_of_real_lengths(d: int) -> None:
    for case in ("layer", "rms", "tanh"):
        check_add(TARGET, case, 0.1, BF16, d, True)
        check_add(TARGET, case, None, F32, d, False)


def step(case: str, x: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward, with x as the gradient of the output."""
    kind, parameters, scalars = make(case, x.shape[-1], BF16, DEVICE)
    y, stats = TARGET.backend.forward(kind, x, parameters, scalars)
    dx, grads = TARGET.backend.backward(kind, x, x, parameters, stats, scalars)
    return y, dx, *(t for t in grads if t is not None)


@ON_GPU
def test_bitwise_identical_every_time() -> None:
    for d in (512, 1000, 20000):
        x = torch.randn(4099, d, device=DEVICE).to(BF16)
        first = step("layer", x)
        for _ in range(20):
            assert all(torch.equal(*both) for both in zip(first, step("layer", x), strict=True))


@ON_GPU
def test_offsets_beyond_32_bits() -> None:
    x = torch.randn(2**31 // 4096 + 9, 4096, device=DEVICE, dtype=BF16)
    y, dx, *_ = step("rms", x)
    wanted, dwanted, _ = in_float64(*_tail(x), x[-9:])
    assert_near(y[-9:], wanted)
    assert_near(dx[-9:], dwanted)


def _tail(x: Tensor) -> tuple:
    kind, parameters, scalars = make("rms", x.shape[-1], BF16, DEVICE)
    return kind, x[-9:], parameters, scalars


@ON_GPU
def test_in_a_cuda_graph() -> None:
    x = torch.randn(100, 512, device=DEVICE, dtype=BF16)
    step("layer", x)  # compiles, which a graph cannot record
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step("layer", x)
    x.copy_(gradient_like(x))
    graph.replay()
    assert all(torch.equal(*both) for both in zip(recorded, step("layer", x), strict=True))
