"""How well a language model knows a text: perplexity and bits, with how they were obtained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from normtrain.config.recipe import LanguageRecipe
from normtrain.errors import UserError
from normtrain.models import CausalLM
from normtrain.tasks.language.data import LanguageData
from normtrain.tasks.language.module import next_tokens
from normtrain.tasks.loss import summed_loss
from normtrain.tasks.ranks import Tally
from normtrain.training.checkpoint import Checkpoint
from normtrain.training.results import Results
from normtrain.training.together import Place


def measure(
    target: Path,
    checkpoint: Checkpoint,
    model: CausalLM,
    *,
    split: str,
    data: str | None,
    stride: int | None,
    batch_size: int | None,
    place: Place,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Score every token of a split once and write the result into the run folder.

    Windows of the recipe's ``data.window`` tokens are moved on by ``stride``: each window's last
    ``stride`` tokens are scored, with those before them as context. The first token of the text
    has an end of text before it.

    Args:
        target: what the user named: a run folder or a checkpoint file.
        checkpoint: read from there.
        model: its model, on its device.
        split: ``train``, ``valid``, ``test``, or any other of the corpus.
        data: another corpus than the run's.
        stride: by default the whole window, which is quickest and gives the least context.
        batch_size: windows at once; it changes no result beyond the last digits.
        place: which process this is: it scores its share of the windows.
        progress: called with batches of windows done and in all.

    Returns:
        Plain values. ``loss`` is in nats a token, ``perplexity`` of a token. ``word_perplexity``
        spreads the same nats over the text's words and line ends, as is published for WikiText
        and the Penn Treebank; ``bits_per_byte`` and ``bits_per_character`` over its UTF-8.

    Raises:
        ValueError: for a corpus or a stride that can't be used.
    """
    recipe = cast(LanguageRecipe, checkpoint.recipe)
    if stride is not None and not 1 <= stride <= recipe.data.window:
        raise UserError(
            f"--stride is from 1 to the recipe's data.window ({recipe.data.window}), not {stride}"
        )
    module = _loaded(checkpoint, recipe, split, data)
    loader = module.evaluation_loader(
        split, stride=stride, batch_size=batch_size, rank=place.rank, world=place.world
    )
    nats = Tally(_summed(model, loader, progress)).over_ranks(place.device).loss
    window = recipe.data.window
    used = stride or window
    found = {**_numbers(nats, module.encoded[split].counts), "window": window, "stride": used}
    parts = [] if used == window else [f"stride{used}"]
    return Results(target, checkpoint, write=place.first).write(
        found, data=data, split=split, parts=parts, corpus=module.corpus.provenance
    )


def _loaded(
    checkpoint: Checkpoint, recipe: LanguageRecipe, split: str, data: str | None
) -> LanguageData:
    """The split, encoded by the checkpoint's tokenizer."""
    module = LanguageData(
        source=data or recipe.data.source,
        revision=checkpoint.data["revision"] if data is None else None,
        tokenizer=recipe.data.tokenizer,
        window=recipe.data.window,
        max_tokens=recipe.data.max_tokens,
        document_mark=recipe.data.document_mark,
        given_tokenizer=checkpoint.tokenizer,
        splits=[split],
    )
    module.setup()
    return module


@torch.no_grad()
def _summed(
    model: CausalLM, loader: DataLoader[Any], progress: Callable[[int, int], None] | None
) -> float:
    """Nats of a process' share of the split."""
    device, total = model.head.weight.device, 0.0
    for done, batch in enumerate(loader, start=1):
        inputs, targets = next_tokens({key: value.to(device) for key, value in batch.items()})
        total += float(summed_loss(model(inputs), targets))
        if progress is not None:
            progress(done, len(loader))
    return total


def _numbers(nats: float, counts: Any) -> dict[str, Any]:
    def perplexity(count: int) -> float:
        share = nats / count
        return math.exp(share) if share < 700 else math.inf

    bits = nats / math.log(2)
    return {
        "loss": nats / counts.tokens,
        "perplexity": perplexity(counts.tokens),
        "word_perplexity": perplexity(counts.words + counts.lines),
        "bits_per_byte": bits / counts.bytes,
        "bits_per_character": bits / counts.characters,
        "tokens": counts.tokens,
        "words": counts.words,
        "lines": counts.lines,
        "bytes": counts.bytes,
        "characters": counts.characters,
    }
