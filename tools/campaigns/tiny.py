"""Corpora and settings of runs that take about a second; the tests use them too."""

import random
from pathlib import Path
from typing import Any

# Short words: the tiny tokenizer makes one token of each, so no pair is too long to be used.
ENGLISH = tuple("an at be by do go he if in is it me no of on to".split())  # noqa: SIM905
VIETNAMESE = tuple("ăn bà có đi đó em gì họ ít là má na ở ta và xe".split())  # noqa: SIM905


def write_corpus(folder: Path, *, train: int = 90, valid: int = 12, test: int = 10) -> Path:
    """A corpus folder whose target is the source word by word."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        rows = [
            [rng.randrange(len(ENGLISH)) for _ in range(rng.randint(2, 9))] for _ in range(count)
        ]
        for suffix, words in (("en", ENGLISH), ("vi", VIETNAMESE)):
            lines = [" ".join(words[i] for i in row) + "\n" for row in rows]
            (folder / f"{split}.{suffix}").write_text("".join(lines), encoding="utf-8")
    return folder


def write_text(folder: Path, *, train: int = 300, valid: int = 15, test: int = 12) -> Path:
    """A folder of running text: lines of letters that mostly follow the alphabet."""
    rng = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("valid", valid), ("test", test)):
        lines = []
        for _ in range(count):
            at, words = rng.randrange(26), []
            for _ in range(rng.randint(4, 12)):
                words.append("".join(chr(97 + (at + i) % 26) for i in range(rng.randint(1, 3))))
                at = (at + 3) % 26
            lines.append(" ".join(words) + "\n")
        (folder / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return folder


TINY = {
    "data.max_tokens": 60,
    "data.max_length": 30,
    "data.vocab_size": 420,
    "model.d_model": 16,
    "model.heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.d_ff": 24,
    "optim.warmup_steps": 2,
    "train.max_steps": 12,
    "train.val_every": 5,
    "train.checkpoint_every": 1,
    "train.keep": 100,
    "train.log_every": 1,
    "train.precision": "'32'",
    "train.samples": 1,
    "decode.beam": 2,
    "decode.max_length": 12,
}


# The same of the language task; keys that both have are there already.
TINY_TEXT = {key: value for key, value in TINY.items() if key.startswith(("optim.", "train."))} | {
    "data.tokenizer": "byte",
    "data.vocab_size": "null",
    "data.window": 16,
    "data.max_tokens": 64,
    "model.d_model": 16,
    "model.heads": 2,
    "model.layers": 1,
    "model.d_ff": 24,
    "model.max_positions": 64,
    "decode.max_length": 12,
}
del TINY_TEXT["train.samples"]


def tiny_settings(tiny: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    """``key=value`` settings of a run that takes about a second; ``data_workers=2`` changes one."""
    values = (tiny or TINY) | {key.replace("_", ".", 1): value for key, value in changes.items()}
    return [f"{key}={value}" for key, value in values.items()]
