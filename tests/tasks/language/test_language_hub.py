"""Text from the Hub: small tables in its format."""

from collections.abc import Callable, Mapping
from typing import Any

import datasets
import pytest
from language_texts import whole

from normtrain.errors import UserError
from normtrain.tasks.language import text_files
from normtrain.tasks.language.corpora import load_text


def tables(column: str = "text", **splits: list[Any]) -> Callable[..., Mapping[str, Any]]:
    made = {name: datasets.Dataset.from_dict({column: rows}) for name, rows in splits.items()}
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
    documents = list(whole(corpus.splits["valid"]))
    assert documents == [" \n = One = \n \n text , more . \n", " \n = Two = \n \n end \n"]
    assert corpus.provenance["source"] == "Salesforce/wikitext:wikitext-2-v1"
    assert corpus.provenance["revision"] == commit


def test_any_text_column_is_read() -> None:
    load = tables(train=["a story\n", None, "", "another"], validation=["one"])
    corpus = load_text("hf:someone/stories", hub_loader=load)
    assert list(corpus.splits) == ["train", "valid"]
    assert list(whole(corpus.splits["train"])) == ["a story\n", "another"]
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        load_text("hf:someone/stories", splits=["test"], hub_loader=load)
    with pytest.raises(UserError, match="no split 'valid'"):
        load_text("hf:someone/stories", hub_loader=tables(train=["a"]))


def test_the_hubs_enwik8_is_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_BYTES", 1000)
    rows = ["<é>\n" * 20] * 10
    corpus = load_text("enwik8", hub_loader=tables(train=rows))
    parts = ["".join(d.texts()).encode("utf-8", "surrogateescape") for d in corpus.splits.values()]
    assert [len(part) for part in parts] == [900, 50, 50]
    with pytest.raises(UserError, match=r"LTCB/enwik8 must have 1,000 bytes, got 900"):
        load_text("enwik8", hub_loader=tables(train=rows[:9]))


@pytest.mark.parametrize(
    ("column", "row", "words"),
    [("text", 1, "must hold strings"), ("words", "a", "columns words; expected 'text'")],
)
def test_a_dataset_without_text_is_refused(column: str, row: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_text("hf:a/b", splits=["train"], hub_loader=tables(column, train=[row]))
