"""``normtrain norms list`` and ``show``, and the page of the docs that goes with them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_misuse
from torch import nn

from normtrain.cli.norms import option_text, short_formula, short_source
from normtrain.kernels import choice
from normtrain.norms import NormSpec, build_norm, norm_info, norm_names, register_norm, registry

Command = Callable[..., Any]
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "norms.md"
with_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="a source package comes without docs")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Forget what a test registered."""
    entries = dict(registry._entries)
    yield
    registry._entries.clear()
    registry._entries.update(entries)


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def own_names() -> list[str]:
    """The norms of this package."""
    entries = registry._entries.values()
    return sorted(e.info.name for e in entries if e.factory.__module__.startswith("normtrain."))


def test_the_list_is_a_table_with_a_norm_a_line(command: Command) -> None:
    result = command("norms", "list")
    assert result.exit_code == 0
    heading, *rows = result.stdout.splitlines()
    assert [row.split()[0] for row in rows] == norm_names()
    assert max(map(len, [heading, *rows])) <= 100
    starts = [heading.index(title) for title in ("name", "formula", "parameters", "paper")]
    assert heading.split() == ["name", "formula", "parameters", "paper"]
    for row in rows:  # every column begins under its title, after a gap
        assert all(row[start - 2 : start] == "  " and row[start] != " " for start in starts[1:])
    assert re.fullmatch(
        r"rmsnorm +x/√\(mean\(x²\)\+ε\)·w +w +Zhang & Sennrich 2019",
        next(row for row in rows if row.startswith("rmsnorm ")),
    )


def test_a_page_has_everything_of_the_docstring(command: Command) -> None:
    shown = command("norms", "show", "CRMS-norm").stdout
    info = norm_info("crmsnorm")
    assert shown.startswith("crmsnorm: Compressed RMSNorm: ")
    assert f"\n\n    {info.formula}\n\n" in shown
    assert "\n\nPublished defaults: no gain and no bias" in shown
    assert "\n\nDepartures: the authors' PyTorch module" in shown
    options = {"eps": "1e-5", "eps_mode": "inside", "affine": "true", "bias": "false"}
    for name, default in options.items():
        assert re.search(rf"^  {name} +{default} +\S", shown, re.MULTILINE), name
    assert re.search(r"^  affine +true +whether there is a learned gain", shown, re.MULTILINE)
    assert "  parameters    weight (affine=false drops it" in shown
    assert "  unchanged by  a positive factor on the input vector\n" in shown
    assert f"  source        {info.source}\n" in shown
    assert "normtrain fit --recipe envi --norm crmsnorm:eps=1e-5\n" in shown
    for unwanted in ("`", "device", "dtype", "Args:", "Raises", "UserError"):
        assert unwanted not in shown


@pytest.mark.parametrize("width", [20, 72, pytest.param(200, marks=pytest.mark.extended)])
def test_a_page_fits_the_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for name in norm_names():
        prose = command("norms", "show", name).stdout.rpartition("\n\n")[0]  # commands don't break
        longest = max(prose.splitlines(), key=len)
        assert len(longest) <= max(48, min(width, 100)), (name, longest)
        if name == "crmsnorm":  # and uses its width
            assert len(longest) > 0.9 * min(width, 100)


@pytest.mark.parametrize("name", own_names())
def test_every_option_of_ours_is_explained_and_its_example_is_a_spec(
    command: Command, name: str
) -> None:
    shown = command("norms", "show", name).stdout
    info = norm_info(name)
    for option, default in info.options.items():
        assert re.search(
            rf"^  {option} +{re.escape(option_text(default))} +\S", shown, re.MULTILINE
        )
    spec = re.search(r"--norm (\S+)", shown)
    assert NormSpec.parse(spec[1]).name == name


def test_norms_of_others_are_listed_and_shown_with_what_they_tell(command: Command) -> None:
    @register_norm("bare-function")
    def bare(dim: int, size: int | None = None, loud: bool = False) -> nn.Module:
        return nn.Identity()

    @register_norm("bare-class", formula="x * weight")
    class Bare(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()

    listed = command("norms", "list").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in listed}
    assert rows["bare-function"] == ["-", "-", "-"]
    assert rows["bare-class"] == ["x·w", "-", "-"]
    assert rows["layernorm"]  # the norms of this package are listed too

    shown = command("norms", "show", "bare_function").stdout
    assert shown.startswith("bare-function\n\n")
    assert re.search(r"^  size +unset$", shown, re.MULTILINE)
    assert re.search(r"^  loud +false$", shown, re.MULTILINE)
    assert "--norm bare-function:size=VALUE\n" in shown
    assert "source        -\n" in shown
    shown = command("norms", "show", "bare-class").stdout
    assert shown.startswith("bare-class\n\n    x * weight\n\n")
    assert "neural network" not in shown  # from the docstring of nn.Module
    assert "option" not in shown


def test_docstrings_of_other_packages_are_shown(command: Command) -> None:
    @register_norm("theirs", summary="Ours in one line.", source="Nobody, in a *drawer*")
    def theirs(dim: int, width: float = 2.5, *, mode: str = "a") -> nn.Module:
        """Another summary,
        of two lines with `code` and :class:`Thing`.

        A list stays a list:

        - one ``item``
        - two

            an(example) = kept

        Args:
            dim: unused.
            width (float, optional): how wide: at least
                1.

                More of it.
            mode: a word.
        Returns:
            A module that must not be shown.

        After the sections.
        """
        return nn.Identity()

    shown = command("norms", "show", "theirs").stdout
    assert shown.startswith("theirs: Ours in one line.\n\nAnother summary, of two lines with code ")
    assert (
        "and Thing.\n\nA list stays a list:\n\n- one item\n- two\n\n    an(example) = kept\n\n"
        in shown
    )
    assert "  width   2.5      how wide: at least 1. More of it.\n" in shown
    assert "  mode    a        a word.\n" in shown
    assert "must not be shown" not in shown
    assert "After the sections." in shown


@pytest.mark.parametrize(
    ("source", "short"),
    [
        ("Zhang, Sennrich 2019, Root Mean Square, arXiv:1910.07467", "Zhang & Sennrich 2019"),
        ("Ba, Kiros, Hinton 2016, Layer Normalization", "Ba et al. 2016"),
        ("Xu et al. 2019, Understanding", "Xu et al. 2019"),
        ("Müller and O'Neil (2021), Norms", "Müller & O'Neil 2021"),
        ("Derf, arXiv:2512.10938", "arXiv:2512.10938"),
        ("my own", "my own"),
        ("", "-"),
    ],
)
def test_papers_are_cited_in_short(source: str, short: str) -> None:
    assert short_source(source) == short


@pytest.mark.parametrize(
    ("formula", "room", "short"),
    [
        ("(x - mean) / sqrt(variance + eps) * weight + bias", 30, "(x−μ)/√(σ²+ε)·w+b"),
        ("x / f(x, 2), f(a, b) = a * b, and more", 30, "x/f(x, 2), f(a, b) = a·b, …"),
        ("x / f(x, 2), f(a, b) = a * b, and more", 15, "x/f(x, 2), …"),
        ("x / f(x, 2), f(a, b) = a * b, and more", 6, "x/f(x…"),
        ("mean(x^2) + mean of x - mean|x|", 40, "mean(x²)+mean of x−μ|x|"),
        ("", 20, "-"),
    ],
)
def test_formulas_are_shortened_by_clauses(formula: str, room: int, short: str) -> None:
    assert short_formula(formula, room) == short


# --- docs/norms.md


def sections() -> dict[str, str]:
    """The page's parts by heading."""
    parts = re.split(r"^#{2,3} (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@with_docs
@pytest.mark.parametrize("name", own_names())
def test_the_docs_have_a_section_a_norm_with_the_registrys_formula(name: str) -> None:
    info, text = norm_info(name), sections()[name]
    assert f"\n```\n{info.formula}\n```\n" in text
    assert info.source.rpartition(", ")[2] in text  # the paper's number
    for option in info.options:
        assert f"`{option}" in text or f"{option}=" in text or option in ("bias", "eps", "eps_mode")


@with_docs
def test_the_docs_show_every_plot_and_only_plots_that_are_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\((images/[^)]+)\)", text))
    there = {f"images/{path.name}" for path in (DOCS / "images").glob("norm-*.svg")}
    assert shown == there
    assert len(there) == 4
    assert all((DOCS / path).stat().st_size < 40_000 for path in there)


@with_docs
def test_the_docs_table_of_invariances_is_the_registrys() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (yes|no) \| (yes|no) \|", sections()["Invariances"], re.M)
    found = {name: (scale == "yes", shift == "yes") for name, scale, shift in rows}
    assert found == {
        name: tuple(key in norm_info(name).invariances for key in ("scale", "shift"))
        for name in own_names()
    }


def examples() -> list[str]:
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@with_docs
@pytest.mark.extended
@pytest.mark.parametrize("code", examples())
def test_the_examples_in_the_docs_run(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/norms.md", "exec"), {})
    if "print(" in code:
        assert capsys.readouterr().out


@with_docs
def test_the_docs_numbers_for_eps_are_right() -> None:
    row = torch.full((1, 8), 1e-4)
    for mode, size in {"inside": "0.032", "outside": "0.91"}.items():
        y = build_norm(f"rmsnorm:eps=1e-5,eps_mode={mode}", 8)(row)
        assert f"{y.square().mean().sqrt().item():.2g}" == size
        assert re.search(rf"^\| {mode}: .+ \| {size} \|$", sections()["eps"], re.MULTILINE)


def test_a_backend_that_is_none_is_a_misuse(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.VARIABLE, "nativ")
    monkeypatch.setattr(choice, "_current", None)
    assert_misuse(command("norms", "show", "rmsnorm"), "NORMTRAIN_KERNELS", "got 'nativ'")
