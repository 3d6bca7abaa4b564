"""``normtrain evaluate``, ``translate`` and ``generate``: what a trained model is worth."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from normtrain.cli.common import TARGET, beam_options, debug_option, machine_options, started_as
from normtrain.errors import UserError
from normtrain.files import as_utf8
from normtrain.ranks import is_first_process


@click.command(short_help="Score a model on a split of the corpus.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option("--split", default="test", show_default=True, help="Which part of the corpus.")
@click.option("--data", metavar="NAME|DIR", help="Another corpus than the run's.")
@beam_options
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens that each window of a language model scores. Default: all of the window.",
)
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="Windows of a language model at once."
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
    """Translate a split and score it: BLEU with its signature, chrF, and what they rest on. Or
    measure a language model: perplexity of a token and of a word, bits a byte and a character.

    RUN is a run's folder (its best checkpoint counts), CKPT a checkpoint file. Several devices
    share the work and find what one finds.
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
        click.echo(line or _table(result))


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
    help="Write here, once all is translated, instead of to stdout.",
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
    """Translate FILE, or stdin, line by line: as many lines come out as went in."""
    if output is not None and not output.parent.is_dir():
        raise UserError(f"{output.parent} is not a folder; make it before writing into it")
    if source is None or str(source) == "-":
        if sys.stdin.isatty():
            click.echo("reading from the terminal, a sentence a line; Ctrl-D ends", err=True)
        lines = _lines(sys.stdin.buffer, "stdin")
        _translate(target, lines, output, beam=beam, length_penalty=length_penalty)
        return
    with source.open("rb") as stream:
        lines = _lines(stream, str(source))
        _translate(target, lines, output, beam=beam, length_penalty=length_penalty)


@click.command(short_help="Go on with a text, as a language model would.")
@click.argument("target", metavar="RUN|CKPT", type=TARGET)
@click.option("--prompt", default="", help="How the text begins. Default: a new text.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Default: the recipe's.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), help="0: the likeliest. Default: the recipe's."
)
@click.option("--top-k", type=click.IntRange(min=1), help="Only the k likeliest tokens.")
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, max=1, min_open=True),
    help="Only the likeliest tokens of this probability together.",
)
@click.option("--seed", type=click.IntRange(min=0), help="The same text again for the same seed.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@debug_option
def generate(target: Path, prompt: str, **options: Any) -> None:
    """Write PROMPT and how the language model goes on, as it writes it."""
    from normtrain import training as run

    stdout = sys.stdout.buffer  # text mode would follow the locale
    for text in itertools.chain([prompt], run.generate(target, prompt, **options)):
        stdout.write(text.encode("utf-8", "replace"))
        stdout.flush()
    stdout.write(b"\n")


def _translate(target: Path, lines: Iterator[str], output: Path | None, **search: Any) -> None:
    from normtrain import training as run

    def note(line: int) -> None:
        click.echo(f"line {line} is longer than the model takes and was cut", err=True)

    translations = run.translate(target, lines, on_truncated=note, **search)
    if output is None:
        stdout = sys.stdout.buffer  # text mode would follow the locale
        for line in translations:
            stdout.write(line.encode() + b"\n")
            stdout.flush()
    else:
        _write_whole(output, translations)


def _lines(stream: BinaryIO, name: str) -> Iterator[str]:
    """The lines of UTF-8 text without their ends; only a newline ends a line.

    Raises:
        UserError: a line that is not UTF-8, by its number.
    """
    for number, raw in enumerate(stream, start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number} is not UTF-8 text") from None
        yield line.removesuffix("\n").removesuffix("\r")


def _write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write a file that is there whole or not at all; pipes and devices are written straight."""
    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        return
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        os.chmod(part, 0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _progress() -> Callable[[int, int], None]:
    """A line on the terminal that counts and ends when all is done."""

    def show(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        click.echo(f"\rdone {done} of {total}{end}", err=True, nl=False)

    return show


def _table(result: dict[str, Any]) -> str:
    """Names and values in two columns; nested results as ``outer.inner``, lists left to --json."""
    rows = list(_rows(result, ""))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _rows(result: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in result.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.2f}" if abs(value) >= 0.01 else f"{value:.3g}"
        elif value is not None and not isinstance(value, list):
            yield f"{prefix}{name}", str(value)
