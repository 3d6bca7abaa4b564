"""A Hugging Face GPT-2 that was trained with LayerNorm goes on training with another norm.

    python examples/gpt2_finetune.py --norm rmsnorm

The weights are random at first and the text is the documentation that comes with Python, so that
nothing is downloaded; `GPT2LMHeadModel.from_pretrained` would do as well.
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
    """GPT-2 on bytes. `NormAware` makes `load_from_checkpoint` bring the norms along."""

    def __init__(self, layers: int = 2, dim: int = 64, rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = GPT2Config(
            vocab_size=256, n_positions=WINDOW, n_embd=dim, n_layer=layers, n_head=4
        )
        self.gpt2 = GPT2LMHeadModel(config)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch (batch, time), nats a byte."""
        return self.gpt2(input_ids=batch, labels=batch).loss

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Bits a byte."""
        self.log("bits", self.gpt2(input_ids=batch, labels=batch).loss / math.log(2))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW on all that is in the model when Lightning asks, new norms included."""
        return torch.optim.AdamW(self.parameters(), self.hparams["rate"])


def windows() -> tuple[DataLoader, DataLoader]:
    """Windows of bytes, for training and for testing."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    data = data[: len(data) // WINDOW * WINDOW].view(-1, WINDOW)
    order = torch.Generator().manual_seed(1)
    train = DataLoader(data[:-200], batch_size=16, shuffle=True, generator=order)
    return train, DataLoader(data[-200:], batch_size=50)


def trainer(epochs: int, batches: int, *callbacks: pl.Callback) -> pl.Trainer:
    """A quiet Trainer on one CPU."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        limit_train_batches=batches,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    """Before, after, resume, evaluate."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--norm", default="rmsnorm", help="any name of `normtrain norms list`")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--batches", type=int, default=60, help="a training epoch")
    options.add_argument("--out", type=Path, default=Path("runs/gpt2_finetune"))
    given = options.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train, test = windows()

    def bits(model: LanguageModel, *callbacks: pl.Callback) -> float:
        return trainer(1, 1, *callbacks).test(model, test, verbose=False)[0]["bits"]

    pl.seed_everything(1)
    model = LanguageModel()
    trainer(given.epochs, given.batches).fit(model, train)
    print(f"before: LayerNorm, {bits(model):.3f} bits a byte")

    # The trained model goes on with its weights: gains are kept, the report says what is not.
    swap = NormSwap(given.norm)
    print(f"after: {given.norm} in their place, {bits(model, swap):.3f} before any training")
    print(swap.report)
    tuning = trainer(given.epochs // 2, given.batches, swap)
    tuning.fit(model, train)
    tuning.save_checkpoint(given.out / "half.ckpt")

    model = LanguageModel()
    whole = trainer(given.epochs, given.batches, NormSwap(given.norm))
    whole.fit(model, train, ckpt_path=given.out / "half.ckpt")
    print(f"resume: {bits(model):.3f} bits a byte")

    loaded = LanguageModel.load_from_checkpoint(given.out / "half.ckpt", weights_only=True)
    print(f"evaluate: half.ckpt, {bits(loaded):.3f} bits a byte")


if __name__ == "__main__":
    main()
