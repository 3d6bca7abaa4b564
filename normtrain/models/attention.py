"""Multi-head attention on torch's fused kernel, with optional QK-norm and a decoding cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.models.rotary import rotate


class KeyValueCache:
    """Keys and values of the tokens decoded so far, one row per hypothesis.

    Stored time first, in two buffers once rows are selected, so that `select` is one copy between
    them. The buffers double when full, so each entry is copied a bounded number of times. The
    first entry decides the number of rows, the width and the dtype.

    Attributes:
        length: tokens so far.
    """

    def __init__(self) -> None:
        self.length = 0
        self.store: Tensor | None = None
        self.spare: Tensor | None = None

    def append(self, entry: Tensor) -> Tensor:
        """Append the keys and values of new tokens.

        Args:
            entry: ``(rows, n, width)``, keys and values concatenated.

        Returns:
            All so far, ``(rows, length, width)``; valid until the next `select`.
        """
        start, self.length = self.length, self.length + entry.size(1)
        if self.store is None or self.length > self.store.size(0):
            size = max(16 if self.store is None else 2 * self.store.size(0), self.length)
            grown = entry.new_empty(size, entry.size(0), entry.size(2))
            if self.store is not None:
                grown[:start] = self.store[:start]
            self.store = grown
        self.store[start : self.length] = entry.transpose(0, 1)
        return self.store[: self.length].transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, ``(n,)`` int64, in the given order; repeats are allowed."""
        if self.store is None:
            return
        size, _, width = self.store.shape
        if self.spare is None or self.spare.shape != (size, rows.numel(), width):
            self.spare = self.store.new_empty(size, rows.numel(), width)
        n = self.length
        torch.index_select(self.store[:n], 1, rows, out=self.spare[:n])
        self.store, self.spare = self.spare, self.store


def check_heads(dim: int, heads: int, kv_heads: int | None) -> None:
    """Check that the numbers of heads divide what they share.

    Raises:
        UserError: ``heads`` does not divide ``dim``, or ``kv_heads`` does not divide ``heads``.
    """
    if heads < 1 or dim % heads:
        raise UserError(f"d_model ({dim}) must be a multiple of heads ({heads})")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise UserError(f"heads ({heads}) must be a multiple of kv_heads ({kv_heads})")


def _heads(
    x: Tensor, heads: int, norm: nn.Module | None = None, rotation: Tensor | None = None
) -> Tensor:
    # (batch, time, dim) -> (batch, heads, time, head_dim)
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    if norm is not None:
        x = norm(x)
    return x if rotation is None else rotate(x, rotation)


class Attention(nn.Module):
    """Scaled dot-product attention with ``heads`` heads (Vaswani et al. 2017, section 3.2).

    With ``kv_heads`` below ``heads``, that many heads of keys and values each serve a group of
    neighbouring query heads (Ainslie et al. 2023, GQA). Rotary positions rotate queries and keys
    after their norms (as in Qwen3 and OLMo 2).

    Args:
        dim: width of the queries, all heads together.
        heads: number of query heads; must divide ``dim``.
        kv_heads: number of heads of keys and values; must divide ``heads``. None means ``heads``.
        stream: width of the input and output; None means ``dim``.
        cross: queries from one stream, keys and values from another.
        dropout: probability of dropping an attention weight, in training.
        bias: whether the projections have biases.
        q_norm: norm over ``head_dim`` applied to every query head, or None.
        k_norm: the same for keys (Henry et al. 2020; Dehghani et al. 2023).

    Raises:
        UserError: ``heads`` does not divide ``dim``, or ``kv_heads`` does not divide ``heads``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        stream: int | None = None,
        cross: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, heads, kv_heads)
        self.kv_heads = heads if kv_heads is None else kv_heads
        self.kv_dim = dim // heads * self.kv_heads
        self.dim, self.heads, self.cross, self.dropout = dim, heads, cross, dropout
        self.stream = dim if stream is None else stream
        if cross:
            self.query = nn.Linear(self.stream, dim, bias=bias)
            self.key_value = nn.Linear(self.stream, 2 * self.kv_dim, bias=bias)
        else:
            self.query_key_value = nn.Linear(self.stream, dim + 2 * self.kv_dim, bias=bias)
        self.output = nn.Linear(dim, self.stream, bias=bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise each projection Xavier-uniform by itself, biases with 0."""
        key_value = [self.kv_dim, self.kv_dim]
        if self.cross:
            inner = [(self.query, [self.dim]), (self.key_value, key_value)]
        else:
            inner = [(self.query_key_value, [self.dim, *key_value])]
        for linear, rows in [*inner, (self.output, [self.stream])]:
            for block in linear.weight.split(rows):
                nn.init.xavier_uniform_(block)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """Attend over a whole sequence.

        Args:
            x: ``(batch, time, stream)`` queries.
            memory: ``(batch, source, stream)`` for keys and values, in cross-attention only.
            mask: bool, broadcastable to ``(batch, heads, time, source)``; True where
                attention is allowed.
            causal: hide later positions from earlier ones.
            rotation: ``(2, time, head_dim / 2)`` from :class:`~normtrain.models.rotary.Rotary`, in
                self-attention only.

        Returns:
            ``(batch, time, stream)``.
        """
        if self.cross:
            assert memory is not None, "cross-attention needs a memory"
            query = self.query(x)
            key, value = self.key_value(memory).chunk(2, -1)
        else:
            parts = self.query_key_value(x).split([self.dim, self.kv_dim, self.kv_dim], -1)
            query, key, value = parts
        q = _heads(query, self.heads, self.q_norm, rotation)
        k = _heads(key, self.kv_heads, self.k_norm, rotation)
        return self._attend(q, k, _heads(value, self.kv_heads), mask=mask, causal=causal)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        dtype = q.dtype
        if q.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
            # The CPU's half-precision backward is several times slower than its float32 one.
            q, k, v = q.float(), k.float(), v.float()
        p = self.dropout if self.training else 0.0
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(
                q, k, v, mask, p, causal, enable_gqa=self.kv_heads != self.heads
            )
        return self.output(y.to(dtype).transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: KeyValueCache, rotation: Tensor | None = None) -> Tensor:
        """Causal self-attention of new tokens over each other and all before them.

        Args:
            x: ``(rows, n, stream)``.
            cache: keys and values so far; appended to in place.
            rotation: of the new tokens' positions.

        Returns:
            ``(rows, n, stream)``.
        """
        query, entry = self.query_key_value(x).split([self.dim, 2 * self.kv_dim], -1)
        if self.k_norm is not None or rotation is not None:
            key, value = entry.chunk(2, -1)
            k = _heads(key, self.kv_heads, self.k_norm, rotation)
            entry = torch.cat([k.transpose(1, 2).flatten(2), value], -1)
        q = _heads(query, self.heads, self.q_norm, rotation)
        new, before = x.size(1), cache.length
        key, value = cache.append(entry).chunk(2, -1)
        mask = None
        if new > 1 and before:  # is_causal would align the first new token with the first of all
            mask = torch.ones(new, before + new, dtype=torch.bool, device=x.device).tril(before)
        k, v = _heads(key, self.kv_heads), _heads(value, self.kv_heads)
        return self._attend(q, k, v, mask=mask, causal=new > 1 and not before)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of a memory once for a whole decoding.

        Args:
            memory: ``(batch, source, stream)``.

        Returns:
            Two tensors ``(batch, kv_heads, source, head_dim)``.
        """
        key, value = self.key_value(memory).chunk(2, -1)
        k = _heads(key, self.kv_heads, self.k_norm)
        return k.contiguous(), _heads(value, self.kv_heads).contiguous()

    def step_cross(
        self, x: Tensor, remembered: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Cross-attention of one new token of every hypothesis.

        The hypotheses of a sentence are queries of one batch entry, so the memory is stored once
        per sentence.

        Args:
            x: ``(batch * beams, 1, stream)``.
            remembered: from :meth:`remember`.
            mask: bool ``(batch, 1, 1, source)`` or None.

        Returns:
            ``(batch * beams, 1, stream)``.
        """
        batch = remembered[0].size(0)
        q = _heads(self.query(x.view(batch, -1, self.stream)), self.heads, self.q_norm)
        return self._attend(q, *remembered, mask=mask).view(x.shape)
