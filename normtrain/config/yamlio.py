"""Read and write the YAML of recipes: mappings, lists and scalars.

Differs from ``yaml.safe_load``: duplicate keys, tags and several documents are errors, and
``1e-3`` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from normtrain.errors import UserError


class _Loader(yaml.SafeLoader):
    """Safe loader in which a duplicate key is an error and ``1e-3`` a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                wrong = "is given twice" if isinstance(key, Hashable) else "is not a name"
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} {wrong}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Writes block mappings and flow lists at any depth."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, flow_style=True)


for _side in (_Loader, _Dumper):  # the dumper must quote strings that look like numbers
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+|[0-9]*\.[0-9]+|[0-9]+\.)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_value(text: str, where: str) -> Any:
    """Parse one YAML value, such as the right side of ``--set optim.lr=1e-3``.

    Raises:
        UserError: the text is not YAML; the message starts with ``where``.
    """
    return _load(text, where)


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML document that must be a mapping with names as keys.

    Raises:
        UserError: empty, not a mapping, not YAML, a duplicate key, a tag, several documents.
    """
    loaded = _load(text, where)
    if loaded is None:
        raise UserError(f"{where} is empty; it must have sections such as 'model:' and 'optim:'")
    if not isinstance(loaded, dict):
        raise UserError(
            f"{where} must be a mapping with sections such as 'model:' and 'optim:', got a "
            f"{kind_of(loaded)}"
        )
    return loaded


def write(plain: dict[str, Any]) -> str:
    """Write plain types as YAML, in the order given; ``parse_mapping`` reads the same back."""
    return yaml.dump(
        plain,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=2**31,  # one line per key
    )


def write_value(value: Any) -> str:
    """Write one scalar or list on one line; `parse_value` reads the same back."""
    return write({"v": value}).removeprefix("v: ").rstrip("\n")


def kind_of(value: object) -> str:
    """Return the name of a value's type in messages."""
    if value is None:
        return "null"
    names = {bool: "true-or-false", int: "whole number", float: "number", str: "text"}
    names |= {list: "list", tuple: "list", dict: "mapping"}
    return names.get(type(value), type(value).__name__)


def _load(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        raise UserError(f"{where} is not text: it holds characters YAML does not allow") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark is not None and "\n" in text.strip() else ""
        raise UserError(f"{where}{line}: {_problem(error)}") from error
    except (ValueError, RecursionError) as error:  # an impossible date, brackets without end
        raise UserError(f"{where} is not YAML") from error


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "not YAML"
    if "could not determine a constructor" in problem:
        tag = problem.rsplit("'", 2)[1].replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag} is not allowed; recipes hold plain values only"
    if "but found another document" in problem:
        return "a second document starts here; a recipe is one document"
    return problem if problem.startswith("the key ") else f"not valid YAML ({problem})"
