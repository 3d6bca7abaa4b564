"""The Triton kernels without a GPU: run by Triton's interpreter, and compiled for one."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import F32, make, supported
from torch import Tensor

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


@pytest.mark.extended
def test_kernels_without_triton() -> None:
    """Importing the kernels does not import Triton, which takes seconds."""
    code = "import sys, normtrain.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS_TRITON
@pytest.mark.extended
def test_importing_the_launchers_touches_no_device() -> None:
    code = (
        "import sys, torch, normtrain.kernels.triton;"
        " sys.exit('triton' not in sys.modules or torch.cuda.is_initialized())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@NEEDS_TRITON
@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this process is the interpreter's"
)
@pytest.mark.extended
def test_against_float64_in_the_interpreter() -> None:
    """``test_table.py`` and ``test_triton_launch.py``, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    # the interpreter computes padding and both branches of a condition, which may overflow
    command += ["-W", "ignore::RuntimeWarning", "-p", "triton_bfloat16", "-m", "extended"]
    command += [
        "-k",
        "triton",
        *(str(HERE / f"test_{name}.py") for name in ("table", "triton_launch")),
    ]
    path = os.pathsep.join([str(HERE.parent / "helpers"), *sys.path])
    done = subprocess.run(
        command,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


class Compiled:
    """Replaces a kernel: compiles it for an H100 with the arguments of a launch."""

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
    """The launched kernels, replaced by ones that only compile; tensors are on the CPU."""
    from normtrain.kernels import triton as launch

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "interpreted", lambda: True)
    made = {name: Compiled(getattr(launch, name)) for name in (*NAMES, "parameters_wide")}
    for name, kernel in made.items():
        monkeypatch.setattr(launch, name, kernel)
    return made


def launch_all(case: str, d: int, dtype: torch.dtype, with_residual: bool) -> None:
    from normtrain.kernels.backend import Dropout
    from normtrain.kernels.triton import BACKEND

    x = torch.zeros(3, d, dtype=dtype)
    kind, parameters, scalars = make(case, d, F32, "cpu")
    if not with_residual:
        _, stats = BACKEND.forward(kind, x, parameters, scalars)
        BACKEND.backward(kind, x, x, parameters, stats, scalars)
        return
    dropout = Dropout(torch.zeros(3, dtype=torch.int64), 0.1)
    _, total, stats = BACKEND.forward_add(kind, x, x, dropout, parameters, scalars)
    BACKEND.backward_add(kind, x, x, total, dropout, parameters, stats, scalars)


@COMPILES
@pytest.mark.extended
@pytest.mark.parametrize(
    ("case", "d", "dtype", "fused"),
    [("layer", 512, torch.bfloat16, False), ("rms-partial", 1000, torch.float16, True)],
)
def test_compiled_for_a_gpu(
    case: str, d: int, dtype: torch.dtype, fused: bool, compiled: dict[str, Compiled]
) -> None:
    launch_all(case, d, dtype, fused)
    for name in ("forward_rows", "backward_rows", "finalize"):
        (ptx,) = compiled[name].ptx
        assert "sm_90" in ptx
        # double precision is many times slower, and slips in by a Python number
        assert ".f64" not in ptx
    # eight half-precision features are loaded at once, and the backward prefetches its next rows
    assert ".v4.b32" in compiled["forward_rows"].ptx[0]
    assert "cp.async" in compiled["backward_rows"].ptx[0]


@COMPILES
@pytest.mark.extended
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
@pytest.mark.parametrize("case", supported("triton"))
def test_every_kind_compiled_for_a_gpu(
    case: str, d: int, fused: bool, compiled: dict[str, Compiled]
) -> None:
    launch_all(case, d, torch.float32, fused)
    assert all(".f64" not in ptx for kernel in compiled.values() for ptx in kernel.ptx)
