"""One callback class for every flavour of Lightning that is installed."""

import pickle
import subprocess
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import normtrain
from normtrain.errors import RunError
from normtrain.monitor import callback as monitor
from normtrain.swap.callback import flavours

INSTALLED = ["pytorch_lightning"]
try:
    import lightning.pytorch

    INSTALLED.append(lightning.pytorch.__name__)
except ImportError:
    pass

QUIET = {
    "accelerator": "cpu",
    "max_steps": 2,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def module(flavour: str) -> Any:
    """A tiny model with a norm, of that flavour's LightningModule."""

    class Tiny(import_module(flavour).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.norm(self.first(batch)).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Tiny()


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("flavour", INSTALLED)
def test_the_trainer_of_every_flavour_takes_it(flavour: str, bare: bool) -> None:
    seen = normtrain.NormMonitor(every=2)
    trainer = import_module(flavour).Trainer(callbacks=seen if bare else [seen], **QUIET)
    trainer.fit(module(flavour), DataLoader(torch.randn(4, 4), batch_size=2))
    assert seen.step == 2
    assert set(seen.last) == {"norm"}
    assert isinstance(seen, import_module(flavour).Callback)


def test_the_class_is_one_and_pickles() -> None:
    kind = normtrain.NormMonitor
    assert kind is monitor.NormMonitor
    assert (kind.__name__, kind.__qualname__, kind.__module__) == (
        "NormMonitor",
        "NormMonitor",
        "normtrain.monitor.callback",
    )
    assert kind.__doc__ == monitor.NormMonitorHooks.__doc__
    copy = pickle.loads(pickle.dumps(kind(every=7)))
    assert type(copy) is kind
    assert copy.every == 7

    class Mine(kind):  # type: ignore[valid-type,misc]
        """Users may derive from it."""

    assert isinstance(Mine(3), pytorch_lightning.Callback)


@pytest.mark.extended
def test_importing_the_module_imports_no_lightning() -> None:
    code = (
        "import sys, normtrain.monitor.callback as m; "
        "assert not {'lightning', 'pytorch_lightning'} & set(sys.modules); "
        "m.NormMonitor; assert 'pytorch_lightning' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Old:
    """A flavour's Callback."""


def _importer(found: dict[str, Any]) -> Any:
    def import_one(name: str) -> ModuleType | SimpleNamespace:
        if name not in found:
            raise ModuleNotFoundError(f"No module named {name!r}")
        if isinstance(found[name], Exception):
            raise found[name]
        return found[name]

    return import_one


@pytest.mark.parametrize(
    ("found", "bases"),
    [
        ({"pytorch_lightning": SimpleNamespace(Callback=Old)}, (Old,)),
        ({name: SimpleNamespace(Callback=Old) for name in flavours.FLAVOURS}, (Old,)),
        (
            {
                "pytorch_lightning": RuntimeError("too old"),
                "lightning.pytorch": SimpleNamespace(Callback=Old),
            },
            (Old,),
        ),
    ],
)
def test_flavours_that_fail_are_passed_over(
    found: dict[str, Any], bases: tuple[type, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flavours, "import_module", _importer(found))
    assert flavours.callback_bases.__wrapped__() == bases


def test_without_any_flavour_the_error_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"pytorch_lightning": RuntimeError("too old")}
    monkeypatch.setattr(flavours, "import_module", _importer(broken))
    with pytest.raises(RunError, match=r"No module named 'lightning.pytorch'.*too old.*pip inst"):
        flavours.callback_bases.__wrapped__()
