"""The training step reads the model's own output matrix and bias, and a run with them works."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from normtrain.config.recipe import Recipe, from_plain
from normtrain.tasks.translation.module import TranslationModule
from normtrain.training import fit, read_checkpoint

OPTIONS = {"embedding_norm": "fixnorm", "head_bias": True, "d_stream": 15, "zero_mean": "stream"}


def test_training_step_is_the_loss_of_the_models_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"d_model": 16, "heads": 2, "d_ff": 24, "encoder_layers": 1, "decoder_layers": 1}
    recipe = from_plain({"name": "x", "model": {**sizes, **OPTIONS, "dropout": 0.0}})
    tokenizer: Any = SimpleNamespace(vocab_size=31)
    task = TranslationModule(recipe, tokenizer)
    torch.nn.init.normal_(task.model.head.bias)
    names = ("source", "target_in", "target_out")
    batch = {name: torch.randint(4, 31, (3, 6)) for name in names}
    batch["target_out"][0, 4:] = 0
    logits = task.model(batch["source"], batch["target_in"]).flatten(0, 1)
    expected = F.cross_entropy(
        logits, batch["target_out"].flatten(), ignore_index=0, label_smoothing=0.1
    )
    torch.testing.assert_close(task.training_step(batch, 0), expected)


def test_a_run_with_every_option_trains_and_reads_back(
    tiny_recipe: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {f"model_{key}": str(value).lower() for key, value in OPTIONS.items()}
    folder = fit(tiny_recipe(**settings, train_max_steps=6), out=tmp_path / "run")
    checkpoint = read_checkpoint(folder)
    assert isinstance(checkpoint.recipe, Recipe)
    model = checkpoint.model()
    assert (model.zero_mean, model.encoder.norm.dim) == ("stream", 15)
    assert model.head.bias is not None
    lengths = model.output_matrix().detach().norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
