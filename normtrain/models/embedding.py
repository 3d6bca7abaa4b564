"""Base of the models over tokens: embedding vectors and logits."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normtrain.models.blocks import recentred
from normtrain.models.config import TransformerConfig
from normtrain.models.positions import Positions
from normtrain.norms import NormRules, NormSpec, build_norm


class TokenModel(nn.Module):
    """Base of the models: embedding vectors and the output matrix, with a norm on both if asked.

    With ``embedding_norm`` ``fixnorm`` every vector enters as ``sqrt(d_model)`` times a unit
    vector, and a tied output matrix has unit rows, so the length of a vector is
    independent of the frequency of its token (Nguyen, Salazar 2019, Transformers without Tears).
    Other norms are multiplied by the same scale.

    Args:
        config: of the model; ``embedding_norm`` is the norm of embedding vectors, before their
            scale, and of the rows of a tied output matrix.
        vocab_size: number of token ids.
        tied: whether the output matrix is an embedding matrix too.

    Attributes:
        norms: the rules it was built with.
        zero_mean: other than ``"none"``, vectors enter the stack recentred; read at every call.
        always_scaled: whether vectors are multiplied by ``sqrt(d_model)`` (Vaswani et al. 2017)
            without an ``embedding_norm`` too.
        scale: what vectors are multiplied by.
        inputs: number of token sequences that `forward` takes.
        longest: longest sequence, in tokens.
    """

    always_scaled: ClassVar[bool] = True
    inputs: ClassVar[int] = 1

    head: nn.Linear

    def __init__(self, config: TransformerConfig, vocab_size: int, *, tied: bool) -> None:
        super().__init__()
        self.norms = config.norms
        self.zero_mean: str = config.zero_mean
        self.vocab_size, self.tied = vocab_size, tied
        self.longest = config.max_positions
        spec = NormSpec.parse(config.embedding_norm)
        scaled = self.always_scaled or spec.name != "none"
        self.scale = math.sqrt(config.d_model) if scaled else 1.0
        # One norm for all tables: where they are tied, their vectors must stay the same vectors.
        self.embedding_norm = None if spec.name == "none" else build_norm(spec, config.stream)
        self.dropout = nn.Dropout(config.dropout)

    def embed(
        self, tokens: Tensor, table: nn.Embedding, positions: Positions | None, start: int = 0
    ) -> Tensor:
        """Return the input of a stack: scaled token vectors plus positions, after dropout.

        Args:
            tokens: ``(batch, time)`` int64.
            table: the embedding.
            positions: the position vectors, or None to add none.
            start: position of the first token.

        Returns:
            ``(batch, time, stream)``.
        """
        x = table(tokens)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = x * self.scale if self.scale != 1.0 else x
        x = self.dropout(x if positions is None else positions(x, start=start))
        return x if self.zero_mean == "none" else recentred(x)

    def output_matrix(self) -> Tensor:
        """Return the output matrix, ``(vocab_size, stream)``.

        With an ``embedding_norm`` the rows of a tied matrix are normalised at each call.
        """
        if not self.tied or self.embedding_norm is None:
            return self.head.weight
        return self.embedding_norm(self.head.weight)

    def logits(self, hidden: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Return the logits of the outputs of a stack.

        Args:
            hidden: ``(…, stream)``.
            matrix: the result of :meth:`output_matrix`, to avoid computing it again.

        Returns:
            ``(…, vocab_size)``.
        """
        matrix = self.output_matrix() if matrix is None else matrix
        return F.linear(hidden, matrix, self.head.bias)

    def changed_config(self, config: TransformerConfig) -> dict[str, Any]:
        """Return the values of the config that describe this model after a conversion.

        Args:
            config: what the model was built from, before the conversion.
        """
        norm, *rules = self.norms.to_plain()
        width = self.head.in_features
        return {
            "norm": norm[1],
            "norm_rules": rules,
            "zero_mean": self.zero_mean,
            "d_stream": None if width == config.d_model else width,
            "head_bias": self.head.bias is not None,
            "embedding_norm": "none" if self.embedding_norm is None else config.embedding_norm,
        }

    def random_tokens(self, batch: int, time: int, generator: torch.Generator) -> Tensor:
        """Return random inputs of `forward`, ``(inputs, batch, time)`` int64, no special tokens.

        Args:
            batch: sequences.
            time: tokens of a sequence; fewer where the model has fewer positions.
            generator: random number generator.
        """
        shape = (self.inputs, batch, min(time, self.longest))
        low = min(4, self.vocab_size - 1)
        return torch.randint(low, self.vocab_size, shape, generator=generator)

    def norms_replaced(self) -> None:
        """Update ``norms`` after norms of the model were replaced; `swap_norms` calls this.

        The default is then the most frequent norm, with one rule for each norm that differs.
        """
        specs = {site: str(self.get_submodule(site).spec) for site in norm_sites(self)}
        default = Counter(specs.values()).most_common(1)[0][0]
        others = [(site, spec) for site, spec in specs.items() if spec != default]
        self.norms = NormRules.of(default, others)


def norm_sites(model: nn.Module) -> list[str]:
    """List the module names in a model at which norm rules apply, in order."""
    sites: list[str] = []
    for name, module in model.named_modules():
        inside_a_norm = any(name.startswith(f"{site}.") for site in sites)
        named = name.rsplit(".", 1)[-1] in ("norm", "norm_out")
        # nn.Identity stands where a post-norm stack has no norm of its own.
        if named and not inside_a_norm and not isinstance(module, nn.Identity):
            sites.append(name)
    return sites
