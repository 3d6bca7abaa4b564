"""``fit`` with options and overrides that no recipe can take."""

from typing import Any

import yaml
from hypothesis import strategies as st

from tools.campaigns import junk
from tools.campaigns.arena import Case
from tools.campaigns.bad_recipes import value_like
from tools.campaigns.stock import RECIPES, TASKS, Stock, quick_settings, set_words

_NAMES = ("envi", "envi-iwslt15", "lm", "lm-enwik8", "lm-gpt2", "lm-wikitext2", "lm-wikitext103")
# What a real run may not be given: it would be right to take hours, or hundreds of processes.
_SLOW = ("train.max_steps", "optim.accumulate", "data.workers", "optim.warmup_steps")
_OPTIONS = ("--seed", "--devices", "--nodes", "--strategy", "--precision", "--data", "--norm")
_FLAGS = ("--compile", "--resume", "--init-from", "--out", "--nonsense", "--set", "--norm-at")
_GLOBS = (
    "*",
    "encoder.*",
    "decoder.layers.0.*",
    "nowhere",
    "[",
    "**",
    "a=b",
    "encoder.layers.[!0]*",
)


@st.composite
def settings(
    draw: st.DrawFn, task: str, plain: dict[str, Any], spared: tuple[str, ...] = ()
) -> str:
    """One ``KEY=VALUE``; mostly of a key that there is, and of the kind that it takes."""
    from normtrain.config.recipe import keys

    known = st.sampled_from([key for key in keys(task) if key not in spared])
    if draw(st.integers(0, 2)):
        key = draw(known)
        section, _, name = key.rpartition(".")
        old = plain[section][name] if section else plain[name]
        return f"{key}={_written(draw(value_like(old)))}".replace("\0", "")
    odd = st.one_of(junk.on_a_command_line, known.map(lambda key: key[:-1]))
    key = draw(st.one_of(known, known, known, known, known, odd))
    plain = st.one_of(junk.whole.map(str), junk.number.map(str), junk.on_a_command_line)
    listed = st.lists(st.one_of(junk.norm_specs(), junk.whole, junk.number), max_size=3).map(str)
    value = draw(st.one_of(plain, plain, listed, junk.norm_specs(), st.just("null")))
    equals = draw(st.sampled_from(["="] * 9 + [""]))
    return f"{key}{equals}{value}".replace("\0", "")


def _written(value: Any) -> str:
    """A value as YAML has it on one line, but for text, which stays bare."""
    if isinstance(value, str):
        return value
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n")


@st.composite
def _rules(draw: st.DrawFn) -> list[str]:
    glob = draw(st.one_of(st.sampled_from(_GLOBS), junk.on_a_command_line))
    return ["--norm-at", f"{glob}={draw(junk.norm_specs())}".replace("\0", "")]


@st.composite
def _options(draw: st.DrawFn) -> list[str]:
    value = st.one_of(
        junk.whole.map(str), junk.on_a_command_line, junk.norm_specs().map(lambda s: s.strip("\0"))
    )
    name = draw(st.sampled_from([*_OPTIONS, *_FLAGS]))
    return [name, draw(value).replace("\0", "")]


@st.composite
def overrides(draw: st.DrawFn, stock: Stock) -> Case:
    """``fit`` with one to three things wrong, mostly looked at, sometimes run."""
    task = draw(st.sampled_from(TASKS))
    real = draw(st.integers(0, 2)) == 0
    spared = _SLOW if real else ()
    words: list[str] = []
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        how = draw(st.integers(0, 9))
        if how < 6:
            words += ["--set", draw(settings(task, stock.plain_recipe(task), spared))]
        elif how == 6:
            words += ["--norm", draw(junk.norm_specs()).replace("\0", "")]
        elif how == 7:
            words += draw(_rules())
        else:
            words += draw(_options())
    if real:
        quick = set_words(quick_settings(task))
        data = ["--data", str(stock.corpora[task])] if "--data" not in words else []
        words = ["--recipe", RECIPES[task], *data, "--out", "run", *quick, *words]
    else:
        names = [name for name in _NAMES if name.startswith(RECIPES[task])]
        words = ["--recipe", draw(st.sampled_from(names)), "--dry-run", *words]
    return Case(("fit", *words), f"options {words[-8:]!r}")
