"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from normtrain.kernels.table import KINDS, Scalars

TRITON = importlib.util.find_spec("triton") is not None
HERE = Path(__file__).parent
NEEDS_TRITON = pytest.mark.skipif(not TRITON, reason="triton is not installed")
COMPILES = pytest.mark.skipif(
    not TRITON
    or importlib.util.find_spec("triton.backends.nvidia") is None
    or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton with its CUDA backend, and TRITON_INTERPRET unset",
)
NAMES = ("forward_rows", "backward_rows", "finalize", "forward_wide", "backward_wide")
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def test_kernels_without_triton() -> None:
    """A machine without a GPU loads no Triton, which takes seconds."""
    code = "import sys, normtrain.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS_TRITON
def test_importing_the_launchers_touches_no_device() -> None:
    code = (
        "import sys, torch, normtrain.kernels.triton;"
        " sys.exit('triton' not in sys.modules or torch.cuda.is_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS_TRITON
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="test_triton_rows.py runs in this process"
)
def test_against_float64_in_the_interpreter() -> None:
    """test_triton_rows.py in a process of its own: see there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    # the interpreter computes padding, and both branches of a choice, which may overflow
    command += ["-W", "ignore::RuntimeWarning", str(HERE / "test_triton_rows.py")]
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


class Compiled:
    """Stands in for a kernel: compiles it for an H100 with what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.ptx: list[str] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size > 0 for size in grid)
        return self.run

    def run(self, *args: object, num_warps: int, **constants: object) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        values = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
        signature, fixed, attributes = {}, {}, {}
        for i, parameter in enumerate(self.kernel.params):
            value = values.pop(parameter.name)
            if parameter.is_constexpr or value is None:
                signature[parameter.name], fixed[(i,)] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[parameter.name] = TYPES.get(value.dtype, "*i64")
                attributes[(i,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        assert not values
        made = triton.compile(
            ASTSource(self.kernel, signature, fixed, attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps},
        )
        self.ptx.append(made.asm["ptx"])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Compiled]:
    """The launchers' kernels, which only compile, and take tensors of the CPU."""
    from normtrain.kernels import triton as launch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    made = {name: Compiled(getattr(launch, name)) for name in (*NAMES, "parameters_wide")}
    for name, kernel in made.items():
        monkeypatch.setattr(launch, name, kernel)
    return made


def launch_all(kind: str, d: int, dtype: torch.dtype, fused: bool) -> None:
    from normtrain.kernels import triton as launch

    x = torch.zeros(3, d, dtype=dtype)
    weight = bias = alpha = None
    if kind not in ("detach", "ada"):
        weight = torch.zeros(1 if kind == "l2" else d)
        bias = None if kind == "l2" else torch.zeros(d, dtype=dtype)
    if kind == "tanh":
        alpha = torch.zeros(1)
    n = Scalars(1e-5, {"rms": max(1, d // 16), "detach": 1}.get(kind, 0), 1.25, 0.1)
    if not fused:
        _, stats = launch.BACKEND.forward(kind, x, weight, bias, alpha, n)
        launch.BACKEND.backward(kind, x, x, weight, bias, alpha, stats, n)
        return
    seeds = torch.zeros(3, dtype=torch.int64)
    _, total, stats = launch.BACKEND.forward_add(kind, x, x, seeds, 0.1, weight, bias, alpha, n)
    launch.BACKEND.backward_add(kind, x, x, total, seeds, 0.1, weight, bias, alpha, stats, n)


@COMPILES
@pytest.mark.parametrize(
    ("kind", "d", "dtype", "fused"),
    [("layer", 512, torch.bfloat16, False), ("rms", 1000, torch.float16, True)],
)
def test_compiled_for_a_gpu(
    kind: str, d: int, dtype: torch.dtype, fused: bool, compiled: dict[str, Compiled]
) -> None:
    launch_all(kind, d, dtype, fused)
    for name in ("forward_rows", "backward_rows", "finalize"):
        (ptx,) = compiled[name].ptx
        assert "sm_90" in ptx
        # double precision is many times slower, and slips in by a Python number
        assert ".f64" not in ptx
    # eight narrow features are loaded at once, and the backward's next rows ahead of their turn
    assert ".v4.b32" in compiled["forward_rows"].ptx[0]
    assert "cp.async" in compiled["backward_rows"].ptx[0]


@COMPILES
def test_long_rows_compiled_for_a_gpu(compiled: dict[str, Compiled]) -> None:
    launch_all("layer", 20000, torch.bfloat16, False)
    assert [name for name, kernel in compiled.items() if kernel.ptx] == [
        "finalize", "forward_wide", "backward_wide", "parameters_wide",
    ]  # fmt: skip
    assert all(".f64" not in kernel.ptx[0] for kernel in compiled.values() if kernel.ptx)


@COMPILES
@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("d", [1, 100, 20000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_compiled_for_a_gpu(
    kind: str, d: int, fused: bool, compiled: dict[str, Compiled]
) -> None:
    launch_all(kind, d, torch.float32, fused)
    assert all(".f64" not in ptx for kernel in compiled.values() for ptx in kernel.ptx)
