"""One cell of the table of hooks: a module, a stage, a strategy and a flavour of Lightning.

Run as a script by torchrun, it goes through the cells of several ranks and writes what each saw.
"""

import hashlib
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from normtrain import NormAware, NormSwap, load_checkpoint, swap_norms
from normtrain.norms import RMSNorm
from normtrain.swap.callback.method_patch import is_patch

FLAVOURS = ("pytorch_lightning", "lightning.pytorch")
BUILT = ("init", "setup", "configure_model")
STAGES = ("fit", "validate", "test", "predict", "resume", "load")
STRATEGIES = ("single", "ddp", "fsdp2")
RULES = "rmsnorm"


def task(flavour: str, built: str, *, shards: bool, aware: bool, swaps: bool) -> Any:
    """A module with one norm that writes down which norm it has whenever it is called.

    Args:
        flavour: of Lightning.
        built: the method that builds the layers.
        shards: whether ``configure_model`` shards them.
        aware: whether checkpoints bring their norms along.
        swaps: whether it swaps its norms itself, between building and sharding.
    """
    base = import_module(flavour).LightningModule
    bases = (NormAware, base) if aware else (base,)

    class Task(*bases):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = None
            self.events: list[tuple[str, str | None]] = []
            self.build("init")

        def build(self, method: str) -> None:
            if method == built and self.net is None:
                torch.manual_seed(3)
                self.net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1))
                if swaps:
                    swap_norms(self, RULES)

        def event(self, name: str) -> None:
            kind = None if self.net is None else type(self.net[1]).__name__.removeprefix("FSDP")
            self.events.append((name, kind))

        def setup(self, stage: str) -> None:
            self.build("setup")
            self.event("module setup")

        if built == "configure_model" or shards:

            def configure_model(self) -> None:
                self.build("configure_model")
                self.event("configure_model")
                if shards and not isinstance(self.net[0].weight, DTensor):
                    from torch.distributed.fsdp import fully_shard

                    fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            super().on_load_checkpoint(checkpoint)
            self.event("load")

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.event("optimizers")
            return torch.optim.AdamW(self.parameters(), 1e-2)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(batch).square().mean()

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.net(batch)

        def test_step(self, batch: Tensor, batch_idx: int) -> None:
            self.net(batch)

        def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.net(batch)

    return Task


def watch(flavour: str, save: Path | None) -> Any:
    """A callback, behind NormSwap, that writes down what the module has; saves when asked to."""

    class Watch(import_module(flavour).Callback):  # type: ignore[misc]
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            pl_module.event("callback setup")

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.event("start")
            # Now: once FSDP2 has run forward, the module's parameters are gathered ones.
            optimizers = [g for o in trainer.optimizers for g in o.param_groups]
            held = [id(p) for group in optimizers for p in group["params"]]
            live = [id(p) for p in pl_module.parameters()]
            pl_module.exact = sorted(held) == sorted(live)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            if save is not None:
                trainer.save_checkpoint(save)

    return Watch()


def _strategy(flavour: str, strategy: str) -> Any:
    if strategy != "fsdp2":
        return {"single": "auto", "ddp": "ddp"}[strategy]
    kind = import_module(f"{flavour}.strategies").ModelParallelStrategy
    # Lightning's default, sharded checkpoints, under one flavour; whole ones under the other.
    sharded = flavour == FLAVOURS[1]
    return kind(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=sharded)


def _trainer(flavour: str, strategy: str, callbacks: list[Any], epochs: int) -> Any:
    return import_module(flavour).Trainer(
        accelerator="cpu",
        devices=1 if strategy == "single" else 2,
        strategy=_strategy(flavour, strategy),
        callbacks=callbacks,
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """How often each norm's forward runs inside."""
    counts = {"LayerNorm": 0, "RMSNorm": 0}
    before = {kind: kind.forward for kind in (nn.LayerNorm, RMSNorm)}

    def counting(kind: Any) -> Any:
        def forward(self: Any, x: Tensor) -> Tensor:
            counts[kind.__name__] += 1
            return before[kind](self, x)

        return forward

    try:
        for kind in before:
            kind.forward = counting(kind)  # type: ignore[method-assign]
        yield counts
    finally:
        for kind, forward in before.items():
            kind.forward = forward  # type: ignore[method-assign]


def digest(module: nn.Module) -> str:
    """A fingerprint of all parameters, whole ones where they are sharded."""
    found = hashlib.sha256()
    for name, parameter in module.named_parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.update(name.encode() + whole.detach().numpy().tobytes())
    return found.hexdigest()


def _data() -> DataLoader:
    rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(rows, batch_size=4)


def run_cell(flavour: str, built: str, stage: str, strategy: str, folder: Path) -> dict[str, Any]:
    """What happened: which norm computed, whether the optimizer is exact, events, weights."""
    shards = strategy == "fsdp2"
    aware = stage == "load"
    # Only the module itself can act between building and sharding in one method.
    swaps = shards and built == "configure_model"
    kind = task(flavour, built, shards=shards, aware=aware, swaps=swaps)
    path = folder / f"{flavour}-{built}-{stage}-{strategy}.ckpt"
    module, data = kind(), _data()
    callbacks = [NormSwap(RULES), watch(flavour, path)]
    if stage in ("validate", "test", "predict"):
        trainer = _trainer(flavour, strategy, callbacks, 1)
        with counted() as counts:
            getattr(trainer, stage)(module, data)
        return _outcome(module, counts)
    with counted() as counts:
        _trainer(flavour, strategy, callbacks, 1).fit(module, data, data)
    if stage == "fit":
        return _outcome(module, counts)
    module = kind()
    callbacks = callbacks if stage == "resume" else [watch(flavour, None)]
    with counted() as counts:
        try:
            _trainer(flavour, strategy, callbacks, 2).fit(module, data, data, ckpt_path=path)
        except (
            BaseException
        ) as error:  # torch's failure to read a sharded checkpoint is no Exception
            if not (shards and aware and not swaps):
                raise
            return {"error": " ".join([str(error), *getattr(error, "__notes__", [])])}
    found = _outcome(module, counts)
    if stage == "load" and strategy == "single" and built != "setup":  # setup needs a Trainer
        loaded = (kind.load_from_checkpoint(path, weights_only=True), load_checkpoint(kind, path))
        found["loaded"] = [type(each.net[1]).__name__ for each in loaded]
    return found


def _outcome(module: Any, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "counts": counts,
        "events": module.events,
        "exact": getattr(module, "exact", None),
        "digest": digest(module),
        "patched": sorted(name for name, value in vars(module).items() if is_patch(value)),
    }


def main() -> None:
    """All cells of several ranks; each rank writes its own file."""
    warnings.simplefilter("ignore")
    for name in FLAVOURS:
        logging.getLogger(name).setLevel(logging.ERROR)
    folder, found = Path(sys.argv[1]), {}
    for cell in itertools.product(FLAVOURS, BUILT, STAGES, ("ddp", "fsdp2")):
        try:
            found["/".join(cell)] = run_cell(*cell, folder)
        except Exception as error:
            found["/".join(cell)] = {"failed": f"{type(error).__name__}: {error}"}
    rank = torch.distributed.get_rank()
    (folder / f"rank{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
