"""Any pair of languages: German to French on made-up text, from files to a model card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import assert_misuse

from normtrain.tasks.translation import corpora, evaluate, metrics
from normtrain.tasks.translation.detokenize import detokenize
from tools.campaigns.tiny import tiny_settings, write_corpus


@pytest.fixture
def german_french(tmp_path: Path) -> Path:
    """A corpus folder whose files end in .de and .fr."""
    folder = write_corpus(tmp_path / "corpus")
    for file in folder.iterdir():
        file.rename(file.with_suffix({".en": ".de", ".vi": ".fr"}[file.suffix]))
    return folder


def test_german_to_french(
    german_french: Path,
    command: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text counts as tokenized, so validation and evaluation detokenize it, as French."""
    languages: set[str] = set()

    def recorded(line: str, lang: str) -> str:
        languages.add(lang)
        return detokenize(line, lang)

    monkeypatch.setattr(metrics, "detokenize", recorded)
    for module in (corpora, evaluate):
        monkeypatch.setattr(module, "looks_tokenized", lambda lines: True)
    run = tmp_path / "run"
    pair = ["data.source_lang=de", "data.target_lang=fr"]
    words = [word for setting in [*tiny_settings(), *pair] for word in ("--set", setting)]
    assert_misuse(
        command("fit", "--recipe", "envi", "--data", german_french, "--out", run, *words[:-4]),
        "train.en",
    )
    assert_misuse(command("fit", "--recipe", "envi", "--out", run, *words), "phrasebook")
    done = command("fit", "--recipe", "envi", "--data", german_french, "--out", run, *words)
    assert done.exit_code == 0, done.stderr
    assert languages == {"fr"}
    languages.clear()
    done = command("evaluate", run, "--json")
    assert done.exit_code == 0, done.stderr
    assert languages == {"fr"}
    assert json.loads(done.stdout)["sentences"] == 10
    done = command("translate", run, stdin=b"if in is\n")
    assert done.exit_code == 0, done.stderr
    done = command("export", run, tmp_path / "folder")
    assert done.exit_code == 0, done.stderr
    card = (tmp_path / "folder" / "README.md").read_text(encoding="utf-8")
    assert "language: [de, fr]" in card
    assert "German to French" in card


def test_a_pair_of_one_language_is_refused(command: Callable[..., Any]) -> None:
    done = command("fit", "--recipe", "envi", "--set", "data.target_lang=en", "--dry-run")
    assert_misuse(done, "data.source_lang", "data.target_lang", "must differ")
