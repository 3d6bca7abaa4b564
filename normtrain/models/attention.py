"""Multi-head attention on torch's fused kernel, with optional QK-norm and a decoding cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.errors import UserError


class KeyValueCache:
    """Keys and values of the tokens decoded so far, one row a hypothesis.

    Stored time first and twice, so that following the hypotheses is one copy between two
    buffers. The buffers double when full: each entry is copied a bounded number of times.

    Args:
        rows: number of hypotheses, ``batch * beams``.
        width: width of keys and values together, ``2 * dim``.
        like: a tensor whose dtype and device the storage takes.
    """

    def __init__(self, rows: int, width: int, like: Tensor) -> None:
        self.length = 0
        self.store = like.new_empty(16, rows, width)
        self.spare = torch.empty_like(self.store)

    def append(self, entry: Tensor) -> Tensor:
        """Add one token's ``(rows, 1, width)`` and return all so far, ``(rows, length, width)``."""
        if self.length == self.store.size(0):
            grown = self.store.new_empty(2 * self.length, *self.store.shape[1:])
            grown[: self.length] = self.store
            self.store, self.spare = grown, torch.empty_like(grown)
        self.store[self.length] = entry[:, 0]
        self.length += 1
        return self.store[: self.length].transpose(0, 1)

    def select(self, rows: Tensor) -> None:
        """Keep the given rows, in the given order (repeats allowed)."""
        if rows.numel() != self.store.size(1):
            self.spare = self.store.new_empty(self.store.size(0), rows.numel(), self.store.size(2))
        n = self.length
        torch.index_select(self.store[:n], 1, rows, out=self.spare[:n])
        self.store, self.spare = self.spare, self.store
        if self.spare.shape != self.store.shape:
            self.spare = torch.empty_like(self.store)


def _heads(x: Tensor, heads: int) -> Tensor:
    # (batch, time, dim) -> (batch, heads, time, head_dim)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Scaled dot-product attention with ``heads`` heads (Vaswani et al. 2017, section 3.2).

    Args:
        dim: width of queries, keys and values, all heads together.
        heads: number of heads; must divide ``dim``.
        stream: width of what it reads and writes; None is ``dim``.
        cross: queries from one stream, keys and values from another.
        dropout: probability of dropping an attention weight, in training.
        bias: whether the projections have biases.
        q_norm: norm over ``head_dim`` applied to every query head, or None.
        k_norm: the same for keys (Henry et al. 2020; Dehghani et al. 2023).

    Raises:
        ValueError: if ``heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        stream: int | None = None,
        cross: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"heads={heads} does not divide d_model={dim}")
        self.dim, self.heads, self.cross, self.dropout = dim, heads, cross, dropout
        self.stream = dim if stream is None else stream
        if cross:
            self.query = nn.Linear(self.stream, dim, bias=bias)
            self.key_value = nn.Linear(self.stream, 2 * dim, bias=bias)
        else:
            self.query_key_value = nn.Linear(self.stream, 3 * dim, bias=bias)
        self.output = nn.Linear(dim, self.stream, bias=bias)
        self.q_norm, self.k_norm = q_norm, k_norm
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform for each projection by itself, zero biases."""
        for linear in (m for m in self.modules() if isinstance(m, nn.Linear)):
            rows = self.stream if linear is self.output else self.dim
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
    ) -> Tensor:
        """Attend over a whole sequence.

        Args:
            x: ``(batch, time, stream)`` queries.
            memory: ``(batch, source, stream)`` that keys and values come from, in
                cross-attention only.
            mask: bool, broadcastable to ``(batch, heads, time, source)``; True may be attended.
            causal: hide later positions from earlier ones.

        Returns:
            ``(batch, time, stream)``.
        """
        if self.cross:
            assert memory is not None, "cross-attention needs a memory"
            query = self.query(x)
            key, value = self.key_value(memory).chunk(2, -1)
        else:
            query, key, value = self.query_key_value(x).chunk(3, -1)
        q, k = self._normed(_heads(query, self.heads), _heads(key, self.heads))
        return self._attend(q, k, _heads(value, self.heads), mask=mask, causal=causal)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return q, k

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        dtype = q.dtype
        if q.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
            # The CPU's half-precision backward is several times slower than its float32 one.
            q, k, v = q.float(), k.float(), v.float()
        p = self.dropout if self.training else 0.0
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=p, is_causal=causal)
        return self.output(y.to(dtype).transpose(1, 2).flatten(2))

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """Self-attention of one new token over all before it.

        Args:
            x: ``(rows, 1, stream)``.
            cache: keys and values so far; extended in place.
        """
        query, entry = self.query_key_value(x).split([self.dim, 2 * self.dim], -1)
        q = _heads(query, self.heads)
        if self.k_norm is not None:
            key, value = entry.chunk(2, -1)
            entry = torch.cat(
                [self.k_norm(_heads(key, self.heads)).transpose(1, 2).flatten(2), value], -1
            )
        if self.q_norm is not None:
            q = self.q_norm(q)
        key, value = cache.append(entry).chunk(2, -1)
        return self._attend(q, _heads(key, self.heads), _heads(value, self.heads), mask=None)

    def remember(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a memory, once for a whole decoding.

        Args:
            memory: ``(batch, source, stream)``.

        Returns:
            Two tensors ``(batch, heads, source, head_dim)``.
        """
        key, value = self.key_value(memory).chunk(2, -1)
        k = _heads(key, self.heads)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return k.contiguous(), _heads(value, self.heads).contiguous()

    def step_cross(
        self, x: Tensor, remembered: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        """Cross-attention of one new token of every hypothesis.

        A sentence's hypotheses stand side by side as queries, so the memory is kept once a
        sentence and not once a hypothesis.

        Args:
            x: ``(batch * beams, 1, stream)``.
            remembered: what :meth:`remember` gave.
            mask: bool ``(batch, 1, 1, source)`` or None.
        """
        batch = remembered[0].size(0)
        q = _heads(self.query(x.view(batch, -1, self.stream)), self.heads)
        if self.q_norm is not None:
            q = self.q_norm(q)
        return self._attend(q, *remembered, mask=mask).view(x.shape)
