"""Failures of the Hugging Face Hub: every one says what to do, for both tasks."""

from collections.abc import Callable
from typing import Any

import datasets
import pytest

from normtrain.data.hub import find_commit
from normtrain.errors import RunError, UserError
from normtrain.tasks.language.corpora import load_text
from normtrain.tasks.translation.corpora import load_corpus

OFFLINE, SCRIPT = ConnectionError("no route"), RuntimeError("Dataset scripts are not supported")
NONE = ValueError("Config name is missing.\nPlease pick one among the available configs: ['x']")
OTHER = ValueError("BuilderConfig 'z' not found. Available: ['x', 'y']")
ABSENT = datasets.exceptions.DatasetNotFoundError("doesn't exist")


@pytest.mark.parametrize(
    ("load", "source", "error", "kind", "words"),
    [
        (load_corpus, "iwslt15", OFFLINE, RunError, r"--data phrasebook.*train\.vi.*HF_HUB_OFFLI"),
        (load_corpus, "hf:a/b", OSError("x"), RunError, "--data DIR"),
        (load_corpus, "iwslt15", SCRIPT, UserError, "plain data files"),
        (load_corpus, "iwslt15", ABSENT, UserError, "no public dataset .* at revision v9"),
        (load_text, "wikitext2", OFFLINE, RunError, "--data python.*HF_HUB_OFFLINE"),
        (load_text, "enwik8", OFFLINE, RunError, "--data ./enwik8"),
        (load_text, "hf:a/b", NONE, UserError, "configurations 'x'; choose one as hf:owner/name:"),
        (load_text, "hf:a/b:z", OTHER, UserError, "configurations 'x', 'y'; choose"),
    ],
)
def test_a_hub_that_fails_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    load: Callable[..., Any],
    source: str,
    error: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    def fail(*_: object, **more: object) -> None:
        assert "trust_remote_code" not in more
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=words):
        load(source, revision="v9")


def test_the_commit_is_read_from_the_cache_path() -> None:
    class Table:
        cache_files = ({"filename": f"/c/o___n/default/0.0.0/{'ab' * 20}/n-train.arrow"},)

    assert find_commit("o/n", "main", [Table()], ask=False) == "ab" * 20
    assert find_commit("o/n", "main", [object()], ask=False) == "main"
