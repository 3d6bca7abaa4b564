"""Checkpoints load with the norms that they were trained with, without the callback."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from swapping import Lazy, Task, data, fit, kinds, trained, trainer
from torch import nn

from normtrain import NormAware, NormSwap, kernels, load_checkpoint, swap_norms
from normtrain.errors import RunError, UserError
from normtrain.swap.callback.checkpoint_norms import renamed
from normtrain.swap.norm_record import record

pytestmark = pytest.mark.filterwarnings("ignore")


class Aware(NormAware, Task):
    """Brings its norms along."""


class AwareLazy(NormAware, Lazy):
    """The same, built in configure_model."""


def output(module: Any) -> torch.Tensor:
    x = torch.linspace(-1, 1, 24).reshape(3, 8)
    with torch.no_grad():
        return module.eval().net(x)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [(Task, "rmsnorm"), (Lazy, "adanorm:k=0.2"), (Aware, "layernorm-simple"), (AwareLazy, "dyt")],
)
def test_loading(kind: Any, norm: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    wanted = output(trained(path, NormSwap(norm), task=kind()))
    found = load_checkpoint(kind, path)
    assert type(found) is kind
    assert torch.equal(output(found), wanted)
    if issubclass(kind, NormAware):
        assert torch.equal(output(kind.load_from_checkpoint(path, weights_only=True)), wanted)
    assert record(found)["replaced"]["net.1"].startswith(norm.partition(":")[0])
    assert type(pickle.loads(pickle.dumps(found))) is kind


@pytest.mark.extended
def test_arguments_reach_the_class_and_the_loading(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"), task=Task(width=5))
    assert load_checkpoint(Task, path).hparams["width"] == 5
    assert load_checkpoint(Task, path, width=7).hparams["width"] == 7

    class More(Task):
        def __init__(self, width: int = 8) -> None:
            super().__init__(width)
            self.more = nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"a\.ckpt do not fit More: Missing key.*more"):
        load_checkpoint(More, path)
    assert kinds(load_checkpoint(More, path, strict=False)) == ["RMSNorm"]


@pytest.mark.parametrize(
    ("kind", "stage"), [(Aware, "fit"), (AwareLazy, "fit"), (AwareLazy, "test"), (Aware, "predict")]
)
def test_a_trainer_restores_them_too(kind: Any, stage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    old = trained(path, NormSwap("rmsnorm"), task=kind())
    again = kind()
    getattr(trainer(max_epochs=2), stage)(again, data(), ckpt_path=path)
    assert kinds(again) == ["RMSNorm"]
    if stage == "fit":
        held = {id(p) for g in again.optimizers(False).param_groups for p in g["params"]}
        assert held == {id(p) for p in again.parameters()}
    else:
        assert torch.equal(output(again), output(old))


@pytest.mark.parametrize("metadata", [False, True])
def test_a_checkpoint_of_version_1_loads(metadata: bool, tmp_path: Path) -> None:
    """There the record was the section itself, not a key of it."""
    path = tmp_path / "a.ckpt"
    old = trained(path, NormSwap("rmsnorm"))
    raw = torch.load(path, weights_only=True)
    flat = {**raw.pop("normtrain")["swap"], "version": 1}
    if metadata:
        raw["state_dict"]._metadata[""]["normtrain"] = flat
    else:
        raw["normtrain"] = flat
    torch.save(raw, path)
    found = load_checkpoint(Task, path)
    assert kinds(found) == ["RMSNorm"]
    assert torch.equal(output(found), output(old))
    fit(Task(), NormSwap("rmsnorm"), max_epochs=2, ckpt_path=path)
    with pytest.raises(UserError, match="saved with rmsnorm.*has adanorm"):
        fit(Task(), NormSwap("adanorm"), max_epochs=2, ckpt_path=path)


def test_other_norms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap("rmsnorm"), task=Aware())

    class Other(Aware):
        def __init__(self) -> None:
            super().__init__()
            swap_norms(self, "layernorm:bias=false")

    text = r"a\.ckpt was saved with rmsnorm.* at net\.1, but the model has layernorm:bias=false"
    with pytest.raises(UserError, match=text):
        trainer().test(Other(), data(), ckpt_path=path)
    with pytest.raises(UserError, match=r"was saved with rmsnorm.*build the model with the norms"):
        load_checkpoint(Other, path)
    with pytest.raises(UserError, match=r"saved with rmsnorm.* by NormSwap\('adanorm'\)"):
        fit(Aware(), NormSwap("adanorm"), max_epochs=2, ckpt_path=path)
    # An unswapped checkpoint of a module that says which norms it has.
    plain = tmp_path / "b.ckpt"
    trained(plain, task=Aware())
    with pytest.raises(
        UserError, match=r"saved with torch\.nn\.LayerNorm at net\.1, but .*rmsnorm"
    ):
        fit(Aware(), NormSwap("rmsnorm"), max_epochs=2, ckpt_path=plain)


@pytest.mark.extended
def test_an_averaged_run_goes_on_without_the_callback(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"

    class Save(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(path)

    ema = EMAWeightAveraging(decay=0.5)
    # EMA gives the model its average at the end, so the checkpoint comes before.
    fit(Aware(), NormSwap("rmsnorm"), Save(), ema)
    found = torch.load(path, weights_only=True)
    again, ema = Aware(), EMAWeightAveraging(decay=0.5)

    class Look(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            for key, model in (
                ("state_dict", ema._average_model.module),
                ("current_model_state", pl_module),
            ):
                assert kinds(model) == ["RMSNorm"]
                for name, value in model.state_dict().items():
                    assert torch.equal(value, found[key][name])

    fit(again, ema, Look(), max_epochs=2, ckpt_path=path)
    assert not torch.equal(
        found["state_dict"]["net.1.weight"], found["current_model_state"]["net.1.weight"]
    )


@pytest.mark.extended
def test_compiled_parts_load_from_plain_ones_and_back(tmp_path: Path) -> None:
    class Compiled(Aware):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(self.net, backend="eager")

    # Compiled parts run the formulas, whatever runs the norms of others: equal bits need the same.
    with kernels.use("plain"):
        for first, second in ((Compiled, Aware), (Aware, Compiled)):
            path = tmp_path / f"{first.__name__}.ckpt"
            old = trained(path, NormSwap("rmsnorm"), task=first())
            assert any("_orig_mod" in key for key in old.state_dict()) is (first is Compiled)
            for found in (
                load_checkpoint(second, path),
                second.load_from_checkpoint(path, weights_only=True),
            ):
                assert torch.equal(output(found), output(old))


def test_renamed_leaves_what_it_does_not_know() -> None:
    state = {"net._orig_mod.1.weight": 1, "other": 2}
    assert renamed(state, ["net.1.weight"]) == {"net.1.weight": 1, "other": 2}
    assert renamed(state, list(state)) is state


class Held:
    """What no checkpoint should hold."""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "checkpoint .* not found"),
        (b"", "truncated, damaged"),
        (b"not a checkpoint", "truncated, damaged"),
        ({"weights": 3}, "has no state_dict"),
        ({"state_dict": Held()}, "would have to be executed"),
        ({"state_dict": {}, "normtrain": {"version": 9}}, "version 9"),
        ({"state_dict": {}, "normtrain": {"version": 1, "recipe": {}}}, "written by normtrain fit"),
    ],
)
def test_files_that_are_no_good(content: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=text) as caught:
        load_checkpoint(Task, path)
    assert "a.ckpt" in str(caught.value)


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, so a sharded checkpoint"):
        load_checkpoint(Task, tmp_path)
    with pytest.raises(RunError, match="cannot read"):
        load_checkpoint(Task, tmp_path / ("x" * 300))


def test_what_is_no_lightning_module() -> None:
    for wrong in (nn.Linear, Task(), "Task"):
        with pytest.raises(UserError, match="the class of a LightningModule"):
            load_checkpoint(wrong, "a.ckpt")  # type: ignore[type-var,arg-type]
