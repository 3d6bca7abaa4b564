"""The documentation names only what exists: links, commands, flags, keys, modules, files."""

import ast
import importlib
import re
import runpy
import shlex
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml

from normtrain.cli.app import cli
from normtrain.config.schema import keys

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
KEYS = {*keys("translation"), *keys("language")}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of some languages (``""``: none is named)."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.lower()).strip() for head in heads]
    return {re.sub(r"\s+", "-", head) for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def command_lines(page: Path) -> list[list[str]]:
    """Return the arguments of each ``normtrain`` and ``cli.py`` on a page, in blocks and inline."""
    found = []
    inline = re.findall(r"(?<!`)`(normtrain [^`]+)`", prose(page))
    for block in [*blocks(page, "", "bash", "sh"), *inline]:
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"(^|/|\s)(normtrain|cli\.py)\s", line):
                continue
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|<>;")
            lexer.whitespace_split, lexer.commenters = True, "#"
            part: list[str] | None = None
            for word in lexer:
                if re.fullmatch(r"[&|<>;]+", word):
                    part = None
                elif part is not None:
                    part.append(word)
                elif word.endswith("/normtrain") or word in ("normtrain", "cli.py"):
                    found.append(part := [])
    return [words for words in found if words]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_commands_and_their_flags_exist(page: Path) -> None:
    for words in command_lines(page):
        command: click.Command = cli
        rest = [*words]
        if rest[0].startswith("-"):
            continue
        while isinstance(command, click.Group) and rest:
            name = rest.pop(0)
            assert name in command.commands, words
            command = command.commands[name]
        given = command.make_context("normtrain", rest, resilient_parsing=True).params
        for option in command.params:
            if "--set" in option.opts:
                assert {one.partition("=")[0] for one in given[str(option.name)]} <= KEYS, words


def test_the_readme_has_commands_and_settings() -> None:
    lines = command_lines(ROOT / "README.md")
    assert {"fit", "evaluate", "convert", "export", "swap-check"} <= {words[0] for words in lines}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_python_blocks_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normtrain"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    assert hasattr(module, name.name) or find_spec(whole), whole


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_and_tests_named_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/.-])((?:tests|benchmarks|examples|tools|recipes|normtrain|docs)/[\w./-]*\w)",
        text_of(page),
    )
    for path in named:
        if "." in Path(path).name:
            assert (ROOT / path).exists(), path


def test_the_reference_names_modules_that_exist() -> None:
    """Every ``:::`` of the API pages is a module or an attribute of one, and so are its members."""
    for page in sorted((DOCS / "api").glob("*.md")):
        for name, options in re.findall(
            r"^::: (\S+)\n((?:    .*\n)*)", text_of(page) + "\n", re.MULTILINE
        ):
            try:
                found = importlib.import_module(name)
            except ModuleNotFoundError:
                parent, _, attribute = name.rpartition(".")
                found = getattr(importlib.import_module(parent), attribute)
            chosen = (yaml.safe_load(options) or {}).get("options", {}).get("members")
            for member in chosen or ():
                assert hasattr(found, member), f"{name}.{member}"


def test_every_page_is_in_the_navigation() -> None:
    """Read as text: mkdocs alone knows the tags of its file."""
    nav = re.search(r"^nav:\n(.*)", text_of(ROOT / "mkdocs.yml"), re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"[\w/-]+\.md", nav[1]))
    assert named == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_the_table_of_recipe_keys_is_current() -> None:
    page = DOCS / "recipes.md"
    fresh = runpy.run_path(str(DOCS / "recipe_keys.py"))["page"](text_of(page))
    assert text_of(page) == fresh, "run python docs/recipe_keys.py"
