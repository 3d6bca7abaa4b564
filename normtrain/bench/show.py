"""The results of `normtrain.bench.measure` as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from normtrain.bench.measure import LAYER_NORM, Row
from normtrain.errors import UserError

HEADING = (
    "| arm | forward ms | GB/s | of copy | forward+backward ms | of copy | to F.layer_norm | ran |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


def _spread(times: tuple[float, float, float]) -> str:
    middle, low, high = (1e3 * t for t in times)
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _ran(operations: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(operations[:most])
    return f"{shown}, … ({len(operations)})" if len(operations) > most else shown or "compiled"


def lines(rows: Sequence[Row]) -> list[str]:
    """Markdown: a table for each shape and dtype, an arm a line."""
    made: list[str] = []
    place: tuple[int, int, str] | None = None
    for row in rows:
        if (row.rows, row.dim, row.dtype) != place:
            place = row.rows, row.dim, row.dtype
            made += ["", f"{row.rows}×{row.dim}, {row.dtype}", "", *HEADING]
        both = "" if row.both is None else _spread(row.both)
        share = "" if row.of_copy_both is None else f"{row.of_copy_both:.0%}"
        ratio = "" if row.to_layer_norm is None else f"{row.to_layer_norm:.2f}"
        made.append(
            f"| `{row.arm}` | {_spread(row.forward)} | {row.bandwidth / 1e9:.1f} | "
            f"{row.of_copy:.0%} | {both} | {share} | {ratio} | {_ran(row.operations)} |"
        )
    return made[1:]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of forward and backward over that of ``F.layer_norm``, a panel a shape and dtype.

    Raises:
        UserError: matplotlib is not installed, or it knows no format of this ending.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib: pip install 'normtrain[plots]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(dict.fromkeys((row.rows, row.dim, row.dtype) for row in rows))
    figure, axes = pyplot.subplots(
        len(places),
        squeeze=False,
        figsize=(8, 1 + len(places) * 0.3 * (1 + len(rows) / len(places))),
    )
    for place, panel in zip(places, axes[:, 0], strict=True):
        shown = [r for r in rows if (r.rows, r.dim, r.dtype) == place and r.to_layer_norm]
        names = [r.arm for r in shown]
        panel.barh(names, [r.to_layer_norm or 0.0 for r in shown])
        panel.axvline(1.0, color="black", linewidth=0.8)
        panel.set_title(f"{place[0]}×{place[1]}, {place[2]}")
        panel.set_xlabel(f"forward+backward, {LAYER_NORM} = 1")
        panel.invert_yaxis()
    figure.tight_layout()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"--plot {path}: {error}") from error
    finally:
        pyplot.close(figure)
