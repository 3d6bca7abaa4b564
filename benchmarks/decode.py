"""Beam search: this project against ``generate`` of ``transformers``, on equal work.

    python benchmarks/decode.py                        # d=256, 3+3 layers, 8,000 tokens, beam 5
    python benchmarks/decode.py --sentences 8 --repeats 1 --length 10
    python benchmarks/decode.py --run runs/RUN --data FOLDER --split test

Without ``--run`` both models have random weights and the same sizes, read the same source sentences
and write the same number of tokens, so the ratio compares implementations only.

With ``--run`` this project translates real sentences with a trained model, from text to text. The
other side is a random MarianMT of the same sizes. It gets the same batches of token ids, and each
of its sentences is forced to end at the length of this project's translation.

The repeats alternate; printed are medians and the median of the paired ratios. Counted are the
target tokens of the best hypothesis of each sentence, EOS included. Without ``transformers`` only
this project is measured. Both sides run in one process, in which the C library keeps freed memory,
as in this project's ``translate``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normtrain.models import DecodingState, Seq2Seq, build_model
from normtrain.models.config import Seq2SeqConfig
from normtrain.tasks.translation.decoding.beam import beam_search
from normtrain.training.machine import keep_freed_memory

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 4


class NeverEnding:
    """A model that never predicts EOS, so that every hypothesis reaches the length limit.

    At the limit the search adds the log-probability of EOS, which is then very low and equal for
    all hypotheses; the work is that of real decoding.
    """

    def __init__(self, model: Seq2Seq) -> None:
        self.model = model

    def start(self, source: Tensor, beams: int, max_length: int) -> DecodingState:
        return self.model.start(source, beams, max_length)

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        logits = self.model.step(tokens, state)
        logits[:, EOS] = -1e4
        return logits


def our_model(args: argparse.Namespace) -> Seq2Seq:
    config = Seq2SeqConfig(
        norm=args.norm,
        placement=args.placement,
        d_model=args.d_model,
        heads=args.heads,
        encoder_layers=args.layers,
        decoder_layers=args.layers,
        d_ff=args.d_ff,
        activation="relu",
    )
    return build_model(config, args.vocab).eval().to(args.device)


def their_model(args: argparse.Namespace) -> Any:
    """Build a MarianMT of the same sizes; None if ``transformers`` is not installed."""
    try:
        from transformers import MarianConfig, MarianMTModel
    except ImportError:
        return None
    config = MarianConfig(
        vocab_size=args.vocab,
        d_model=args.d_model,
        encoder_layers=args.layers,
        decoder_layers=args.layers,
        encoder_attention_heads=args.heads,
        decoder_attention_heads=args.heads,
        encoder_ffn_dim=args.d_ff,
        decoder_ffn_dim=args.d_ff,
        activation_function="relu",
        max_position_embeddings=512,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=BOS,
        forced_eos_token_id=EOS,
        scale_embedding=True,
    )
    return MarianMTModel(config).eval().to(args.device)


def sources(args: argparse.Namespace) -> list[Tensor]:
    """Draw batches of sentences sorted by length, with the lengths of a news corpus."""
    draw = torch.Generator().manual_seed(args.seed)
    lengths = (torch.randn(args.sentences, generator=draw) * 0.5 + 3.1).exp().clamp(3, 100).long()
    lengths = lengths.sort(descending=True).values
    batches = []
    for some in lengths.split(args.batch):
        batch = torch.randint(FIRST_WORD, args.vocab, (len(some), int(some[0])), generator=draw)
        real = torch.arange(int(some[0])) < some.unsqueeze(1)
        batch = batch.masked_fill(~real, PAD)
        batch[torch.arange(len(some)), some - 1] = EOS
        batches.append(batch.to(args.device))
    return batches


def decoded(decode: Callable[[Tensor], int], batches: list[Tensor]) -> int:
    return sum(decode(batch) for batch in batches)


def alternate(
    sides: dict[str, Callable[[Any], int]], work: Any, warm_up: Any, repeats: int
) -> dict[str, list[float]]:
    """Let the sides take turns; return tokens per second of each repeat after a warm-up."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in sorted(sides, reverse=repeat % 2 == 1):
            gc.collect()
            start = time.perf_counter()
            tokens = sides[name](work if repeat else warm_up)
            if repeat:
                rates[name].append(tokens / (time.perf_counter() - start))
    return rates


def plain(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides with random models; rates are tokens per second, one per repeat."""
    torch.manual_seed(args.seed)
    ours, theirs, batches = NeverEnding(our_model(args)), their_model(args), sources(args)

    def our_decode(batch: Tensor) -> int:
        found = beam_search(ours, batch, beam=args.beam, length_penalty=0.6, max_length=args.length)
        assert all(len(best[0].tokens) == args.length - 1 for best in found)
        return args.length * len(found)

    def their_decode(batch: Tensor) -> int:
        # Lengths of transformers include the start token.
        out = theirs.generate(
            batch,
            attention_mask=(batch != PAD).long(),
            num_beams=args.beam,
            min_length=args.length + 1,
            max_length=args.length + 1,
            length_penalty=0.6,
            do_sample=False,
        )
        assert out.shape[1] == args.length + 1, out.shape
        return args.length * len(out)

    sides = {"normtrain": our_decode} | ({"transformers": their_decode} if theirs else {})
    runs = {
        name: lambda some, decode=decode: decoded(decode, some) for name, decode in sides.items()
    }
    rates = alternate(runs, batches, batches[-1:], args.repeats)
    return {"tokens_per_second": rates, "torch": torch.__version__, "settings": plain(args)}


def measure_run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure a trained run on real sentences, against a random MarianMT on the same work."""
    from real_run import RealWork

    work = RealWork(args.run, args.data, args.split, args.sentences, args.beam, args.device)
    for name, value in work.sizes().items():
        setattr(args, name, value)
    theirs = their_model(args)
    sides: dict[str, Callable[[Any], int]] = {"normtrain": work.ours}
    if theirs is not None:
        sides["transformers"] = lambda batches: work.theirs(theirs, batches)
    print(f"{len(work.lines)} sentences, {work.tokens} target tokens, {len(work.batches)} batches")
    print(f"decoder rows over all steps: normtrain {work.rows}, transformers {work.their_rows}")
    rates = alternate(sides, work.batches, work.batches[-1:], args.repeats)
    each = len(work.lines) / work.tokens
    return {
        "tokens_per_second": rates,
        "sentences_per_second": {name: [each * rate for rate in r] for name, r in rates.items()},
        "sentences": len(work.lines),
        "tokens": work.tokens,
        "decoder_rows": {"normtrain": work.rows, "transformers": work.their_rows},
        "torch": torch.__version__,
        "settings": plain(args),
    }


def summarise(result: dict[str, Any]) -> None:
    rates = result["tokens_per_second"]
    for name, values in rates.items():
        print(f"{name:14s}{statistics.median(values):9.0f} target tokens/s "
              f"({min(values):.0f} to {max(values):.0f}, {len(values)} repeats)")  # fmt: skip
    for name, values in result.get("sentences_per_second", {}).items():
        print(f"{name:14s}{statistics.median(values):9.1f} sentences/s")
    if "transformers" in rates:
        pairs = zip(rates["normtrain"], rates["transformers"], strict=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        result["ratio"] = statistics.median(ratios)
        print(f"ratio{result['ratio']:18.2f} ({min(ratios):.2f} to {max(ratios):.2f}, paired)")
    else:
        print("transformers is not installed: nothing to compare with (pip install transformers)")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in {
        "beam": 5, "sentences": 256, "batch": 64, "length": 30, "repeats": 5, "threads": 2,
        "d_model": 256, "heads": 4, "layers": 3, "d_ff": 1024, "vocab": 8000, "seed": 1,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--norm", default="layernorm")
    parser.add_argument("--placement", default="post", help="MarianMT has post")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=Path, help="a trained run: use real sentences and its sizes")
    parser.add_argument("--data", help="with --run: another corpus than the run's")
    parser.add_argument("--split", default="test", help="with --run; --sentences 0 takes all")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    try:
        result = measure_run(args) if args.run else measure(args)
    except ValueError as error:  # UserError: the run or the data cannot be used
        sys.exit(str(error))
    summarise(result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
