"""``normtrain average``, ``convert`` and ``export``: what is made from a run's checkpoints."""

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


@click.command(short_help="The same model with other norms, exactly.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option(
    "--to",
    type=click.Choice(["rmsnorm", "crmsnorm", "layernorm"]),
    required=True,
    help="The norm that takes the place of LayerNorm (or, for layernorm, of RMSNorm).",
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
def convert(target: Path, to: str, output: Path) -> None:
    """Convert a pre-norm model to one with other norms and the same outputs.

    A LayerNorm ahead of every sublayer does not see the mean of what it reads, so the mean can be
    taken out of the weights, and RMSNorm or CRMSNorm does the rest. What can't be converted
    exactly is refused, with the module and the reason.
    """
    from normtrain import run

    click.echo(run.convert(target, to=to, output=output))


@click.command(short_help="Write the model as safetensors.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@debug_option
def export(target: Path, folder: Path) -> None:
    """Write the model to DIR as safetensors, with config, tokenizer and model card."""
    from normtrain import run

    click.echo(run.export(target, folder))
