"""Shared by the language-modelling tests: small texts, and where real corpora may be."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from normtrain.data.documents import Documents

# Measurement corpora are not part of the project: a folder beside it may hold them.
CORPORA = Path(os.environ.get("NORMTRAIN_CORPORA", Path(__file__).parents[3] / "shared" / "data"))
WORDS = "the norm of a vector is its length and its mean may be zero né été 😀".split()  # noqa: SIM905


def real(name: str) -> Path:
    """Return a real corpus, or skip the test."""
    if not (CORPORA / name).is_dir():
        pytest.skip(f"the corpus {name} is not here")
    return CORPORA / name


def whole(documents: Documents) -> Iterator[str]:
    """Iterate over the documents, each as one string."""
    parts: list[str] = []
    for text, ends in documents:
        parts.append(text)
        if ends:
            yield "".join(parts)
            parts = []


def sentences(count: int, seed: int = 0) -> str:
    """Return lines of a few words each."""
    draw = random.Random(seed)
    lines = (" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(count))
    return "".join(line + "\n" for line in lines)


def write_folder(folder: Path) -> Path:
    """Write a folder with train.txt, valid.txt and test.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate((("train", 300), ("valid", 30), ("test", 20))):
        (folder / f"{split}.txt").write_text(sentences(count, seed), encoding="utf-8")
    return folder
