"""Text from the Hub: small tables in its format, and what is said when it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from normtrain.errors import RunError, UserError
from normtrain.tasks.language import text_files
from normtrain.tasks.language.corpora import load_text


def tables(**splits: list[str | None]) -> Callable[..., Mapping[str, Any]]:
    import datasets

    made = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in splits.items()}
    return lambda *_: made


def test_wikitext_is_read_in_the_hubs_format() -> None:
    asked = []
    rows = ["", " = One = \n", "", " text , more . \n", "", " = Two = \n", "", " end \n"]

    def load(*what: str | None) -> Mapping[str, Any]:
        asked.append(what)
        return tables(train=rows, validation=rows, test=rows)()

    commit = "ab" * 20
    corpus = load_text("wikitext2", revision=commit, hub_loader=load)
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1", commit)]
    documents = list(corpus.splits["valid"].whole())
    assert documents == [" \n = One = \n \n text , more . \n", " \n = Two = \n \n end \n"]
    assert corpus.provenance["source"] == "Salesforce/wikitext:wikitext-2-v1"
    assert corpus.provenance["revision"] == commit


def test_any_text_column_is_read() -> None:
    load = tables(train=["a story\n", None, "", "another"], validation=["one"])
    corpus = load_text("hf:someone/stories", hub_loader=load)
    assert list(corpus.splits) == ["train", "valid"]
    assert list(corpus.splits["train"].whole()) == ["a story\n", "another"]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        load_text("hf:someone/stories", splits=["test"], hub_loader=load)
    with pytest.raises(UserError, match="no split 'valid'"):
        load_text("hf:someone/stories", hub_loader=tables(train=["a"]))


def test_the_hubs_enwik8_is_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_BYTES", 1000)
    rows: list[str | None] = ["<é>\n" * 20] * 10
    corpus = load_text("enwik8", hub_loader=tables(train=rows))
    parts = ["".join(d.texts()).encode("utf-8", "surrogateescape") for d in corpus.splits.values()]
    assert [len(part) for part in parts] == [900, 50, 50]
    with pytest.raises(UserError, match=r"LTCB/enwik8 has 900 bytes instead of 1,000"):
        load_text("enwik8", hub_loader=tables(train=rows[:9]))


def test_a_dataset_without_text_is_refused() -> None:
    import datasets

    numbers = {"train": datasets.Dataset.from_dict({"text": [1]})}
    with pytest.raises(UserError, match="does not hold text"):
        load_text("hf:a/b", splits=["train"], hub_loader=lambda *_: numbers)
    named = {"train": datasets.Dataset.from_dict({"words": ["a"]})}
    with pytest.raises(UserError, match="has the columns words; it needs 'text'"):
        load_text("hf:a/b", splits=["train"], hub_loader=lambda *_: named)


@pytest.mark.parametrize(
    ("source", "error", "kind", "words"),
    [
        ("wikitext2", ConnectionError("no route"), RunError, "--data python.*HF_HUB_OFFLINE"),
        ("enwik8", ConnectionError("no route"), RunError, "--data ./enwik8"),
        (
            "hf:a/b",
            RuntimeError("Dataset scripts are no longer supported"),
            UserError,
            "plain data",
        ),
        (
            "hf:a/b",
            ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['x']"
            ),
            UserError,
            "configurations 'x'; choose one as hf:owner/name:configuration",
        ),
        (
            "hf:a/b:z",
            ValueError("BuilderConfig 'z' not found. Available: ['x', 'y']"),
            UserError,
            "configurations 'x', 'y'; choose",
        ),
    ],
)
def test_a_hub_that_fails_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    error: Exception,
    kind: type[Exception],
    words: str,
) -> None:
    import datasets

    def fail(*_: object, **more: object) -> None:
        assert "trust_remote_code" not in more
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=words):
        load_text(source)
