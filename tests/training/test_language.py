"""The language task from recipe to text: training, exact resume, perplexity, generation."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_misuse
from test_resume import assert_resumes, assert_same_run, rewound, rows

from normtrain.errors import UserError
from normtrain.tasks.language.data import LanguageData
from normtrain.tasks.language.generate import pieces, until
from normtrain.training import evaluate, fit, generate, read_checkpoint, resume
from tools.campaigns.tiny import TINY_TEXT, tiny_settings

VARIANTS: dict[str, dict[str, Any]] = {
    "workers": {"data_workers": 2},
    "accumulate": {"optim_accumulate": 2},
    "ema": {"train_ema": 0.9},
    "dropouts": {"model_attention_dropout": 0.2, "model_dropout": 0.1},
    "bf16": {"train_precision": "bf16-mixed"},
    "word": {"data_tokenizer": "word"},
    "bpe": {"data_tokenizer": "bpe", "data_vocab_size": 300},
}
Build = Callable[..., Any]


@pytest.fixture(scope="module")
def knowing(tiny_language: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has learnt the alphabet. Read only."""
    recipe = tiny_language(
        data_window=32, data_max_tokens=512, model_d_model=48, model_layers=2, model_d_ff=96,
        optim_lr=0.02, train_max_steps=150, train_val_every=50, train_checkpoint_every=50,
    )  # fmt: skip
    return fit(recipe, out=tmp_path_factory.mktemp("knowing") / "run")


@pytest.fixture
def copy(knowing: Path, tmp_path: Path) -> Path:
    return shutil.copytree(knowing, tmp_path / "copy")


@pytest.mark.extended
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_with_options_equals_uninterrupted(
    variant: str, tiny_language: Build, tmp_path: Path
) -> None:
    assert_resumes(fit(tiny_language(**VARIANTS[variant]), out=tmp_path / "whole"), (5,), tmp_path)


@pytest.mark.extended
def test_epochs_are_crossed_and_cut_anew(tiny_language: Build, tmp_path: Path) -> None:
    recipe = tiny_language(data_max_tokens=512, train_max_steps=30, train_val_every=100)
    run = fit(recipe, out=tmp_path / "run")
    assert int(rows(run)[-1]["epoch"] or rows(run)[-2]["epoch"]) >= 2
    again = rewound(run, 23, tmp_path / "again")
    resume(again)
    assert_same_run(run, again)


def test_it_learns(knowing: Path) -> None:
    values = [float(row["val_perplexity"]) for row in rows(knowing) if row["val_perplexity"]]
    losses = [float(row["val_loss"]) for row in rows(knowing) if row["val_loss"]]
    assert values == [math.exp(loss) for loss in losses]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 7  # of 257 bytes


def nats(run: Path, split: str, context: int) -> tuple[float, int]:
    """The split's loss by the definition: each token from the ``context`` ones before it."""
    checkpoint = read_checkpoint(run)
    model = checkpoint.model().double()
    data = checkpoint.recipe.data
    module = LanguageData(data, tokenizer=checkpoint.tokenizer, splits=[split])
    module.setup()
    ids = [checkpoint.tokenizer.eos, *map(int, module.encoded[split].tokens)]
    total = 0.0
    with torch.no_grad():
        for i in range(1, len(ids)):
            before = torch.tensor([ids[max(0, i - context) : i]])
            total -= float(model(before)[0, -1].log_softmax(-1)[ids[i]])
    return total, len(ids) - 1


@pytest.mark.extended
def test_perplexity_is_that_of_every_token_with_what_is_before_it(copy: Path) -> None:
    """With stride 1 every token but the first few has the whole window before it."""
    found = evaluate(copy, split="valid", stride=1, batch_size=64)
    total, count = nats(copy, "valid", context=32)
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    text = Path(found["data"], "valid.txt").read_text(encoding="utf-8")
    assert found["characters"] == len(text)
    assert found["bytes"] == len(text.encode())
    assert found["words"] == len(text.split())
    assert found["lines"] == text.count("\n")
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    bits = found["loss"] * count / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / found["bytes"])
    assert found["word_perplexity"] == pytest.approx(
        math.exp(found["loss"] * count / (found["words"] + found["lines"]))
    )


@pytest.mark.extended
def test_the_batch_size_changes_nothing_and_the_stride_is_said(copy: Path) -> None:
    for stride in (None, 8, 31):
        results = [
            evaluate(copy, split="test", stride=stride, batch_size=size) for size in (1, 3, 100)
        ]
        assert len({result["tokens"] for result in results}) == 1
        for result in results:
            assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
            assert (result["stride"], result["window"]) == (stride or 32, 32)
        name = "test" if stride is None else f"test-stride{stride}"
        written = json.loads((copy / f"evaluation-{name}.json").read_text(encoding="utf-8"))
        assert written == json.loads(json.dumps(results[-1]))


def test_generating(knowing: Path) -> None:
    def write(**settings: Any) -> str:
        return "".join(generate(knowing, "abc def ghi ", **settings))

    text = write(temperature=0.0, max_tokens=16)
    letters = [ord(letter) for letter in text if letter.isalpha()]
    steps = [(b - a) % 26 for a, b in zip(letters, letters[1:], strict=False)]
    assert len(letters) > 8
    assert sum(0 < step < 4 for step in steps) > 0.6 * len(steps)  # it knows the alphabet
    assert write(seed=3, max_tokens=30) == write(seed=3, max_tokens=30)
    assert len({write(seed=seed, temperature=1.5, max_tokens=30) for seed in range(5)}) > 1
    assert write(temperature=0.0, max_tokens=16, stop=[text[5:8]]) == text[:5]
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"max_tokens": 0},
                  {"stop": [""]}):  # fmt: skip
        with pytest.raises(UserError):
            generate(knowing, "abc", **wrong)


@pytest.mark.parametrize("stop", [["cd"], ["abcdef"], ["x", "de"], ["zz"], []])
def test_text_ends_before_the_first_stop_however_it_is_cut(stop: list[str]) -> None:
    text = "abcdefgh"
    ends = [text.find(each) for each in stop if each in text]
    wanted = text[: min(ends)] if ends else text
    for cut in (1, 2, 3, 8):
        parts = [text[i : i + cut] for i in range(0, 8, cut)]
        assert "".join(until(iter(parts), stop)) == wanted


def test_characters_come_whole() -> None:
    text = "héé → 🙂 ok"
    raw = text.encode()

    def decode(ids: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")

    found = list(pieces(decode, [], iter(raw)))
    assert "".join(found) == text
    assert not any("�" in piece for piece in found)
    assert "".join(pieces(decode, [], iter(raw[:-5]))) == decode(raw[:-5])


def test_commands(copy: Path, command: Callable[..., Any]) -> None:
    done = command("generate", copy, "--prompt", "abc", "--max-tokens", 4, "--temperature", 0)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("abc")
    assert done.stdout.endswith("\n")
    done = command("evaluate", copy, "--split", "valid", "--stride", 8, "--json")
    assert json.loads(done.stdout)["stride"] == 8
    assert_misuse(command("translate", copy), "got language", "generate")
    assert_misuse(command("evaluate", copy, "--beam", 3), "--beam", "task language")
    assert_misuse(command("evaluate", copy, "--stride", 33), "--stride", "32")
    assert_misuse(command("generate", copy, "--top-p", 0), "--top-p")


def test_a_translation_generates_nothing(learned: dict[str, Path], command: Any) -> None:
    assert_misuse(command("generate", learned["plain"]), "got translation", "translate")
    assert_misuse(
        command("evaluate", learned["plain"], "--stride", 3), "--stride", "task translation"
    )


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["model.encoder_layers=2"], ["model.encoder_layers", "translation", "language"]),
        (["data.window=2000"], ["data.window (2000)", "model.max_positions"]),
        (["data.max_tokens=8"], ["data.max_tokens (8)", "data.window"]),
        (["model.kv_heads=3"], ["model.heads", "model.kv_heads (3)"]),
        (["data.vocab_size=300"], ["data.vocab_size must be null", "byte"]),
        (["data.tokenizer=words"], ["data.tokenizer", "bpe, word, byte, char"]),
        (["task=translation"], ["task language", "--recipe"]),
        (["model.d_model=18", "model.heads=6"], ["rotary", "even"]),
    ],
)
def test_contradictions(settings: list[str], parts: list[str], text_folder: Path, command: Any,
                        tmp_path: Path) -> None:  # fmt: skip
    words = [w for s in [*tiny_settings(TINY_TEXT), *settings] for w in ("--set", s)]
    result = command(
        "fit", "--recipe", "lm", "--data", text_folder, "--out", tmp_path / "r", *words
    )
    assert_misuse(result, *parts)
    assert not (tmp_path / "r").exists()


@pytest.mark.extended
def test_a_folder_whose_name_is_not_utf_8(
    tiny_language: Build, text_folder: Path, tmp_path: Path, command: Any
) -> None:
    """A recipe can't hold its name; it can be evaluated on, and a result can hold it."""
    odd = shutil.copytree(text_folder, tmp_path / "\udcff")
    settings = tiny_settings(TINY_TEXT, train_max_steps=1, optim_warmup_steps=0)
    words = [word for setting in settings for word in ("--set", setting)]
    told = command("fit", "--recipe", "lm", "--data", odd, *words)
    assert_misuse(told, "data.source must be UTF-8 text")
    run = fit(tiny_language(train_max_steps=1, optim_warmup_steps=0), out=tmp_path / "run")
    done = command("evaluate", run, "--data", odd, "--json")
    assert done.exit_code == 0, done.stderr
    written = next(run.glob("evaluation-*.json")).read_text(encoding="utf-8")
    assert json.loads(written)["data"] == json.loads(done.stdout)["data"] == str(odd)
