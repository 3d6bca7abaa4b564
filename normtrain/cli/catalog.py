"""``normtrain recipes``: list, show or copy them."""

from __future__ import annotations

from pathlib import Path

import click

from normtrain.cli.common import SETTINGS, debug_option, table
from normtrain.errors import UserError


@click.group(context_settings=SETTINGS)
@debug_option
def recipes() -> None:
    """List, show or copy recipes."""


@recipes.command("list")
@debug_option
def list_recipes() -> None:
    """List the recipes that --recipe takes by name."""
    from normtrain.config import bundled as found

    def about(name: str) -> str:
        try:
            return found.summary(name)
        except UserError as error:  # another package's broken recipe must not hide the rest
            return f"({error})"

    click.echo(table((name, about(name)) for name in found.names()))


@recipes.command("show")
@click.argument("name", metavar="NAME|FILE")
@click.option("--resolved", is_flag=True, help="Print every key, with its value and what it means.")
@debug_option
def show_recipe(name: str, resolved: bool) -> None:
    """Print a recipe."""
    if resolved:
        from normtrain.config.explain import annotate
        from normtrain.config.recipe import dump, load

        recipe = load(name)
        click.echo(annotate(dump(recipe), recipe.task), nl=False)
        return
    from normtrain.config import bundled as found

    text = found.read(name)[0]
    click.echo(text, nl=not text.endswith("\n"))


@recipes.command("copy")
@click.argument("name", metavar="NAME")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@debug_option
def copy_recipe(name: str, file: Path, force: bool) -> None:
    """Copy a recipe to FILE, to change it and train it with fit --recipe FILE."""
    from normtrain.config import bundled as found

    text = found.read(name)[0]
    if file.is_dir():
        file = file / f"{Path(name).stem}.yaml"
    if file.suffix.lower() not in {".yaml", ".yml"}:
        raise UserError(f"{file} must end in .yaml: --recipe takes other words for names")
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is not a folder; create it first")
    if file.exists() and not force:
        raise UserError(f"{file} exists; --force overwrites it")
    file.write_text(text, encoding="utf-8")
    click.echo(file)
