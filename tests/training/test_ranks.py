"""Several ranks give what one process gives on the same batches, and resume on more or fewer."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import on_ranks
from test_resume import rows

from normtrain.errors import UserError
from normtrain.files import read_plain
from normtrain.training import (
    average,
    evaluate,
    export,
    fit,
    read_checkpoint,
    read_pretrained,
    resume,
)
from normtrain.training.checkpoint import is_sharded, read_sharded
from tools.campaigns.tiny import TINY, TINY_TEXT, tiny_settings

pytestmark = pytest.mark.extended  # most tests start processes

NORMS = ("rmsnorm", "adanorm")
RECIPES = {"lm": TINY_TEXT, "envi": TINY}
THIRTY = {"train_max_steps": 30, "train_val_every": 30, "train_checkpoint_every": 30}
Build = Callable[..., Any]


def fit_words(recipe: str, data: Path, out: Path, strategy: str, **changes: Any) -> list[str]:
    settings = tiny_settings(RECIPES[recipe], **changes)
    words = ["fit", "--recipe", recipe, "--data", str(data), "--strategy", strategy]
    return [*words, "--out", str(out), *(w for each in settings for w in ("--set", each))]


def job(ranks: int, out: Path, words: list[str]) -> dict[str, Any]:
    return {"ranks": ranks, "log": f"{out}.log", "words": words}


def assert_all_succeed(jobs: list[dict[str, Any]]) -> None:
    for each, codes in zip(jobs, on_ranks(jobs), strict=True):
        logs = [Path(f"{each['log']}.{rank}").read_text() for rank in range(each["ranks"])]
        assert codes == [0] * each["ranks"], logs


def losses(run: Path) -> list[float]:
    return [float(row["train_loss"]) for row in rows(run) if row["train_loss"]]


@pytest.fixture(scope="module")
def shared(
    corpus_folder: Path, text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs of 30 steps on two ranks, ``<recipe>-<strategy>-<norm>``. Read only."""
    folder = tmp_path_factory.mktemp("shared")
    jobs = []
    for recipe, data in (("lm", text_folder), ("envi", corpus_folder)):
        for norm in NORMS if recipe == "lm" else ("rmsnorm",):
            for strategy in ("ddp", "fsdp2"):
                out = folder / f"{recipe}-{strategy}-{norm}"
                words = fit_words(recipe, data, out, strategy, model_dropout=0, **THIRTY)
                jobs.append(job(2, out, [*words, "--norm", norm]))
    assert_all_succeed(jobs)
    return folder


@pytest.mark.parametrize(
    ("recipe", "norm"), [*(("lm", norm) for norm in NORMS), ("envi", "rmsnorm")]
)
def test_two_ranks_have_the_losses_of_one_process_on_the_same_batches(
    recipe: str, norm: str, shared: Path, tiny_language: Build, tiny_recipe: Build, tmp_path: Path
) -> None:
    build = tiny_language if recipe == "lm" else tiny_recipe
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        one = fit(
            build(norm=norm, model_dropout=0, optim_accumulate=2, **THIRTY), out=tmp_path / "one"
        )
    finally:
        torch.set_num_threads(threads)
    expected = losses(one)
    assert len(expected) == 30
    assert losses(shared / f"{recipe}-ddp-{norm}") == expected
    assert losses(shared / f"{recipe}-fsdp2-{norm}") == pytest.approx(expected, rel=1e-6)
    score = {"lm": "val_perplexity", "envi": "val_bleu"}[recipe]
    for strategy in ("ddp", "fsdp2"):
        row = rows(shared / f"{recipe}-{strategy}-{norm}")[-1]
        assert float(row["val_loss"]) == pytest.approx(float(rows(one)[-1]["val_loss"]), rel=1e-6)
        assert float(row[score]) == pytest.approx(float(rows(one)[-1][score]), rel=1e-5)
        assert row["tokens"] == rows(one)[-1]["tokens"]


def test_two_ranks_with_muon_have_the_losses_of_one_process(
    tiny_language: Build, text_folder: Path, tmp_path: Path
) -> None:
    settings = {"model_dropout": 0, "optim_name": "muon", **THIRTY}
    two = tmp_path / "two"
    assert_all_succeed([job(2, two, fit_words("lm", text_folder, two, "ddp", **settings))])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have
    try:
        one = fit(tiny_language(optim_accumulate=2, **settings), out=tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    assert losses(one) == losses(two)


def test_sharded_checkpoints_are_put_together(shared: Path, tmp_path: Path) -> None:
    run, same = shared / "lm-fsdp2-rmsnorm", shared / "lm-ddp-rmsnorm"
    last = run / "checkpoints" / "last.ckpt"
    assert is_sharded(last)
    assert len(list(last.glob("*.distcp"))) == 2  # a slice of each rank
    weights = read_checkpoint(run).weights
    for name, whole in read_checkpoint(same).weights.items():
        torch.testing.assert_close(weights[name], whole, rtol=1e-4, atol=1e-5)
    assert evaluate(last)["loss"] == pytest.approx(evaluate(same)["loss"], rel=1e-6)
    begun = read_pretrained(last)
    assert begun.weights.keys() == weights.keys()
    assert begun.sha256 == read_pretrained(last).sha256
    assert begun.sha256 != read_pretrained(shared / "lm-fsdp2-adanorm").sha256
    export(run, tmp_path / "exported")
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    average(run, last=1, output=tmp_path / "one.ckpt")
    made = read_plain(tmp_path / "one.ckpt")["state_dict"]
    assert all(torch.equal(made[name], w) for name, w in read_sharded(last)["state_dict"].items())


@pytest.mark.parametrize("damage", ["cut", "gone", "code", "no table"])
def test_a_damaged_or_foreign_shard_is_refused_and_nothing_executed(
    damage: str, shared: Path, tmp_path: Path
) -> None:
    made = shutil.copytree(
        (shared / "lm-fsdp2-rmsnorm" / "checkpoints" / "last.ckpt").resolve(), tmp_path / "made"
    )
    shard, witness = sorted(made.glob("*.distcp"))[0], tmp_path / "witness"

    class Payload:
        def __reduce__(self) -> tuple[Any, Any]:
            return (os.system, (f"touch {witness}",))

    if damage == "cut":
        os.truncate(shard, shard.stat().st_size // 2)
    elif damage == "gone":
        shard.unlink()
    elif damage == "no table":
        (made / ".metadata").unlink()
    else:
        (made / ".metadata").write_bytes(pickle.dumps(Payload()))
    words = "would have to be executed" if damage == "code" else "truncated, damaged"
    with pytest.raises(UserError, match=words):
        read_checkpoint(made)
    assert not witness.exists()


def stopped_at(run: Path, step: int, again: Path) -> Path:
    """A run as a kill after ``step`` left it."""
    shutil.copytree(run, again, symlinks=True)
    (again / "status.json").unlink()
    last, name = again / "checkpoints" / "last.ckpt", f"step-{step:08d}.ckpt"
    for later in last.parent.glob("step-*.ckpt"):
        if later.name > name:
            shutil.rmtree(later) if later.is_dir() else later.unlink()
    last.unlink()
    if is_sharded(last.with_name(name)):
        os.symlink(name, last)
    else:
        shutil.copy(last.with_name(name), last)
    return again


def weights_of(run: Path) -> dict[str, Any]:
    return read_checkpoint(run / "checkpoints" / "last.ckpt").raw["state_dict"]


def test_a_run_resumes_on_the_same_or_another_number_of_ranks(
    text_folder: Path, tiny_language: Build, tmp_path: Path
) -> None:
    ten = {"train_max_steps": 10, "model_dropout": 0.2, "optim_accumulate": 2}
    dry = ten | {"model_dropout": 0}
    wet = {"ddp": ten, "fsdp2": ten | {"train_activation_checkpointing": "true"}}
    runs = {
        (strategy, kind): tmp_path / f"{strategy}-{kind}"
        for strategy in ("ddp", "fsdp2")
        for kind in ("wet", "dry")
    }
    jobs = [
        job(
            2,
            out,
            fit_words(
                "lm", text_folder, out, strategy, **(dry if kind == "dry" else wet[strategy])
            ),
        )
        for (strategy, kind), out in runs.items()
    ]
    assert_all_succeed(jobs)
    jobs, expected = [], {}
    for (_, kind), run in runs.items():
        for ranks in (2,) if kind == "wet" else (1, 4):
            again = stopped_at(run, 5, tmp_path / f"{run.name}-on-{ranks}")
            if run.name == "fsdp2-wet":
                for shard in (again / "checkpoints" / "step-00000005.ckpt").glob("*.distcp"):
                    os.truncate(shard, shard.stat().st_size // 2)
            jobs.append(job(ranks, again, ["fit", "--resume", str(again)]))
            expected[again] = (run, ranks)
    assert_all_succeed(jobs)
    for again, (run, ranks) in expected.items():
        assert [r["tokens"] for r in rows(again)] == [r["tokens"] for r in rows(run)]
        if ranks == 2:
            assert rows(again) == rows(run)
            theirs = weights_of(again)
            assert all(torch.equal(w, theirs[name]) for name, w in weights_of(run).items())
            damaged = "resuming from step-00000004.ckpt" in Path(f"{again}.log.0").read_text()
            assert damaged == is_sharded(again / "checkpoints" / "last.ckpt")
            assert (again / "checkpoints" / "step-00000005.ckpt.damaged").exists() == damaged
        else:
            assert losses(again) == pytest.approx(losses(run), rel=1e-6)
            said = Path(f"{again}.log.0").read_text()
            assert all(
                "resuming from" not in (Path(f"{again}.log.{i}").read_text())
                for i in range(1, ranks)
            )
            assert f"{ranks} ranks instead of 2" in said
    # And from one process to two: the second half of every update is the other rank's.
    one = fit(tiny_language(**dry | {"optim_accumulate": 4}), out=tmp_path / "one")
    again = stopped_at(one, 4, tmp_path / "one-on-2")
    words = ["fit", "--resume", str(again), "--strategy", "ddp"]
    assert_all_succeed([job(2, again, words)])
    assert losses(again) == pytest.approx(losses(one), rel=1e-6)
    assert [r["tokens"] for r in rows(again)] == [r["tokens"] for r in rows(one)]


def test_slurm_starts_the_ranks(text_folder: Path, shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = fit_words("lm", text_folder, out, "ddp", model_dropout=0, train_max_steps=5)
    words += ["--norm", "rmsnorm", "--devices", "2", "--nodes", "1"]
    assert_all_succeed([job(2, out, words) | {"slurm": True}])
    assert Path(f"{out}.log.0").read_text().splitlines()[-1] == str(out)
    assert Path(f"{out}.log.1").read_text() == ""
    assert len(losses(out)) == 5
    assert losses(out)[0] == losses(shared / "lm-ddp-rmsnorm")[0]


def test_a_number_of_ranks_that_cannot_share_a_step_is_refused(
    tiny_language: Build, tmp_path: Path
) -> None:
    run = fit(tiny_language(optim_accumulate=4, train_max_steps=4), out=tmp_path / "run")
    (run / "status.json").unlink()
    with pytest.raises(ValueError, match="divide the 4 batches.*got 3; use 1 or 2 or 4$"):
        resume(run, devices=3)
    with pytest.raises(ValueError, match="was started with --strategy auto"):
        resume(run, devices=1, strategy="fsdp2")


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"train_ema": 0.9}, {}, "train.ema"),
        ({"optim_name": "muon"}, {}, "optim.name=muon"),
        ({"train_precision": "bf16-true"}, {}, "train.precision=bf16-true"),
        ({}, {"compile": True}, "--compile"),
    ],
)
def test_options_that_fsdp2_lacks_are_refused_before_anything_is_written(
    changes: dict[str, Any],
    options: dict[str, Any],
    named: str,
    tiny_language: Build,
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=f"fsdp2 .* {named}"):
        fit(tiny_language(**changes), out=tmp_path / "run", strategy="fsdp2", **options)
    assert not (tmp_path / "run").exists()


def test_evaluation_on_two_ranks_finds_what_one_finds(
    learned: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    translation = shutil.copytree(learned["plain"], tmp_path / "translation")
    language = shutil.copytree(shared / "lm-ddp-rmsnorm", tmp_path / "language")
    runs = [translation, language]
    assert_all_succeed([job(2, run, ["evaluate", str(run), "--json"]) for run in runs])
    for run in runs:
        theirs = json.loads(Path(f"{run}.log.0").read_text().splitlines()[-1])
        assert Path(f"{run}.log.1").read_text() == ""
        assert theirs == json.loads((run / "evaluation-test.json").read_text(encoding="utf-8"))
        hypotheses = run / "hypotheses-test.txt"
        text = hypotheses.read_text(encoding="utf-8") if hypotheses.exists() else ""
        ours = evaluate(run)
        if run == translation:
            assert theirs == ours
            assert text == hypotheses.read_text(encoding="utf-8")
            assert ours["bleu"] > 1
        else:
            assert theirs.pop("loss") == pytest.approx(ours.pop("loss"), rel=1e-12)
            assert theirs["tokens"] == ours["tokens"]


def test_a_user_error_is_reported_once(shared: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(shared / "lm-ddp-rmsnorm"), "--split", "tset"]
    assert on_ranks([job(2, tmp_path / "tset", words)]) == [[2, 2]]
    said = (tmp_path / "tset.log.0").read_text()
    assert len(said.splitlines()) == 1, said
    assert "tset" in said
    assert (tmp_path / "tset.log.1").read_text() == ""


def test_two_ranks_fine_tune_a_language_model_and_resume(
    tiny_language: Build, text_folder: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    export(fit(tiny_language(), out=tmp_path / "first"), begun)
    run, again = tmp_path / "run", tmp_path / "again"
    changes = {"train_max_steps": 10, "model_dropout": 0.2}
    words = [*fit_words("lm", text_folder, run, "ddp", **changes), "--init-from", str(begun)]
    assert_all_succeed([job(2, run, [*words, "--norm", "rmsnorm"])])
    whole_rows = rows(run)
    assert [row["step"] for row in whole_rows if row["epoch"]] == [str(i) for i in range(1, 11)]
    assert whole_rows[0]["tokens"] == "128"  # 64 of each rank
    last = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert last.raw["normtrain"]["init"]["from"] == "begun"
    first, second = (state["torch"] for state in last.raw["random_state"])
    assert not torch.equal(first, second)  # each rank has dropout of its own
    # Every window of the validation split counts once, whichever rank had it.
    whole = evaluate(run / "checkpoints" / "last.ckpt", split="valid")
    assert float(whole_rows[-1]["val_loss"]) == pytest.approx(whole["loss"], rel=1e-6)
    shutil.rmtree(begun)
    assert_all_succeed([job(2, stopped_at(run, 4, again), ["fit", "--resume", str(again)])])
    assert rows(again) == whole_rows
    theirs = weights_of(again)
    assert all(torch.equal(w, theirs[name]) for name, w in weights_of(run).items())
