"""The data module, from a folder to batches, under a real Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normtrain.errors import UserError
from normtrain.models.token_ids import EOS
from normtrain.tasks.translation.config import TranslationDataConfig
from normtrain.tasks.translation.data import TranslationData

LONG = "rất " * 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    words = {
        "en": ["a", "dog", "sees", "two", "birds"],
        "vi": ["con", "chó", "thấy", "hai", "chim"],
    }
    root = tmp_path / "text"
    root.mkdir()
    for split, count in (("train", 60), ("valid", 11), ("test", 7)):
        for language, known in words.items():
            lines = [" ".join(draw.choice(known, draw.integers(1, 9))) + "." for _ in range(count)]
            lines[2] = "" if language == "en" else lines[2]
            lines[3] = LONG if language == "vi" else lines[3]
            (root / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def data(folder: Path, **more: Any) -> TranslationData:
    settings: dict[str, Any] = {"max_tokens": 90, "max_length": 40, "vocab_size": 5000}
    settings |= {key: more.pop(key) for key in ("max_tokens", "workers") if key in more}
    config = TranslationDataConfig(source=str(folder), **settings)
    return TranslationData(config, **({"cache_dir": folder.parent / "cache"} | more))


def test_everything_is_there_after_setup(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module = data(folder, revision="v1")
    module.prepare_data()
    module.setup("fit")
    assert len(module.encoded["train"]) == 58
    assert module.tokenizer.vocab_size < 5000
    assert module.corpus.splits["train"].source[2] == ""
    report = "\n".join(module.report)
    assert "dropped 1 pairs with an empty side" in report
    assert "dropped 1 pairs longer than max_length=40" in report
    assert "valid: truncated 1 target sentences" in report
    assert "5,000 asked" in report
    assert "of target positions are real" in report
    assert "revision v1 has no effect" in report
    assert capfd.readouterr() == ("", "")


def test_a_pass_holds_every_training_sentence(folder: Path) -> None:
    module = data(folder)
    texts = []
    for batch in module.train_dataloader():
        assert (
            batch["source"].shape[0] * max(batch["source"].shape[1], batch["target_out"].shape[1])
            <= 90
        )
        for row in batch["target_out"]:
            assert EOS in row.tolist()
            texts.append(module.tokenizer.decode(row.tolist()))
    kept = [i for i in range(60) if i not in (2, 3)]
    assert sorted(texts) == sorted(module.corpus.splits["train"].target[i] for i in kept)


@pytest.mark.parametrize(("split", "count"), [("valid", 11), ("test", 7)])
def test_evaluation_sees_every_line_once(folder: Path, split: str, count: int) -> None:
    module = data(folder)
    seen = []
    for batch in module.evaluation_loader(split):
        for line, row in zip(batch["index"].tolist(), batch["source"].tolist(), strict=True):
            seen.append(line)
            assert module.tokenizer.decode(row) == module.corpus.splits[split].source[line]
    assert sorted(seen) == list(range(count))


def test_a_test_set_alone_needs_a_tokenizer(folder: Path) -> None:
    with pytest.raises(UserError, match="tokenizer"):
        data(folder, splits=["test"]).setup()
    whole = data(folder)
    whole.setup()
    alone = data(folder, splits=["test"], tokenizer=whole.tokenizer)
    alone.setup()
    assert alone.tokenizer is whole.tokenizer
    assert len(list(alone.test_dataloader())) == len(list(whole.test_dataloader()))
    with pytest.raises(UserError, match="without the split 'valid'"):
        alone.val_dataloader()


def test_ranks_share_one_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [data(folder, total_batches=12) for _ in range(3)]
    whole = [batch["index"].tolist() for batch in data(folder, total_batches=12).train_dataloader()]
    ranks, valid = [], []
    for rank, module in enumerate(made):
        monkeypatch.setattr(module, "_place", lambda rank=rank: (rank, 3))
        ranks.append([batch["index"].tolist() for batch in module.train_dataloader()])
        valid += [i for batch in module.val_dataloader() for i in batch["index"].tolist()]
    assert [batch for step in zip(*ranks, strict=True) for batch in step] == whole
    assert sorted(valid) == list(range(11))
    with pytest.raises(UserError, match="'test' has 7 pairs, too few for 8"):
        made[0].check_ranks(8)
