"""The tasks by name, of this package and by entry point of others; and the optimizers.

Both stand above this package, so they are named here and imported on first use.
"""

from __future__ import annotations

import functools
from importlib import import_module, metadata
from typing import Any

from normtrain.errors import UserError, unknown_name

GROUP = "normtrain.tasks"
"""Entry-point group of other packages: ``name = "module:attribute"``, where the attribute is a
`normtrain.tasks.base.Task`."""

_TASKS = {
    "translation": "normtrain.tasks.translation:TASK",
    "language": "normtrain.tasks.language:TASK",
}


def task_names() -> list[str]:
    """Return the name of every task: this package's first, then other packages', sorted."""
    others = {point.name for point in metadata.entry_points(group=GROUP)}
    return [*_TASKS, *sorted(others - _TASKS.keys())]


@functools.cache
def load_task(name: str) -> Any:
    """Return a task by name; this package's come before other packages' of the same name.

    Raises:
        UserError: there is no such task, or another package's cannot be imported.
    """
    if name in _TASKS:
        module, _, attribute = _TASKS[name].partition(":")
        return getattr(import_module(module), attribute)
    points = [*metadata.entry_points(group=GROUP, name=name)]
    if not points:
        raise unknown_name("task", name, task_names())
    try:
        return points[0].load()
    except Exception as error:  # other packages' code can raise anything
        raise UserError(f"task {name!r} ({points[0].value}) cannot be imported: {error}") from error


def check_optimizer(optim: Any) -> None:
    """Check the optimizer that a recipe's ``optim`` section names; imports torch.

    Raises:
        UserError: there is no such optimizer, or it ignores a key that is set.
    """
    import_module("normtrain.tasks.optimizers").check_optimizer(optim)
