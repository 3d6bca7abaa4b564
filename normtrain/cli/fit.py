"""``normtrain fit``: start a run, resume one, or show a dry run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from normtrain.cli.common import debug_option, machine_options, norm_at_option, started_as
from normtrain.errors import UserError
from normtrain.ranks import is_first_process

if TYPE_CHECKING:
    from normtrain.config.schema import Recipe
    from normtrain.hf.pretrained import Pretrained

PRECISIONS = ["auto", "32", "bf16-mixed", "bf16-true"]
_RECIPE_OPTIONS = ("norm", "norm_at", "data", "seed", "precision")


@click.command()
@click.option("--recipe", metavar="NAME|FILE", help="The name of a recipe, or a YAML file.")
@click.option("--norm", metavar="SPEC", help="The norm of every module, e.g. prmsnorm:p=0.125.")
@norm_at_option
@click.option(
    "--data",
    metavar="NAME|DIR",
    help="A corpus, hf:owner/name, a folder or (of running text) a file.",
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change one key of the recipe, e.g. model.d_model=512; repeatable.",
)
@click.option(
    "--init-from",
    metavar="FOLDER",
    type=click.Path(exists=True, path_type=Path),
    help="Start from a pretrained language model (Llama, GPT-2 or native format) or a run.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="The run folder to create."
)
@click.option("--resume", metavar="RUN|auto", help="Resume a run; auto takes the newest.")
@machine_options
@click.option(
    "--strategy",
    type=click.Choice(["auto", "ddp", "fsdp2"]),
    help="ddp: each rank has the whole model; fsdp2: a shard of it. Default: auto.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(min=1),
    help="How long a rank waits for the others. Default: 1800.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Default: the recipe's.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the model with torch.compile.")
@click.option("--seed", type=click.IntRange(min=0), help="Default: the recipe's.")
@click.option(
    "--dry-run", is_flag=True, help="Print the resolved recipe and the model's size; train nothing."
)
@debug_option
def fit(
    recipe: str | None,
    init_from: Path | None,
    out: Path | None,
    resume: str | None,
    devices: int | None,
    nodes: int | None,
    strategy: str | None,
    timeout: int | None,
    compiled: bool,
    dry_run: bool,
    **changes: Any,
) -> None:
    """Train a recipe with a norm, or resume an interrupted run.

    Prints the run folder. --resume RUN needs no other option: the folder holds the recipe.
    --resume auto resumes the run in --out if there is one, else the newest run of the recipe and
    norm; if there is none, it starts a new run.

    --init-from FOLDER takes the model's sizes, norms, weights and tokenizer from there; --norm
    replaces the norms.
    """
    launch = started_as(devices, nodes) | {"strategy": strategy, "compile": compiled}
    launch["timeout"] = timeout
    if resume is None and recipe is None:
        raise click.UsageError(
            "give --recipe NAME ('normtrain recipes list' shows names) or --resume RUN"
        )
    if resume is not None and dry_run:
        raise click.UsageError("--dry-run shows a new run; a resumed one keeps its recipe")
    if resume not in (None, "auto") and out is not None:
        raise click.UsageError("a resumed run stays in its folder; --out is for a new run")
    if init_from is not None and (recipe is None or resume not in (None, "auto")):
        raise click.UsageError("--init-from starts a new run: give it with --recipe NAME")
    init = None if init_from is None else _pretrained(init_from)
    wanted = None if recipe is None else _resolved(recipe, changes, init)
    if dry_run and wanted is not None:
        _show(wanted)
        return
    with _sigterm_interrupts():
        folder = _train(wanted, init, resume, out, changes, launch)
    if is_first_process():
        click.echo(folder)


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Until training handles SIGTERM, let it end the command as Ctrl-C does: exit code 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(
    recipe: Recipe | None,
    init: Pretrained | None,
    resume: str | None,
    out: Path | None,
    changes: dict[str, Any],
    launch: dict[str, Any],
) -> Path:
    if resume not in (None, "auto") and not Path(resume).is_dir():
        raise UserError(f"--resume {resume}: there is no such run folder")
    from normtrain import training as run
    from normtrain.logs import show_messages

    show_messages()
    if resume is None:
        assert recipe is not None
        return run.fit(recipe, init=init, out=out, **launch)
    overrides = [] if recipe is not None else _as_overrides(changes)
    if resume == "auto":
        return run.resume("auto", overrides, recipe=recipe, init=init, out=out, **launch)
    return run.resume(Path(resume), overrides, recipe=recipe, **launch)


def _pretrained(folder: Path) -> Pretrained:
    from normtrain import training as run

    return run.read_pretrained(folder)


def _show(recipe: Recipe) -> None:
    """Print a recipe and, as comments, what it would build; the output is a recipe file."""
    from normtrain import training as run
    from normtrain.config.recipe import dump

    about = "\n".join(f"# {line}".rstrip() for line in run.describe(recipe).splitlines())
    if is_first_process():
        click.echo(f"{dump(recipe)}{about}")


def _resolved(recipe: str, changes: dict[str, Any], init: Pretrained | None) -> Recipe:
    from normtrain.config.recipe import resolve

    given = {name: changes[name] for name in _RECIPE_OPTIONS}
    if init is None:
        return resolve(recipe, **given, overrides=changes["settings"])
    from normtrain import training as run

    return run.start_recipe(recipe, init, overrides=changes["settings"], **given)


def _as_overrides(changes: dict[str, Any]) -> list[str]:
    """Return the options that change a recipe as ``section.key=value``, to compare with a run's."""
    from normtrain.config.recipe import given_keys
    from normtrain.config.yamlio import write_value

    keys = given_keys(**{name: changes[name] for name in _RECIPE_OPTIONS})
    return [*(f"{key}={write_value(value)}" for key, value in keys.items()), *changes["settings"]]
