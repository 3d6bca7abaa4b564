"""Training throughput of language models: this project's ``fit`` against litgpt and a plain loop.

    python benchmarks/language.py [--litgpt PYTHON]    # PYTHON: an interpreter that has litgpt

Each arm is a process of its own. All are alive at once and take turns while the others wait, so
that other load on the machine affects all alike. Each block starts new processes, so that no single
process decides. All train on the same windows of text in the same order. Counted are target tokens
per second of a turn, including everything between two steps, without start-up, validation and
saving; float32 on the CPU. Arms are compared in pairs of one architecture: learned positions with
the plain loop, as usually written and with the settings that `fit` chooses; rotary positions with
litgpt under those settings, with LayerNorm and with RMSNorm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import ALLOCATOR_VARIABLES, Arm, Turn

HERE = Path(__file__).resolve().parent
# our norm and positions, and the arm of plain_language.py it is compared with
LEARNED = {"norm": "layernorm:bias=false", "positions": "learned"}
RIVALS = {"plain": "plain loop", "tuned": "tuned plain loop"}  # others: litgpt with that norm
PAIRS = {
    "learned, LayerNorm": (LEARNED, "plain"),
    "learned, LayerNorm, tuned": (LEARNED, "tuned"),
    "rotary, LayerNorm": ({"norm": "layernorm", "positions": "rotary"}, "LayerNorm"),
    "rotary, RMSNorm": ({"norm": "rmsnorm", "positions": "rotary"}, "RMSNorm"),
}


def make_recipe(args: argparse.Namespace, model: dict[str, Any]) -> Any:
    from normtrain.config.recipe import from_plain

    steps = args.warmup + args.rounds * args.steps + 1  # the last step only ends a turn
    return from_plain({
        "name": "benchmark",
        "task": "language",
        "data": {"source": "python", "tokenizer": "bpe", "vocab_size": args.vocab,
                 "window": args.window, "max_tokens": args.max_tokens},
        "model": {"d_model": args.d_model, "heads": args.heads, "layers": args.layers,
                  "d_ff": 4 * args.d_model, "activation": "gelu", "dropout": 0.0, "bias": False,
                  "max_positions": args.window, **model},
        "optim": {"schedule": "constant", "warmup_steps": 0, "clip": 1.0},
        "train": {"max_steps": steps, "val_every": 10**6, "checkpoint_every": 10**6,
                  "log_every": 10, "precision": "32", "seed": args.seed},
    })  # fmt: skip


def write_batches(args: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Save the windows that ``fit`` trains on; return the sizes that the other arms need."""
    import numpy as np

    from normtrain.tasks.base import task_of

    recipe = make_recipe(args, {})
    data = task_of(recipe).data(
        recipe, revision=None, tokenizer=None, total_batches=recipe.train.max_steps
    )
    data.setup("fit")
    np.save(file, np.stack([batch["tokens"].numpy() for batch in data.train_dataloader()]))
    return {
        **{key: getattr(args, key) for key in ("d_model", "heads", "layers", "window")},
        "warmup": args.warmup,
        "steps": args.steps,
        "d_ff": 4 * args.d_model,
        "vocab": data.tokenizer.vocab_size,
    }


def ours(args: argparse.Namespace, model: dict[str, Any], out: Path) -> None:
    """Run the real ``fit`` in this process; each training step first waits for its turn."""
    import torch

    from normtrain.tasks.language.module import LanguageModule
    from normtrain.training import fit

    torch.set_num_threads(args.threads)
    turn = Turn(args.warmup, args.steps)
    step = LanguageModule.training_step

    def in_turns(self: LanguageModule, batch: Any, index: int) -> Any:
        targets = int(self.count_targets(batch))
        turn.begin_step(targets, lambda: sum(p.numel() for p in self.model.parameters()))
        return step(self, batch, index)

    LanguageModule.training_step = in_turns  # type: ignore[method-assign]
    fit(make_recipe(args, model), out=out)


def start(args: argparse.Namespace, scratch: Path) -> dict[str, Arm]:
    """Start every arm as a process of its own, one after the other, each warmed up."""
    sizes = json.dumps(write_batches(args, scratch / "batches.npy"))
    env = {k: v for k, v in os.environ.items() if k not in ALLOCATOR_VARIABLES}
    env |= {"OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), env.get("PYTHONPATH")]))
    arms: dict[str, Arm] = {}
    for name, (model, theirs) in PAIRS.items():
        if (theirs not in RIVALS and not args.litgpt) or args.pair not in (None, name):
            continue
        command = [sys.executable, str(HERE / "language.py"), *sys.argv[1:]]
        command += ["--ours", json.dumps(model), str(scratch / f"run{len(arms)}")]
        arms[f"{name}: normtrain"] = Arm(command, env)
        python = sys.executable if theirs in RIVALS else args.litgpt
        command = [python, str(HERE / "plain_language.py"), theirs, str(scratch / "batches.npy")]
        rival = RIVALS.get(theirs, "litgpt")
        arms[f"{name}: {rival}"] = Arm([*command, sizes, str(args.threads)], env)
    return arms


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Measure the turns of every arm, in all blocks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for number in range(args.blocks):
        with tempfile.TemporaryDirectory() as scratch:
            arms = start(args, Path(scratch))
            for name, turns in take_turns(arms, args.rounds).items():
                found.setdefault(name, []).extend({"block": number + 1, **turn} for turn in turns)
        shown = "  ".join(
            f"{own}: {statistics.median(ratios):.3f}"
            for own, ratios in paired(found, number + 1).items()
        )
        print(f"block {number + 1}/{args.blocks}  {shown}", flush=True)
    return found


def take_turns(arms: dict[str, Arm], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Give each arm a turn per round; the order within a pair alternates from round to round."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds):
        for pair in zip(names[::2], names[1::2], strict=True):
            for name in pair[:: 1 if number % 2 else -1]:
                found[name].append(arms[name].turn())
        rates = "  ".join(f"{found[name][-1]['rate']:6.0f}" for name in names)
        print(f"round {number + 1}/{rounds}  {rates} tokens/s", flush=True)
    for arm in arms.values():
        arm.stop()
    return found


def paired(found: dict[str, list[dict[str, Any]]], block: int | None = None) -> dict[str, Any]:
    """Return our rate divided by the other's, per round, of one block or of all."""
    names = list(found)
    return {
        own: [
            a["rate"] / b["rate"]
            for a, b in zip(found[own], found[other], strict=True)
            if block in (None, a["block"])
        ]
        for own, other in zip(names[::2], names[1::2], strict=True)
    }


def quartiles(values: list[float]) -> list[float]:
    """Return the lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def summarise(found: dict[str, list[dict[str, Any]]]) -> None:
    """Print a Markdown table: medians and quartiles, and ratios paired by round."""
    print("\n| arm | parameters | tokens/s | quartiles | ÷ the other | quartiles | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    ratios = paired(found)
    for name, turns in found.items():
        low, middle, high = quartiles([turn["rate"] for turn in turns])
        ratio = " | "
        if name in ratios:
            ratio = "{1:.3f} | {0:.3f}–{2:.3f}".format(*quartiles(ratios[name]))
        print(
            f"| {name} | {turns[0]['parameters']:,} | {middle:,.0f} | {low:,.0f}–{high:,.0f} | "
            f"{ratio} | {max(turn['peak_mib'] for turn in turns):,} |"
        )


def has_litgpt(python: str) -> bool:
    """Return whether an interpreter has litgpt, before anything is trained."""
    try:
        return subprocess.run([python, "-c", "import litgpt"], capture_output=True).returncode == 0
    except OSError:
        return False


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in {
        "blocks": 5, "rounds": 40, "steps": 1, "warmup": 5, "threads": 2, "max_tokens": 2048,
        "window": 256, "vocab": 4000, "d_model": 256, "heads": 4, "layers": 4, "seed": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--litgpt", metavar="PYTHON", help="an interpreter that has litgpt")
    parser.add_argument("--pair", choices=PAIRS, help="one pair only")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if min(args.blocks, args.rounds - 1, args.steps, args.warmup, args.threads) < 1:
        sys.exit("--blocks, --steps, --warmup and --threads must be >= 1, --rounds >= 2")
    if args.pair and args.pair.startswith("rotary") and not args.litgpt:
        sys.exit(f"--pair {args.pair!r} needs --litgpt PYTHON, an interpreter that has litgpt")
    if args.ours:
        ours(args, json.loads(args.ours[0]), Path(args.ours[1]))
        return
    if args.litgpt and not has_litgpt(args.litgpt):
        sys.exit(f"--litgpt {args.litgpt}: not a Python interpreter that can import litgpt")
    found = measure(args)
    summarise(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
