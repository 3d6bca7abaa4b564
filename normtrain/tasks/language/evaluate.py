"""Measure the perplexity of a text, and its bits per byte and character."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.tasks.base import Evaluation, EvaluationRequest, TrainedModel
from normtrain.tasks.language.config import LanguageRecipe
from normtrain.tasks.language.data import LanguageData
from normtrain.tasks.language.module import next_tokens, perplexity
from normtrain.tasks.loss import summed_loss
from normtrain.tasks.tally import Tally


def evaluate(trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
    """Score every token of a split once; see `Task.evaluate`.

    Windows of the recipe's ``data.window`` tokens advance by the option ``stride``: each window's
    last ``stride`` tokens are scored, with those before them as context. The first token of the
    text has an end of text before it. The option ``batch_size`` is the number of windows at once
    and changes no result beyond rounding.

    Returns:
        ``loss`` in nats a token, ``perplexity`` of a token; ``word_perplexity`` spreads the same
        nats over the words and line ends of the text, as is published for WikiText and the Penn
        Treebank; ``bits_per_byte`` and ``bits_per_character`` over its UTF-8.

    Raises:
        UserError: the corpus or the stride cannot be used.
    """
    recipe = cast(LanguageRecipe, trained.recipe)
    window, stride = recipe.data.window, request.options.get("stride")
    if stride is not None and not 1 <= stride <= window:
        raise UserError(f"--stride must be from 1 to data.window ({window}), got {stride}")
    module = LanguageData(
        recipe.data,
        source=request.data,
        revision=trained.data["revision"] if request.data is None else None,
        tokenizer=trained.tokenizer,
        splits=[request.split],
    )
    module.setup()
    loader = module.evaluation_loader(
        request.split,
        stride=stride,
        batch_size=request.options.get("batch_size"),
        rank=request.rank,
        world=request.world,
    )
    share = _summed_nats(cast(CausalLM, trained.model), loader, request.progress)
    nats = Tally(share).over_ranks(request.device).loss
    used = stride or window
    return Evaluation(
        scores={**_scores(nats, module.encoded[request.split].counts), "window": window,
                "stride": used},
        corpus=module.corpus.provenance,
        variant=[] if used == window else [f"stride{used}"],
    )  # fmt: skip


@torch.no_grad()
def _summed_nats(
    model: CausalLM, loader: DataLoader[Any], progress: Callable[[int, int], None] | None
) -> float:
    """Return the nats of this rank's share of the split."""
    device, total = model.head.weight.device, 0.0
    for done, batch in enumerate(loader, start=1):
        inputs, targets = next_tokens({key: value.to(device) for key, value in batch.items()})
        total += float(summed_loss(model(inputs), targets))
        if progress is not None:
            progress(done, len(loader))
    return total


def _scores(nats: float, counts: Any) -> dict[str, Any]:
    bits = nats / math.log(2)
    return {
        "loss": nats / counts.tokens,
        "perplexity": perplexity(nats / counts.tokens),
        "word_perplexity": perplexity(nats / (counts.words + counts.lines)),
        "bits_per_byte": bits / counts.bytes,
        "bits_per_character": bits / counts.characters,
        "tokens": counts.tokens,
        "words": counts.words,
        "lines": counts.lines,
        "bytes": counts.bytes,
        "characters": counts.characters,
    }
