"""Options that several commands have, the number of processes, and tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

TARGET = click.Path(exists=True, path_type=Path)
"""A run folder or a checkpoint file."""


@dataclass
class Session:
    """The options given before a command's name."""

    debug: bool = False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    session = ctx.ensure_object(Session)
    session.debug = session.debug or value


def debug_option(function: _F) -> _F:
    """Add ``--debug``: it works before and after the command's name."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_debug,
        help="Show the traceback of a failure.",
    )(function)


def beam_options(function: _F) -> _F:
    """Add ``--beam`` and ``--length-penalty``; unset, the recipe's ``decode`` section decides."""
    # the widest beam is that of the recipe's schema, which takes long to import
    widths, text = click.IntRange(1, 1000), "Beam width; 1 is greedy. Default: the recipe's."
    penalties = click.FloatRange(min=0)
    function = click.option("--length-penalty", type=penalties, help="Default: the recipe's.")(
        function
    )
    return click.option("--beam", type=widths, help=text)(function)


def machine_options(function: _F) -> _F:
    """Add ``--devices`` and ``--nodes``."""
    count = click.IntRange(min=1)
    function = click.option("--nodes", type=count, help="Number of machines. Default: 1.")(function)
    text = "Number of devices on each machine. Default: 1."
    return click.option("--devices", type=count, help=text)(function)


def norm_at_option(function: _F) -> _F:
    """Add ``--norm-at``."""
    text = "Another norm where the module name matches; repeatable, the last match wins."
    return click.option("--norm-at", metavar="PATTERN=SPEC", multiple=True, help=text)(function)


def started_as(devices: int | None, nodes: int | None) -> dict[str, Any]:
    """Return ``devices`` and ``nodes``: as given, else as torchrun set them, else None."""
    if "LOCAL_WORLD_SIZE" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        devices = devices or here
        nodes = nodes or max(1, int(os.environ.get("WORLD_SIZE", "1")) // here)
    return {"devices": devices, "nodes": nodes}


def table(rows: Iterable[Iterable[str]], width: int | None = None) -> str:
    """Return rows in aligned columns.

    Args:
        rows: the cells of each row.
        width: columns to wrap long cells to; by default the terminal's, and elsewhere no limit.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for row in rows:
        grid.add_row(*map(Text, row))
    for column in grid.columns:
        column.overflow = "fold"
    console = Console(width=width if width or sys.stdout.isatty() else 100_000)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
