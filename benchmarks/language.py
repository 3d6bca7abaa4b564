"""Training throughput of language models: this project's ``fit`` against litgpt and a plain loop.

    python benchmarks/language.py [--litgpt PYTHON]    # PYTHON: an interpreter that has litgpt

Every measurement is a process of its own; the arms take turns, and each block begins with another
one. Block k gives every arm the same windows of text in the same order. What is counted is target
tokens a second after the warm-up, without start-up and validation, in float32 on the CPU, freed
memory kept by every arm alike. Arms are compared in pairs of one architecture: learned positions
with the plain loop, rotary ones with litgpt, LayerNorm and RMSNorm.
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

HERE = Path(__file__).resolve().parent
# ours: norm and positions; theirs: the arm of plain_language.py
PAIRS = {
    "learned, LayerNorm": ({"norm": "layernorm:bias=false", "positions": "learned"}, "plain"),
    "rotary, LayerNorm": ({"norm": "layernorm", "positions": "rotary"}, "LayerNorm"),
    "rotary, RMSNorm": ({"norm": "rmsnorm", "positions": "rotary"}, "RMSNorm"),
}


def make_recipe(args: argparse.Namespace, seed: int, model: dict[str, Any]) -> Any:
    from normtrain.recipe import from_plain

    steps = args.warmup + args.steps
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
                  "log_every": args.warmup, "precision": "32", "seed": seed},
    })  # fmt: skip


def write_batches(args: argparse.Namespace, seed: int, file: Path) -> dict[str, Any]:
    """The windows that ``fit`` trains on, for the others; sizes that they need."""
    import numpy as np

    from normtrain.run.kinds import kind_of

    recipe = make_recipe(args, seed, {})
    data = kind_of(recipe).data(recipe, None, None)
    data.setup("fit")
    np.save(file, np.stack([batch["tokens"].numpy() for batch in data.train_dataloader()]))
    return {
        **{key: getattr(args, key) for key in ("d_model", "heads", "layers", "window", "warmup")},
        "d_ff": 4 * args.d_model,
        "vocab": data.tokenizer.vocab_size,
    }


def ours(args: argparse.Namespace, seed: int, model: dict[str, Any], result: Path) -> None:
    """The real ``fit``, in this process; tokens and seconds from the rows it wrote."""
    import resource

    import torch

    from normtrain.callbacks.metrics import read_metrics
    from normtrain.run import fit, read_checkpoint

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as out:
        run = fit(make_recipe(args, seed, model), out=Path(out) / "run")
        rows = {int(r["step"]): r for r in read_metrics(run / "metrics.csv") if r["tokens"]}
        weights = read_checkpoint(run).model().parameters()
    first, last = rows[args.warmup], rows[args.warmup + args.steps]
    result.write_text(json.dumps({
        "tokens": int(last["tokens"]) - int(first["tokens"]),
        "seconds": float(last["seconds"]) - float(first["seconds"]),
        "loss": float(last["train_loss"]),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "parameters": sum(p.numel() for p in weights),
    }), encoding="utf-8")  # fmt: skip


def start(command: list[str], threads: int, result: Path) -> dict[str, Any]:
    """Run one arm in a process of its own and read what it found."""
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), env.get("PYTHONPATH")]))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode or not result.exists():
        sys.exit(f"{command[1:4]} failed:\n{(done.stderr or done.stdout)[-3000:]}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return found | {"rate": found["tokens"] / found["seconds"]}


def measure(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All arms in every block, in an order that moves on by one from block to block."""
    arms: dict[str, tuple[str, Any]] = {}
    for name, (model, theirs) in PAIRS.items():
        if theirs == "plain" or args.litgpt:
            arms[f"{name}: normtrain"] = ("ours", model)
            arms[f"{name}: {'plain loop' if theirs == 'plain' else 'litgpt'}"] = ("theirs", theirs)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    names = list(arms)
    with tempfile.TemporaryDirectory() as scratch:
        for block in range(args.blocks):
            batches = Path(scratch) / f"{block}.npy"
            sizes = json.dumps(write_batches(args, block + 1, batches))
            turn = block % len(names)
            for name in names[turn:] + names[:turn]:
                who, what = arms[name]
                result = Path(scratch) / f"{block}-{len(found[name])}-{who}.json"
                result.unlink(missing_ok=True)
                if who == "ours":
                    command = [sys.executable, str(HERE / "language.py"), *sys.argv[1:], "--seed"]
                    command += [str(block + 1), "--ours", json.dumps(what), str(result)]
                else:
                    python = sys.executable if what == "plain" else args.litgpt
                    command = [python, str(HERE / "plain_language.py"), what, str(batches)]
                    command += [sizes, str(args.threads), str(result)]
                found[name].append(start(command, args.threads, result))
                rate = found[name][-1]["rate"]
                print(
                    f"block {block + 1}/{args.blocks}  {name:34s}{rate:8.0f} tokens/s", flush=True
                )
    return found


def summarise(found: dict[str, list[dict[str, Any]]]) -> None:
    """The table in Markdown: medians, and ratios paired by block."""
    print("\n| arm | parameters | tokens/s | range | ÷ the other | range | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    names = list(found)
    for own, other in zip(names[::2], names[1::2], strict=True):
        for name in (own, other):
            rates = [block["rate"] for block in found[name]]
            ratios = [a["rate"] / b["rate"] for a, b in zip(found[own], found[other], strict=True)]
            shown = f"{statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f}"
            print(
                f"| {name} | {found[name][0]['parameters']:,} | {statistics.median(rates):,.0f} | "
                f"{min(rates):,.0f}–{max(rates):,.0f} | {shown if name == own else ' | '} | "
                f"{max(block['peak_mib'] for block in found[name]):,} |"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name, value in {
        "blocks": 5, "steps": 40, "warmup": 5, "threads": 2, "max_tokens": 4096, "window": 256,
        "vocab": 4000, "d_model": 256, "heads": 4, "layers": 4,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--litgpt", metavar="PYTHON", help="an interpreter that has litgpt")
    parser.add_argument("--json", metavar="FILE", help="write all figures there too")
    parser.add_argument("--seed", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if min(args.blocks, args.steps, args.warmup, args.threads) < 1:
        sys.exit("--blocks, --steps, --warmup and --threads are 1 or more")
    if args.ours:
        ours(args, args.seed, json.loads(args.ours[0]), Path(args.ours[1]))
        return
    found = measure(args)
    summarise(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
