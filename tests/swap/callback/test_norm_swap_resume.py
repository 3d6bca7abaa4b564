"""NormSwap and checkpoints: what they say, resuming, and other norms refused; other callbacks."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from swapping import InSetup, Lazy, Task, data, fit, kinds, patched, trained, trainer
from torch import nn

from normtrain import NormSwap
from normtrain.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    "kind", [Task, *(pytest.param(k, marks=pytest.mark.extended) for k in (Lazy, InSetup))]
)
def test_resuming_is_as_if_never_stopped(kind: Any, tmp_path: Path) -> None:
    def begin() -> Any:
        pl.seed_everything(5)
        task = kind()
        for module in task.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return task

    def still(task: Any) -> Any:  # dropout draws are Lightning's to lose on a resume
        for module in task.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
                module.p = 0.0
        return task

    class Still(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            still(pl_module)

    whole = begin()
    fit(whole, NormSwap("prmsnorm:p=0.5"), Still(), max_epochs=3)
    part = begin()
    fit(part, NormSwap("prmsnorm:p=0.5"), Still(), max_epochs=2).save_checkpoint(
        tmp_path / "a.ckpt"
    )
    again = begin()
    fit(again, NormSwap("prmsnorm:p=0.5"), Still(), max_epochs=3, ckpt_path=tmp_path / "a.ckpt")
    assert part.losses + again.losses == whole.losses
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("before", "after", "stage"),
    [
        ("rmsnorm", "layernorm:bias=false", "fit"),  # the same keys
        ("rmsnorm", "prmsnorm", "test"),
        ("adanorm", "layernorm-simple", "predict"),  # no keys
        ("adanorm", "adanorm:k=0.2", "fit"),
        ("rmsnorm", "rmsnorm:eps=1e-3", "test"),
        ("rmsnorm", "layernorm", "fit"),  # other keys
    ],
)
def test_04_05_other_norms_are_refused(before: str, after: str, stage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap(before))
    task = Task()
    one, other = (spec.partition(":")[0] for spec in (before, after))
    text = (
        rf"a\.ckpt was saved with {one}.* at net\.1, but the model has {other}.* there by "
        rf"NormSwap\('{other}.*'\); resume with NormSwap\('{before}"
    )
    with pytest.raises(UserError, match=text):
        getattr(trainer(NormSwap(after), max_epochs=2), stage)(task, data(), ckpt_path=path)
    assert patched(task) == []


def test_other_rules_with_the_same_outcome_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"))
    again = Task()
    fit(again, NormSwap([("net.1", "rmsnorm:eps=1e-5")]), max_epochs=2, ckpt_path=path)
    assert kinds(again) == ["RMSNorm"]
    assert len(again.losses) == 4  # of the second epoch


def test_a_checkpoint_from_before_the_swap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path)
    text = (
        r"a\.ckpt does not record the norms it was trained with, and NormSwap\('rmsnorm'\) "
        r"has replaced torch\.nn\.LayerNorm by rmsnorm:eps=1e-05 at net\.1"
    )
    with pytest.raises(UserError, match=text):
        fit(Task(), NormSwap("rmsnorm"), max_epochs=2, ckpt_path=path)
    task = Task.load_from_checkpoint(path, weights_only=True)  # as the message says
    fit(task, NormSwap("rmsnorm"))
    assert kinds(task) == ["RMSNorm"]


def test_lightning_says_when_a_run_is_resumed_without_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("layernorm"))
    with pytest.warns(UserWarning, match=r"add the following callbacks: \['NormSwap'\]"):
        fit(Task(), max_epochs=2, ckpt_path=path)


# Other callbacks


class Freeze(BaseFinetuning):
    """Freezes the norm."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[1], train_bn=False)

    def finetune_function(self, *args: Any) -> None:
        """Never thaws."""


OTHERS = {
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.5),
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1),
    "Freeze": Freeze,
    "ModelPruning": lambda: ModelPruning("l1_unstructured", amount=0.5),
}


@pytest.mark.extended
@pytest.mark.parametrize("name", OTHERS)
def test_06_callbacks_that_copy_the_model_come_after(name: str) -> None:
    task = Task()
    with pytest.raises(UserError, match=rf"{name} comes before NormSwap.*put NormSwap first"):
        fit(task, OTHERS[name](), NormSwap("rmsnorm"))
    assert kinds(task) == ["LayerNorm"]
    fit(task, NormSwap("rmsnorm"), OTHERS[name](), max_epochs=3)
    assert kinds(task) == ["RMSNorm"]


@pytest.mark.extended
def test_a_frozen_norm_stays_frozen_and_an_averaged_one_is_averaged() -> None:
    task = Task()
    fit(task, NormSwap("dyt"), Freeze())
    assert not any(p.requires_grad for p in task.net[1].parameters())
    for kind in (Task, Lazy):
        task, ema = kind(), EMAWeightAveraging(decay=0.5)
        fit(task, NormSwap("rmsnorm"), ema)
        assert kinds(ema._average_model) == ["RMSNorm"]
        assert patched(ema._average_model.module) == []


@pytest.mark.extended
def test_13_averaged_runs_resume_from_plain_data(tmp_path: Path) -> None:
    def callbacks(norm: str = "rmsnorm") -> list[Any]:
        return [NormSwap(norm), EMAWeightAveraging(decay=0.5)]

    path = tmp_path / "a.ckpt"
    saver = ModelCheckpoint(tmp_path, filename="a", every_n_epochs=1)
    fit(Task(), *callbacks(), saver, enable_checkpointing=True)
    found = torch.load(path, weights_only=True)
    assert not torch.equal(
        *(found[k]["net.1.weight"] for k in ("state_dict", "current_model_state"))
    )
    again, both = Task(), callbacks()

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            average = both[1]._average_model.module
            for key, model in (("state_dict", average), ("current_model_state", pl_module)):
                for name, value in model.state_dict().items():
                    assert torch.equal(value, found[key][name])

    fit(again, *both, Look(), max_epochs=2, ckpt_path=path)
    with pytest.raises(UserError, match=r"saved with rmsnorm.*has layernorm"):
        fit(Task(), *callbacks("layernorm:bias=false"), max_epochs=2, ckpt_path=path)
