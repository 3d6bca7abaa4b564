"""``normtrain bench``: measure norms on this computer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from normtrain.cli.common import SETTINGS, debug_option


@click.group(context_settings=SETTINGS)
@debug_option
def bench() -> None:
    """Measure on this computer."""


@bench.command("norms")
@click.option("--norm", "norms", multiple=True, help="A norm; may be repeated. Default: all.")
@click.option("--backend", "backends", multiple=True, help="auto, plain, aten, native or triton.")
@click.option("--dtype", "dtypes", multiple=True, help="Default: float32 and bfloat16.")
@click.option("--shape", "shapes", multiple=True, help="ROWSxDIM. Default: the documented four.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads. Default: torch's.")
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Minimum duration of a timing.",
)
@click.option(
    "--inductor/--no-inductor", default=True, help="Also time the norms compiled by torch.compile."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of the tables.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Write a bar chart.")
@debug_option
def bench_norms(
    norms: tuple[str, ...],
    backends: tuple[str, ...],
    dtypes: tuple[str, ...],
    shapes: tuple[str, ...],
    device: str,
    threads: int | None,
    rounds: int,
    seconds: float,
    inductor: bool,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure norms' time, bandwidth and share of a memory copy, with F.layer_norm and F.rms_norm.

    Arms are timed in turn in every round; cells show the median and the quartiles of the rounds.
    The last column names what torch ran. The C library is told to keep freed memory, as in fit.
    """
    import torch

    from normtrain.bench import measure, show
    from normtrain.training.machine import keep_freed_memory

    others = {"device": device, "rounds": rounds, "seconds": seconds, "inductor": inductor}
    wanted = measure.settings(norms, backends, dtypes, shapes, **others)
    if threads is not None:
        torch.set_num_threads(threads)
    kept = keep_freed_memory()
    results = []
    for result in measure.measure(wanted):
        results.append(result)
        click.echo(f"{result.rows}×{result.dim} {result.dtype}: {result.arm}", err=True)
    facts = measure.versions(device) | {"freed_memory_kept": kept, "rounds": rounds}
    if as_json:
        click.echo(json.dumps({**facts, "rows": [asdict(result) for result in results]}))
    else:
        click.echo(show.tables(results))
        click.echo("\n" + ", ".join(f"{key}: {value}" for key, value in facts.items()))
    if plot is not None:
        show.plot(results, plot)
