"""Build the model that a config describes."""

from __future__ import annotations

from typing import TypeVar, overload

from normtrain.errors import UserError
from normtrain.models.causal import CausalLM
from normtrain.models.config import CausalLMConfig, Seq2SeqConfig
from normtrain.models.embedding import TokenModel, norm_sites
from normtrain.models.seq2seq import Seq2Seq

_Model = TypeVar("_Model", bound=TokenModel)


@overload
def build_model(config: Seq2SeqConfig, vocab_size: int) -> Seq2Seq: ...
@overload
def build_model(config: CausalLMConfig, vocab_size: int) -> CausalLM: ...
def build_model(config: Seq2SeqConfig | CausalLMConfig, vocab_size: int) -> Seq2Seq | CausalLM:
    """Build the model that a config, such as a recipe's ``model`` section, describes.

    Weights come from torch's global generator: seed it first for a repeatable model.

    Args:
        config: the class of the config decides the class of the model.
        vocab_size: number of token ids.

    Returns:
        The model, in training mode, with ``model.norms`` the rules it was built with.

    Raises:
        UserError: a norm does not exist, or a norm rule matches no norm of the model.
    """
    if isinstance(config, CausalLMConfig):
        return check_norm_rules(CausalLM(config, vocab_size))
    return check_norm_rules(Seq2Seq(config, vocab_size))


def check_norm_rules(model: _Model) -> _Model:
    """Return the model if each of its norm rules matches a norm.

    Raises:
        UserError: a rule matches none.
    """
    sites = norm_sites(model)
    if unmatched := model.norms.unmatched(sites):
        raise UserError(
            f"norm rule {unmatched[0]!r} matches no norm of this model; "
            f"its norms are named like {sites[0]} and {sites[-1]}"
        )
    return model
