"""NormSwap in projects that are not plain: hooks, other Trainers, teachers, metrics, the CLI."""

import os
import pickle
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from swapping import Task, data, fit, kinds, patched, trained, trainer
from torch import Tensor, nn
from torchmetrics import MeanMetric

from normtrain import NormAware, NormSwap, load_checkpoint, swap_norms
from normtrain.errors import UserError
from normtrain.norms import L1BatchNorm1d

pytestmark = [pytest.mark.extended, pytest.mark.filterwarnings("ignore")]


class Biasless(Task):
    """Its norm's keys fit RMSNorm's."""

    def __init__(self) -> None:
        super().__init__()
        self.net[1] = nn.LayerNorm(8, bias=False)


class Failing(Biasless):
    """Fails at its third batch."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            raise RuntimeError("stop")
        return super().training_step(batch, batch_idx)


# Checkpoints that no callback is asked about


def _after_the_stage(path: Path) -> type:
    fit(Biasless(), NormSwap("rmsnorm")).save_checkpoint(path, weights_only=True)
    return Biasless


def _of_another_trainer(path: Path) -> type:
    task = Biasless()
    fit(task, NormSwap("rmsnorm"))
    fit(task).save_checkpoint(path)
    return Biasless


def _after_a_failure(path: Path) -> type:
    saver = ModelCheckpoint(
        path.parent, filename=path.stem, save_weights_only=True, save_on_exception=True
    )
    task = Failing()
    with pytest.raises(RuntimeError, match="stop"):
        fit(task, NormSwap("rmsnorm"), saver, enable_checkpointing=True)
    assert patched(task) == []
    (saved,) = path.parent.glob("*.ckpt")
    saved.rename(path)
    return Failing


def _with_another_trainer_in_between(path: Path) -> type:
    class Inner(pl.Callback):
        def on_train_epoch_end(self, trainer_: Any, pl_module: Any) -> None:
            trainer(NormSwap("rmsnorm")).validate(pl_module, data(), verbose=False)

    saver = ModelCheckpoint(path.parent, filename=path.stem, save_weights_only=True)
    task = Biasless()
    outer = trainer(NormSwap("rmsnorm"), saver, Inner(), enable_checkpointing=True)
    outer.fit(task, data())
    return Biasless


@pytest.mark.parametrize(
    "save",
    [_after_the_stage, _of_another_trainer, _after_a_failure, _with_another_trainer_in_between],
)
def test_every_checkpoint_of_a_swapped_model_says_which_norms(save: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    kind = save(path)
    assert kinds(load_checkpoint(kind, path)) == ["RMSNorm"]
    trainer(NormSwap("rmsnorm")).test(kind(), data(), ckpt_path=path)
    with pytest.raises(UserError, match=r"saved with rmsnorm.*has adanorm"):
        trainer(NormSwap("adanorm")).test(kind(), data(), ckpt_path=path)


def test_state_dicts_of_copies_say_it_too() -> None:
    task = Task()
    fit(task, NormSwap("rmsnorm"))
    twin = pickle.loads(pickle.dumps(task))
    for each in (task, twin):
        section = each.state_dict()._metadata[""]["normtrain"]["swap"]
        assert section["replaced"] == {"net.1": "rmsnorm:eps=1e-05"}
    assert len(task._state_dict_hooks) == 1
    fit(task, NormSwap("adanorm"))
    assert len(task._state_dict_hooks) == 1
    assert (
        task.state_dict()
        ._metadata[""]["normtrain"]["swap"]["replaced"]["net.1"]
        .startswith("adanorm")
    )


def test_the_same_function_needs_no_word(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    old = trained(path)
    task = Task()
    trainer(NormSwap("layernorm")).test(task, data(), ckpt_path=path)
    assert kinds(task) == ["LayerNorm"]
    assert torch.equal(task.net[1].weight, old.net[1].weight)


# Hooks of the module's own


def test_hooks_that_do_not_call_the_mixins(tmp_path: Path) -> None:
    class Own(NormAware, Biasless):
        called = 0

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = 1

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert checkpoint["mine"] == 1
            type(self).called += 1

    path, task = tmp_path / "a.ckpt", Own()
    swap_norms(task, "rmsnorm")
    trained(path, task=task)
    assert torch.load(path, weights_only=True)["normtrain"]["swap"]["replaced"]
    found = [load_checkpoint(Own, path), Own.load_from_checkpoint(path, weights_only=True)]
    tested = Own()
    trainer().test(tested, data(), ckpt_path=path)
    assert [kinds(each) for each in [*found, tested]] == [["RMSNorm"]] * 3
    assert Own.called == 3


def test_the_mixin_comes_first() -> None:
    with pytest.raises(
        UserError, match=r"NormAware must come first.*class Wrong\(NormAware, Task\)"
    ):

        class Wrong(Task, NormAware):
            """In the wrong order."""


def test_a_hook_that_renames_modules(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    old = trained(path, NormSwap("rmsnorm"))

    class Renamed(Task):
        def __init__(self) -> None:
            super().__init__()
            self.body = self.net
            del self.net

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.body(batch).square().mean()

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.body(batch)

        test_step = validation_step

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k.replace("net.", "body."): v for k, v in state.items()}

    task = Renamed()
    trainer(NormSwap("rmsnorm")).test(task, data(), ckpt_path=path)
    assert torch.equal(task.body[1].weight, old.net[1].weight)
    with pytest.raises(
        UserError, match=r"saved with rmsnorm.* at body\.1, but the model has adanorm"
    ):
        trainer(NormSwap("adanorm")).test(Renamed(), data(), ckpt_path=path)
    assert type(load_checkpoint(Renamed, path).body[1]).__name__ == "RMSNorm"


def test_one_norm_more_where_loading_is_not_strict(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"))

    class More(Task):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.LayerNorm(8)

    text = r"saved with no norm at more, but .* by NormSwap\('rmsnorm'\)$"
    with pytest.raises(UserError, match=text):
        trainer(NormSwap("rmsnorm")).test(More(), data(), ckpt_path=path)
    task = More()
    task.strict_loading = False
    trainer(NormSwap("rmsnorm")).test(task, data(), ckpt_path=path)


# Filters, teachers, metrics, scripts


def test_a_teacher_in_a_callback_is_not_touched(tmp_path: Path) -> None:
    class Aware(NormAware, Task):
        """Brings its norms along."""

    class Distil(pl.Callback):
        def __init__(self) -> None:
            self.teacher = Aware()

    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"), task=Aware())
    teacher, ema, task = Distil(), EMAWeightAveraging(decay=0.5), Aware()
    fit(task, teacher, ema, max_epochs=2, ckpt_path=path)
    assert kinds(task) == kinds(ema._average_model.module) == ["RMSNorm"]
    assert kinds(teacher.teacher) == ["LayerNorm"]


class Judge(MeanMetric):
    """A metric with a net inside."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))


def test_nets_inside_metrics_are_left_alone() -> None:
    class Measured(Task):
        def __init__(self) -> None:
            super().__init__()
            self.quality = Judge()

    task, swap = Measured(), NormSwap("rmsnorm")
    fit(task, swap)
    assert sorted(kinds(task)) == ["LayerNorm", "RMSNorm"]
    assert type(task.quality.judge[1]) is nn.LayerNorm
    assert dict(swap.report.skipped)["quality.judge.1"].startswith(
        "it is part of the metric quality"
    )


def test_the_report_is_of_the_model_at_hand() -> None:
    swap = NormSwap("rmsnorm", strict=False)
    fit(Task(), swap)
    assert swap.report is not None
    bare = Task()
    bare.net = nn.Linear(8, 1)
    fit(bare, swap)
    assert swap.report is None


@pytest.mark.extended
def test_batch_norms_are_synchronised_where_lightning_would() -> None:
    class Batched(Task):
        def __init__(self) -> None:
            super().__init__()
            self.net[1] = nn.BatchNorm1d(8)

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.sync = pl_module.net[1].sync

    # DDP tells its processes what they are by the environment, and does not take it back.
    with mock.patch.dict(os.environ):
        for asked in (False, True):
            look, task = Look(), Batched()
            fit(task, NormSwap("l1batchnorm"), look, strategy="ddp", sync_batchnorm=asked)
            assert type(task.net[1]) is L1BatchNorm1d
            assert look.sync is asked
        torch.distributed.destroy_process_group()


# Hyperparameters


@dataclass
class Sizes:
    """A configuration object."""

    width: int = 8


class Configured(Task):
    """Keeps an object among its hyperparameters."""

    def __init__(self, sizes: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters({"sizes": sizes or Sizes()})


def test_hyperparameters_that_are_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"), task=Configured())
    text = r"objects \(.*Sizes\) that would have to be executed.*serialization\.add_safe_globals"
    with pytest.raises(UserError, match=text):
        load_checkpoint(Configured, path)
    with torch.serialization.safe_globals([Sizes]):
        found = load_checkpoint(Configured, path)
    assert kinds(found) == ["RMSNorm"]
    assert found.hparams["sizes"] == Sizes()


def test_checkpoints_of_the_lightning_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("user_module")
    module.Mine = type("Mine", (Biasless,), {"__module__": "user_module"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "user_module", module)
    monkeypatch.setattr(
        "pytorch_lightning.cli.instantiate_module",
        lambda cls, config: module.Mine(),  # type: ignore[attr-defined]
    )
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"), task=module.Mine())  # type: ignore[attr-defined]
    raw = torch.load(path, weights_only=True)
    raw["hyper_parameters"] = {
        "_instantiator": "pytorch_lightning.cli.instantiate_module",
        "_class_path": "user_module.Mine",
    }
    torch.save(raw, path)
    for cls in (module.Mine, Biasless):  # type: ignore[attr-defined]
        found = load_checkpoint(cls, path)
        assert type(found) is module.Mine  # type: ignore[attr-defined]
        assert kinds(found) == ["RMSNorm"]
    assert "on_load_checkpoint" not in vars(module.Mine)  # type: ignore[attr-defined]
