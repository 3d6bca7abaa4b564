"""Runs killed again and again at random moments, resumed, and compared bit by bit with whole ones.

    python -m tools.campaigns.faults --kills 50 --ranks 1,2 --seed 1

Every run is a real process ``python cli.py fit …``. Some kills come at a moment drawn from a
clock, some as soon as a checkpoint is being written, a validation runs, or before the first step;
what the folder looks like afterwards says where one hit. docs/reliability.md has what came out.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.campaigns.running import Process, compared, rows, running, steps
from tools.campaigns.tiny import TINY, TINY_TEXT, tiny_settings, write_corpus, write_text

VAL_EVERY, SAVE_EVERY = 20, 7
SHARED = {
    "model_d_model": 96,  # saving shall take some time too
    "model_d_ff": 384,
    "train_val_every": VAL_EVERY,
    "train_checkpoint_every": SAVE_EVERY,
    "train_keep": 3,
}


@dataclass(frozen=True)
class Setting:
    """A kind of run."""

    name: str
    ranks: int
    task: str
    changes: dict[str, Any]
    torchrun: bool = False

    def words(self, out: Path, texts: Path, steps: int) -> list[str]:
        """What follows ``fit`` for a new run."""
        tiny = TINY if self.task == "translation" else TINY_TEXT
        recipe = "envi" if self.task == "translation" else "lm"
        changes = SHARED | {"model_dropout": 0.2, "train_max_steps": steps} | self.changes
        settings = [w for s in tiny_settings(tiny, **changes) for w in ("--set", s)]
        machine = ["--devices", "2", "--strategy", "ddp"] if self.ranks == 2 else []
        machine = [] if self.torchrun else machine
        words = ["--recipe", recipe, "--data", str(texts / self.task), "--out", str(out)]
        return [*words, *machine, *settings]


SETTINGS = (
    Setting("translation, averaged weights", 1, "translation", {"train_ema": 0.9}),
    Setting(
        "translation, 2 workers, 2 batches an update",
        *(1, "translation", {"data_workers": 2, "optim_accumulate": 2}),
    ),
    Setting(
        "language, averaged weights, 2 batches an update",
        *(1, "language", {"train_ema": 0.9, "optim_accumulate": 2}),
    ),
    Setting("language, 2 workers", 1, "language", {"data_workers": 2}),
    Setting(
        "translation, averaged weights, 2 batches an update",
        *(2, "translation", {"train_ema": 0.9, "optim_accumulate": 2}),
    ),
    Setting("language, 2 workers, torchrun", 2, "language", {"data_workers": 2}, torchrun=True),
)


@dataclass
class Fault:
    """One fault and what came of it."""

    setting: Setting
    kind: str
    moment: str
    redone: int
    seconds: float = 0.0


@dataclass
class Campaign:
    """Counts, and where everything lies."""

    home: Path
    rng: random.Random
    steps: int
    faults: list[Fault] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    whole_runs: int = 0

    def setting(self, setting: Setting, kills: int) -> None:
        """Kill runs of a setting so many times, and compare each that came to its end."""
        whole = self.home / "whole"
        shutil.rmtree(whole, ignore_errors=True)
        with running(*setting.words(whole, self.home, self.steps), torchrun=setting.torchrun) as p:
            code, _, err = p.end(900)
            assert code == 0, err
        left, number = kills, 0
        while left:
            number += 1
            run = self.home / f"run-{number}"
            shutil.rmtree(run, ignore_errors=True)
            left = self._one_run(setting, run, left)
            found = compared(whole, run)
            self._check(not found, f"{setting.name}: {', '.join(found[:5])}", loss=True)
            self._check(not list(run.rglob("*.tmp")), f"{setting.name}: temporary files left")
            self.whole_runs += 1

    def _one_run(self, setting: Setting, run: Path, kills: int) -> int:
        """Start, kill and resume one run until it is done; the kills that are left."""
        pending: Fault | None = None
        reached = 0
        while not (run / "status.json").exists():
            begun = (run / "recipe.yaml").exists()
            words = setting.words(run, self.home, self.steps)
            words = ["--resume", str(run)] if begun else words
            started = time.monotonic()
            with running(*words, torchrun=setting.torchrun) as process:
                if pending is not None:
                    self._wait_beyond(process, run, reached)
                    pending.seconds = time.monotonic() - started
                    self._tell(pending)
                    pending = None
                if kills == 0:
                    code, _, err = process.end(900)
                    self._check(code == 0, f"{setting.name}: exit {code}: {err[-500:]}", loss=True)
                    if code:
                        break
                    continue
                pending = self._disturb(setting, process, run, steps(run))
                reached = max(reached, steps(run))
            if pending is not None:
                kills -= 1
                self.faults.append(pending)
        if pending is not None:
            self._tell(pending)
        return kills

    def _tell(self, fault: Fault) -> None:
        shown = (fault.setting.ranks, fault.kind, fault.moment, fault.redone, fault.seconds)
        print("{} ranks  {:<16} {:<12} {:>3} steps again  {:5.1f} s".format(*shown), flush=True)

    def _check(self, right: bool, what: str, *, loss: bool = False) -> None:
        """A loss is a run that doesn't go on or comes out otherwise; a complaint, how it ended."""
        if not right:
            (self.losses if loss else self.complaints).append(what)
            print(f"{'LOSS' if loss else 'complaint'}: {what}", flush=True)

    def _wait_beyond(self, process: Process, run: Path, step: int) -> None:
        deadline = time.monotonic() + 400
        while steps(run) <= step and process.popen.poll() is None:
            assert time.monotonic() < deadline, f"no progress beyond step {step}"
            time.sleep(0.02)

    def _disturb(self, setting: Setting, process: Process, run: Path, before: int) -> Fault | None:
        """Wait for the moment, kill, and see everything end; None where the run was done first."""
        aim = self.rng.choices(["clock", "saving", "validation", "starting"], weights=[5, 3, 3, 1])[
            0
        ]
        if not _await(aim, process, run, before, self.rng):
            code, _, err = process.end(900)
            self._check(code == 0, f"{setting.name}: exit {code}: {err[-500:]}", loss=True)
            return None
        kind = self._strike(setting, process)
        try:
            code, _, err = process.end(150)
        except subprocess.TimeoutExpired:
            self._check(False, f"{setting.name}: {kind}: it did not end")
            return Fault(setting, kind, "hung", 0)
        self._check(not process.left_behind(60), f"{setting.name}: {kind}: processes left behind")
        own = kind in ("SIGTERM", "one rank", "a data worker") and not setting.torchrun
        if own:  # data workers whose process was killed, and torchrun, print tracebacks of theirs
            self._check("Traceback" not in err, f"{setting.name}: {kind}: a traceback")
        if (run / "status.json").exists():
            return None
        expected = {"SIGTERM": (130, -15), "one rank": (1,), "a data worker": (1,)}
        if not setting.torchrun:
            right = code in expected.get(kind, (-9,))
            self._check(right, f"{setting.name}: {kind}: exit {code}: {err[-300:]}")
        saved = _saved(run)
        return Fault(setting, kind, _moment(run, before, kind), max(0, steps(run) - saved))

    def _strike(self, setting: Setting, process: Process) -> str:
        """One fault, of a kind drawn at random; its name."""
        kinds = ["first process", "all processes", "SIGTERM"]
        kinds += ["one rank"] * 2 if setting.ranks == 2 else []
        kinds += ["a data worker"] if setting.changes.get("data_workers") else []
        kind = self.rng.choice(kinds)
        if kind == "all processes":
            process.kill_all()
        elif kind == "one rank":
            chosen = self.rng.choice(process.ranks() or [process.pid])
            _kill(chosen)
            kind = "one rank" if chosen != process.pid else "first process"
        elif kind == "a data worker":
            workers = process.workers()
            _kill(self.rng.choice(workers or [process.pid]))
            kind = kind if workers else "first process"
        else:
            sent = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
            os.kill(process.pid, sent)
        return kind

    def table(self) -> str:
        """What happened."""
        lines = []
        for by in ("kind", "moment"):
            counts = Counter(getattr(fault, by) for fault in self.faults)
            lines += [f"by {by}: " + ", ".join(f"{k} {n}" for k, n in counts.most_common())]
        ranks = Counter(fault.setting.ranks for fault in self.faults)
        lines.append("by ranks: " + ", ".join(f"{k}: {n}" for k, n in sorted(ranks.items())))
        redone = sum(fault.redone for fault in self.faults)
        seconds = sum(fault.seconds for fault in self.faults)
        lines.append(f"faults: {len(self.faults)}; runs that came to their end: {self.whole_runs}")
        lines.append(f"steps done again: {redone}; seconds to be as far again: {seconds:.0f}")
        lines.append(f"losses: {len(self.losses)}; complaints: {len(self.complaints)}")
        return "\n".join([*lines, *self.losses, *self.complaints])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _saved(run: Path) -> int:
    numbers = [int(p.stem[5:]) for p in (run / "checkpoints").glob("step-*.ckpt")]
    return max(numbers, default=0)


def _writing(run: Path) -> bool:
    return any((run / "checkpoints").glob(".*.tmp"))


def _validating(run: Path) -> bool:
    """Whether the newest row is a step that is validated, and its validation isn't there yet."""
    with contextlib.suppress(ValueError):
        found = rows(run)[-1:]
        return any(int(r["step"]) % VAL_EVERY == 0 and not r["val_loss"] for r in found)
    return False


def _await(aim: str, process: Process, run: Path, before: int, rng: random.Random) -> bool:
    """Wait for a moment to kill at; False where the run ended first."""
    if aim == "starting":
        deadline = time.monotonic() + rng.uniform(1, 15)
        while time.monotonic() < deadline and steps(run) <= before:
            time.sleep(0.02)
        return process.popen.poll() is None
    while steps(run) <= before:
        if process.popen.poll() is not None:
            return False
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 2.5 if aim == "clock" else 0.8))
    if aim in ("saving", "validation"):
        there = _writing if aim == "saving" else _validating
        while not there(run) and process.popen.poll() is None:
            time.sleep(0.0005)
    if aim == "validation":
        time.sleep(rng.uniform(0, 0.05))
    return process.popen.poll() is None


def _moment(run: Path, before: int, kind: str) -> str:
    """Where a kill hit, by what it left."""
    if kind == "SIGTERM":
        return "asked"
    if steps(run) <= before:
        return "starting"
    numbered = _saved(run)
    last = run / "checkpoints" / "last.ckpt"
    newest = run / "checkpoints" / f"step-{numbered:08d}.ckpt"
    halfway = numbered and not (last.exists() and last.samefile(newest))
    if _writing(run) or halfway:
        return "saving"
    return "validation" if _validating(run) else "steps"


def shares(kills: int, settings: list[Setting]) -> list[int]:
    """Kills of each setting: as many for each, the first ones get what is over."""
    each, over = divmod(kills, len(settings))
    return [each + (i < over) for i in range(len(settings))]


def campaign(home: Path, kills: int, ranks: set[int], seed: int, steps: int = 260) -> Campaign:
    """Kill so many times, over all settings of these numbers of ranks."""
    os.environ["NORMTRAIN_CACHE"] = str(home / "cache")
    os.environ["HF_HUB_OFFLINE"] = "1"
    write_corpus(home / "translation")
    write_text(home / "language")
    made = Campaign(home, random.Random(seed), steps)
    chosen = [setting for setting in SETTINGS if setting.ranks in ranks]
    for setting, count in zip(chosen, shares(kills, chosen), strict=True):
        if count:
            print(f"{setting.name}, {setting.ranks} ranks: {count} kills", flush=True)
            made.setting(setting, count)
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=260, help="of each run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        ranks = {int(rank) for rank in given.ranks.split(",")}
        made = campaign(Path(home), given.kills, ranks, given.seed, given.steps)
    print(made.table())
    sys.exit(1 if made.losses or made.complaints else 0)


if __name__ == "__main__":
    main()
