"""The data module of language modelling, from text to batches."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from language_texts import write_folder

from normtrain.errors import UserError
from normtrain.tasks.language.config import LanguageDataConfig
from normtrain.tasks.language.data import LanguageData


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "text")


def data(folder: Path, **more: Any) -> LanguageData:
    settings = {"vocab_size": 320, "window": 16, "max_tokens": 70}
    keys = ("tokenizer", "vocab_size", "window", "max_tokens", "workers", "document_mark")
    settings |= {key: more.pop(key) for key in keys if key in more}
    if "given_tokenizer" in more:
        more["tokenizer"] = more.pop("given_tokenizer")
    config = LanguageDataConfig(source=str(folder), **settings)
    return LanguageData(config, **({"cache_dir": folder.parent / "c"} | more))


def tokens(loader: Any) -> list[torch.Tensor]:
    return [batch["tokens"] for batch in loader]


def test_everything_is_there_after_setup(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = data(folder, vocab_size=50_000, revision="v1")
    module.prepare_data()
    module.setup("fit")
    assert list(module.encoded) == list(module.corpus.splits) == ["train", "valid", "test"]
    assert module.tokenizer.kind == "bpe"
    report = "\n".join(module.report)
    assert f"train: {len(module.encoded['train']):,} tokens" in report
    assert "50,000 asked" in report
    assert "revision v1 has no effect" in report
    assert "an epoch of 4 windows of 16 tokens" in report
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["bpe", "word", "byte", "char"])
def test_every_tokenizer_makes_batches(folder: Path, kind: str) -> None:
    module = data(folder, tokenizer=kind)
    batches = tokens(module.train_dataloader())
    assert len(batches) == len(module.train_dataloader())
    assert all(batch.shape == (4, 17) for batch in batches[:-1])
    assert all(int(batch.max()) < module.tokenizer.vocab_size for batch in batches)
    report = "\n".join(module.report)
    assert ("320 has no effect" in report) == (kind == "byte")
    assert ("documents are not marked" in report) == (kind == "word")


def test_training_windows_are_stretches_of_the_text(folder: Path) -> None:
    module = data(folder, tokenizer="byte", vocab_size=None)
    whole = (folder / "train.txt").read_bytes()
    rows = [row for batch in tokens(module.train_dataloader()) for row in batch.tolist()]
    assert all(bytes(row) in whole for row in rows)
    assert len(rows) == (len(whole) - 16) // 16


@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("stride", [None, 5])
def test_evaluation_scores_every_token_once(folder: Path, split: str, stride: int | None) -> None:
    module = data(folder)
    loader = module.evaluation_loader(split, stride=stride, batch_size=3)
    if stride is None:
        loader = module.val_dataloader() if split == "valid" else module.test_dataloader()
    scored: list[int] = []
    for batch in loader:
        assert len(batch["tokens"]) <= (3 if stride else 4)
        scored += batch["tokens"][:, 1:][batch["scored"]].tolist()
    assert scored == module.encoded[split].tokens.tolist()
    text = (folder / f"{split}.txt").read_text(encoding="utf-8")
    assert module.tokenizer.decode(scored) == text


def test_a_given_tokenizer_is_kept(folder: Path) -> None:
    first = data(folder, tokenizer="word", vocab_size=None)
    first.setup()
    (folder / "train.txt").write_text("other words\n" * 60, encoding="utf-8")
    second = data(folder, given_tokenizer=first.tokenizer)
    second.setup()
    assert second.tokenizer is first.tokenizer
    alone = data(folder, splits=["test"], given_tokenizer=first.tokenizer)
    assert len(tokens(alone.test_dataloader())) == len(tokens(first.test_dataloader()))
    with pytest.raises(UserError, match="without the split 'valid'"):
        alone.val_dataloader()
    with pytest.raises(UserError, match="without its train split there is no tokenizer"):
        data(folder, splits=["test"]).setup()


def test_document_marks_can_be_left_out(folder: Path) -> None:
    (folder / "train.txt").unlink()
    article = " \n = One = \n \n text about norms and vectors \n"
    (folder / "wiki.train.tokens").write_text(article * 9, encoding="utf-8")
    marked, plain = data(folder), data(folder, document_mark=False)
    marked.setup()
    plain.setup()
    assert (marked.encoded["train"].tokens == marked.tokenizer.eos).sum() == 8
    assert (plain.encoded["train"].tokens == plain.tokenizer.eos).sum() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 100_000, "max_tokens": 200_000}, "too few for a window of 100000"),
        ({"max_tokens": 15}, "max_tokens must be >= window"),
        ({"vocab_size": 20}, "vocab_size must be >= 257"),
        ({"splits": ["train", "tset"]}, r"has no tset\.txt"),
    ],
)
def test_settings_that_cannot_be_are_refused(folder: Path, changes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        data(folder, **changes).setup()
    assert len(str(caught.value).splitlines()) == 1
    cache = folder.parent / "c"
    assert all((entry / "entry.json").is_file() for entry in cache.glob("*"))


def test_too_many_processes_are_refused(folder: Path) -> None:
    module = data(folder)
    module.setup()
    module.check_ranks(3)
    with pytest.raises(UserError, match="'valid' has .* windows, too few for 60 processes"):
        module.check_ranks(60)
    with pytest.raises(UserError, match="too few for 6000 processes"):
        module.check_ranks(6000)


def test_reading_text_imports_nothing_heavy() -> None:
    code = (
        "import sys; from normtrain.tasks.language import corpora;"
        "corpora.load_text('python', splits=['test']);"
        "print([m for m in ('torch', 'datasets', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
