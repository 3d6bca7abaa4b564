"""Damaged checkpoints, ranks that die or hang, full disks: the message, and resuming."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from conftest import assert_misuse

from normtrain.errors import DamagedFile, RunError, UserError
from normtrain.training import read_checkpoint, resume
from normtrain.training.damage import ResumeFrom
from normtrain.training.ranks_lost import unanswered
from tools.campaigns import faults
from tools.campaigns.running import compared, rows, running, steps, wait_for_step
from tools.campaigns.tiny import tiny_settings

Command = Callable[..., Result]
TWO = ("--devices", "2", "--strategy", "ddp")


def flipped(path: Path) -> None:
    """Change one byte in the middle of the largest tensor, in the file itself."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        byte = file.read(1)[0]
        file.seek(size // 2)
        file.write(bytes([byte ^ 0x40]))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.fixture
def finished(trained: dict[str, Path]) -> Path:
    return trained["translation"]


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """A run as a kill after step 9 left it: ``last.ckpt`` is the newest numbered file."""
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "status.json").unlink()
    folder = run / "checkpoints"
    for step in range(10, 13):
        (folder / f"step-{step:08d}.ckpt").unlink()
    (folder / "last.ckpt").unlink()
    os.link(folder / "step-00000009.ckpt", folder / "last.ckpt")
    return run


@pytest.mark.parametrize(
    "damage",
    [flipped, *(pytest.param(other, marks=pytest.mark.extended) for other in (cut, emptied))],
)
def test_a_damaged_last_checkpoint_falls_back_to_the_newest_whole_one(
    damage: Callable[[Path], None],
    stopped: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = stopped / "checkpoints"
    damage(folder / "last.ckpt")  # and with it step 9: they are one file
    flipped(folder / "step-00000008.ckpt")
    resume(stopped)
    said = capsys.readouterr().err
    assert f"{folder / 'last.ckpt'} is damaged (" in said
    assert "resuming from step-00000007.ckpt" in said
    assert "after step 7" in said
    aside = {path.name for path in folder.glob("*.damaged")}
    assert aside >= {f"step-0000000{i}.ckpt.damaged" for i in (8, 9)} | {"last.ckpt.damaged"}
    assert compared(finished, stopped) == []
    for path in folder.glob("*.ckpt"):
        assert read_checkpoint(path).path == path


@pytest.mark.extended
def test_a_last_checkpoint_that_is_gone_is_replaced_too(stopped: Path, finished: Path) -> None:
    (stopped / "checkpoints" / "last.ckpt").unlink()
    resume(stopped)
    assert compared(finished, stopped) == []


def test_a_run_without_a_checkpoint_remembers_its_processes(stopped: Path) -> None:
    for file in (stopped / "checkpoints").iterdir():
        file.unlink()
    noted = json.loads((stopped / "machine.json").read_text(encoding="utf-8"))
    assert (noted["devices"], noted["nodes"]) == (1, 1)
    noted |= {"devices": 2, "step_batches": 2}
    (stopped / "machine.json").write_text(json.dumps(noted), encoding="utf-8")
    with pytest.raises(UserError, match="divide the 2 batches.*got 3"):
        resume(stopped, devices=3)


def test_no_whole_checkpoint_is_one_error(command: Command, stopped: Path) -> None:
    for path in (stopped / "checkpoints").glob("step-*.ckpt"):
        emptied(path)
    before = rows(stopped)
    assert_misuse(command("fit", "--resume", stopped), "last.ckpt", "no other", "is whole")
    assert rows(stopped) == before


def test_a_newer_format_is_not_damage(command: Command, stopped: Path) -> None:
    last = stopped / "checkpoints" / "last.ckpt"
    raw = torch.load(last, weights_only=True)
    raw["normtrain"]["version"] = 99
    last.unlink()
    torch.save(raw, last)
    assert_misuse(command("fit", "--resume", stopped), "format 99")
    assert not list(stopped.rglob("*.damaged"))


def test_evaluating_a_damaged_best_names_a_whole_one(command: Command, copy: Path) -> None:
    folder = copy / "checkpoints"
    shutil.copy(folder / "last.ckpt", folder / "other")
    best = folder / "best.ckpt"
    best.unlink()
    shutil.copy(folder / "other", best)
    flipped(best)
    said = command("evaluate", copy)
    assert_misuse(said, "best.ckpt", "damaged", f"{folder / 'last.ckpt'} is whole")
    with pytest.raises(DamagedFile):
        read_checkpoint(copy)


def test_ranks_that_resume_from_different_steps_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from normtrain.training import damage

    monkeypatch.setattr(damage, "all_gather", lambda step: [step, 7])
    begin = ResumeFrom(tmp_path / "step-00000008.ckpt", 8, [])  # type: ignore[arg-type]
    with pytest.raises(RunError, match="of steps 8, 7"):
        begin.setup(None, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), False),
        (RuntimeError("Timed out waiting 15000ms for recv operation to complete"), True),
        (type("DistBackendError", (RuntimeError,), {})("NCCL error"), False),
        (type("DistStoreError", (RuntimeError,), {})("wait timeout after 300000ms"), True),
        (RuntimeError("shape mismatch"), None),
        (RunError("could not write: connection reset by peer"), None),
        (UserError("timed out waiting"), None),
    ],
)
def test_errors_of_lost_ranks_are_recognized(error: Exception, expected: bool | None) -> None:
    assert unanswered(error) is expected


# Two processes. Each takes tens of seconds.


def two_rank_words(corpus: Path, out: Path, **changes: Any) -> list[str]:
    changes = {
        "train_max_steps": 30,
        "train_val_every": 10,
        "train_keep": 3,
        "model_dropout": 0.2,
    } | changes
    settings = [word for setting in tiny_settings(**changes) for word in ("--set", setting)]
    return ["--recipe", "envi", "--data", str(corpus), "--out", str(out), *settings]


@pytest.fixture(scope="module")
def whole(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with running(*two_rank_words(corpus_folder, out), *TWO) as process:
        code, _, err = process.end(250)
    assert code == 0, err
    return out


def assert_resumed_equals(run: Path, whole: Path) -> None:
    with running("--resume", str(run)) as process:
        code, _, err = process.end(250)
        assert code == 0, err
        assert process.left_behind() == []
    assert compared(whole, run) == []


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_killed_rank_ends_the_run_and_it_resumes(
    lost: int, whole: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with running(*two_rank_words(corpus_folder, run), *TWO) as process:
        wait_for_step(run, 11, process, 250)
        os.kill(process.rank(lost), signal.SIGKILL)
        code, out, err = process.end(60)
        assert process.left_behind() == []
    assert (code, out) == (1 if lost else -9, "")
    who = "process 2 of 2 (killed by SIGKILL)" if lost else "another process of the run"
    assert err.count("error: ") == 1, err
    assert f"error: {who} has ended" in err
    assert f"normtrain fit --resume {run}" in err
    assert "Traceback" not in err
    assert_resumed_equals(run, whole)


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, 0])
def test_a_hung_rank_ends_the_run_after_the_timeout(
    lost: int, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = two_rank_words(corpus_folder, run, train_max_steps=10_000)
    with running(*words, *TWO, "--timeout", "8") as process:
        wait_for_step(run, 3, process, 250)
        stopped = process.rank(lost)
        os.kill(stopped, signal.SIGSTOP)
        if lost == 0:  # a stopped first rank ends once it is continued
            deadline = time.monotonic() + 90
            while len(process.living()) > 1 and time.monotonic() < deadline:
                time.sleep(0.1)
            os.kill(stopped, signal.SIGCONT)
        code, _, err = process.end(90)
        assert process.left_behind() == []
    assert code == 1
    assert "no answer from another process for 8 s (--timeout)" in err
    assert err.count("error: ") == (1 if lost else 2), err
    assert f"normtrain fit --resume {run}" in err
    assert "Traceback" not in err


@pytest.mark.timeout(600)
@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_sigterm_to_all_saves_and_the_run_resumes(
    torchrun: bool, whole: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    machine = () if torchrun else TWO
    with running(*two_rank_words(corpus_folder, run), *machine, torchrun=torchrun) as process:
        wait_for_step(run, 4, process, 250)
        for pid in process.living():
            os.kill(pid, signal.SIGTERM)
        code, _, err = process.end(60)
        assert process.left_behind() == []
    assert code == (1 if torchrun else 130), err
    assert err.count("stopped by SIGTERM after step ") == 1
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert f"stopped by SIGTERM after step {last['global_step']}; " in err
    assert last["global_step"] < 30
    assert steps(run) == last["global_step"]
    assert_resumed_equals(run, whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_killed_saves_and_ends(corpus_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = two_rank_words(corpus_folder, run, train_max_steps=10_000)
    with running(*words, torchrun=True) as process:
        wait_for_step(run, 4, process, 250)
        os.kill(process.pid, signal.SIGKILL)
        process.popen.wait()
        assert process.left_behind(60) == []
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps(run)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_under_one_rank_ends_the_other(corpus_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = two_rank_words(corpus_folder, run, train_max_steps=10_000)
    with running(*words, *TWO) as process:
        wait_for_step(run, 4, process, 250)
        os.chmod(run / "checkpoints", 0o500)
        shutil.move(run / "checkpoints", run / "moved")
        (run / "checkpoints").write_text("no folder, so nothing can be written\n")
        code, _, err = process.end(60)
        assert process.left_behind() == []
    assert code == 1
    assert "error: could not write" in err
    assert err.count("error: ") == 1, err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_random_kills(tmp_path: Path) -> None:
    made = faults.campaign(tmp_path, 2, {1}, seed=1, steps=120)
    assert made.losses + made.complaints == []
    assert len(made.faults) == 2


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_campaign_of_fifty_kills(tmp_path: Path) -> None:
    made = faults.campaign(tmp_path, 50, {1, 2}, seed=1)
    print(made.table())
    assert made.losses + made.complaints == []
    assert len(made.faults) >= 50
