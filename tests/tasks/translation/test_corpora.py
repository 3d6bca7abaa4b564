"""Parallel corpora: folders with every kind of bad file, and the Hub's format in local files."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from normtrain.errors import UserError
from normtrain.tasks.translation.corpora import Pairs, corpus_names, load_corpus
from normtrain.tasks.translation.parallel_hub import Loader

EN = ["One two .", "Three .", "Four five ."]
VI = ["Một hai .", "Ba .", "Bốn năm ."]
DE = ["Eins zwei .", "Drei .", "Vier fünf ."]
FR = ["Un deux .", "Trois .", "Quatre cinq ."]


def write(path: Path, lines: list[str]) -> None:
    raw = "".join(f"{line}\n" for line in lines).encode()
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
    before = corpus.provenance["sha256"]
    assert load_corpus(str(folder)).provenance["sha256"] == before
    write(folder / "test.vi", [*VI[:2], "Bốn sáu ."])
    write(folder / "train.vi", [line.replace(" .", ".") for line in VI])
    assert load_corpus(str(folder)).provenance["sha256"] != before
    assert not load_corpus(str(folder)).tokenized


@pytest.mark.parametrize("stem", ["dev", "validation", "val"])
def test_the_validation_set_has_other_names_and_gzip(folder: Path, stem: str) -> None:
    (folder / "valid.en").rename(folder / f"{stem}.en")
    (folder / "valid.vi").unlink()
    write(folder / f"{stem}.vi.gz", VI)
    assert load_corpus(str(folder)).splits["valid"] == Pairs(EN, VI)


def test_the_test_set_may_be_missing_and_other_sets_are_read_by_name(folder: Path) -> None:
    for language in ("en", "vi"):
        (folder / f"test.{language}").rename(folder / f"tst2013.{language}")
    assert list(load_corpus(str(folder)).splits) == ["train", "valid"]
    assert load_corpus(str(folder), splits=["tst2013"]).splits == {"tst2013": Pairs(EN, VI)}
    with pytest.raises(UserError, match=r"no test\.en"):
        load_corpus(str(folder), splits=["test"])


@pytest.mark.parametrize(
    ("raw", "lines"),
    [
        (b"\xef\xbb\xbf" + "\r\n".join(EN).encode(), EN),
        ("a\u2028b \u0085c\nd\x0be\x1cf\ng\rh".encode(), ["a b c", "d e f", "g h"]),
        ("it &apos;s\na\u200bb\ne\u0302\u0301".encode(), ["it 's", "ab", "\u1ebf"]),
        (b"One .\n\nFour .\n", ["One .", "", "Four ."]),
    ],
    ids=["windows", "line ends", "cleaned", "empty line"],
)
def test_lines_and_their_text(folder: Path, raw: bytes, lines: list[str]) -> None:
    (folder / "valid.en").write_bytes(raw)
    assert load_corpus(str(folder)).splits["valid"].source == lines


LONG = "\n".join(f"{i * 7919 % 10007} text" for i in range(200_000)).encode()
BAD: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("train.vi", None, r"has no train\.vi.*it holds .*test\.en"),
    "missing valid": ("valid.en", None, r"has no valid\.en or dev\.en"),
    "fewer lines": ("train.vi", b"a\nb\n", r"train\.en has 3 lines and .*train\.vi has 2"),
    "empty": ("test.en", b"", r"test\.en is empty"),
    "only a mark": ("test.en", b"\xef\xbb\xbf", r"test\.en is empty"),
    "no pair": ("train.en", b"\n \n\xe2\x80\x8b\n", "no line has text on both sides"),
    "latin": ("train.en", b"a\nb\nab\xe9 c\n", r"train\.en, line 3: byte 3 \(0xe9\)"),
    "latin gz": ("train.en.gz", gzip.compress(b"a\n\xe9\n"), r"en\.gz, line 2: byte 1 \(0xe9\)"),
    "utf-16": ("train.en", "a\n".encode("utf-16"), "UTF-16"),
    "truncated": ("train.en.gz", gzip.compress(LONG)[:-2000], r"gz is truncated .* after line \d"),
    "not gzip": ("train.en.gz", b"a\nb\nc\n", r"train\.en\.gz is not valid gzip"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_line(folder: Path, kind: str) -> None:
    name, raw, words = BAD[kind]
    (folder / name.removesuffix(".gz")).unlink()
    if raw is not None:
        (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=words) as caught:
        load_corpus(str(folder))
    assert len(str(caught.value).splitlines()) == 1


def test_file_names_with_line_ends_do_not_break_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    (folder / "c\nd.txt").touch()
    with pytest.raises(UserError, match=r"a\\nb has no .*c\\nd") as caught:
        load_corpus(str(folder))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "nowhere not found; give a folder with train.en and train.vi"),
        ("~nobody-here/x", r"home directory of '~nobody-here/x' not found; write \./"),
        ("phrasebok", "did you mean phrasebook"),
        (__file__, "is a file; give a folder"),
        *((f"hf:{name}", "hf:owner/name") for name in ("", "nobody", "a/b/c", "/b")),
    ],
)
def test_a_source_that_is_not_found_gets_a_hint(source: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_corpus(source)


def test_the_phrasebook_is_loaded_by_name() -> None:
    assert corpus_names() == ["iwslt15", "phrasebook"]
    corpus = load_corpus("phrasebook")
    assert corpus.provenance == {  # a resume compares it with the checkpoint's
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
    back = load_corpus("phrasebook", splits=["test"], source_lang="vi", target_lang="en")
    assert back.splits["test"].source == corpus.splits["test"].target


# Other languages


def test_other_languages_are_read_from_a_folder(tmp_path: Path) -> None:
    for stem in ("train", "dev"):
        write(tmp_path / f"{stem}.de", DE)
        write(tmp_path / f"{stem}.fr.gz", FR)
    corpus = load_corpus(str(tmp_path), source_lang="de", target_lang="fr")
    assert corpus.splits == {"train": Pairs(DE, FR), "valid": Pairs(DE, FR)}
    with pytest.raises(UserError, match=r"has no train\.it.*it holds dev\.de"):
        load_corpus(str(tmp_path), source_lang="de", target_lang="it")


@pytest.mark.parametrize("source", ["phrasebook", "iwslt15"])
def test_named_corpora_refuse_other_languages(source: str) -> None:
    with pytest.raises(UserError, match=f"corpus {source} .* must be en and vi, got de and fr"):
        load_corpus(source, source_lang="de", target_lang="fr")


# The Hub: small files in its layout, read by the real `datasets` from a local folder.


def local(folder: Path) -> Loader:
    def load(repository: str, revision: str | None) -> Mapping[str, Any]:
        import datasets

        return datasets.load_dataset(str(folder), cache_dir=str(folder.parent / "cache"))

    return load


def test_iwslt15_is_read_in_the_hubs_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = tmp_path / "dataset" / "data"
    root.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        table = pa.table({"en": [f"{split} .", "It &apos;s  one .", "e\u0302\u0301 ."], "vi": VI})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    asked = []

    def load(repository: str, revision: str | None) -> Mapping[str, Any]:
        asked.append((repository, revision))
        return local(root.parent)(repository, revision)

    commit = "0123456789abcdef0123456789abcdef01234567"
    corpus = load_corpus("iwslt15", revision=commit, hub_loader=load)
    assert asked == [("thainq107/iwslt2015-en-vi", commit)]
    assert list(corpus.splits) == ["train", "valid", "test"]
    assert corpus.splits["valid"] == Pairs(["validation .", "It 's one .", "\u1ebf ."], VI)
    assert corpus.provenance["revision"] == commit
    assert corpus.provenance["kind"] == "hub"
    years = load_corpus("iwslt15", splits=["tst2012", "tst2013"], hub_loader=load)
    assert [pairs.source[0] for pairs in years.splits.values()] == ["validation .", "test ."]
    with pytest.raises(UserError, match="no split 'tst2014'; it has train, validation, test"):
        load_corpus("iwslt15", splits=["tst2014"], hub_loader=load)


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
    assert corpus.splits == {"train": Pairs(DE, FR), "valid": Pairs(DE, FR)}
    with pytest.raises(UserError, match="columns .*; expected 'en' and 'fr'"):
        load_corpus("hf:a/b", hub_loader=local(root), source_lang="en", target_lang="fr")
