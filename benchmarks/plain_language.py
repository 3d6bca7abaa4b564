"""Language-model loops to compare with; nothing of normtrain is imported.

`PlainGPT` in `train` is a plain PyTorch loop in the style of nanoGPT: learned positions, pre-norm
LayerNorm without biases, GELU, tied embedding and output, fused attention, AdamW, clipping. Arm
``plain`` uses the AdamW that nanoGPT uses on a CPU and the C library's allocator; ``tuned`` has the
settings of `fit`: fused AdamW, and freed memory kept. `litgpt_model` is litgpt's own model of the
same sizes, in the tuned loop with litgpt's loss.

    python benchmarks/plain_language.py ARM BATCHES.npy SIZES THREADS   # as language.py starts it
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Turn


class PlainBlock(nn.Module):
    """Attention and a feed-forward of four times the width, each after a LayerNorm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 4 * dim, bias=False)
        self.down = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, time, dim)`` to the same shape."""
        batch, time, dim = x.shape
        split = self.qkv(self.first(x)).split(dim, dim=2)
        q, k, v = (
            t.view(batch, time, self.heads, dim // self.heads).transpose(1, 2) for t in split
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, time, dim))
        return x + self.down(F.gelu(self.up(self.second(x))))


class PlainGPT(nn.Module):
    """A decoder-only Transformer in fifty lines."""

    def __init__(self, vocab: int, dim: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(window, dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.tokens.weight
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids ``(batch, time)`` to logits ``(batch, time, vocab)``."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def plain_model(sizes: dict[str, int]) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Build the plain model and its loss."""
    model = PlainGPT(
        sizes["vocab"], sizes["d_model"], sizes["heads"], sizes["layers"], sizes["window"]
    )
    return model, lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten())


def litgpt_model(
    sizes: dict[str, int], norm: str
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    """Build litgpt's model of the same sizes, rotary on whole heads, and its chunked loss."""
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=sizes["window"], vocab_size=sizes["vocab"], padded_vocab_size=sizes["vocab"],
        n_layer=sizes["layers"], n_head=sizes["heads"], n_embd=sizes["d_model"],
        intermediate_size=sizes["d_ff"], rotary_percentage=1.0, parallel_residual=False, bias=False,
        norm_class_name=norm, mlp_class_name="GptNeoxMLP",
    )  # fmt: skip
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    return model, lambda logits, y: chunked_cross_entropy(logits, y, chunk_size=0)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory, as this project's runs do."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 30), libc.mallopt(-1, 2**31 - 1)


def train(
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    batches: Any,
    turn: Turn,
    *,
    fused: bool,
) -> None:
    """Train in a plain loop; the turn measures it and ends the process."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=fused or None
    )
    for window in batches:
        turn.begin_step(window[:, 1:].size, lambda: sum(p.numel() for p in model.parameters()))
        ids = torch.from_numpy(window.astype(np.int64))
        loss = loss_of(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Run one arm."""
    arm, batches, sizes, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tuned = arm != "plain"
    if tuned:
        keep_freed_memory()
    torch.manual_seed(1)
    known = json.loads(sizes)
    if arm in ("plain", "tuned"):
        model, loss_of = plain_model(known)
    else:
        model, loss_of = litgpt_model(known, arm)
    train(model, loss_of, np.load(batches), Turn(known["warmup"], known["steps"]), fused=tuned)


if __name__ == "__main__":
    main()
