"""Errors of user code, described in one line."""

from pathlib import Path

import pytest

from normtrain.errors import described, on_one_line

HERE = Path(__file__).name


def raised(code: str, file: str = "theirs.py") -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        exec(compile(code, file, "exec"), {})
    caught.value.__traceback__ = caught.value.__traceback__.tb_next  # type: ignore[union-attr]
    return caught.value


def test_the_first_line_of_the_message_and_the_place() -> None:
    assert described(raised("\nraise ValueError('one\\ntwo')")) == "ValueError: one (theirs.py:2)"
    assert described(raised("raise KeyError")) == "KeyError (theirs.py:1)"


def test_the_place_is_in_their_code_not_in_a_package() -> None:
    code = "import json\n\njson.loads('{')"
    assert described(raised(code)).endswith(" (theirs.py:3)")
    code = "import normtrain.errors as e\nraise e.UserError('no')"
    assert described(raised(code)) == "UserError: no (theirs.py:2)"


def test_no_place_where_none_is_theirs() -> None:
    assert described(ValueError("no")) == "ValueError: no"
    installed = "/x/site-packages/theirs.py"
    assert described(raised("raise ValueError('no')", installed)) == "ValueError: no"


def test_a_syntax_error_is_placed_in_the_file_it_is_in() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("x = (\n", "wrong.py", "exec")
    assert described(caught.value) == "SyntaxError: '(' was never closed (wrong.py:1)"


def test_files_of_this_folder_are_shown_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "inner" / "theirs.py")
    assert described(raised("raise KeyError", file)).endswith(f" ({file}:1)")
    monkeypatch.chdir(tmp_path)
    assert described(raised("raise KeyError", file)) == "KeyError (inner/theirs.py:1)"


def test_another_programs_message_becomes_a_part_of_ours() -> None:
    assert on_one_line(Exception("bad\n  thing ")) == "bad thing"
    assert on_one_line(KeyError("x")) == "KeyError: 'x'"
    assert len(on_one_line(ValueError("x" * 999))) == 200
