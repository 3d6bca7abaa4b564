"""``normtrain average``, ``convert``, ``export``, ``import``: checkpoints made from others."""

from __future__ import annotations

from pathlib import Path

import click

from normtrain.cli.common import TARGET, debug_option

_output_option = click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The checkpoint file to write.",
)


@click.command(short_help="Average a run's last checkpoints.")
@click.argument("folder", metavar="RUN", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--last",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Number of checkpoints, the newest first.",
)
@_output_option
@debug_option
def average(folder: Path, last: int, output: Path) -> None:
    """Average the weights of a run's last checkpoints into one checkpoint."""
    from normtrain import training as run

    click.echo(run.average(folder, last=last, output=output))


@click.command(short_help="Convert a model to other norms with the same outputs.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option(
    "--to",
    type=click.Choice(["rmsnorm", "crmsnorm", "layernorm"]),
    required=True,
    help="The norm that replaces LayerNorm (or, for layernorm, RMSNorm).",
)
@_output_option
@debug_option
def convert(target: Path, to: str, output: Path) -> None:
    """Convert a pre-norm model to one with other norms and the same outputs.

    A LayerNorm ahead of every sublayer ignores the mean of its input, so the mean can be removed
    by the weights, and RMSNorm or CRMSNorm replaces LayerNorm. A model that cannot be converted
    exactly is an error that names the module and the reason.
    """
    from normtrain import training as run

    click.echo(run.convert(target, to=to, output=output))


@click.command(short_help="Write the model as safetensors.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format",
    metavar="NAME",
    default="native",
    show_default=True,
    help="native takes any model; llama, qwen3 and others are read by transformers.",
)
@debug_option
def export(target: Path, folder: Path, format: str) -> None:
    """Write the model to DIR as safetensors, with config, tokenizer and model card.

    Language models with RMSNorm, rotary positions and SwiGLU can be written in Llama's format (in
    Qwen3's with a norm on queries and keys), those with LayerNorm and learned positions in GPT-2's.
    """
    from normtrain import training as run

    click.echo(run.export(target, folder, format=format))


@click.command("import", short_help="Read a pretrained language model into a checkpoint.")
@click.argument("folder", metavar="FOLDER", type=TARGET)
@_output_option
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    default="lm",
    show_default=True,
    help="Recipe for what the model does not define, such as sampling.",
)
@click.option(
    "--data", metavar="NAME|DIR", help="The corpus to evaluate on. Default: the recipe's."
)
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change one key of the recipe, e.g. data.window=512; repeatable.",
)
@debug_option
def import_(
    folder: Path, output: Path, recipe: str, data: str | None, settings: tuple[str, ...]
) -> None:
    """Write a checkpoint of a language model in Llama's, Qwen3's, GPT-2's or our own format.

    The folder holds config.json, safetensors and tokenizer.json. The checkpoint can be evaluated,
    converted to another norm, generated from and exported; to train it, use fit --init-from.
    """
    from normtrain import training as run

    click.echo(run.import_model(folder, output, recipe=recipe, data=data, overrides=settings))
