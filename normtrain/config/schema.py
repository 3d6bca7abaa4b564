"""A recipe as one validated value, and what can be asked of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic import Field, Strict, model_validator

from normtrain.config.registry import load_task, task_names
from normtrain.config.sections import DataConfig, DecodeConfig, OptimConfig, TrainConfig
from normtrain.errors import UserError
from normtrain.fields import Accepts, Section
from normtrain.models.config import TransformerConfig


class Recipe(Section):
    """Everything that decides a run, whatever its task. Frozen; change one with `override`."""

    name: Annotated[
        str,
        Strict(),
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        Accepts("a name of letters, digits, '.', '_' and '-'"),
    ]
    task: str
    data: DataConfig
    model: TransformerConfig
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def plain(self) -> dict[str, Any]:
        """Return the recipe as nested dicts and lists, as a checkpoint stores it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _check_consistency(self) -> Recipe:
        for problem in self.contradictions():
            raise UserError(problem)
        return self

    def contradictions(self) -> Iterator[str]:
        """Yield what keys of different sections contradict, a sentence each."""
        optim, train = self.optim, self.train
        if optim.warmup_steps >= train.max_steps:
            yield (
                f"optim.warmup_steps ({optim.warmup_steps}) must be below train.max_steps "
                f"({train.max_steps})"
            )
        if optim.min_lr > 0 and optim.schedule == "constant":
            yield f"optim.min_lr ({optim.min_lr:g}) has no effect with optim.schedule constant"
        if optim.min_lr > optim.lr:
            yield f"optim.min_lr ({optim.min_lr:g}) must not be above optim.lr ({optim.lr:g})"


SECTIONS = tuple(name for name in Recipe.model_fields if name not in ("name", "task"))


def recipe_type(task: str) -> type[Recipe]:
    """Return the class of a task's recipes.

    Raises:
        UserError: there is no such task.
    """
    found: type[Recipe] = load_task(task).recipe_type
    return found


def sections(task: str) -> dict[str, type[Section]]:
    """Return a task's sections by name."""
    fields = recipe_type(task).model_fields
    return {name: fields[name].annotation for name in SECTIONS}  # type: ignore[misc]


def keys(task: str) -> list[str]:
    """Return every key of a task that ``--set`` takes, dotted, in canonical order."""
    return [
        "name",
        "task",
        *(f"{name}.{key}" for name, part in sections(task).items() for key in part.model_fields),
    ]


def choices(task: str, key: str) -> tuple[str, ...]:
    """Return the words a dotted key may take, or nothing if it takes other values."""
    if key == "task":
        return tuple(task_names())
    return tuple(arg for arg in get_args(_field(task, key).annotation) if isinstance(arg, str))


def takes_text(task: str, key: str) -> bool:
    """Return whether a dotted key's value is a string, so that ``32`` given to it is one."""
    annotation = _field(task, key).annotation
    return annotation is str or str in get_args(annotation) or bool(choices(task, key))


def accepted(task: str, key: str) -> str:
    """Return what a dotted key accepts, in words that follow "must be"."""
    if words := choices(task, key):
        return f"one of {', '.join(words)}" if len(words) > 1 else repr(words[0])
    return next(mark.text for mark in _field(task, key).metadata if isinstance(mark, Accepts))


def _field(task: str, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (sections(task)[section] if section else recipe_type(task)).model_fields[name]
