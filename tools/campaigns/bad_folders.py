"""Folders of pretrained models that were damaged or edited, for ``import`` and ``--init-from``."""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from tools.campaigns import junk
from tools.campaigns.arena import Case
from tools.campaigns.bad_checkpoints import Trap, damaged
from tools.campaigns.stock import Stock

FORMS = ("native", "llama", "gpt2")
Change = Callable[[Path], None]
_JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "normtrain_tokenizer.json")
_SMALL = ("train.max_steps=1", "optim.warmup_steps=0", "data.window=16", "data.max_tokens=64")


@st.composite
def _json_junk(draw: st.DrawFn, plain: Any) -> Any:
    """Plain values with one of them, somewhere inside, replaced or gone."""
    if not isinstance(plain, (dict, list)) or not plain or draw(st.integers(0, 5)) == 0:
        return draw(junk.anything)
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    key = draw(st.sampled_from(keys))
    changed = plain.copy()
    if draw(st.integers(0, 4)) == 0:
        del changed[key]
    else:
        changed[key] = draw(_json_junk(plain[key]))
    return changed


def _dumped(plain: Any) -> bytes:
    try:
        return json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except TypeError:  # keys that JSON has no form for
        return repr(plain).encode("utf-8", "surrogatepass")


@st.composite
def _texts(draw: st.DrawFn, folder: Path) -> tuple[str, Change]:
    name = draw(st.sampled_from([name for name in _JSON if (folder / name).is_file()]))
    old = (folder / name).read_bytes()
    how = draw(st.integers(0, 5))
    if how == 0:
        return f"{name} gone", lambda at: (at / name).unlink()
    if how == 1:
        about, content = draw(damaged(old))
    elif how == 2:
        odd = [b"", b"[]", b"null", b"{}", b"[" * 5000, b'{"a":' * 5000, b"NaN", b"\xff", b"1e999"]
        content = draw(st.sampled_from(odd))
        about = repr(content[:20])
    else:
        content = _dumped(draw(_json_junk(json.loads(old))))
        about = "edited"
    return f"{name} {about}", lambda at: _put(at / name, content)


@st.composite
def _weights(draw: st.DrawFn, folder: Path) -> tuple[str, Change]:
    file = folder / "model.safetensors"
    how = draw(st.integers(0, 5))
    if how < 2:
        about, content = draw(damaged(file.read_bytes()))
        return f"weights {about}", lambda at: _put(at / file.name, content)
    if how == 2:
        stream = io.BytesIO()
        torch.save({"weight": Trap()}, stream)
        trap = draw(st.sampled_from([pickle.dumps(Trap()), stream.getvalue()]))
        name = draw(st.sampled_from(["model.safetensors", "pytorch_model.bin"]))
        return f"code in {name}", lambda at: _swap(at, name, trap)
    if how == 3:
        index = draw(
            st.one_of(
                st.just({"weight_map": {"x": "../secret.safetensors"}}),
                st.just({"weight_map": {"x": "model.safetensors", "y": "gone.safetensors"}}),
                junk.nested,
                st.builds(lambda inner: {"weight_map": inner}, junk.nested),
            )
        )
        name = "model.safetensors.index.json"
        return f"index {index!r}", lambda at: _put(at / name, _dumped(index))
    weights = load_file(file)
    about = draw(_changed_weights(weights))
    content = save(weights)
    return about, lambda at: _put(at / file.name, content)


@st.composite
def _changed_weights(draw: st.DrawFn, weights: dict[str, torch.Tensor]) -> str:
    name = draw(st.sampled_from(sorted(weights)))
    how = draw(st.integers(0, 4))
    if how == 0:
        del weights[name]
    elif how == 1:
        weights[draw(st.sampled_from(["x", "", "a.b", "norm.weight"]))] = weights[name].clone()
    elif how == 2:
        weights[name] = torch.zeros(draw(st.lists(st.integers(0, 5), max_size=3)))
    elif how == 3:
        kinds = [torch.int8, torch.float64, torch.bfloat16, torch.bool, torch.float8_e4m3fn]
        weights[name] = weights[name].to(draw(st.sampled_from(kinds)))
    else:
        weights[name] = torch.full_like(weights[name], float("nan"))
    return f"weight {name}, way {how}"


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _swap(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)


@st.composite
def folders(draw: st.DrawFn, stock: Stock) -> Case:
    """A model's folder with something wrong, imported or started from."""
    form = draw(st.sampled_from(FORMS))
    source = stock.exports[form]
    how = draw(st.integers(0, 4))
    about, change = draw(_weights(source) if how < 2 else _texts(source))

    def lay(stock: Stock, place: Path) -> None:
        shutil.copytree(source, place / "model")
        change(place / "model")

    words: tuple[str, ...] = ("import", "model", "-o", "out.ckpt")
    if draw(st.integers(0, 2)) == 0:
        settings = [word for setting in _SMALL for word in ("--set", setting)]
        data = str(stock.corpora["language"])
        start = ("fit", "--recipe", "lm", "--init-from", "model", "--out", "new", "--data", data)
        words = (*start, *settings)
    return Case(words, f"{form} folder: {about}", lay)
