"""``NormSwap``: train, evaluate and resume any Lightning project with other norms."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.base import flag
from normtrain.swap.callback import trainer_checks
from normtrain.swap.callback.checkpoint_norms import explain_mismatch, fit_keys, refuse_mismatch
from normtrain.swap.callback.flavours import callback_class
from normtrain.swap.callback.method_patch import copies, original, overridden, patch, unpatch
from normtrain.swap.callback.norm_aware import NormAware
from normtrain.swap.norm_record import is_swapped, record, write_metadata, write_record
from normtrain.swap.report import SwapReport
from normtrain.swap.requested import parse_swap_rules, plain_pairs, rules_text
from normtrain.swap.swap import INITS, Filter, pending, swap_norms

# Hooks in which a module may build layers after the callbacks' setup, in Lightning's order.
_BUILDING = ("setup", "configure_sharded_model", "configure_model")
_Rules = list[tuple[str, str]]
_CHECKPOINTS = ("on_save_checkpoint", "on_load_checkpoint")


@dataclass
class _Job:
    """The swap of one setup: its arguments, the module's hooks still to run, and the report."""

    rules: _Rules
    init: str
    filter_fn: Filter | None
    strict: bool
    spawned: bool
    remaining_hooks: list[str] = field(default_factory=list)
    report: SwapReport = field(default_factory=SwapReport)

    def apply(self, module: nn.Module) -> None:
        """Replace the norms built so far; strict only after the last of the module's hooks."""
        if self.spawned and (late := pending(module, self.rules, self.filter_fn)):
            raise UserError(
                f"NormSwap cannot replace {late[0]} in processes that Lightning starts by spawn or "
                f"fork: the caller's model would keep its old norms with the new weights; call "
                f"swap_norms(model, {rules_text(self.rules)}) before trainer.fit, or use "
                f"strategy='ddp'"
            )
        report = swap_norms(
            module,
            self.rules,
            init=self.init,
            filter_fn=self.filter_fn,
            strict=self.strict and not self.remaining_hooks,
        )
        done = {one.name for one in self.report.replaced}
        report.skipped = [one for one in report.skipped if one[0] not in done]
        report.replaced = self.report.replaced + report.replaced
        self.report = report


def _build_then_swap(
    module: nn.Module, name: str, before: Any, job: _Job, *args: Any, **kwargs: Any
) -> None:
    original(module, name, before)(*args, **kwargs)
    if name in job.remaining_hooks:
        job.remaining_hooks.remove(name)
    job.apply(module)


def _save_with_norms(
    module: nn.Module, name: str, before: Any, rules: _Rules, checkpoint: dict[str, Any]
) -> None:
    # Unlike the callbacks' hook, Lightning calls this also for checkpoints of weights only.
    write_record(checkpoint, record(module, rules))
    original(module, name, before)(checkpoint)


def _load_same_norms(
    module: nn.Module, name: str, before: Any, rules: _Rules, checkpoint: dict[str, Any]
) -> None:
    # Checked here because the weights are loaded next.
    if isinstance(module, NormAware):  # its own hook would restore the checkpoint's norms
        refuse_mismatch(checkpoint, module, rules)
    original(module, name, before)(checkpoint)
    refuse_mismatch(checkpoint, module, rules)
    fit_keys(checkpoint, module)


class NormSwapHooks:
    """Replaces the norms of a model before it is trained, validated, tested or used to predict.

    Put it first among the callbacks. `swap_norms` is called when a stage is set up: before the
    optimizer is created, before the model is wrapped for several devices and before a checkpoint
    is loaded; also after the module's own ``setup`` and ``configure_model``. Norms that already
    match are skipped, so the same model can be used with any number of Trainers. The model keeps
    its new norms afterwards.

    Checkpoints record which norms they were trained with. Resuming or evaluating one with other
    norms is an error, also if all keys match. To load one without the callback, use
    `normtrain.load_checkpoint`, or Lightning's own functions if the module is `NormAware`.

    Under ``ModelParallelStrategy`` (FSDP2), norms built in ``__init__`` or ``setup`` are replaced;
    a module that builds and shards in one ``configure_model`` must call `swap_norms` itself,
    between the two. If Lightning starts processes by spawn or fork, call `swap_norms` before
    ``trainer.fit``; the callback then checks the model, and writes and checks checkpoints.

    Attributes:
        report: the report of the last swap; None before that.

    Args:
        rules: as for `swap_norms`.
        init: as for `swap_norms`.
        filter_fn: as for `swap_norms`; must be picklable if processes are spawned.
        strict: as for `swap_norms`.

    Raises:
        UserError: an argument is wrong; when a stage is set up, as `swap_norms`, and if another
            callback copied the model before; when training starts, if an optimizer holds
            parameters of the old norms; when a checkpoint is read, if its norms differ.
    """

    def __init__(
        self,
        rules: Any,
        *,
        init: str = "keep",
        filter_fn: Filter | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        self.rules = plain_pairs(parse_swap_rules(rules))
        if init not in INITS:
            raise UserError(f"init must be 'keep' or 'fresh', got {init!r}")
        if filter_fn is not None and not callable(filter_fn):
            raise UserError(
                f"filter_fn must be a function of a norm and its name, got {filter_fn!r}"
            )
        self.init, self.filter_fn, self.strict = init, filter_fn, flag("strict", strict)
        self.report: SwapReport | None = None
        self._job: _Job | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude a swap in progress and the attributes that Lightning sets during hooks."""
        return {k: v for k, v in vars(self).items() if k not in ("log", "log_dict")} | {
            "_job": None
        }

    @property
    def state_key(self) -> str:
        """The callback's key in checkpoints: the same for all arguments and flavours."""
        return "NormSwap"

    def state_dict(self) -> dict[str, Any]:
        """Return the rules; with a state, Lightning warns about resuming without the callback."""
        return {"rules": [list(pair) for pair in self.rules]}

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Replace the norms built so far, and patch the hooks that build the others."""
        self._unpatch(trainer, pl_module)
        trainer_checks.check_task(pl_module)
        trainer_checks.check_order(trainer, self)
        trainer_checks.warn_of_transformer_engine(trainer)
        self.report = self.report if any(map(is_swapped, pl_module.modules())) else None
        spawned = trainer_checks.in_spawned_process(trainer)
        job = _Job(self.rules, self.init, self.filter_fn, self.strict, spawned)
        job.remaining_hooks = [name for name in _BUILDING if overridden(pl_module, name)]
        job.apply(pl_module)
        self._job = job
        for name in job.remaining_hooks:
            patch(pl_module, name, _build_then_swap, job)
        patch(pl_module, "on_save_checkpoint", _save_with_norms, self.rules)
        patch(pl_module, "on_load_checkpoint", _load_same_norms, self.rules)
        # Another Trainer, or this one after the stage, saves without calling the module.
        if write_metadata not in pl_module._state_dict_hooks.values():
            pl_module.register_state_dict_post_hook(write_metadata)

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Finish the swap, and check the optimizers."""
        self._finish(trainer, pl_module)
        trainer_checks.check_optimizers(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Finish the swap, unless the validation is part of a training."""
        if trainer.state.fn != "fit":
            self._finish(trainer, pl_module)

    on_test_start = on_predict_start = on_validation_start

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Record the norms, also after the stage has ended."""
        write_record(checkpoint, record(pl_module, self.rules))

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Undo all patches; explain a checkpoint whose norms differ."""
        self._unpatch(trainer, pl_module)
        explain_mismatch(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Undo all patches."""
        self._unpatch(trainer, pl_module)

    def _finish(self, trainer: Any, pl_module: nn.Module) -> None:
        for module in (pl_module, *copies(trainer, pl_module)):
            unpatch(module, *_BUILDING)
        trainer_checks.sync_batch_norms(trainer, pl_module)
        if self._job is None or not self._job.report.replaced:
            return
        self.report = self._job.report
        if trainer.is_global_zero:
            specs = dict.fromkeys(one.new for one in self.report.replaced)
            flavour = type(trainer).__module__.partition(".trainer")[0]
            logging.getLogger(flavour).info(
                f"NormSwap: {len(self.report.replaced)} norms replaced by {', '.join(specs)}; "
                f"{len(self.report.skipped)} skipped; print(callback.report) lists them"
            )

    def _unpatch(self, trainer: Any, pl_module: nn.Module) -> None:
        for module in (pl_module, *copies(trainer, pl_module)):
            unpatch(module, *_BUILDING, *_CHECKPOINTS)
        self._job = None


if TYPE_CHECKING:
    from pytorch_lightning import Callback

    class NormSwap(NormSwapHooks, Callback):
        """`NormSwapHooks` as a callback."""


def __getattr__(name: str) -> Any:
    if name == "NormSwap":
        return callback_class(NormSwapHooks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
