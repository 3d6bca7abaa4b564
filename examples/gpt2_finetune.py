"""Fine-tune a Hugging Face GPT-2, trained with LayerNorm, with another norm.

    python examples/gpt2_finetune.py --norm rmsnorm

The model starts from random weights and the text is the documentation in Python's standard library,
so nothing is downloaded; `GPT2LMHeadModel.from_pretrained` works the same way.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from pydoc_data import topics

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from normtrain import NormAware, NormSwap

WINDOW = 64


class LanguageModel(NormAware, pl.LightningModule):
    """GPT-2 on bytes. With `NormAware`, `load_from_checkpoint` restores the norms."""

    def __init__(self, layers: int = 2, dim: int = 64, rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = GPT2Config(
            vocab_size=256, n_positions=WINDOW, n_embd=dim, n_layer=layers, n_head=4
        )
        self.gpt2 = GPT2LMHeadModel(config)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the cross-entropy of a batch ``(batch, time)``, in nats per byte."""
        return self.gpt2(input_ids=batch, labels=batch).loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log bits per byte."""
        self.log("bits", self.gpt2(input_ids=batch, labels=batch).loss / math.log(2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW on all parameters, those of the new norms included."""
        return torch.optim.AdamW(self.parameters(), self.hparams["rate"])


def windows() -> tuple[DataLoader, DataLoader]:
    """Return windows of bytes, for training and for testing."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    data = data[: len(data) // WINDOW * WINDOW].view(-1, WINDOW)
    order = torch.Generator().manual_seed(1)
    train = DataLoader(data[:-200], batch_size=16, shuffle=True, generator=order)
    return train, DataLoader(data[-200:], batch_size=50)


def trainer(epochs: int, batches: int, *callbacks: pl.Callback) -> pl.Trainer:
    """Return a Trainer on one CPU that prints and saves nothing by itself."""
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=batches,
        callbacks=[*callbacks],
        **dict.fromkeys(off, False),
    )


def main() -> None:
    """Train before and after the swap, resume, and evaluate a checkpoint."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--norm", default="rmsnorm", help="any name of `normtrain norms list`")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="batches of a training epoch")
    options.add_argument("--out", type=Path, default=Path("runs/gpt2_finetune"))
    args = options.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train, test = windows()

    def bits(model: LanguageModel, *callbacks: pl.Callback) -> float:
        return trainer(1, 1, *callbacks).test(model, test, verbose=False)[0]["bits"]

    pl.seed_everything(1)
    model = LanguageModel()
    trainer(args.epochs, args.batches).fit(model, train)
    print(f"before: LayerNorm, {bits(model):.3f} bits per byte")

    # The model keeps its weights, gains included; the report says what could not be kept.
    swap = NormSwap(args.norm)
    print(f"after: {args.norm} instead, {bits(model, swap):.3f} before any training")
    print(swap.report)
    tuning = trainer(args.epochs // 2, args.batches, swap)
    tuning.fit(model, train)
    tuning.save_checkpoint(args.out / "half.ckpt")

    model = LanguageModel()
    whole = trainer(args.epochs, args.batches, NormSwap(args.norm))
    whole.fit(model, train, ckpt_path=args.out / "half.ckpt")
    print(f"resume: {bits(model):.3f} bits per byte")

    loaded = LanguageModel.load_from_checkpoint(args.out / "half.ckpt", weights_only=True)
    print(f"evaluate: half.ckpt, {bits(loaded):.3f} bits per byte")


if __name__ == "__main__":
    main()
