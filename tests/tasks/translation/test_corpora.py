"""Corpora: folders with every kind of bad file, and the Hub's format read from local files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from normtrain.errors import RunError, UserError
from normtrain.tasks.translation.corpora import Pairs, corpus_names, load_corpus
from normtrain.tasks.translation.parallel_hub import Loader

EN = ["One two .", "Three .", "Four five ."]
VI = ["Một hai .", "Ba .", "Bốn năm ."]


def write(path: Path, lines: list[str], end: str = "\n") -> None:
    raw = end.join(lines).encode() + end.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for stem in ("train", "valid", "test"):
        write(tmp_path / f"{stem}.en", EN)
        write(tmp_path / f"{stem}.vi", VI)
    return tmp_path


def test_a_folder_is_read(folder: Path) -> None:
    corpus = load_corpus(str(folder))
    assert list(corpus.splits) == ["train", "valid", "test"]
    assert corpus.splits["train"] == Pairs(EN, VI)
    assert corpus.tokenized
    assert corpus.provenance["kind"] == "folder"
    assert corpus.provenance["pairs_train"] == 3
    assert all(isinstance(v, str | int | None) for v in corpus.provenance.values())


def test_the_fingerprint_follows_the_text(folder: Path) -> None:
    before = load_corpus(str(folder)).provenance["sha256"]
    assert load_corpus(str(folder)).provenance["sha256"] == before
    write(folder / "test.vi", [*VI[:2], "Bốn sáu ."])
    assert load_corpus(str(folder)).provenance["sha256"] != before


def test_running_text_is_not_tokenized(folder: Path) -> None:
    write(folder / "train.vi", [line.replace(" .", ".") for line in VI])
    assert not load_corpus(str(folder)).tokenized


@pytest.mark.parametrize("alias", ["dev", "validation", "val"])
def test_the_validation_set_has_other_names(folder: Path, alias: str) -> None:
    for language in ("en", "vi"):
        (folder / f"valid.{language}").rename(folder / f"{alias}.{language}")
    assert load_corpus(str(folder)).splits["valid"].target == VI


def test_gzip_and_plain_may_be_mixed(folder: Path) -> None:
    (folder / "train.vi").unlink()
    write(folder / "train.vi.gz", VI)
    assert load_corpus(str(folder)).splits["train"] == Pairs(EN, VI)


def test_any_other_stem_is_read_by_name(folder: Path) -> None:
    write(folder / "tst2013.en", EN[:1])
    write(folder / "tst2013.vi.gz", VI[:1])
    corpus = load_corpus(str(folder), splits=["tst2013"])
    assert corpus.splits == {"tst2013": Pairs(EN[:1], VI[:1])}


def test_the_test_set_may_be_missing(folder: Path) -> None:
    (folder / "test.en").unlink()
    (folder / "test.vi").unlink()
    assert list(load_corpus(str(folder)).splits) == ["train", "valid"]
    with pytest.raises(UserError, match=r"no test\.en"):
        load_corpus(str(folder), splits=["test"])


def test_windows_files_are_read(folder: Path) -> None:
    raw = b"\xef\xbb\xbf" + "\r\n".join(EN).encode()
    (folder / "train.en").write_bytes(raw)
    assert load_corpus(str(folder)).splits["train"].source == EN


def test_lines_end_at_newlines_only(folder: Path) -> None:
    odd = ["a\u2028b \u0085c", "d\x0be\x1cf", "g\rh"]
    (folder / "train.en").write_bytes("\n".join(odd).encode())
    assert load_corpus(str(folder)).splits["train"].source == ["a b c", "d e f", "g h"]


def test_text_is_cleaned(folder: Path) -> None:
    write(folder / "train.en", ["it &apos;s  &quot; x", "a\u200bb", "e\u0302\u0301"])
    assert load_corpus(str(folder)).splits["train"].source == ["it 's \" x", "ab", "\u1ebf"]


def test_empty_lines_are_kept(folder: Path) -> None:
    write(folder / "valid.en", ["One .", "", "Four ."])
    assert load_corpus(str(folder)).splits["valid"].source == ["One .", "", "Four ."]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere not found"):
        load_corpus(str(tmp_path / "nowhere"))


def test_names_with_line_ends_do_not_break_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "c\nd.txt").touch()
    with pytest.raises(UserError, match=r"a\\nb has no .*c\\nd") as caught:
        load_corpus(str(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="is a file; give a folder"):
        load_corpus(str(folder / "train.en"))


def test_a_misspelt_corpus_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean phrasebook"):
        load_corpus("phrasebok")


@pytest.mark.parametrize("name", ["train.vi", "valid.en"])
def test_a_missing_side_is_named_with_what_is_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"has no {name}.*it holds .*test\.en"):
        load_corpus(str(folder))


def test_unequal_line_counts_name_both_files(folder: Path) -> None:
    write(folder / "train.vi", VI[:2])
    with pytest.raises(UserError, match=r"train\.en has 3 lines and .*train\.vi has 2"):
        load_corpus(str(folder))


@pytest.mark.parametrize("raw", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(folder: Path, raw: bytes) -> None:
    (folder / "test.en").write_bytes(raw)
    with pytest.raises(UserError, match=r"test\.en is empty"):
        load_corpus(str(folder))


def test_files_without_a_usable_pair_are_refused(folder: Path) -> None:
    write(folder / "train.en", ["", "a", ""])
    write(folder / "train.vi", ["b", "", " \u200b"])
    with pytest.raises(UserError, match="no line has text on both sides"):
        load_corpus(str(folder))


@pytest.mark.parametrize("zipped", [False, True])
def test_invalid_utf8_names_file_line_and_byte(folder: Path, zipped: bool) -> None:
    raw = b"fine\nalso fine\nab\xe9 c\n"
    if zipped:
        (folder / "train.en").unlink()
        (folder / "train.en.gz").write_bytes(gzip.compress(raw))
    else:
        (folder / "train.en").write_bytes(raw)
    with pytest.raises(UserError, match=r"train\.en.*, line 3: byte 3 \(0xe9\)"):
        load_corpus(str(folder))


def test_utf16_is_recognised(folder: Path) -> None:
    (folder / "train.en").write_bytes("\n".join(EN).encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        load_corpus(str(folder))


def test_a_truncated_gzip_names_the_file(folder: Path) -> None:
    (folder / "train.en").unlink()
    raw = gzip.compress("\n".join(f"{i * 7919 % 10007} text" for i in range(400_000)).encode())
    (folder / "train.en.gz").write_bytes(raw[:-2000])
    with pytest.raises(UserError, match=r"train\.en\.gz is truncated or damaged after line \d"):
        load_corpus(str(folder))


def test_a_gz_file_that_is_plain_text_is_refused(folder: Path) -> None:
    (folder / "train.en").rename(folder / "train.en.gz")
    with pytest.raises(UserError, match=r"train\.en\.gz is not valid gzip"):
        load_corpus(str(folder))


def test_sides_of_different_length_are_no_pairs() -> None:
    with pytest.raises(UserError, match="2 source lines but 1"):
        Pairs(["a", "b"], ["c"])


def test_the_phrasebook_is_loaded_by_name() -> None:
    corpus = load_corpus("phrasebook")
    assert corpus.splits["train"].source[0]
    assert corpus.provenance == {  # a resume compares it with what the checkpoint holds
        "kind": "phrasebook",
        "source": "phrasebook",
        "revision": "1",
        "sha256": "558e27c5deeca77d2b0fb935fac33789ba4750e7b74258375e37bb493e83127f",
        "pairs_train": 30_000,
        "pairs_valid": 500,
        "pairs_test": 1_000,
        "tokenized": False,
    }
    with pytest.raises(UserError, match="tset"):
        load_corpus("phrasebook", splits=["tset"])


# The Hub: small files in its layout, read by the real `datasets` from a local folder.


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "dataset"
    (root / "data").mkdir(parents=True)
    raw = ["It &apos;s  one .", "e\u0302\u0301 ."]
    for split in ("train", "validation", "test"):
        table = pa.table({"en": [f"{split} .", *raw], "vi": VI})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def local(folder: Path) -> Loader:
    def load(repository: str, revision: str | None) -> Mapping[str, Any]:
        import datasets

        return datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))

    return load


def test_iwslt15_is_read_in_the_hubs_format(hub_folder: Path) -> None:
    asked = []

    def load(repository: str, revision: str | None) -> Mapping[str, Any]:
        asked.append((repository, revision))
        return local(hub_folder)(repository, revision)

    commit = "0123456789abcdef0123456789abcdef01234567"
    corpus = load_corpus("iwslt15", revision=commit, hub_loader=load)
    assert asked == [("thainq107/iwslt2015-en-vi", commit)]
    assert list(corpus.splits) == ["train", "valid", "test"]
    assert corpus.splits["valid"].source == ["validation .", "It 's one .", "\u1ebf ."]
    assert corpus.splits["train"].target == VI
    assert corpus.provenance["revision"] == commit
    assert corpus.provenance["kind"] == "hub"


def test_iwslt15_knows_its_test_sets_by_year(hub_folder: Path) -> None:
    corpus = load_corpus("iwslt15", splits=["tst2012", "tst2013"], hub_loader=local(hub_folder))
    assert corpus.splits["tst2012"].source[0] == "validation ."
    assert corpus.splits["tst2013"].source[0] == "test ."


def test_the_commit_is_read_from_the_cache_path() -> None:
    class Table:
        column_names = ("en", "vi")
        cache_files = ({"filename": f"/c/o___n/default/0.0.0/{'ab' * 20}/n-train.arrow"},)

        def __getitem__(self, column: str) -> list[str]:
            return [column]

    tables = {"train": Table(), "validation": Table()}
    corpus = load_corpus("hf:o/n", hub_loader=lambda *_: tables)
    assert corpus.provenance["revision"] == "ab" * 20
    assert list(corpus.splits) == ["train", "valid"]


def test_a_translation_column_is_read(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    root.mkdir()
    rows = [{"translation": {"en": en, "vi": vi}} for en, vi in zip(EN, VI, strict=True)]
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = load_corpus("hf:someone/something", hub_loader=local(root))
    assert corpus.splits["train"] == Pairs(EN, VI)


def test_other_columns_are_refused_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    root.mkdir()
    (root / "train.csv").write_text("english,vietnamese\na,b\n")
    with pytest.raises(UserError, match="columns english, vietnamese; expected 'en' and 'vi'"):
        load_corpus("hf:someone/something", splits=["train"], hub_loader=local(root))


def test_a_missing_split_lists_what_is_there(hub_folder: Path) -> None:
    with pytest.raises(UserError, match="no split 'tst2014'; it has train, validation, test"):
        load_corpus("iwslt15", splits=["tst2014"], hub_loader=local(hub_folder))


@pytest.mark.parametrize("name", ["hf:", "hf:nobody", "hf:a/b/c", "hf:/b"])
def test_a_hub_name_has_an_owner(name: str) -> None:
    with pytest.raises(UserError, match="hf:owner/name"):
        load_corpus(name)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ConnectionError("Couldn't reach the Hub"), RunError, "--data phrasebook.*HF_HUB_OFFLINE"),
        (OSError("no route"), RunError, "--data DIR"),
        (RuntimeError("Dataset scripts are no longer supported"), UserError, "plain data files"),
        ("missing", UserError, "no public dataset .* at revision v9"),
    ],
)
def test_a_hub_that_fails_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Any, kind: type[Exception], words: str
) -> None:
    import datasets

    def fail(*_: object, **more: object) -> None:
        assert "trust_remote_code" not in more
        if error == "missing":
            raise datasets.exceptions.DatasetNotFoundError("doesn't exist")
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(kind, match=words):
        load_corpus("iwslt15", revision="v9")


DE = ["Eins zwei .", "Drei .", "Vier fünf ."]
FR = ["Un deux .", "Trois .", "Quatre cinq ."]


def test_other_languages_are_read_from_a_folder(tmp_path: Path) -> None:
    for stem in ("train", "dev"):
        write(tmp_path / f"{stem}.de", DE)
        write(tmp_path / f"{stem}.fr.gz", FR)
    corpus = load_corpus(str(tmp_path), source_lang="de", target_lang="fr")
    assert corpus.splits == {"train": Pairs(DE, FR), "valid": Pairs(DE, FR)}
    assert (corpus.source_lang, corpus.target_lang) == ("de", "fr")
    with pytest.raises(UserError, match=r"has no train\.it.*it holds dev\.de"):
        load_corpus(str(tmp_path), source_lang="de", target_lang="it")


@pytest.mark.parametrize("nested", [False, True])
def test_other_languages_are_read_in_the_hubs_format(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "dataset"
    root.mkdir()
    pairs = [{"de": de, "fr": fr} for de, fr in zip(DE, FR, strict=True)]
    rows = [{"translation": pair} if nested else pair for pair in pairs]
    for split in ("train", "validation"):
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    languages = {"source_lang": "de", "target_lang": "fr"}
    corpus = load_corpus("hf:someone/something", hub_loader=local(root), **languages)
    assert corpus.splits["train"] == Pairs(DE, FR)
    with pytest.raises(UserError, match="expected 'en' and 'fr'"):
        load_corpus("hf:a/b", hub_loader=local(root), source_lang="en", target_lang="fr")


@pytest.mark.parametrize("name", ["phrasebook", "iwslt15"])
def test_corpora_with_a_name_have_two_languages(name: str) -> None:
    with pytest.raises(UserError, match=f"corpus {name} .* must be en and vi, got de and fr"):
        load_corpus(name, source_lang="de", target_lang="fr")


def test_the_phrasebook_has_two_directions() -> None:
    there = load_corpus("phrasebook", splits=["test"]).splits["test"]
    back = load_corpus("phrasebook", splits=["test"], source_lang="vi", target_lang="en")
    assert back.splits["test"] == Pairs(there.target, there.source)


@pytest.mark.parametrize(
    ("pair", "words"),
    [(("en", "en"), "must differ"), (("e/n", "vi"), "source_lang"), (("en", ""), "target_lang")],
)
def test_bad_languages(tmp_path: Path, pair: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_corpus(str(tmp_path), source_lang=pair[0], target_lang=pair[1])


def test_names_are_listed() -> None:
    assert corpus_names() == ["iwslt15", "phrasebook"]


def test_the_home_of_nobody() -> None:
    with pytest.raises(UserError, match=r"home directory of '~nobody-here/x' not found; write \./"):
        load_corpus("~nobody-here/x")
