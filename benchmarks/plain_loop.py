"""A translation loop to compare with: plain PyTorch, without normtrain's model and trainer.

``torch.nn.Transformer`` (pre-norm), tied embeddings, sinusoidal positions, AdamW, label smoothing,
gradient clipping, an optional bfloat16 autocast. The batches are given.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD = 0


@dataclass(frozen=True)
class Sizes:
    """The model's sizes.

    `stock_dropout` also drops attention weights and hidden units, as ``nn.Transformer`` does.
    """

    vocab: int
    d_model: int = 256
    heads: int = 4
    layers: int = 3
    d_ff: int = 1024
    dropout: float = 0.1
    max_positions: int = 1024
    stock_dropout: bool = False


def sinusoids(length: int, dim: int) -> Tensor:
    """Return sinusoidal positions ``(length, dim)``: Vaswani et al. 2017, section 3.5."""
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class PlainTransformer(nn.Module):
    """``nn.Transformer`` with one matrix for source, target and output embeddings."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d = sizes.d_model
        self.embedding = nn.Embedding(sizes.vocab, d, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        self.register_buffer("positions", sinusoids(sizes.max_positions, d))
        self.dropout = nn.Dropout(sizes.dropout)
        self.transformer = nn.Transformer(
            d_model=d,
            nhead=sizes.heads,
            num_encoder_layers=sizes.layers,
            num_decoder_layers=sizes.layers,
            dim_feedforward=sizes.d_ff,
            dropout=sizes.dropout,
            batch_first=True,
            norm_first=True,
        )
        if not sizes.stock_dropout:
            self._drop_only_residuals()

    def _drop_only_residuals(self) -> None:
        """Switch off dropout of attention weights and hidden units, as in normtrain's model.

        This is faster: with dropout, attention does not use its fused kernel on a CPU.
        """
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout = nn.Dropout(0.0)  # the one between the two linear layers

    def embed(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[: tokens.size(1)])

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Return logits ``(batch, time, vocab)``; the causal mask also hides the padding."""
        causal = nn.Transformer.generate_square_subsequent_mask(target_in.size(1))
        padding = source == PAD
        hidden = self.transformer(
            self.embed(source),
            self.embed(target_in),
            tgt_mask=causal,
            tgt_is_causal=True,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return F.linear(hidden, self.embedding.weight)


def train(
    batches: Iterable[dict[str, Tensor]], sizes: Sizes, warmup: int, bf16: bool
) -> dict[str, float]:
    """Train on the batches; count target tokens (no padding) and seconds after `warmup` steps."""
    model = PlainTransformer(sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 400))
    cast = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    tokens, started, loss = 0, time.perf_counter(), torch.zeros(())
    for step, batch in enumerate(batches):
        if step == warmup:
            tokens, started = 0, time.perf_counter()
        with cast:
            logits = model(batch["source"], batch["target_in"])
            loss = F.cross_entropy(
                logits.flatten(0, 1),
                batch["target_out"].flatten(),
                ignore_index=PAD,
                label_smoothing=0.1,
            )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        tokens += int((batch["target_out"] != PAD).sum())
    seconds = time.perf_counter() - started
    parameters = sum(p.numel() for p in model.parameters())
    return {"tokens": tokens, "seconds": seconds, "loss": float(loss), "parameters": parameters}
