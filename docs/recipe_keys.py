"""Write the tables of recipe keys in docs/recipes.md from the config sections.

python docs/recipe_keys.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from normtrain.config.schema import accepted, sections

PAGE = Path(__file__).with_name("recipes.md")
START, END = "<!-- keys: python docs/recipe_keys.py -->\n", "<!-- end of keys -->\n"
TASKS = ("translation", "language")


def rows(task: str, section: str) -> list[str]:
    """Return a table row for each key of a section."""
    return [
        f"| `{section}.{key}` | {_shown(field.default)} | {accepted(task, f'{section}.{key}')} | "
        f"{field.description} |"
        for key, field in sections(task)[section].model_fields.items()
    ]


def tables() -> str:
    """Return the tables of all sections: the keys of every task, then those of one."""
    lines = []
    for section in sections(TASKS[0]):
        by_task = {task: rows(task, section) for task in TASKS}
        shared = [row for row in by_task[TASKS[0]] if row in by_task[TASKS[1]]]
        own = {task: [row for row in found if row not in shared] for task, found in by_task.items()}
        lines += [f"### {section}", ""]
        for task, found in {"": shared, **own}.items():
            if found:
                lines += [f"With `task: {task}`:", ""] if task else []
                lines += ["| key | default | accepted | meaning |", "| --- | --- | --- | --- |"]
                lines += [*found, ""]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """Return the page with its tables replaced."""
    before, _, rest = text.partition(START)
    return before + START + "\n" + tables() + END + rest.partition(END)[2]


def _shown(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{plain if isinstance(plain, str) else json.dumps(plain)}`"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
