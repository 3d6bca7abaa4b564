"""What each norm costs: forward and backward, against ``torch.nn.functional.layer_norm``.

    python benchmarks/norm_cost.py                          # every registered norm, CPU, 2 threads
    python benchmarks/norm_cost.py --device cuda
    python benchmarks/norm_cost.py --norms rmsnorm prmsnorm:p=0.5 --rounds 5

One timing is the forward and the gradients of input, weight and bias, repeated for ``--seconds``.
In each round every norm is timed between two timings of layer_norm (with weight and bias), and its
ratio is to the mean of those two, so that a change in the machine's speed affects both. Printed are
the median and the middle half of the ratios over all rounds. The first row is layer_norm against
itself, which shows the noise. Parameters have the dtype of the input. The C library keeps freed
memory, as in ``fit``; without that, norms of several passes cost more on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from machine import cpu_name
from torch import Tensor, nn
from torch.nn import functional

from normtrain.norms import NormSpec, build_norm, norm_names
from normtrain.training.machine import keep_freed_memory

SIZES = ((4096, 256), (512, 1024))
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
REFERENCE = "F.layer_norm"

Step = Callable[[], object]


def steps(args: argparse.Namespace, size: tuple[int, int], dtype: torch.dtype) -> dict[str, Step]:
    """Return a function for layer_norm and for each norm that runs forward and backward once."""
    generator = torch.Generator().manual_seed(1)
    values, upstream = (
        torch.randn(size, generator=generator).to(args.device, dtype) for _ in range(2)
    )
    dim, places = size[1], {"device": args.device, "dtype": dtype}
    weight = torch.ones(dim, **places).requires_grad_()
    bias = torch.zeros(dim, **places).requires_grad_()

    def step(function: Callable[[Tensor], Tensor], parameters: list[Tensor]) -> Step:
        x = values.clone().requires_grad_()
        wanted = [x, *parameters]
        return lambda: torch.autograd.grad(function(x), wanted, upstream)

    def layer_norm(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (dim,), weight, bias, 1e-5)

    made = {REFERENCE: step(layer_norm, [weight, bias])}
    for spec in args.norms:
        norm: nn.Module = build_norm(spec, dim, **places)
        made[spec] = step(norm, list(norm.parameters()))
    return made


def seconds_a_step(step: Step, count: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    synchronize()
    return (time.perf_counter() - start) / count


def measure(args: argparse.Namespace, made: dict[str, Step]) -> dict[str, list[float]]:
    """Return the ratios of each norm, one per round, and the reference's seconds per step."""
    synchronize = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    counts = {}
    for name, step in made.items():
        seconds_a_step(step, args.warmup, synchronize)
        once = seconds_a_step(step, args.warmup, synchronize)
        counts[name] = max(1, round(args.seconds / once))

    def timed(name: str) -> float:
        return seconds_a_step(made[name], counts[name], synchronize)

    found: dict[str, list[float]] = {name: [] for name in (*made, "seconds")}
    names = list(made)
    gc.disable()
    for turn in range(args.rounds):
        at = turn % len(names)
        before = timed(REFERENCE)
        for name in names[at:] + names[:at]:
            own, after = timed(name), timed(REFERENCE)
            found[name].append(own / ((before + after) / 2))
            found["seconds"].append(after)
            before = after
    gc.enable()
    return found


def cell(ratios: list[float]) -> str:
    if len(ratios) < 4:
        return f"{statistics.median(ratios):.2f}"
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def machine(args: argparse.Namespace) -> str:
    """Return the machine and versions, in a line."""
    if args.device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        where = f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), {args.threads} threads"
        where += f" of {os.cpu_count()} cores"
    return (
        f"{where}; torch {torch.__version__}, Python {platform.python_version()}; medians of "
        f"{args.rounds} rounds (middle half of the rounds)"
    )


def table(args: argparse.Namespace) -> list[str]:
    """Return a Markdown table: a row per norm, a column per size and dtype."""
    columns, rows = [], {name: [name] for name in (REFERENCE, *args.norms)}
    for size in SIZES:
        for label, dtype in DTYPES.items():
            found = measure(args, steps(args, size, dtype))
            columns.append(f"{size[0]}×{size[1]} {label}")
            for name, row in rows.items():
                row.append(cell(found[name]))
            rows[REFERENCE][-1] += f", {statistics.median(found['seconds']) * 1e3:.3g} ms"
    heading = ["norm", *columns]
    lines = [heading, ["---"] * len(heading)]
    lines += [[f"`{row[0]}`", *row[1:]] for row in rows.values()]
    return [f"| {' | '.join(line)} |" for line in lines]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--norms", nargs="+", metavar="NORM", help="default: every registered one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of one timing")
    parser.add_argument("--warmup", type=int, default=5, help="steps before counting")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    args = parser.parse_args()
    if min(args.rounds, args.warmup, args.threads) < 1 or args.seconds <= 0:
        parser.error("--rounds, --warmup and --threads must be >= 1, --seconds > 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a CUDA device, found none")
    try:
        args.norms = list(dict.fromkeys(map(str, map(NormSpec.parse, args.norms or norm_names()))))
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    kept = keep_freed_memory()
    print("\n".join(table(args)))
    print(f"\n{machine(args)}{'' if kept else '; freed memory not kept'}")


if __name__ == "__main__":
    main()
