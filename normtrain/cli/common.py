"""What several commands share: ``--debug``, options of the beam, which process may print."""

from __future__ import annotations

from collections.abc import Callable
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
    """What the options before a command decide."""

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
    function = click.option(
        "--length-penalty", type=click.FloatRange(min=0), help="Default: the recipe's."
    )(function)
    return click.option(
        "--beam",
        type=click.IntRange(1, 1000),  # as in recipe_schema, which takes long to import
        help="Beam width; 1 is greedy. Default: the recipe's.",
    )(function)
