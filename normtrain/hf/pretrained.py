"""A pretrained model that was read from a folder or checkpoint, and loading its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from normtrain.config.schema import Recipe
from normtrain.data.tokenizers.protocol import TextTokenizer
from normtrain.errors import UserError
from normtrain.models import build_model
from normtrain.models.config import CausalLMConfig

# Weights of norms: a model with other norms may lack them or have them in another shape.
_OF_A_NORM = re.compile(r"(^|\.)(norm|norm_out|q_norm|k_norm|embedding_norm)\.")
# Keys that decide the shapes or the meaning of all other weights.
_FIXED = (
    *("d_model", "d_stream", "heads", "kv_heads", "layers", "d_ff", "activation"),
    *("positions", "rotary_base", "bias", "head_bias", "tie"),
)


@dataclass(frozen=True)
class Pretrained:
    """A language model as a folder or a checkpoint holds it.

    Attributes:
        place: path of the folder or file.
        model_type: one of `normtrain.hf.FORMATS`, or ``"normtrain"``.
        model: values of the recipe's model section; those that the source does not have, such as
            a dropout, are left out.
        weights: in float32, by the names of `normtrain.models.CausalLM`.
        tokenizer: of running text; it has as many ids as the embedding has rows.
        sha256: of the weights file.
        notes: messages about what was changed in reading.
    """

    place: str
    model_type: str
    model: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    tokenizer: TextTokenizer
    sha256: str
    notes: tuple[str, ...] = ()

    @property
    def origin(self) -> dict[str, str]:
        """The source of the weights, as a checkpoint records it."""
        return {
            "from": Path(self.place).resolve().name,
            "model_type": self.model_type,
            "sha256": self.sha256,
        }

    def settings(self) -> dict[str, Any]:
        """Return the recipe values that it decides, by dotted key."""
        kind = self.tokenizer.kind
        size = None if kind == "byte" else self.tokenizer.vocab_size
        model = {f"model.{key}": value for key, value in self.model.items()}
        return {**model, "data.tokenizer": kind, "data.vocab_size": size}

    def check(self, recipe: Recipe) -> None:
        """Check that the weights fit the model of a recipe, except for its norms.

        Raises:
            UserError: a key of the recipe differs, or a weight is missing, left over, or has
                another shape; the message names it.
        """
        ours, theirs = cast(CausalLMConfig, recipe.model), CausalLMConfig(**self.model)
        fixed = [*_FIXED, *(["max_positions"] if theirs.positions == "learned" else [])]
        wanted = {f"model.{key}": (getattr(ours, key), getattr(theirs, key)) for key in fixed}
        wanted["model.kv_heads"] = (ours.kv_heads or ours.heads, theirs.kv_heads or theirs.heads)
        wanted["model.d_stream"] = (
            ours.d_stream or ours.d_model,
            theirs.d_stream or theirs.d_model,
        )
        for key in ("tokenizer", "vocab_size"):
            wanted[f"data.{key}"] = (getattr(recipe.data, key), self.settings()[f"data.{key}"])
        for key, (asked, there) in wanted.items():
            if asked != there:
                raise UserError(
                    f"{key} must be {_shown(there)} as in {self.place}, got {_shown(asked)}; leave "
                    "the key out to use the pretrained model's value"
                )
        with torch.device("meta"):
            matched(build_model(ours, self.tokenizer.vocab_size), self.weights)


@dataclass
class Loaded:
    """Names of the weights that `load_into` loaded and did not load.

    Attributes:
        loaded: weights of the model that are pretrained.
        fresh: weights of the model that keep their initial values.
        dropped: pretrained weights that the model does not have.
    """

    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for what, names in (("dropped", self.dropped), ("fresh", self.fresh)):
            if names:
                more = ", …" if len(names) > 1 else ""
                parts.append(f"{len(names)} {what} ({names[0]}{more})")
        return ", ".join(parts)


def load_into(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
    """Copy pretrained weights into a model, in place.

    Weights of norms are copied where name and shape match, so the model may have other norms than
    the pretrained one; all other weights must match.

    Args:
        model: a `normtrain.models.CausalLM`.
        weights: by the names of the model.

    Returns:
        What was loaded.

    Raises:
        UserError: a weight that is not of a norm is missing, left over, or has another shape.
    """
    report, state = matched(model, weights), model.state_dict()
    with torch.no_grad():
        for name in report.loaded:
            state[name].copy_(weights[name])
    return report


def matched(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
    """Return what `load_into` would load; the model may be on the meta device.

    Raises:
        UserError: as for `load_into`.
    """
    report, state = Loaded(), model.state_dict()
    for name, place in state.items():
        found = weights.get(name)
        if found is not None and found.shape == place.shape:
            report.loaded.append(name)
        elif _OF_A_NORM.search(name):
            report.fresh.append(name)
        else:
            if found is None:
                raise UserError(f"pretrained weight {name} not found")
            shape = tuple(place.shape)
            raise UserError(
                f"pretrained weight {name} must have shape {shape}, got {tuple(found.shape)}"
            )
    report.dropped = [name for name in weights if name not in report.loaded]
    for name in report.dropped:
        if not _OF_A_NORM.search(name):
            raise UserError(f"unexpected pretrained weight {name}, which the model does not have")
    return report


def _shown(value: Any) -> str:
    if value is None or type(value) is bool:
        return str(value).lower().replace("none", "null")
    return f"{value:g}" if isinstance(value, float) else str(value)
