"""The Triton norms on a GPU: forward and backward, against ATen, Inductor and a copy.

    python benchmarks/triton_norms.py --json FILE
    python benchmarks/triton_norms.py --dims 512 --rows 4096    # one shape
    python benchmarks/triton_norms.py --sweep                   # the fastest tile of each length

Timed are kernels without their launches: a CUDA graph of calls over sets of tensors that together
are more than twice as large as the second-level cache, so that no call finds its rows there. In
each round every arm is replayed once, in random order; printed are medians over the rounds. The
copy moves the bytes of a forward (reads x, writes y), the sum those of a backward (reads two
tensors, writes one): `share` is their time over the arm's, that is, the share of the attainable
bandwidth. Every backward includes the gradients of the parameters. A mixed arm has bf16 rows and
float32 parameters. With nvidia-cutlass-dsl installed, `rms_norm` may run another kernel than ATen's
(TORCH_DISABLE_NATIVE_JIT=1 switches that off); the JSON has the versions.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from normtrain.kernels.table import Scalars

EPS = 1e-5
KINDS = ("layer", "rms", "ada", "detach")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SWEPT = list(itertools.product((1, 2, 4, 8, 16), (1, 2, 4, 8, 16), (1, 2, 3)))

Call = Callable[[], object]
Arm = Callable[[Tensor, Tensor, Tensor], Call]
"""Makes a call from a set of tensors: x, the gradient of y, and a tensor for the result."""


def aten_arms(weight: Tensor, bias: Tensor) -> dict[str, Arm]:
    """Return PyTorch's kernels, plain and compiled by Inductor, and the bounds."""
    aten, d = torch.ops.aten, weight.shape[0]

    def layer_backward(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> object:
        mask = [True, True, True]
        return aten.native_layer_norm_backward(g, x, [d], mean, rstd, weight, bias, mask)

    def rms_backward(g: Tensor, x: Tensor, rstd: Tensor) -> object:
        return aten._fused_rms_norm_backward(g, x, [d], rstd, weight, [True, True])

    def layer(x: Tensor) -> Tensor:
        return functional.layer_norm(x, (d,), weight, bias, EPS)

    def rms(x: Tensor) -> Tensor:
        return functional.rms_norm(x, (d,), weight, EPS)

    arms: dict[str, Arm] = {
        "forward copy": lambda x, g, out: lambda: out.copy_(x),
        "backward sum": lambda x, g, out: lambda: torch.add(x, g, out=out),
    }
    for name, through in (("aten", lambda f: f), ("inductor", _inductor)):
        forward_layer, forward_rms = through(layer), through(rms)
        back_layer, back_rms = through(layer_backward), through(rms_backward)

        def layer_arm(x: Tensor, g: Tensor, out: Tensor, back: Callable = back_layer) -> Call:
            stats = aten.native_layer_norm(x, [d], weight, bias, EPS)[1:]
            return lambda: back(g, x, *stats)

        def rms_arm(x: Tensor, g: Tensor, out: Tensor, back: Callable = back_rms) -> Call:
            rstd = aten._fused_rms_norm(x, [d], weight, EPS)[1]
            return lambda: back(g, x, rstd)

        arms[f"forward layer {name}"] = lambda x, g, out, f=forward_layer: lambda: f(x)
        arms[f"forward rms {name}"] = lambda x, g, out, f=forward_rms: lambda: f(x)
        arms[f"backward layer {name}"], arms[f"backward rms {name}"] = layer_arm, rms_arm
    return arms


def _inductor(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def own_arm(kind: str, side: str, weight: Tensor, bias: Tensor) -> Arm:
    """Return this package's kernels, called as the dispatch calls them."""
    from normtrain.kernels import triton as launch

    d = weight.shape[0]
    scalars = Scalars(EPS, d if kind == "rms" else 0, 1.0, 0.1)
    bare = kind in ("ada", "detach")
    given = (None, None, None) if bare else (weight, None if kind == "rms" else bias, None)

    def make(x: Tensor, g: Tensor, out: Tensor) -> Call:
        if side == "forward":
            return lambda: launch.BACKEND.forward(kind, x, given, scalars)
        stats = launch.BACKEND.forward(kind, x, given, scalars)[1]
        return lambda: launch.BACKEND.backward(kind, g, x, given, stats, scalars)

    return make


def all_arms(d: int, dtype: torch.dtype, device: str) -> dict[str, Arm]:
    weight, bias = torch.rand(2, d, device=device).add_(0.5).to(dtype)
    arms = aten_arms(weight, bias)
    for kind, side in itertools.product(KINDS, ("forward", "backward")):
        arms[f"{side} {kind} own"] = own_arm(kind, side, weight, bias)
    for kind, side in itertools.product(("layer", "rms"), ("forward", "backward")):
        arms[f"{side} {kind} own mixed"] = own_arm(kind, side, weight.float(), bias.float())
    return arms


def tensor_sets(rows: int, d: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return enough sets of x, gradient and result that none is in the cache when it is used."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    least = max(2 * cache, 2**27)
    # the smallest arm uses two tensors of a set
    count = max(2, math.ceil(least / (2 * rows * d * dtype.itemsize)))
    return [tuple(torch.randn(3, rows, d, device="cuda").to(dtype)) for _ in range(count)]  # type: ignore[misc]


def graph_of(calls: list[Call]) -> torch.cuda.CUDAGraph:
    """Record all calls in a row, after they have run (and been compiled) once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # results that are kept get separate memory; else all calls would write to the cache
        kept = [call() for call in calls]
    del kept
    return graph


def replay_us(graph: torch.cuda.CUDAGraph, times: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3 / times


def measure(
    arms: dict[str, Arm], rows: int, d: int, dtype: torch.dtype, rounds: int
) -> dict[str, float]:
    """Return median microseconds per call of each arm; report those that cannot run here."""
    sets = tensor_sets(rows, d, dtype)
    graphs = {}
    for name, arm in arms.items():
        try:
            graphs[name] = graph_of([arm(*each) for each in sets])
        except (RuntimeError, NotImplementedError) as error:
            print(f"  {name}: not measured: {str(error).splitlines()[0]}")
    times = {n: max(1, round(3000 / max(replay_us(g, 1), 1))) for n, g in graphs.items()}
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for turn in range(rounds):
        names = list(graphs)
        random.Random(turn).shuffle(names)
        for name in names:
            found[name].append(replay_us(graphs[name], times[name]) / len(sets))
    return {name: statistics.median(values) for name, values in found.items()}


def report(found: dict[str, float], rows: int, d: int, dtype: torch.dtype) -> list[dict]:
    """Print the table of a shape and return its rows."""
    print(f"\n{rows} × {d}\n\n| arm | µs | GB/s | share | / aten | / inductor |\n|{' --- |' * 6}")
    made = []
    for name, us in found.items():
        side, kind = name.split()[:2]
        passes, bound = (2, "forward copy") if side == "forward" else (3, "backward sum")
        # a norm without parameters is compared with layer_norm, which it would replace
        other = "rms" if kind == "rms" else "layer"
        row = {"rows": rows, "d": d, "arm": name, "us": us}
        row["gb_per_s"] = passes * rows * d * dtype.itemsize / us / 1e3
        row["share"] = found[bound] / us
        for rival in ("aten", "inductor"):
            theirs = found.get(f"{side} {other} {rival}")
            row[rival] = None if theirs is None else us / theirs
        ratios = [f"{row[r]:.2f}" if row[r] else "" for r in ("share", "aten", "inductor")]
        print(f"| {name} | {us:.1f} | {row['gb_per_s']:.0f} | {' | '.join(ratios)} |")
        made.append(row)
    return made


def sweep(args: argparse.Namespace, dtype: torch.dtype) -> list[dict]:
    """Time the reasonable tiles of forward and backward at the largest number of rows."""
    from normtrain.kernels import triton as launch

    made = []
    for d, side in itertools.product(args.dims, ("forward", "backward")):
        weight, bias = torch.rand(2, d, device="cuda").add_(0.5).to(dtype)
        heuristic, block = getattr(launch, f"{side}_tile"), 2 ** math.ceil(math.log2(d))
        sets = tensor_sets(max(args.rows), d, dtype)
        for tile in [heuristic(block), *itertools.starmap(launch.Tile, SWEPT)]:
            a_thread = tile.rows * block / (32 * tile.warps)
            if not 4 <= a_thread <= 32 or (side == "forward" and tile.stages > 1):
                continue
            setattr(launch, f"{side}_tile", lambda block, tile=tile: tile)
            arm = own_arm("layer", side, weight, bias)
            graph = graph_of([arm(*each) for each in sets])
            us = statistics.median(replay_us(graph, 3) for _ in range(5)) / len(sets)
            made.append({"d": d, "side": side, "us": us, **tile._asdict()})
        setattr(launch, f"{side}_tile", heuristic)
        print(f"\n{side} {max(args.rows)} × {d}: heuristic {made_tile(made, d, side)[0]}")
        for row in sorted(made_tile(made, d, side), key=lambda r: r["us"])[:5]:
            print(f"  {row}")
    return made


def made_tile(made: list[dict], d: int, side: str) -> list[dict]:
    return [row for row in made if (row["d"], row["side"]) == (d, side)]


def machine() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    versions = {}
    for package in ("torch", "triton", "nvidia-cutlass-dsl"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {"device": properties.name, "cache": properties.L2_cache_size, **versions}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[4096, 8192, 32768])
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 768, 1024, 4096])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sweep", action="store_true", help="time tiles instead of arms")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all figures to this file"
    )
    args = parser.parse_args()
    if min(*args.rows, *args.dims, args.rounds) < 1:
        parser.error("--rows, --dims and --rounds must be >= 1")
    if not torch.cuda.is_available():
        parser.error("a CUDA device is required, found none")
    return args


def main() -> None:
    args = parse()
    dtype, made = DTYPES[args.dtype], []
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    if args.sweep:
        made = sweep(args, dtype)
    else:
        for d, rows in itertools.product(args.dims, args.rows):
            torch._dynamo.reset()
            found = measure(all_arms(d, dtype, "cuda"), rows, d, dtype, args.rounds)
            made += report(found, rows, d, dtype)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "dtype": args.dtype, "found": made}))


if __name__ == "__main__":
    main()
