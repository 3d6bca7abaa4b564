"""The phrasebook's grammar: the shipped text, correct sentences, and splits by combinations."""

import lzma
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from normtrain.data import phrasebook as shipped
from tools.phrasebook.__main__ import write
from tools.phrasebook.generate import (
    Sentence,
    generate,
    is_held_out,
    phrasebook_splits,
    words,
)
from tools.phrasebook.lexicon import lexicon

pytestmark = pytest.mark.extended
SHIPPED = Path(shipped.__file__).parent


def everything() -> list[Sentence]:
    return [sentence for rows in generate().values() for sentence in rows]


def test_the_shipped_text_is_what_the_grammar_generates() -> None:
    for split, sides in phrasebook_splits().items():
        for language, lines in zip(("en", "vi"), sides, strict=True):
            packed = (SHIPPED / f"{split}.{language}.xz").read_bytes()
            assert lzma.decompress(packed) == "".join(f"{line}\n" for line in lines).encode(), (
                "the phrasebook changed: raise PHRASEBOOK_VERSION and run "
                "python -m tools.phrasebook normtrain/data/phrasebook"
            )
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.xz")) < 1_500_000


def test_the_program_writes_the_shipped_files(tmp_path: Path) -> None:
    write(tmp_path)
    for path in SHIPPED.glob("*.xz"):
        written = (tmp_path / path.name).read_bytes()
        assert lzma.decompress(written) == lzma.decompress(path.read_bytes())


def test_test_sentences_are_new_combinations_of_common_words() -> None:
    splits, sentences = phrasebook_splits(), generate()
    for side in (0, 1):
        train, valid, test = (set(splits[split][side]) for split in ("train", "valid", "test"))
        assert not train & test
        assert not train & valid
        assert not valid & test
        counts = Counter(w for line in splits["train"][side] for w in words(line))
        assert min(counts[word] for line in valid | test for word in words(line)) >= 10
    seen = {c for s in sentences["train"] for c in s.combinations}
    assert not any(map(is_held_out, seen))
    parts = {(c.split("|")[0], p) for c in seen for p in c.split("|")[1:]}
    asked: list[str] = []
    for sentence in sentences["test"] + sentences["valid"]:
        new = [c for c in sentence.combinations if is_held_out(c)]
        assert new
        asked += new
    kinds = {"object", "modifier", "subject", "tense", "place"}
    assert kinds <= {c.split("|")[0] for c in asked}
    known = sum((c.split("|")[0], p) in parts for c in asked for p in c.split("|")[1:])
    assert known / (2 * len(asked)) > 0.97
    # The same, read off the sentences instead of the combinations that they note.
    plurals = {noun.en: noun.plural for noun in lexicon().things}
    modified = {tuple(c.split("|")[1:]) for c in asked if c.startswith("modifier|")}
    text = "\n".join(splits["train"][0]).lower()
    checked = [(first, second) for first, second in modified if second in plurals]
    assert len(checked) > 10
    for first, second in checked:
        assert not re.search(rf"\b{first} ({second}|{plurals[second]})\b", text), (first, second)


def test_text_is_clean() -> None:
    for sentence in everything():
        en, vi = sentence.english, sentence.vietnamese
        assert en.isascii()
        assert unicodedata.is_normalized("NFC", vi)
        for line in (en, vi):
            assert line[0].isupper() or line[0].isdigit()
            assert line[-1] in ".?!"
            assert line == " ".join(line.split())
            assert not re.search(r" [.,?!]|[{}|_]", line)
        assert en[-1] == vi[-1] or sentence.construction == "order"
