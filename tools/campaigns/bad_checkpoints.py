"""Checkpoints that are damaged, edited, of version 1 of the format, or written to run code."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from tools.campaigns import junk
from tools.campaigns.arena import CANARY, Case
from tools.campaigns.bad_recipes import mutated
from tools.campaigns.stock import TASKS, Stock

Edit = Callable[[dict[str, Any]], None]
COMMON = ("evaluate", "convert", "export", "average", "resume")
OF_TASK = {"translation": ("translate",), "language": ("generate", "init-from", "import")}
_DTYPES = [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8]


class Trap:
    """Makes a folder when it is unpickled: what a checkpoint must never be able to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def read(stock: Stock, task: str) -> dict[str, Any]:
    """A good checkpoint, as plain data."""
    return torch.load(stock.checkpoints[task], weights_only=True)


def packed(raw: Any, *, legacy: bool = False) -> bytes:
    """What ``torch.save`` writes."""
    stream = io.BytesIO()
    torch.save(raw, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


# Bytes


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> tuple[str, bytes]:
    """A file's bytes after a fault of the disk or the network."""
    at, more = draw(st.integers(0, len(content) - 1)), draw(st.binary(min_size=1, max_size=64))
    how = draw(st.integers(0, 5))
    if how == 0:
        return f"cut after {at} bytes", content[:at]
    if how == 1:
        return f"with {more!r} at its end", content + more
    if how == 2:
        return f"with {more!r} inside, at {at}", content[:at] + more + content[at:]
    if how == 3:
        return f"without {len(more)} bytes at {at}", content[:at] + content[at + len(more) :]
    flipped = bytearray(content)
    spots = draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8))
    for spot in spots:
        flipped[spot] ^= draw(st.integers(1, 255))
    return f"with bytes changed at {spots}", bytes(flipped)


@st.composite
def _repacked(draw: st.DrawFn, content: bytes) -> tuple[str, bytes]:
    """The zip file with members removed, swapped, renamed, damaged or doubled."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    one, other = (draw(st.sampled_from(sorted(members))) for _ in range(2))
    how = draw(st.sampled_from(["removed", "swapped", "renamed", "damaged", "compressed"]))
    if how == "removed":
        del members[one]
    elif how == "swapped":
        members[one], members[other] = members[other], members[one]
    elif how == "renamed":
        members[draw(st.sampled_from(["../x", "/x", "archive/data/999", "x"]))] = members.pop(one)
    elif how == "damaged":
        members[one] = draw(damaged(members[one] or b"\0"))[1]
    stream = io.BytesIO()
    squeezed = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", squeezed) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return f"member {one} {how}", stream.getvalue()


@st.composite
def _traps(draw: st.DrawFn, raw: dict[str, Any]) -> tuple[str, bytes]:
    """A checkpoint that would execute something if it were unpickled as pickle does it."""
    places: dict[str, Edit] = {
        "in normtrain": lambda raw: raw["normtrain"].update(extra=Trap()),
        "for normtrain": lambda raw: raw.update(normtrain=Trap()),
        "in the weights": lambda raw: raw["state_dict"].update({"model.extra": Trap()}),
        "for the tokenizer": lambda raw: raw["normtrain"].update(tokenizer=Trap()),
        "in the recipe": lambda raw: raw["normtrain"]["recipe"].update(name=Trap()),
        "in the optimizer": lambda raw: raw.update(optimizer_states=[Trap()]),
        "in the callbacks": lambda raw: raw.update(callbacks={"x": Trap()}),
    }
    where = draw(st.sampled_from(list(places)))
    places[where](raw)
    how = draw(st.sampled_from(["zip", "legacy", "pickle"]))
    if how == "pickle":
        return f"a pickle that runs code, {where}", pickle.dumps(raw, protocol=2)
    return f"a checkpoint that runs code, {where}, {how}", packed(raw, legacy=how == "legacy")


# What is in it


@st.composite
def _other_tensors(draw: st.DrawFn, raw: dict[str, Any]) -> str:
    """Edit one weight."""
    weights = raw["state_dict"]
    name = draw(st.sampled_from(sorted(weights)))
    old = weights[name]
    how = draw(st.integers(0, 8))
    if how == 0:
        del weights[name]
    elif how == 1:
        weights[draw(st.one_of(junk.words, junk.whole))] = old
    elif how == 2:
        weights[name] = torch.zeros(draw(st.lists(st.integers(0, 5), max_size=4)))
    elif how == 3:
        weights[name] = old.to(draw(st.sampled_from(_DTYPES)))
    elif how == 4:
        weights[name] = torch.full_like(old, draw(st.sampled_from([float("nan"), float("inf")])))
    elif how == 5:
        weights[name] = draw(junk.anything)
    elif how == 6:
        weights[name] = torch.empty(old.shape, device="meta")
    elif how == 7:
        weights[name] = old.to_sparse()
    else:
        weights.clear()
    return f"weight {name}, way {how}"


@st.composite
def _other_values(draw: st.DrawFn, raw: dict[str, Any]) -> str:
    """Replace one value in the nested dictionaries and lists by junk."""
    path, inside = [], raw
    start = draw(st.sampled_from(["normtrain", "normtrain", "any"]))
    if start == "normtrain":
        path, inside = ["normtrain"], raw["normtrain"]
    for _ in range(draw(st.integers(0, 5))):
        deeper = [k for k, v in _items(inside) if isinstance(v, (dict, list)) and v]
        if not deeper:
            break
        key = draw(st.sampled_from(deeper))
        path.append(key)
        inside = inside[key]
    key = draw(st.sampled_from([k for k, _ in _items(inside)]))
    if draw(st.integers(0, 4)) == 0:
        del inside[key]
        return f"{path} without {key!r}"
    value = draw(st.one_of(junk.anything, st.just(torch.zeros(2)), junk.whole))
    inside[key] = value
    return f"{path} with {key!r}: {value!r}"


def _items(inside: Any) -> list[tuple[Any, Any]]:
    return list(inside.items() if isinstance(inside, dict) else enumerate(inside))


def _as_version_1(section: dict[str, Any]) -> dict[str, Any]:
    """Return a section as version 1 of the format has it."""
    launch = section.pop("launch")
    launch["update_batches"] = launch.pop("step_batches")
    del section["recipe"]["optim"]["name"]
    return section | section.pop("environment") | {"version": 1, "machine": launch}


@st.composite
def _edited(draw: st.DrawFn, raw: dict[str, Any]) -> tuple[str, bytes]:
    if draw(st.integers(0, 3)) == 0:
        raw["normtrain"] = _as_version_1(raw["normtrain"])
    how = draw(st.integers(0, 7))
    if how < 2:
        about = draw(_other_tensors(raw))
    elif how < 6:
        about = draw(_other_values(raw))
    elif how == 6:
        recipe = draw(mutated(raw["normtrain"]["recipe"]))
        raw["normtrain"]["recipe"], about = recipe, f"recipe {recipe!r}"
    else:
        text = raw["normtrain"]["tokenizer"]
        at = draw(st.integers(0, len(text)))
        other = text[:at] + draw(junk.words) + text[at + draw(st.integers(0, 9)) :]
        raw["normtrain"]["tokenizer"], about = other, f"tokenizer changed at {at}"
    return about, packed(raw, legacy=draw(st.integers(0, 9)) == 0)


@st.composite
def files(draw: st.DrawFn, stock: Stock, task: str) -> tuple[str, bytes]:
    """A bad checkpoint: what is bad about it, and its bytes."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return draw(_traps(read(stock, task)))
    if how < 3:
        return draw(damaged(stock.checkpoints[task].read_bytes()))
    if how == 3:
        return draw(_repacked(stock.checkpoints[task].read_bytes()))
    return draw(_edited(read(stock, task)))


# Who reads it


def _words(command: str, task: str) -> tuple[str, ...]:
    beside = {
        "evaluate": ("evaluate", "bad.ckpt"),
        "convert": ("convert", "bad.ckpt", "--to", "layernorm", "-o", "out.ckpt"),
        "export": ("export", "bad.ckpt", "exported"),
        "translate": ("translate", "bad.ckpt", "-o", "out.txt"),
        "generate": ("generate", "bad.ckpt", "--prompt", "ab", "--max-tokens", "3"),
        "import": ("import", "bad.ckpt", "-o", "out.ckpt"),
        "average": ("average", "run", "--last", "2", "-o", "out.ckpt"),
        "resume": ("fit", "--resume", "run"),
    }
    if command != "init-from":
        return beside[command]
    small = ("train.max_steps=1", "optim.warmup_steps=0", "data.window=16", "data.max_tokens=64")
    settings = [word for setting in small for word in ("--set", setting)]
    start = ("fit", "--recipe", "lm", "--init-from", "bad.ckpt", "--out", "new", "--data", "text")
    return (*start, *settings)


@st.composite
def checkpoints(draw: st.DrawFn, stock: Stock) -> Case:
    """A bad checkpoint, read by any command that reads one."""
    task = draw(st.sampled_from(TASKS))
    about, content = draw(files(stock, task))
    command = draw(st.sampled_from([*COMMON, *OF_TASK[task], "resume"]))

    def lay(stock: Stock, place: Path) -> None:
        if command == "resume":
            run = stock.copy_run(task, place / "run")
            _replace(run / "checkpoints/last.ckpt", content)
        elif command == "average":
            run = stock.copy_run(task, place / "run", finished=True)
            _replace(run / "checkpoints/step-00000002.ckpt", content)
        else:
            (place / "bad.ckpt").write_bytes(content)
        if command == "init-from":
            shutil.copytree(stock.corpora["language"], place / "text")

    return Case(
        _words(command, task),
        f"{task} checkpoint: {about}",
        lay,
        stdin=b"an be do\nhe\n" if command == "translate" else None,
        streams=command == "generate",
    )


def _replace(path: Path, content: bytes) -> None:
    path.unlink()  # it may be a second name of another file
    path.write_bytes(content)
