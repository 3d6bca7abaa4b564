"""The results of `normtrain.bench.measure` as tables and as a figure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from normtrain.bench.measure import LAYER_NORM, Result
from normtrain.errors import UserError

COLUMNS = (
    *("arm", "forward ms", "GB/s", "of copy", "forward+backward ms", "of copy"),
    *("to F.layer_norm", "ran"),
)


def _quartiles(times: tuple[float, float, float]) -> str:
    median, low, high = (1e3 * t for t in times)
    return f"{median:.3g} ({low:.3g}–{high:.3g})"


def _operations(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, … ({len(names)})" if len(names) > most else shown or "compiled"


def _cells(result: Result) -> tuple[str, ...]:
    return (
        f"`{result.arm}`",
        _quartiles(result.forward),
        f"{result.bandwidth / 1e9:.1f}",
        f"{result.of_copy:.0%}",
        "" if result.both is None else _quartiles(result.both),
        "" if result.of_copy_both is None else f"{result.of_copy_both:.0%}",
        "" if result.to_layer_norm is None else f"{result.to_layer_norm:.2f}",
        _operations(result.operations),
    )


def tables(results: Sequence[Result]) -> str:
    """Return a Markdown table per shape and dtype, with one line per arm."""
    console = Console(width=100_000, color_system=None)
    with console.capture() as captured:
        for setting, group in itertools.groupby(results, lambda r: (r.rows, r.dim, r.dtype)):
            table = Table(*COLUMNS, box=box.MARKDOWN)
            for result in group:
                table.add_row(*map(Text, _cells(result)))
            console.print(Text(f"{setting[0]}×{setting[1]}, {setting[2]}"))
            console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip()


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw the time of forward and backward relative to ``F.layer_norm``.

    Args:
        results: one panel is drawn per shape and dtype, one bar per arm.
        path: image file; its suffix chooses the format.

    Raises:
        UserError: matplotlib is not installed, or does not support this format.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'normtrain[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = list(dict.fromkeys((r.rows, r.dim, r.dtype) for r in results))
    figure, axes = pyplot.subplots(
        len(settings),
        squeeze=False,
        figsize=(8, 1 + len(settings) * 0.3 * (1 + len(results) / len(settings))),
    )
    for setting, panel in zip(settings, axes[:, 0], strict=True):
        shown = [r for r in results if (r.rows, r.dim, r.dtype) == setting and r.to_layer_norm]
        names = [r.arm for r in shown]
        panel.barh(names, [r.to_layer_norm or 0.0 for r in shown])
        panel.axvline(1.0, color="black", linewidth=0.8)
        panel.set_title(f"{setting[0]}×{setting[1]}, {setting[2]}")
        panel.set_xlabel(f"forward+backward, {LAYER_NORM} = 1")
        panel.invert_yaxis()
    figure.tight_layout()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from error
    finally:
        pyplot.close(figure)
