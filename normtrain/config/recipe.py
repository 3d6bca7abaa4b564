"""Load, override, check, write and compare recipes.

``resolve`` is the way from the command line to a `Recipe`; ``dump`` writes one that ``load`` reads
back equal; ``diff`` lists the differences of two. Only ``check_names`` imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from normtrain.config import bundled, yamlio
from normtrain.config.explain import brief, explain, unknown_key
from normtrain.config.registry import check_optimizer, task_names
from normtrain.config.schema import SECTIONS, Recipe, keys, recipe_type, takes_text
from normtrain.errors import UserError


def resolve(
    name_or_path: str | Path,
    norm: str | None = None,
    norm_at: Iterable[str | tuple[str, str]] = (),
    data: str | None = None,
    seed: int | None = None,
    precision: str | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> Recipe:
    """Load a recipe, apply what the command line changes, and check it, names included.

    Args:
        name_or_path: a recipe's name, or a YAML file.
        norm: the norm of every module; drops the recipe's own ``norm_rules``.
        norm_at: further rules, ``"GLOB=SPEC"`` or ``(glob, spec)``; the last match wins.
        data: ``data.source``.
        seed: ``train.seed``.
        precision: ``train.precision``.
        overrides: ``"section.key=value"`` with a YAML value; the last one of a key wins.
        base: values by dotted key that replace the recipe's own, before all of the above.

    Raises:
        UserError: anything unknown or contradictory, or a key given by flag and by override.
    """
    recipe, base = load(name_or_path), base or {}
    changes = given_keys(norm, norm_at, data, seed, precision)
    rules = changes.get("model.norm_rules", [])
    if norm is not None or rules:
        own = base.get("model.norm_rules", recipe.model.norm_rules)
        kept = [] if norm is not None else [list(rule) for rule in own]
        changes["model.norm_rules"] = kept + rules
    settings = dict(parse_override(text, recipe.task) for text in overrides)
    for key in changes.keys() & settings.keys():
        if key != "model.norm_rules" or rules:
            raise UserError(f"{key} is given by its own option and by --set; give it once")
    return check_names(_changed(recipe, {**base, **changes, **settings}))


def given_keys(
    norm: str | None,
    norm_at: Iterable[str | tuple[str, str]],
    data: str | None,
    seed: int | None,
    precision: str | None,
) -> dict[str, Any]:
    """Return the keys that these arguments of `resolve` set, without those not given.

    Raises:
        UserError: a rule is wrong.
    """
    from normtrain.norms.rules import parse_rule  # imports torch

    values = {
        "model.norm": norm,
        "model.norm_rules": [list(parse_rule(rule)) for rule in norm_at] or None,
        "data.source": None if data is None else whole_path(data),
        "train.seed": seed,
        "train.precision": precision,
    }
    return {key: value for key, value in values.items() if value is not None}


def load(name_or_path: str | Path) -> Recipe:
    """Load a recipe by name or from a YAML file; a file without ``name`` is named after itself.

    Raises:
        UserError: no such recipe or file, not YAML, an unknown key, a wrong value.
    """
    text, where, stem = bundled.read(name_or_path)
    plain = yamlio.parse_mapping(text, where)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "recipe"
    return from_plain({"name": slug} | plain, where)


def from_plain(plain: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Validate nested plain values, as `Recipe.plain` gives them.

    Raises:
        UserError: an unknown key or a wrong value; the message starts with ``where``.
    """
    task = plain.get("task", "translation")
    if not isinstance(task, str) or task not in task_names():
        known = f"must be one of {', '.join(task_names())}"
        raise UserError(f"{where}: task {known}, got {brief(task)} ({yamlio.kind_of(task)})")
    for key in plain:
        inside = plain[key] if isinstance(plain[key], Mapping) else {}
        for name in (key, *inside):
            if not isinstance(name, str):
                raise UserError(f"{where}: {brief(name)} cannot be a key; keys are strings")
        if key in SECTIONS and plain[key] is None:
            raise UserError(f"{where}: section {key} is empty; leave it out or fill it")
    try:
        return recipe_type(task).model_validate(dict(plain))
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, task)}") from None


def override(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Apply ``"section.key=value"`` strings and check the outcome, names included.

    Raises:
        UserError: an unknown key, or a value the key cannot take.
    """
    changes = dict(parse_override(text, recipe.task) for text in overrides)
    return check_names(_changed(recipe, changes))


def parse_override(text: str, task: str) -> tuple[str, Any]:
    """Split ``"section.key=value"`` into its dotted key and its YAML value.

    ``task`` says which keys there are. A key that takes text gets the text as typed, so
    ``data.revision=0012`` needs no quotes.

    Raises:
        UserError: no ``=``, an unknown key, or a value that is not YAML.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise UserError(f"--set must be section.key=value, such as model.d_model=512, got {text!r}")
    if key not in keys(task):
        raise UserError(f"--set {unknown_key(key, task)}")
    value = value.strip(" \t\n")  # as YAML does; other white space may be text
    if takes_text(task, key) and value not in ("", "~", "null") and value[0] not in "'\"":
        return key, value
    return key, yamlio.parse_value(value, f"--set {key}")


def whole_path(source: str) -> str:
    """Return the absolute path of a data folder or file, so that a run resumes from any folder.

    Names are returned unchanged. Only a source with a separator is a path: ``phrasebook`` is a
    corpus, whatever the current folder holds.
    """
    is_path = os.sep in source and not source.startswith("hf:") and Path(source).exists()
    return str(Path(source).resolve()) if is_path else source


def dump(recipe: Recipe) -> str:
    """Return the recipe as YAML with every key, in canonical order; `load` reads an equal one."""
    return yamlio.write(recipe.plain())


def diff(old: Recipe, new: Recipe) -> list[str]:
    """Return the differences, one line per key: ``"model.d_model: 256 → 512"``."""
    before, after = _flat(old.plain()), _flat(new.plain())
    return [
        f"{key}: {_show(before[key])} → {_show(after[key])}"
        for key in before
        if before[key] != after[key]
    ]


def check_names(recipe: Recipe) -> Recipe:
    """Check the optimizer and the norms that a recipe names.

    Returns:
        The recipe with canonical norm specs, so that ``RMSNorm`` and ``rmsnorm`` compare equal.

    Raises:
        UserError: an unknown optimizer or norm, or options that it does not take.
    """
    check_optimizer(recipe.optim)
    model = recipe.model
    stream = model.d_stream or model.d_model
    rules = [
        [glob, _canonical_norm(spec, stream, f"model.norm_rules {glob!r}")]
        for glob, spec in model.norm_rules
    ]
    sizes = {"norm": stream, "qk_norm": model.d_model // model.heads, "embedding_norm": stream}
    changes = {
        f"model.{key}": _canonical_norm(getattr(model, key), dim, f"model.{key}")
        for key, dim in sizes.items()
    }
    return _changed(recipe, {**changes, "model.norm_rules": rules})


def _canonical_norm(spec: str, dim: int, where: str) -> str:
    import torch

    from normtrain.norms import NormSpec, build_norm

    try:
        parsed = NormSpec.parse(spec)
        with torch.device("meta"):
            build_norm(parsed, dim)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error
    return str(parsed)


def _changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    plain = recipe.plain()
    if changes.get("task", recipe.task) != recipe.task:
        raise UserError(
            f"recipe {recipe.name} is for the task {recipe.task}, which --set cannot change; give "
            "another --recipe"
        )
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (plain[section] if section else plain)[name] = value
    return from_plain(plain, f"recipe {recipe.name}")


def _flat(plain: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in plain.items() if key not in SECTIONS}
    for section in SECTIONS:
        flat |= {f"{section}.{key}": value for key, value in plain[section].items()}
    return flat


def _show(value: Any, quote: bool = False) -> str:
    """Return a value as ``--set`` takes it; without ``quote``, strings have no quotes."""
    if isinstance(value, str) and not quote:
        return value
    return yamlio.write_value(value)
