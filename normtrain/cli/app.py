"""The group of all commands; turns failures into messages and exit codes."""

from __future__ import annotations

import io
import os
import re
import select
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from normtrain._version import __version__
from normtrain.cli.bench import bench
from normtrain.cli.catalog import recipes
from normtrain.cli.common import SETTINGS, Session, debug_option
from normtrain.cli.fit import fit
from normtrain.cli.norms import norms
from normtrain.cli.score import evaluate, generate, translate
from normtrain.cli.swap_check import swap_check
from normtrain.cli.weights import average, convert, export, import_
from normtrain.errors import RunError, UserError
from normtrain.ranks import is_first_here

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")

DONE, FAILED, MISUSED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


class Commands(click.Group):
    """A group of commands that reports every failure in one or two lines."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and exit.

        Replaces click's ``main``, which turns ``EOFError`` into an abort and every broken pipe
        into a silent exit.
        """
        words = list(sys.argv[1:] if args is None else args)
        name = prog_name or "normtrain"
        self._main_shell_completion(extra, name, complete_var)
        sys.exit(self._run(words, name, extra))

    def _run(self, words: list[str], name: str, extra: dict[str, Any]) -> int:
        session = Session()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # a path goes out as it came in
        try:
            with self.make_context(name, words, obj=session, **extra) as ctx:
                self.invoke(ctx)
            sys.stdout.flush()
            return DONE
        except click.exceptions.Exit as stop:
            return stop.exit_code
        except (KeyboardInterrupt, click.Abort) as stop:
            _print_error(str(stop) or "interrupted")
            return INTERRUPTED
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _stdout_is_closed():
                return PIPE_CLOSED
            if session.debug and not isinstance(error, click.ClickException):
                traceback.print_exc()
                return MISUSED if isinstance(error, UserError) else FAILED
            return _explain(error)


def _explain(error: Exception) -> int:
    """Print a failure and return the exit code."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, UserError | click.UsageError) and not is_first_here():
        return MISUSED
    if isinstance(error, click.ClickException):
        # click lists the choices of a missing option one per line
        _print_error(f"error: {' '.join(error.format_message().split())}")
        if isinstance(error, click.UsageError) and error.ctx is not None:
            _print_error(f"'{error.ctx.command_path} --help' shows how it is used")
        return error.exit_code
    if isinstance(error, UserError):
        _print_error(f"error: {error}")
        return MISUSED
    if isinstance(error, RunError):
        _print_error(f"error: {error}")
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        _print_error(f"error: {where}{error.strerror}")
    else:
        lines = str(error).strip().splitlines()
        what = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        _print_error(f"internal error: {what} (run again with --debug)")
    return FAILED


def _print_error(message: str) -> None:
    """Print a message to stderr with control characters escaped."""
    click.echo(_CONTROL.sub(lambda found: repr(found[0])[1:-1], message), err=True)


def _stdout_is_closed() -> bool:
    """Return whether the reader of stdout has gone, as after ``| head``; if so, discard the rest.

    Asks the system, since a failed flush may have emptied Python's buffer.
    """
    try:
        stdout = sys.stdout.fileno()
    except (OSError, ValueError):
        return False
    watch = select.poll()
    watch.register(stdout, 0)
    if not any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="normtrain", message="%(prog)s %(version)s")
@debug_option
def cli() -> None:
    """Train, resume, evaluate and compare transformers with any normalizer.

    \b
    A first run, offline, in minutes on two CPU cores:
        normtrain fit --recipe envi --norm rmsnorm --out runs/first
        normtrain evaluate runs/first
        echo "where is the library?" | normtrain translate runs/first
    \b
        normtrain fit --recipe lm --norm rmsnorm --out runs/text
        normtrain generate runs/text --prompt "def "
    """


_COMMANDS = (
    *(fit, evaluate, translate, generate, average, convert, export, import_),
    *(recipes, norms, swap_check, bench),
)

for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> NoReturn:
    """Run the command line and exit; the entry point of ``normtrain`` and ``cli.py``.

    Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted.
    """
    cli.main()
