"""``normtrain evaluate``, ``translate`` and ``generate``: use a trained model."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from normtrain.cli.common import (
    TARGET,
    beam_options,
    debug_option,
    machine_options,
    started_as,
    table,
)
from normtrain.errors import UserError
from normtrain.files import as_utf8, write_atomically
from normtrain.ranks import is_first_process


@click.command(short_help="Score a model on a split of the corpus.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option(
    "--split", default="test", show_default=True, help="The split of the corpus to score."
)
@click.option("--data", metavar="NAME|DIR", help="A corpus other than the run's.")
@beam_options
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens that each window of a language model scores. Default: the whole window.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Windows of a language model in one batch."
)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@debug_option
def evaluate(
    target: Path,
    split: str,
    data: str | None,
    devices: int | None,
    nodes: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Score a model on a split of the corpus.

    A translation model gets BLEU with its signature and chrF; a language model gets perplexity per
    token and per word, and bits per byte and per character.

    RUN is a run's folder (its best checkpoint is scored), CKPT a checkpoint file. Several devices
    share the work and give the same result as one.
    """
    from normtrain import training as run

    result = run.evaluate(
        target,
        split=split,
        data=data,
        progress=_progress() if sys.stderr.isatty() and is_first_process() else None,
        **started_as(devices, nodes),
        **options,
    )
    if is_first_process():
        line = as_utf8(json.dumps(result, ensure_ascii=False)).decode() if as_json else None
        click.echo(line or table(_rows(result, "")))


@click.command(short_help="Translate a file or stdin, line by line.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.argument(
    "source",
    metavar="[FILE]",
    required=False,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, once all is translated, instead of to stdout.",
)
@beam_options
@debug_option
def translate(
    target: Path,
    source: Path | None,
    output: Path | None,
    beam: int | None,
    length_penalty: float | None,
) -> None:
    """Translate FILE, or stdin, line by line: one line of output for each line of input."""
    if output is not None and not output.parent.is_dir():
        raise UserError(f"{output.parent} is not a folder; create it first")
    if source is None or str(source) == "-":
        if sys.stdin.isatty():
            click.echo(
                "reading from the terminal, one sentence per line; Ctrl-D ends the input", err=True
            )
        lines = _lines(sys.stdin.buffer, "stdin")
        _translate(target, lines, output, beam=beam, length_penalty=length_penalty)
        return
    with source.open("rb") as stream:
        lines = _lines(stream, str(source))
        _translate(target, lines, output, beam=beam, length_penalty=length_penalty)


@click.command(short_help="Continue a text with a language model.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option("--prompt", default="", help="The text to continue. Default: a new text.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Default: the recipe's.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="0 takes the most likely token. Default: the recipe's.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the k most likely tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Sample from the most likely tokens whose probabilities add up to this.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="Seed of the sampling; the same seed gives the same text.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@debug_option
def generate(target: Path, prompt: str, **options: Any) -> None:
    """Print PROMPT and the model's continuation, token by token."""
    from normtrain import training as run

    stdout = sys.stdout.buffer  # text mode would follow the locale
    for text in itertools.chain([prompt], run.generate(target, prompt, **options)):
        stdout.write(text.encode("utf-8", "replace"))
        stdout.flush()
    stdout.write(b"\n")


def _translate(target: Path, lines: Iterator[str], output: Path | None, **search: Any) -> None:
    from normtrain import training as run

    def note(line: int) -> None:
        click.echo(f"line {line} is longer than the model accepts and was truncated", err=True)

    translations = run.translate(target, lines, on_truncated=note, **search)
    if output is None:
        stdout = sys.stdout.buffer  # text mode would follow the locale
        for line in translations:
            stdout.write(line.encode() + b"\n")
            stdout.flush()
    else:
        _write_whole(output, translations)


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of UTF-8 text without their ends; only a newline ends a line.

    Raises:
        UserError: a line is not UTF-8; the message has its number.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number} is not UTF-8 text") from None
        yield line.removesuffix("\n").removesuffix("\r")


def _write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a file that appears whole or not at all; write pipes and devices directly."""
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        return
    text = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(text))


def _progress() -> Callable[[int, int], None]:
    """Return a function that shows the progress on one line of the terminal."""

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        click.echo(f"\rdone {done} of {total}{end}", err=True, nl=False)

    return show


def _rows(result: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield names and values; nested results as ``outer.inner``, lists only with --json."""
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.3g}"
        elif value is not None and not isinstance(value, list):
            yield f"{prefix}{name}", str(value)
