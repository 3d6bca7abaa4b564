"""What ``NormMonitor`` costs: the same batches with it, with it idle, and without.

    python benchmarks/monitor.py                            # the envi recipe, CPU, 2 threads
    python benchmarks/monitor.py --device cuda --rounds 100
    python benchmarks/monitor.py --logger tensorboard --every 10

One Trainer trains the recipe's model. Every batch comes three times in a row, in changing order:
without the monitor, with it on a step that it does not measure, and on one that it measures. The
ratio of a round is the time of a batch with the monitor over that of the same batch without, from
the first callback of the batch to the last; a GPU is synchronized before the clock is read. Printed
are medians of the ratios with the middle half, and the cost of a run that measures every
``--every`` steps: ((every - 1) * idle + measured) / every.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from typing import Any

import pytorch_lightning as pl
import torch
from machine import cpu_name
from torch.utils.data import DataLoader

from normtrain import NormMonitor
from normtrain.config import recipe
from normtrain.tasks.translation.data import TranslationData
from normtrain.tasks.translation.module import TranslationModule
from normtrain.training.machine import keep_freed_memory

ARMS = ("without", "idle", "measured")
NEVER = 10**9


class Clock(pl.Callback):
    """Times each step and sets the callbacks of the next one.

    Args:
        monitor: the `NormMonitor` that is measured.
        arms: the arm of every step.
    """

    def __init__(self, monitor: Any, arms: list[str]) -> None:
        self.monitor, self.arms = monitor, arms
        self.seconds: list[float] = []
        self._end = End(self)
        self._start = 0.0

    def callbacks(self) -> list[pl.Callback]:
        """Return the callbacks of the next step."""
        arm = self.arms[len(self.seconds)] if len(self.seconds) < len(self.arms) else "idle"
        self.monitor.every = 1 if arm == "measured" else NEVER
        return [self, *([] if arm == "without" else [self.monitor]), self._end]

    def on_train_batch_start(self, *args: Any) -> None:
        synchronize()
        self._start = time.perf_counter()

    def stop(self, trainer: pl.Trainer) -> None:
        """Record the time of the step."""
        synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        trainer.callbacks = self.callbacks()


class End(pl.Callback):
    """The last callback of a step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.clock.stop(trainer)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def load_data(made: recipe.Recipe) -> TranslationData:
    """Load the data that ``fit`` trains on."""
    data = TranslationData(made.data, seed=made.train.seed)
    data.setup("fit")
    return data


def measure(args: argparse.Namespace, folder: str) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of each arm, one per round, and the number of norms."""
    made = recipe.load(args.recipe)
    pl.seed_everything(made.train.seed)
    data = load_data(made)
    batches = list(itertools.islice(itertools.cycle(data.train_dataloader()), args.rounds))
    # The first steps are warm-up; the monitor is active from the start, to find its norms.
    arms = ["idle"] * args.warmup
    for order in itertools.islice(itertools.cycle(itertools.permutations(ARMS)), args.rounds):
        arms += order
    monitor = NormMonitor(every=NEVER)
    clock = Clock(monitor, arms)
    logger: Any = False
    if args.logger == "tensorboard":
        logger = pl.loggers.TensorBoardLogger(folder)
    trainer = pl.Trainer(
        accelerator="cpu" if args.device == "cpu" else "gpu",
        devices=1,
        precision=args.precision,
        max_steps=len(arms),
        callbacks=clock.callbacks(),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    stream = [batches[0]] * args.warmup + [batch for batch in batches for _ in ARMS]
    loader = DataLoader(stream, batch_size=None)
    trainer.fit(TranslationModule(made, data.tokenizer), loader)
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for arm, seconds in list(zip(arms, clock.seconds, strict=True))[args.warmup :]:
        found[arm].append(seconds)
    return found, len(monitor.last)


def cell(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.4f} ({low:.4f}–{high:.4f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="envi")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", default="32-true", help="as Lightning's Trainer takes it")
    parser.add_argument(
        "--every", type=int, default=50, help="steps between measurements, for the last line"
    )
    parser.add_argument("--logger", choices=("none", "tensorboard"), default="none")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=6, help="steps before counting")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        found, norms = measure(args, folder)
    report(args, found, norms)


def report(args: argparse.Namespace, found: dict[str, list[float]], norms: int) -> None:
    """Print the results and the machine."""
    ratios = {
        arm: [a / b for a, b in zip(found[arm], found["without"], strict=True)] for arm in ARMS[1:]
    }
    where = torch.cuda.get_device_name() if args.device == "cuda" else cpu_name()
    print(
        f"{where}, {args.threads} of {os.cpu_count()} threads; torch {torch.__version__}, ", end=""
    )
    print(
        f"Python {platform.python_version()}; {args.recipe}, {args.precision}, {norms} norms, ",
        end="",
    )
    print(f"logger {args.logger}, {args.rounds} rounds")
    print(f"step without  {statistics.median(found['without']) * 1e3:.2f} ms")
    for arm in ARMS[1:]:
        print(f"{arm:8s} step {cell(ratios[arm])} of one without")
    idle, measured = (statistics.median(ratios[arm]) for arm in ARMS[1:])
    extra = ((args.every - 1) * idle + measured) / args.every - 1
    print(f"every={args.every}: {extra:+.2%} step time")
    print(f"  of which measuring {(measured - idle) / args.every:+.2%}, idle steps {idle - 1:+.2%}")


if __name__ == "__main__":
    main()
