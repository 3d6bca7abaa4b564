"""Every key of a recipe explains itself."""

from pathlib import Path

import pytest

from normtrain.config import bundled
from normtrain.config.explain import annotate
from normtrain.config.recipe import dump, load
from normtrain.config.registry import task_names
from normtrain.config.schema import accepted, keys, sections


@pytest.mark.parametrize("name", bundled.names())
def test_an_annotated_recipe_is_the_recipe(name: str, tmp_path: Path) -> None:
    recipe = load(name)
    file = tmp_path / f"{name}.yaml"
    file.write_text(annotate(dump(recipe), recipe.task), encoding="utf-8")
    assert load(file) == recipe


@pytest.mark.parametrize("task", task_names())
def test_every_key_has_help_and_says_what_it_accepts(task: str) -> None:
    for section, part in sections(task).items():
        for key, field in part.model_fields.items():
            assert field.description, f"{section}.{key}"
    assert all(accepted(task, key) for key in keys(task) if "." in key)
