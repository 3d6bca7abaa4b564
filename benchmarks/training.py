"""Training throughput: this project's ``fit`` against a plain PyTorch loop, on the same batches.

    python benchmarks/training.py FOLDER               # FOLDER: train.en, train.vi, valid.…
    python benchmarks/training.py FOLDER --blocks 1 --steps 5 --max-tokens 512

Each measurement is a process of its own, since threads and allocator settings belong to a process.
In a block all arms train on the same batches in the same order; each block starts with another arm.
Counted are target tokens per second (without padding, EOS included), after the warm-up steps and
without start-up and validation. All arms train the same sizes with the same dropout, loss and
gradient clipping, on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import cpu_name
from turns import ALLOCATOR_VARIABLES

HERE = Path(__file__).resolve()


@dataclass(frozen=True)
class Arm:
    """One way to train; `kind` is normtrain or plain."""

    kind: str
    precision: str = "32"
    norm: str = "layernorm"
    keep_memory: bool = True
    stock_dropout: bool = False


ARMS = {
    "normtrain-layernorm": Arm("normtrain", "auto"),
    "normtrain-rmsnorm": Arm("normtrain", "auto", "rmsnorm"),
    "normtrain-layernorm-32": Arm("normtrain"),
    "normtrain-rmsnorm-32": Arm("normtrain", norm="rmsnorm"),
    "plain": Arm("plain", keep_memory=False),
    "plain-mallopt": Arm("plain"),
    "plain-mallopt-stock": Arm("plain", stock_dropout=True),
    "plain-mallopt-bf16": Arm("plain", "bf16-mixed"),
}


# --- The worker process: one arm, one block


def make_recipe(args: argparse.Namespace, arm: Arm) -> Any:
    from normtrain.config.recipe import from_plain

    steps = args.warmup + args.steps
    return from_plain({
        "name": "benchmark",
        "data": {"source": str(args.folder), "max_tokens": args.max_tokens, "max_length": 128,
                 "vocab_size": args.vocab},
        "model": {"norm": arm.norm, "d_model": args.d_model, "heads": args.heads,
                  "encoder_layers": args.layers, "decoder_layers": args.layers,
                  "d_ff": args.d_ff, "dropout": 0.1},
        "optim": {"schedule": "constant", "warmup_steps": min(400, steps - 1), "clip": 1.0,
                  "label_smoothing": 0.1},
        # One validation at most, after the last count.
        "train": {"max_steps": steps, "val_every": 10**6, "checkpoint_every": 10**6,
                  "log_every": args.warmup, "precision": arm.precision, "seed": args.block + 1},
    })  # fmt: skip


def same_data(args: argparse.Namespace) -> Any:
    """Load and encode the data that ``fit`` trains on."""
    from normtrain.tasks.translation.config import TranslationDataConfig
    from normtrain.tasks.translation.data import TranslationData

    config = TranslationDataConfig(
        source=str(args.folder), max_tokens=args.max_tokens, max_length=128, vocab_size=args.vocab
    )
    data = TranslationData(config, seed=args.block + 1, total_batches=args.warmup + args.steps)
    data.setup("fit")
    return data


def run_normtrain(args: argparse.Namespace, arm: Arm) -> dict[str, Any]:
    """Run ``fit``; return tokens and seconds between the end of the warm-up and the last step."""
    import torch

    from normtrain.training.callbacks.metrics import read_metrics
    from normtrain.training.fitting import fit
    from normtrain.training.folder import RunFolder

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as out:
        folder = RunFolder(fit(make_recipe(args, arm), out=Path(out) / "run"))
        rows = {int(r["step"]): r for r in read_metrics(folder.metrics_file) if r["tokens"]}
    first, last = rows[args.warmup], rows[args.warmup + args.steps]
    return {
        "tokens": int(last["tokens"]) - int(first["tokens"]),
        "seconds": float(last["seconds"]) - float(first["seconds"]),
        "loss": float(last["train_loss"]),
    }


def run_plain(args: argparse.Namespace, arm: Arm) -> dict[str, Any]:
    """Run the loop of plain_loop.py on the batches of ``fit``."""
    import plain_loop
    import torch

    from normtrain.training.machine import keep_freed_memory

    torch.set_num_threads(args.threads)
    if arm.keep_memory and not keep_freed_memory():
        print("the C library has no mallopt: the arm runs with its defaults", file=sys.stderr)
    torch.manual_seed(args.block + 1)
    data = same_data(args)
    sizes = plain_loop.Sizes(
        vocab=data.tokenizer.vocab_size,
        d_model=args.d_model,
        heads=args.heads,
        layers=args.layers,
        d_ff=args.d_ff,
        stock_dropout=arm.stock_dropout,
    )
    bf16 = arm.precision == "bf16-mixed"
    return dict(plain_loop.train(data.train_dataloader(), sizes, args.warmup, bf16))


def prepare(args: argparse.Namespace) -> dict[str, Any]:
    """Fill the cache of encoded data before any arm runs; return versions and machine."""
    import torch
    from pytorch_lightning import __version__ as lightning_version

    import normtrain
    from normtrain.training.machine import resolve_precision

    data = same_data(args)
    precision, reason = resolve_precision("auto")
    return {
        "normtrain": normtrain.__version__,
        "torch": torch.__version__,
        "lightning": lightning_version,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "auto": precision.removesuffix("-true"),
        "auto_reason": reason,
        "report": data.report,
    }


def worker(args: argparse.Namespace) -> None:
    if args.worker == "prepare":
        result = prepare(args)
    else:
        arm = ARMS[args.worker]
        result = (run_normtrain if arm.kind == "normtrain" else run_plain)(args, arm)
        result["peak_mib"] = peak_mib()
    args.result.write_text(json.dumps(result), encoding="utf-8")


def peak_mib() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- The process that starts the workers


def start(args: argparse.Namespace, name: str, block: int) -> dict[str, Any]:
    """Run one worker and read its result."""
    env = {k: v for k, v in os.environ.items() if k not in ALLOCATOR_VARIABLES}
    env |= {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads)}
    env |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    # So that the arms find a package that is not installed.
    paths = [str(HERE.parent.parent), env.get("PYTHONPATH", "")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, str(HERE), *sys.argv[1:]]
        command += ["--worker", name, "--block", str(block), "--result", str(result)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            sys.exit(
                f"{name} failed (exit {done.returncode}):\n{(done.stderr or done.stdout)[-3000:]}"
            )
        return json.loads(result.read_text(encoding="utf-8"))


def chosen(args: argparse.Namespace, auto: str) -> list[str]:
    """Return the arms to run: those given, else all that differ on this machine."""
    if args.arms:
        return list(args.arms)
    names = list(ARMS)
    if auto == "32":
        print("precision auto is 32 on this machine: its arms are left out")
        names = [n for n in names if not (ARMS[n].kind == "normtrain" and n.endswith("-32"))]
    return names


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run all arms in every block; the order rotates by one from block to block."""
    machine = start(args, "prepare", 0)
    describe(machine)
    names = chosen(args, machine["auto"])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for block in range(args.blocks):
        turn = block % len(names)
        for name in names[turn:] + names[:turn]:
            result = start(args, name, block)
            result["rate"] = result["tokens"] / result["seconds"]
            found[name].append(result)
            print(
                f"block {block + 1}/{args.blocks}  {name:24s}{result['rate']:8.0f} tokens/s",
                flush=True,
            )
        counts = {found[n][-1]["tokens"] for n in names}
        assert len(counts) <= 1, f"the arms did not see the same batches: {counts}"
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return {"machine": machine, "settings": settings, "arms": found}


def describe(machine: dict[str, Any]) -> None:
    print(
        f"normtrain {machine['normtrain']}, torch {machine['torch']}, Lightning "
        f"{machine['lightning']}, Python {machine['python']}\n"
        f"{machine['cpu']} ({machine['capability']}), {machine['cores']} cores, "
        f"{machine['threads']} threads; precision auto is {machine['auto']}: "
        f"{machine['auto_reason']}"
    )
    print("\n".join(machine["report"]))


def summarise(result: dict[str, Any], reference: str) -> None:
    """Print a Markdown table: medians, ranges, and ratios paired by block."""
    arms, auto = result["arms"], result["machine"]["auto"]
    base = arms.get(reference)
    print(f"\n| arm | precision | target tokens/s | range | ÷ {reference} | range | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    for name, blocks in arms.items():
        rates = [b["rate"] for b in blocks]
        ratios = [b["rate"] / r["rate"] for b, r in zip(blocks, base, strict=True)] if base else []
        shown = (
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f}"
            if ratios
            else "– | –"
        )
        precision = auto if ARMS[name].precision == "auto" else ARMS[name].precision
        peak = max(b["peak_mib"] for b in blocks)
        print(
            f"| {name} | {precision} | {statistics.median(rates):,.0f} | "
            f"{min(rates):,.0f}–{max(rates):,.0f} | {shown} | {peak:,} |"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="parallel text: train.en, train.vi, valid.en, …")
    for name, value in {
        "blocks": 5, "steps": 40, "warmup": 5, "threads": 2, "max_tokens": 4096, "vocab": 8000,
        "d_model": 256, "heads": 4, "layers": 3, "d_ff": 1024,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these (default: all)")
    parser.add_argument("--reference", choices=ARMS, default="plain-mallopt")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    for name, kind in {"worker": str, "block": int, "result": Path}.items():
        parser.add_argument(f"--{name}", type=kind, default=0 if kind is int else None,
                            help=argparse.SUPPRESS)  # fmt: skip
    return parser.parse_args()


def check(args: argparse.Namespace) -> None:
    if not args.folder.is_dir():
        sys.exit(f"{args.folder} must be a folder with train.en, train.vi and so on (plain or .gz)")
    if min(args.blocks, args.steps, args.warmup, args.threads) < 1:
        sys.exit("--blocks, --steps, --warmup and --threads must be >= 1")


def main() -> None:
    args = parse()
    check(args)
    if args.worker:
        worker(args)
        return
    result = measure(args)
    summarise(result, args.reference)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
