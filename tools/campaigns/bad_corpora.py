"""Corpora that something happened to, for a run of one step and for ``evaluate``."""

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from tools.campaigns.arena import Case, Lay
from tools.campaigns.stock import RECIPES, TASKS, Stock, quick_settings, set_words

_TOKENIZERS = {"bpe": 270, "word": "null", "byte": "null", "char": "null"}
_NAMES = {
    "translation": ("train.en", "train.vi", "valid.en", "valid.vi", "test.en", "test.vi"),
    "language": ("train.txt", "valid.txt", "test.txt"),
}
_PIECES = st.sampled_from(
    [
        *(b"", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\0", b"\x1a", b"\xff", b"\xc3", b"\xf4\x90"),
        *(b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xfe\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1f\x8b"),
        *(b"an be do\n", "bà có đi\n".encode(), b"<unk>", b"<eos>", b"<|endoftext|>", b"</s>"),
        *(b"a" * 5000, b"a " * 3000, "\u0301".encode() * 2000, "🦜".encode() * 50, "▁".encode()),
        *(b" = Title = \n", b"x" * 1_200_000, b"\n" * 300, b"an\n" * 40, "\ufdd0".encode()),
    ]
)
Content = Callable[[bytes], bytes]


@st.composite
def contents(draw: st.DrawFn) -> tuple[str, Content]:
    """What a file becomes, from what it was."""
    parts = draw(st.lists(st.one_of(_PIECES, st.binary(max_size=20)), max_size=6))
    text, at = b"".join(parts), draw(st.integers(0, 900))
    ways: dict[str, Content] = {
        "instead": lambda old: text,
        "at the beginning": lambda old: text + old,
        "at the end": lambda old: old + text,
        "inside": lambda old: old[:at] + text + old[at:],
        "cut": lambda old: old[:at],
        "crlf": lambda old: old.replace(b"\n", b"\r\n"),
        "one line": lambda old: old.replace(b"\n", b" "),
        "no end": lambda old: old.rstrip(b"\n"),
        "utf-16": lambda old: old.decode("utf-8", "replace").encode("utf-16"),
        "blank lines": lambda old: b"\n" * old.count(b"\n"),
    }
    way = draw(st.sampled_from(list(ways)))
    shown = repr(text) if len(text) < 200 else f"{text[:60]!r}… of {len(text)}"
    return f"{way} {shown} at {at}", ways[way]


def _zipped(name: str, path: Path, content: Content, damage: int) -> None:
    packed = gzip.compress(content(path.read_bytes()), mtime=0)
    path.unlink()
    if damage:
        packed = packed[: len(packed) * damage // 10]
    path.with_name(f"{name}.gz").write_bytes(packed)


def _placed(how: str, path: Path) -> None:
    """Something in the place of a file that is no file."""
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "to the folder":
        path.symlink_to(path.parent)
    elif how == "odd name":
        with open(os.fsencode(path.parent) + b"/\xff\n\xfe.txt", "wb") as file:
            file.write(b"an\n")
    elif how == "two files":
        for name in ("a.train.txt", "b.train.txt"):
            (path.parent / name).write_bytes(b"an be\n" * 9)


@st.composite
def _accidents(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[str, Callable[[Path], None]]:
    name, (about, content) = draw(st.sampled_from(names)), draw(contents())
    how, damage = draw(st.integers(0, 9)), draw(st.integers(0, 10))
    if how < 7:
        return (
            f"{name} {about}",
            lambda at: None if not (at / name).is_file() else _written(at / name, content),
        )
    if how == 7:
        return f"{name}.gz {about}, cut at {damage}/10", lambda at: _if_file(
            at / name, lambda path: _zipped(name, path, content, damage)
        )
    odd = draw(st.sampled_from(["folder", "loop", "dangling", "odd-name", "gone", "two-files"]))
    return f"{name}: {odd}", lambda at: _if_file(
        at / name, lambda path: _placed(odd.replace("-", " "), path)
    )


def _written(path: Path, content: Content) -> None:
    path.write_bytes(content(path.read_bytes()))


def _if_file(path: Path, change: Callable[[Path], None]) -> None:
    if path.is_file():
        change(path)


@st.composite
def corpora(draw: st.DrawFn, stock: Stock) -> Case:
    """A step of training on, or an evaluation of, a corpus with one to three accidents."""
    task = draw(st.sampled_from(TASKS))
    done = [draw(_accidents(_NAMES[task])) for _ in range(draw(st.sampled_from([1, 1, 2, 3])))]
    about = "; ".join(text for text, _ in done)
    single = task == "language" and draw(st.integers(0, 3)) == 0
    name = draw(st.sampled_from(["corpus"] * 8 + ["a b", "\udcff", "ă", "a\nb", "#", "x" * 200]))
    data = f"{name}/train.txt" if single else f"./{name}"

    def lay(stock: Stock, place: Path) -> None:
        shutil.copytree(stock.corpora[task], place / name)
        for _, happen in done:
            happen(place / name)

    if draw(st.booleans()):
        split = draw(st.sampled_from(["test", "valid", "train"]))
        command = ("evaluate", "model.ckpt", "--data", data, "--split", split)
        return Case(command, about, _with_checkpoint(task, lay))
    changes: dict[str, object] = {"train_max_steps": 1, "train_val_every": 1}
    changes["optim_warmup_steps"] = 0
    if task == "language":
        kind = draw(st.sampled_from(list(_TOKENIZERS)))
        changes |= {"data_tokenizer": kind, "data_vocab_size": _TOKENIZERS[kind]}
    words = set_words(quick_settings(task, **changes))
    command = ("fit", "--recipe", RECIPES[task], "--data", data, "--out", "run", *words)
    return Case(command, f"{data}, {changes.get('data_tokenizer')}: {about}", lay)


def _with_checkpoint(task: str, lay: Lay) -> Lay:
    def both(stock: Stock, place: Path) -> None:
        lay(stock, place)
        shutil.copy(stock.checkpoints[task], place / "model.ckpt")

    return both
