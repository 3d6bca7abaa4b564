"""Recipe files with something wrong: in their values, in their YAML, in their bytes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tools.campaigns import junk
from tools.campaigns.arena import Case, Lay
from tools.campaigns.stock import TASKS, Stock

FILE = "bad.yaml"
_SHIPPED = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))
# What a real run may not be given, since it would be right to take hours over it.
_SLOW = ("max_steps", "warmup_steps", "accumulate", "workers", "val_every")
# What the choices of one key are, another key may be given.
_CHOICES = (
    *("pre", "post", "sandwich", "relu", "gelu", "gelu-tanh", "swiglu", "none", "embeddings"),
    *("stream", "sinusoidal", "learned", "rotary", "all", "decoder", "constant", "cosine"),
    *("linear", "inverse-sqrt", "32", "bf16-mixed", "bf16-true", "auto", "bleu", "loss", "byte"),
    *("char", "word", "bpe"),
)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
_FRAGMENTS = (
    "model: !!python/object/apply:os.mkdir [canary]\n",
    "x: !!python/name:os.system\n",
    "train: !!binary aGVsbG8=\n",
    "model: &m {norm: *m}\n",
    "model: {norm_rules: &r [[a, rmsnorm], *r]}\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "<<: {task: language}\n",
    "<<: [1, 2]\n",
    "model: {<<: {d_model: 32}}\n",
    "---\ntask: language\n",
    "%YAML 9.9\n---\n",
    "\ttask: language\n",
    "task: language\ntask: translation\n",
    "name: 2020-99-99\n",
    "name: 1:2:3\n",
    "train: {seed: 0o17}\n",
    "model: {norm_rules: !!set {a, b}}\n",
    'data: {source: "a\\0b"}\n',
    'data: {source: "\\ud800"}\n',
    "name: !!timestamp 2001-01-01\n",
    "optim: !!omap [lr: 1]\n",
    "data: {source: ! x}\n",
    "model:\n" + "".join(" " * i + "a:\n" for i in range(1, 60)),
    "model: " + "[" * 3000 + "\n",
    "model: " + "{a: " * 300 + "1" + "}" * 300 + "\n",
    _BOMB,
    _BOMB + "model: {norm: *i}\n",
    _BOMB + "model: {norm_rules: *i}\n",
)


def _inserted(text: bytes, at: int, more: bytes) -> bytes:
    at %= len(text) + 1
    return text[:at] + more + text[at:]


@st.composite
def damaged(draw: st.DrawFn, text: bytes) -> bytes:
    """The bytes of a file after some accident."""
    at = draw(st.integers(0, len(text)))
    accidents: list[Callable[[], bytes]] = [
        lambda: text[:at],
        lambda: _inserted(text, at, draw(st.binary(min_size=1, max_size=8))),
        lambda: _inserted(text, at, draw(st.sampled_from([b"\0", b"\xff", b"\xc3", b"\t", b"\r"]))),
        lambda: text[:at] + text[at + draw(st.integers(1, 30)) :],
        lambda: text.replace(b"\n", b"\r\n"),
        lambda: b"\xef\xbb\xbf" + text,
        lambda: text.decode().encode("utf-16"),
        lambda: text + draw(st.sampled_from(_FRAGMENTS)).encode(),
        lambda: draw(st.sampled_from(_FRAGMENTS)).encode() + text,
    ]
    return draw(st.sampled_from(accidents))()


@st.composite
def mutated(draw: st.DrawFn, plain: dict[str, Any], spared: tuple[str, ...] = ()) -> dict[Any, Any]:
    """A recipe with one to three values, keys or sections that are not what they were."""
    plain = copy.deepcopy(plain)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        section = draw(st.sampled_from(list(plain)))
        inside = plain[section] if isinstance(plain[section], dict) else None
        how = draw(st.integers(0, 16))
        if how == 0:
            plain[section] = draw(junk.anything)
        elif how == 1:
            del plain[section]
        elif how == 2:
            plain[draw(junk.words)] = draw(junk.anything)
        elif not inside:
            plain[section] = draw(junk.anything)
        elif how == 3:
            del inside[draw(st.sampled_from(list(inside)))]
        elif how == 4:
            inside[draw(st.one_of(junk.words, junk.whole, st.none()))] = draw(junk.anything)
        else:
            key = draw(st.sampled_from([key for key in inside if key not in spared] or [None]))
            inside[key] = draw(value_like(inside.get(key)))
        if not plain:
            break
    return plain


def value_like(value: Any) -> st.SearchStrategy[Any]:
    """Mostly values of the same kind, which are the ones that get past the first look."""
    kinds: list[st.SearchStrategy[Any]] = [junk.anything]
    if isinstance(value, str):
        kinds.append(st.sampled_from(_CHOICES))
    if isinstance(value, bool) or value is None:
        kinds += [st.booleans(), junk.small, junk.number, junk.share]
    elif isinstance(value, int):
        kinds += [junk.whole, junk.whole, junk.small, junk.small]
    elif isinstance(value, float):
        kinds += [junk.number, junk.number, junk.share, junk.share]
    elif isinstance(value, str):
        kinds += [junk.norm_specs(), junk.words]
    elif isinstance(value, list):
        rule = st.lists(st.one_of(junk.norm_specs(), junk.words, junk.number), max_size=3)
        kinds += [st.lists(rule, max_size=3), st.lists(junk.number, min_size=2, max_size=2)]
    return st.one_of(kinds)


def as_yaml(plain: Any) -> bytes:
    """YAML of plain values; what isn't UTF-8 goes as such."""
    text = yaml.safe_dump(plain, allow_unicode=True, sort_keys=False)
    return text.encode(
        "utf-8", "surrogateescape" if "\udc80" <= max(text) <= "\udcff" else "replace"
    )


def write(name: str, content: bytes) -> Lay:
    """What writes one file."""
    return lambda stock, place: _write(place / name, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@st.composite
def recipe_files(draw: st.DrawFn, stock: Stock) -> Case:
    """``fit`` of a bad recipe file: mostly a look at it, sometimes the run itself."""
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.one_of(st.binary(max_size=40), junk.nested.map(as_yaml)))
        return _look(text)
    if draw(st.integers(0, 2)) == 0:
        task = draw(st.sampled_from(TASKS))
        plain = draw(mutated(stock.plain_recipe(task), _SLOW))
        settings = ["train.max_steps=2", "optim.warmup_steps=1", "optim.accumulate=1"]
        words = [word for setting in settings for word in ("--set", setting)]
        if not isinstance(plain.get("data"), dict) or "source" not in plain["data"]:
            words += ["--data", str(stock.corpora[task])]  # the default is large
        text = as_yaml(plain)
        command = ("fit", "--recipe", FILE, "--out", "run", *words)
        return Case(command, f"recipe {text!r}", write(FILE, text))
    source = draw(st.sampled_from(_SHIPPED)).read_bytes()
    kind = draw(st.integers(0, 4))
    if kind < 3:
        text = as_yaml(draw(mutated(yaml.safe_load(source))))
    if kind == 2:
        text = draw(damaged(text.decode("utf-8", "replace").encode()))
    if kind > 2:
        text = draw(damaged(source))
    return _look(text)


def _look(text: bytes) -> Case:
    return Case(("fit", "--recipe", FILE, "--dry-run"), f"recipe {text!r}", write(FILE, text))
