"""``normtrain average`` and ``normtrain export``: what is made from a run's checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from normtrain.cli.common import TARGET, debug_option


@click.command(short_help="Average a run's last checkpoints.")
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="How many of the newest numbered checkpoints.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The checkpoint to write.",
)
@debug_option
def average(folder: Path, last: int, output: Path) -> None:
    """Average the weights of a run's last checkpoints into one checkpoint."""
    from normtrain import run

    click.echo(run.average(folder, last=last, output=output))


@click.command(short_help="Write the model as safetensors.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@debug_option
def export(target: Path, folder: Path) -> None:
    """Write the model to DIR as safetensors, with config, tokenizer and model card."""
    from normtrain import run

    click.echo(run.export(target, folder))
