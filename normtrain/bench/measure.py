"""Measure norms: time, bandwidth and share of a memory copy, beside other implementations.

All arms (implementations) of a shape and dtype are timed in turn in every round, so that a slowdown
of the computer affects all of them; reported are medians and quartiles over the rounds. Bytes are
those no implementation can avoid: 2 passes over the tensor in a forward, 3 in a backward.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normtrain import kernels
from normtrain.errors import UserError
from normtrain.kernels import choice, native
from normtrain.kernels.active import active_backend, dispatched_operations
from normtrain.norms import NormSpec, build_norm, norm_names

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = ((4096, 256), (8192, 512), (4096, 1024), (2048, 4096))
COPY, LAYER_NORM, RMS_NORM = "copy", "F.layer_norm", "F.rms_norm"
EPS = 1e-5

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        norms: spec strings.
        backends: names of `normtrain.kernels.choice.BACKENDS`.
        dtypes: keys of `DTYPES`.
        shapes: (rows, dim) each.
        rounds: number of timings per arm.
        seconds: minimum duration of a timing.
        device: ``"cpu"`` or ``"cuda"``.
        inductor: also compile the norms with `torch.compile`.
    """

    norms: tuple[str, ...]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    shapes: tuple[tuple[int, int], ...] = SHAPES
    rounds: int = 15
    seconds: float = 0.02
    device: str = "cpu"
    inductor: bool = True


@dataclass(frozen=True)
class Result:
    """One arm's result at one shape and dtype; times in seconds, bandwidths in bytes per second.

    Attributes:
        arm: ``"rmsnorm (native)"``, ``"F.layer_norm"``, ``"copy"``, …
        rows: number of input vectors.
        dim: number of features.
        dtype: of input and parameters.
        forward: median, lower and upper quartile.
        both: the same of forward and backward together; None for the copy.
        bandwidth: bytes of 2 passes over the tensor divided by the forward's time.
        of_copy: the copy's time divided by the forward's.
        of_copy_both: 5/2 of the copy's time divided by that of forward and backward.
        to_layer_norm: median over rounds of the ratio to ``F.layer_norm``, forward and backward.
        operations: names of what torch dispatched, forward and backward.
    """

    arm: str
    rows: int
    dim: int
    dtype: str
    forward: tuple[float, float, float]
    both: tuple[float, float, float] | None
    bandwidth: float
    of_copy: float
    of_copy_both: float | None
    to_layer_norm: float | None
    operations: tuple[str, ...]


@dataclass
class Arm:
    """An implementation to time.

    Attributes:
        call: the norm.
        parameters: tensors whose gradients are computed besides that of the input.
        backend: the backend to use; None for the default.
    """

    call: Call
    parameters: Sequence[Tensor]
    backend: str | None = None


def what_runs(name: str) -> str:
    """Return the backend that runs a norm on this CPU, and on the GPU if there is one."""
    found = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        x = torch.randn(4, 64, device=device, requires_grad=True)
        try:
            norm = build_norm(name, 64, device=device)
            by = active_backend(norm, x)
        except UserError:  # the requested backend is not supported
            raise
        except Exception as error:
            by = f"unknown ({type(error).__name__}: {error})"
        if by == "native":
            by += f" ({native.description()})"
        found.append(f"{by} on {device.upper()}")
    return ", ".join(found)


def settings(
    norms: tuple[str, ...],
    backends: tuple[str, ...],
    dtypes: tuple[str, ...],
    shapes: tuple[str, ...],
    **others: Any,
) -> Settings:
    """Check the options of ``normtrain bench norms``.

    Args:
        norms: spec strings; all registered norms by default.
        backends: names; by default aten and the fused kernels supported here.
        dtypes: names; float32 and bfloat16 by default.
        shapes: such as ``"4096x256"``; `SHAPES` by default.
        others: further fields of `Settings`.

    Raises:
        UserError: a norm, backend, dtype or shape is unknown or not supported here.
    """
    specs = norms or tuple(name for name in norm_names() if name != "none")
    try:
        checked = tuple(dict.fromkeys(str(NormSpec.parse(spec)) for spec in specs))
        for spec in checked:
            build_norm(spec, 8)
    except ValueError as error:
        raise UserError(str(error)) from error
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    names_of_dtypes = dtypes or ("float32", "bfloat16")
    sizes = tuple(_shape(text) for text in shapes) or SHAPES
    fused = ("native", "triton")
    usable = [name for name in fused if not isinstance(choice.load_backend(name), str)]
    names = tuple(choice.check_backend(name, "backend") for name in backends or ("aten", *usable))
    made = Settings(checked, names, names_of_dtypes, sizes, **others)
    if made.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda needs a CUDA device, but none was found")
    return made


def _shape(text: str) -> tuple[int, int]:
    rows, _, dim = text.partition("x")
    if not (rows.isdecimal() and dim.isdecimal() and int(rows) and int(dim)):
        raise UserError(f"shape must be ROWSxDIM, such as 4096x256, got {text!r}")
    return int(rows), int(dim)


def _arms(wanted: Settings, dim: int, dtype: torch.dtype) -> dict[str, Arm]:
    options: dict[str, Any] = {"device": wanted.device, "dtype": dtype}
    weight = torch.ones(dim, **options).requires_grad_()
    bias = torch.zeros(dim, **options).requires_grad_()
    arms = {
        LAYER_NORM: Arm(lambda x: functional.layer_norm(x, (dim,), weight, bias, EPS),
                        [weight, bias]),
        RMS_NORM: Arm(lambda x: functional.rms_norm(x, (dim,), weight, EPS), [weight]),
    }  # fmt: skip
    for name, made in _installed(dim, weight, bias, wanted.device).items():
        arms[name] = made
    for spec in wanted.norms:
        norm: nn.Module = build_norm(spec, dim, **options)
        parameters = list(norm.parameters())
        for backend in wanted.backends:
            arms[f"{spec} ({backend})"] = Arm(norm, parameters, backend)
        if wanted.inductor:
            arms[f"{spec} (inductor)"] = Arm(torch.compile(norm), parameters, "plain")
    return arms


def _installed(dim: int, weight: Tensor, bias: Tensor, device: str) -> dict[str, Arm]:
    """Return the norms of Liger and quack if they are installed; both need a GPU."""
    found: dict[str, Arm] = {}
    if device != "cuda":
        return found
    with contextlib.suppress(ImportError):
        liger = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
        call: Call = lambda x: liger.apply(x, weight, EPS, 0.0, "llama", False)  # noqa: E731
        found["Liger rms_norm"] = Arm(call, [weight])
    with contextlib.suppress(ImportError):
        quack = importlib.import_module("quack").rmsnorm
        found["quack rmsnorm"] = Arm(lambda x: quack(x, weight, eps=EPS), [weight])
    return found


def _timed(step: Callable[[], object], seconds: float, device: str) -> float:
    """Return the seconds per call, over as many calls as fill the time."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    count, start = 0, time.perf_counter()
    while True:
        step()
        count += 1
        if device == "cuda" and count % 10:
            continue
        synchronize()
        spent = time.perf_counter() - start
        if spent >= seconds:
            return spent / count


def _steps(arm: Arm, x: Tensor, grad: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    leaf = x.clone().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return arm.call(x)

    def both() -> object:
        return torch.autograd.grad(arm.call(leaf), [leaf, *arm.parameters], grad)

    return forward, both


def measure(wanted: Settings) -> Iterator[Result]:
    """Time every arm at every shape and dtype; yield the results one after the other."""
    generator = torch.Generator().manual_seed(1)
    for name in wanted.dtypes:
        for rows, dim in wanted.shapes:
            dtype = DTYPES[name]
            x, grad = (
                torch.randn(rows, dim, generator=generator).to(wanted.device, dtype)
                for _ in range(2)
            )
            yield from _measured(wanted, name, x, grad)


def _measured(wanted: Settings, dtype: str, x: Tensor, grad: Tensor) -> Iterator[Result]:
    arms = _arms(wanted, x.shape[-1], x.dtype)
    steps: dict[str, tuple[Callable[[], object], Callable[[], object] | None]] = {}
    steps[COPY] = x.clone, None
    operations: dict[str, tuple[str, ...]] = {COPY: ("clone",)}
    for name, arm in arms.items():
        with kernels.use(arm.backend or "auto"):
            forward, both = _steps(arm, x, grad)
            both()
            operations[name] = tuple(dict.fromkeys(dispatched_operations(both)))
            steps[name] = forward, both
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(1)
    gc.disable()
    try:
        for _ in range(wanted.rounds):
            shuffle.shuffle(order)
            for name in order:
                once, twice = steps[name]
                with kernels.use((name in arms and arms[name].backend) or "auto"):
                    first = _timed(once, wanted.seconds, wanted.device)
                    second = _timed(twice, wanted.seconds, wanted.device) if twice else 0.0
                found[name].append((first, second))
    finally:
        gc.enable()
    for name in steps:
        yield _result(name, dtype, x, found, operations[name])


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 4:
        middle = statistics.median(values)
        return middle, min(values), max(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def _result(
    name: str,
    dtype: str,
    x: Tensor,
    found: dict[str, list[tuple[float, float]]],
    operations: tuple[str, ...],
) -> Result:
    def ratio(index: int, of: str) -> float:
        """Return the median over rounds of this arm's time divided by another's."""
        pairs = zip(found[name], found[of], strict=True)
        return statistics.median(own[index] / other[index] for own, other in pairs)

    forward, both = zip(*found[name], strict=True)
    moved = 2 * x.numel() * x.element_size()
    copies = [5 / 2 * c[0] / own[1] for own, c in zip(found[name], found[COPY], strict=True)
              if own[1]]  # fmt: skip
    return Result(
        name, x.shape[0], x.shape[1], dtype, _quartiles(list(forward)),
        None if name == COPY else _quartiles(list(both)), moved / statistics.median(forward),
        1 / ratio(0, COPY), statistics.median(copies) if copies else None,
        None if name == COPY else ratio(1, LAYER_NORM), operations,
    )  # fmt: skip


def versions(device: str) -> dict[str, Any]:
    """Return what the results depend on besides the code: versions, processor, threads."""
    facts: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("triton", "liger_kernel", "quack"):
        try:
            facts[name] = str(getattr(importlib.import_module(name), "__version__", "installed"))
        except ImportError:
            facts[name] = None
    facts["threads"] = torch.get_num_threads()
    facts["device"] = torch.cuda.get_device_name() if device == "cuda" else _processor()
    facts["native"] = native.unavailable() or native.description()
    return facts


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
