"""Text corpora: every source, kept exactly as it is; every kind of bad file in one clear line."""

import gzip
import platform
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_texts import sentences, whole, write_folder

from normtrain.data import documents as documents_module
from normtrain.data.documents import Documents, document, documents_of, in_pieces
from normtrain.errors import RunError, UserError
from normtrain.tasks.language import stdlib, text_files
from normtrain.tasks.language.corpora import load_text, text_names

SPLITS = ["train", "valid", "test"]


def text(documents: Documents) -> str:
    return "".join(documents.texts())


def raw(documents: Documents) -> bytes:
    return text(documents).encode("utf-8", "surrogateescape")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "text")


# Pieces


@given(st.lists(st.text(max_size=40), max_size=5), st.integers(1, 9), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_pieces_make_up_the_text(texts: list[str], piece: int, line: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "PIECE", piece)
        patch.setattr(documents_module, "LONGEST_LINE", line)
        made = documents_of(lambda: texts)
        assert list(whole(made)) == texts
        assert made.count == len(texts)
        assert made.empty == (not "".join(texts).strip())


def test_pieces_end_with_lines_or_before_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "PIECE", 20)
    monkeypatch.setattr(documents_module, "LONGEST_LINE", 50)
    lines = sentences(40) + "word " * 60 + "\n" + sentences(9)
    pieces = list(documents_of(lambda: [lines]).texts())
    assert len(pieces) > 20
    assert "".join(pieces) == lines
    for piece, after in zip(pieces, pieces[1:], strict=False):
        assert piece.endswith("\n") or after.startswith(" ")


def test_the_fingerprint_knows_where_documents_end() -> None:
    def mark(*texts: str) -> str:
        return documents_of(lambda: texts).fingerprint

    assert mark("ab", "c") == mark("ab", "c")
    assert len({mark("ab", "c"), mark("a", "bc"), mark("abc"), mark("ab", "c", "")}) == 4


# Python's own sources


def test_pythons_library_is_loaded() -> None:
    corpus = load_text("python")
    assert list(corpus.splits) == SPLITS
    plain = corpus.provenance
    assert (plain["kind"], plain["revision"]) == ("python", None)
    assert plain["python"] == platform.python_version()
    assert all(isinstance(value, str | int | None) for value in plain.values())
    sizes = {split: len(text(documents)) for split, documents in corpus.splits.items()}
    assert 3e6 < sum(sizes.values()) < 2e7
    assert all(sizes[split] > 0.01 * sizes["train"] for split in ("valid", "test"))
    again = load_text("python", splits=["test"]).splits["test"]
    assert again.fingerprint == corpus.splits["test"].fingerprint


def test_files_of_the_library(tmp_path: Path) -> None:
    names = [*(f"a{i}.py" for i in range(200)), "json/decoder.py"]
    left_out = ["site-packages/x.py", "json/tests/t.py", "test/t.py", "_sysconfigdata_x.py", "c.c"]
    for name in [*names, *left_out]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    splits, skipped = stdlib.load_python(None, tmp_path)
    seen = [line for documents in splits.values() for line in whole(documents)]
    assert sorted(seen) == sorted(f"# {name}\n" for name in names)
    assert skipped == 1
    assert splits["train"].count > 150
    with pytest.raises(UserError, match="too few .py files"):
        stdlib.load_python(None, tmp_path / "json")


# Folders and files


def test_a_folder_is_kept_as_it_is(folder: Path) -> None:
    odd = "a\r\nb \t c\u2028d\u0085\x0b\x1c e\u0301 &amp;\n\n  last"
    (folder / "train.txt").write_bytes(b"\xef\xbb\xbf" + odd.encode())
    corpus = load_text(str(folder))
    assert list(corpus.splits) == SPLITS
    assert text(corpus.splits["train"]) == odd
    assert corpus.provenance["kind"] == "folder"
    assert corpus.provenance["documents_train"] == 1


@pytest.mark.parametrize(
    "name",
    ["train.txt.gz", "ptb.train.txt", "wiki.train.tokens", "wiki.train.tokens.gz", "train.raw"],
)
def test_common_file_names_are_found(folder: Path, name: str) -> None:
    content = (folder / "train.txt").read_bytes()
    (folder / "train.txt").unlink()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (folder / "valid.txt").rename(folder / "dev.txt")
    (folder / "test.txt").rename(folder / "other.txt")
    corpus = load_text(str(folder))
    assert list(corpus.splits) == ["train", "valid"]
    assert raw(corpus.splits["train"]) == content
    assert list(load_text(str(folder), splits=["other"]).splits) == ["other"]


def test_wikitext_articles_are_documents(folder: Path) -> None:
    first = " \n = One = \n \n text \n \n = = Part = = \n \n more \n"
    second = " \n = Two = \n \n a = b \n = not one = \n text \n"
    (folder / "train.txt").unlink()
    (folder / "wiki.train.tokens").write_text(first + second)
    assert list(whole(load_text(str(folder)).splits["train"])) == [first, second]


def test_long_articles_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "PIECE", 10)
    lines = [" \n", " = One = \n", " \n", *[f" line {i} \n" for i in range(9)]] * 3
    pieces = list(text_files.articles(iter(lines)))
    assert [piece.ends for piece in pieces].count(True) == 3
    assert "".join(piece.text for piece in pieces) == "".join(lines)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_single_file_is_cut_at_line_ends(tmp_path: Path, zipped: bool) -> None:
    content = sentences(2000).encode()
    path = tmp_path / ("text.txt" + ".gz" * zipped)
    path.write_bytes(gzip.compress(content) if zipped else content)
    corpus = load_text(str(path))
    assert list(corpus.splits) == SPLITS
    parts = [raw(documents) for documents in corpus.splits.values()]
    assert b"".join(parts) == content
    assert all(part.endswith(b"\n") for part in parts)
    shares = [len(part) / len(content) for part in parts]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.005)
    assert corpus.provenance["kind"] == "file"
    assert list(load_text(str(path), splits=["valid"]).splits) == ["valid"]


def test_enwik8_is_cut_after_ninety_million_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_BYTES", 1000)
    content = ("é" * 600).encode()[1:1001]  # both cuts are inside a character
    path = tmp_path / "enwik8"
    path.write_bytes(content)
    parts = [raw(documents) for documents in load_text(str(path)).splits.values()]
    assert [len(part) for part in parts] == [900, 50, 50]
    assert b"".join(parts) == content
    path.write_bytes(content[1:])
    with pytest.raises(UserError, match=r"enwik8 must have 1,000 bytes, got 999"):
        load_text(str(path))


LONG = "\n".join(f"{i * 7919 % 10007} text" for i in range(200_000)).encode()
BAD: dict[str, tuple[str, bytes | None, str]] = {
    "empty": ("train.txt", b"", r"the split 'train' is empty"),
    "blank": ("valid.txt", b" \n\n", r"the split 'valid' is empty"),
    "latin": ("train.txt", b"fine\nab\xe9 c\n", r"train\.txt, line 2: byte 3 \(0xe9\)"),
    "cut off": ("train.txt", b"fine\nab\xc3", r"train\.txt, line 2: byte 3 \(0xc3\)"),
    "far": ("train.txt", b"ab c\n" * 60_000 + b"x\xff\n", r"train\.txt, line 60001: byte 2 \(0xff"),
    "long line": ("train.txt", b"abcd" * 500_000 + b"\xff\n", r"line 1: byte 2000001 \(0xff"),
    "utf-16": ("train.txt", "text\n".encode("utf-16"), "UTF-16"),
    "truncated": ("train.txt.gz", gzip.compress(LONG)[:-2000], r"gz is truncated .* after line \d"),
    "not gzip": ("train.txt.gz", b"plain\n", r"train\.txt\.gz is not valid gzip.*remove '\.gz'"),
    "missing": ("valid.txt", None, r"no valid\.txt or dev\.txt.*it holds test\.txt, train\.txt"),
    "two": ("a.train.txt", b"x\n", r"several files for the split 'train': a\.train\.txt, b\.train"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_in_one_line(folder: Path, kind: str) -> None:
    name, content, words = BAD[kind]
    if name.startswith(("train", "a.")):
        (folder / "train.txt").unlink()
    if kind == "two":
        (folder / "b.train.txt").write_bytes(b"y\n")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_text(str(folder))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("text", b"", "is empty"),
        ("text", b"one line\n", "too few lines"),
        ("text", b"one line", "too few lines"),
        ("text.gz", b"plain", r"text\.gz is not valid gzip"),
        ("text.gz", gzip.compress(LONG)[:-200], r"text\.gz is truncated"),
    ],
)
def test_a_file_that_cannot_be_cut_is_refused(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        load_text(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "splits", "words"),
    [
        ("./nowhere", None, "nowhere not found"),
        ("~nobody-here/x", None, "home directory of '~nobody-here/x'"),
        ("pyhton", None, "did you mean python"),
        ("hf:nobody", None, "hf:owner/name"),
        ("hf:a/b:", None, "hf:owner/name:configuration"),
        ("hf:a/b/c", None, "hf:owner/name"),
        ("python", ["tset"], "unknown split 'tset'; did you mean test"),
        (__file__, ["tset"], "unknown split 'tset'; did you mean test"),
    ],
)
def test_what_is_not_found_gets_a_hint(source: str, splits: list[str] | None, words: str) -> None:
    assert text_names() == ["enwik8", "python", "wikitext103", "wikitext2"]
    with pytest.raises(UserError, match=words):
        load_text(source, splits=splits)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    class Broken:
        def read(self, _: int) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(RunError, match="cannot read .*text: Input/output error"):
        list(document(in_pieces(Broken(), path=tmp_path / "text")))  # type: ignore[arg-type]
