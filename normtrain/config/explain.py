"""Say what is wrong with a recipe in one sentence that names the key."""

from __future__ import annotations

import difflib
import reprlib
from typing import Any

from pydantic import ValidationError

from normtrain.config import yamlio
from normtrain.config.registry import task_names
from normtrain.config.schema import SECTIONS, accepted, choices, keys, sections


def explain(error: ValidationError, task: str) -> str:
    """Return one sentence on the first problem, in the recipe's words instead of pydantic's."""
    problems = error.errors(include_url=False)
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    loc = [str(part) for part in first["loc"]]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "extra_forbidden":
        return unknown_key(".".join(loc), task) + more
    kind = yamlio.kind_of(first["input"])
    given = brief(first["input"]) + ("" if kind == "null" else f" ({kind})")
    if loc[:1] and loc[0] in SECTIONS and len(loc) == 1:
        return f"section {loc[0]} must be a mapping of keys, got {given}{more}"
    key = ".".join(loc[:2]) if loc and loc[0] in SECTIONS else ".".join(loc[:1])
    if len(loc) > len(key.split(".")):  # the problem sits inside a list
        given = f"a list with {given}" if first["type"] != "missing" else "a list that is too short"
    if first["type"] == "string_unicode":
        return f"{key} must be UTF-8 text, got {given}; rename it or use a link{more}"
    if first["type"] == "less_than_equal":
        return f"{key} must be at most {first['ctx']['le']}, got {given}{more}"
    hint = ""
    if isinstance(first["input"], str) and first["type"] == "literal_error":
        near = difflib.get_close_matches(first["input"].lower(), choices(task, key), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
    return f"{key} must be {accepted(task, key)}, got {given}{hint}{more}"


def brief(value: Any) -> str:
    """Return a value as YAML has it, cut to a few dozen characters."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return reprlib.repr(value)


def unknown_key(key: str, task: str) -> str:
    """Say that a dotted key is unknown, with the likeliest one: same name elsewhere, then typos."""
    parts, known_keys = sections(task), keys(task)
    if key in parts:
        first = next(iter(parts[key].model_fields))
        return f"{key} is a section, not a key; name one of its keys, as in {key}.{first}"
    section, _, name = key.rpartition(".")
    near = [known for known in known_keys if known.rpartition(".")[2] == name]
    near = near or _closest(section, name, task) or _sections_like(name)
    near = near or difflib.get_close_matches(key.lower(), known_keys, n=1)
    names = [known.rpartition(".")[2] for known in known_keys]
    near = near or [
        known
        for word in difflib.get_close_matches(name.lower(), names)
        for known in known_keys
        if known.rpartition(".")[2] == word
    ]
    others = [other for other in task_names() if other != task and key in keys(other)]
    if others:
        return f"{key} is a key of the task {others[0]}, and this recipe's is {task}"
    if near:
        return f"unknown key {key!r}; did you mean {' or '.join(dict.fromkeys(near))}?"
    return f"unknown key {key!r}; sections are {', '.join(SECTIONS)}"


def _sections_like(name: str) -> list[str]:
    return difflib.get_close_matches(name.lower(), SECTIONS, n=1)


def _closest(section: str, name: str, task: str) -> list[str]:
    """Return the key of the section that was meant, or nothing."""
    near = _sections_like(section)
    if not near:
        return []
    fields = sections(task)[near[0]].model_fields
    return [f"{near[0]}.{match}" for match in difflib.get_close_matches(name.lower(), fields, n=1)]


def annotate(text: str, task: str) -> str:
    """Add the help of each key as a comment to a recipe's YAML.

    Args:
        text: a recipe as `normtrain.config.recipe.dump` writes it.
        task: of the recipe.
    """
    lines, section = [], ""
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        if not line.startswith(" "):
            section = name
        fields = sections(task)[section].model_fields if line.startswith(" ") else {}
        about = fields[name].description if name in fields else None
        lines.append(f"{line:<36}  # {about}" if about else line)
    return "\n".join(lines) + "\n"
