"""``NormSwap``: any Lightning project trains, evaluates and resumes with other norms."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from normtrain.errors import UserError
from normtrain.norms.base import flag
from normtrain.swap.callback import swap_checks
from normtrain.swap.callback.flavours import callback_class
from normtrain.swap.callback.instance import copies, original, overridden, patch, unpatch
from normtrain.swap.callback.norm_aware import NormAware
from normtrain.swap.callback.norm_section import explain_mismatch, fit_keys, refuse_mismatch
from normtrain.swap.record import SECTION, is_swapped, record, write_metadata
from normtrain.swap.report import SwapReport
from normtrain.swap.rules import SwapRules, shown
from normtrain.swap.swap import INITS, Filter, pending, swap_norms

# Where a module may build layers after the callbacks' own setup, in Lightning's order.
_BUILDING = ("setup", "configure_sharded_model", "configure_model")
_Rules = list[tuple[str, str]]
_CHECKPOINTS = ("on_save_checkpoint", "on_load_checkpoint")


@dataclass
class _Job:
    """One setup's swap: what to do, which of the module's hooks are still to run, what was done."""

    rules: _Rules
    init: str
    filter_fn: Filter | None
    strict: bool
    spawned: bool
    ahead: list[str] = field(default_factory=list)
    report: SwapReport = field(default_factory=SwapReport)

    def apply(self, module: nn.Module) -> None:
        """Swap what is there by now; after the last of the module's hooks, all must be there."""
        if self.spawned and (late := pending(module, self.rules, self.filter_fn)):
            raise UserError(
                f"NormSwap can't replace {late[0]} in processes that Lightning starts by spawn or "
                f"fork, since the caller's model would keep its old norms with the new ones' "
                f"weights; call swap_norms(model, {shown(self.rules)}) before trainer.fit, or use "
                f"strategy='ddp'"
            )
        report = swap_norms(
            module,
            self.rules,
            init=self.init,
            filter_fn=self.filter_fn,
            strict=self.strict and not self.ahead,
        )
        done = {one.name for one in self.report.replaced}
        report.skipped = [one for one in report.skipped if one[0] not in done]
        report.replaced = self.report.replaced + report.replaced
        self.report = report


def _build_then_swap(
    module: nn.Module, name: str, before: Any, job: _Job, *args: Any, **kwargs: Any
) -> None:
    original(module, name, before)(*args, **kwargs)
    if name in job.ahead:
        job.ahead.remove(name)
    job.apply(module)


def _save_with_norms(
    module: nn.Module, name: str, before: Any, rules: _Rules, checkpoint: dict[str, Any]
) -> None:
    # Lightning calls no callback for checkpoints of weights only, but always this.
    checkpoint[SECTION] = record(module, rules)
    original(module, name, before)(checkpoint)


def _load_same_norms(
    module: nn.Module, name: str, before: Any, rules: _Rules, checkpoint: dict[str, Any]
) -> None:
    # The weights are loaded next, which may fail with less of a message, or not fail.
    if isinstance(module, NormAware):  # it would restore norms that are not asked for
        refuse_mismatch(checkpoint, module, rules)
    original(module, name, before)(checkpoint)
    refuse_mismatch(checkpoint, module, rules)
    fit_keys(checkpoint, module)


class NormSwapHooks:
    """Replaces the norms of the model it is trained, validated, tested or run with.

    Put it first among the callbacks. Norms are replaced by `swap_norms` when a stage is set up:
    before the optimizer is made, before the model is wrapped for several devices and before a
    checkpoint is read; also those that the module builds in its own ``setup`` or
    ``configure_model``. Norms that are right already are left alone, so that the same model can go
    through any number of Trainers. The model keeps its new norms afterwards.

    Checkpoints tell which norms they were trained with. Resuming or evaluating one with other norms
    is an error, also where all keys match. They load without the callback by
    `normtrain.load_checkpoint`, or by Lightning's own means if the module is `NormAware`.

    Under ``ModelParallelStrategy`` (FSDP2) norms are replaced if they are built in ``__init__`` or
    ``setup``; a module that builds and shards in one ``configure_model`` must call `swap_norms`
    itself, between the two. Where Lightning starts processes by spawn or fork, call `swap_norms`
    before ``trainer.fit``; the callback then checks, and writes and checks checkpoints.

    Attributes:
        report: what was replaced when norms were last replaced; None before that.

    Args:
        rules: as for `swap_norms`.
        init: as for `swap_norms`.
        filter_fn: as for `swap_norms`; must pickle where processes are spawned.
        strict: as for `swap_norms`.

    Raises:
        UserError: an argument is wrong; when a stage is set up, as `swap_norms`, and if another
            callback has copied the model before; when training starts, if an optimizer holds
            parameters of the old norms; when a checkpoint is read, if it has other norms.
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
        self.rules = SwapRules.parse(rules).to_plain()
        if init not in INITS:
            raise UserError(f"init must be 'keep' or 'fresh', not {init!r}")
        if filter_fn is not None and not callable(filter_fn):
            raise UserError(f"filter_fn is a function of a norm and its name, not {filter_fn!r}")
        self.init, self.filter_fn, self.strict = init, filter_fn, flag("strict", strict)
        self.report: SwapReport | None = None
        self._job: _Job | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but a swap under way and what Lightning lends of the model."""
        return {k: v for k, v in vars(self).items() if k not in ("log", "log_dict")} | {
            "_job": None
        }

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state: the same whatever the arguments and flavour."""
        return "NormSwap"

    def state_dict(self) -> dict[str, Any]:
        """The rules: with a state, Lightning says so when a run is resumed without the callback."""
        return {"rules": [list(pair) for pair in self.rules]}

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Replace the norms that are there, and see to those that are not there yet."""
        self._unpatch(trainer, pl_module)
        swap_checks.check_task(pl_module)
        swap_checks.check_order(trainer, self)
        swap_checks.warn_of_transformer_engine(trainer)
        self.report = self.report if any(map(is_swapped, pl_module.modules())) else None
        spawned = swap_checks.in_spawned_process(trainer)
        job = _Job(self.rules, self.init, self.filter_fn, self.strict, spawned)
        job.ahead = [name for name in _BUILDING if overridden(pl_module, name)]
        job.apply(pl_module)
        self._job = job
        for name in job.ahead:
            patch(pl_module, name, _build_then_swap, job)
        patch(pl_module, "on_save_checkpoint", _save_with_norms, self.rules)
        patch(pl_module, "on_load_checkpoint", _load_same_norms, self.rules)
        # Other Trainers, and this one when the stage has ended, save without asking anybody.
        if write_metadata not in pl_module._state_dict_hooks.values():
            pl_module.register_state_dict_post_hook(write_metadata)

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """All is built, the optimizers too."""
        self._built(trainer, pl_module)
        swap_checks.check_optimizers(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """All is built."""
        self._evaluate(trainer, pl_module)

    def on_test_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """All is built."""
        self._evaluate(trainer, pl_module)

    def on_predict_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """All is built."""
        self._evaluate(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Any, pl_module: nn.Module, checkpoint: dict[str, Any]
    ) -> None:
        """Write the norms, also after the stage has ended."""
        checkpoint[SECTION] = record(pl_module, self.rules)

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Leave nothing changed but the norms; explain a checkpoint that did not fit."""
        self._unpatch(trainer, pl_module)
        explain_mismatch(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Leave nothing changed but the norms."""
        self._unpatch(trainer, pl_module)

    def _evaluate(self, trainer: Any, pl_module: nn.Module) -> None:
        if trainer.state.fn != "fit":
            self._built(trainer, pl_module)

    def _built(self, trainer: Any, pl_module: nn.Module) -> None:
        for module in (pl_module, *copies(trainer, pl_module)):
            unpatch(module, *_BUILDING)
        swap_checks.sync_batch_norms(trainer, pl_module)
        if self._job is None or not self._job.report.replaced:
            return
        self.report = self._job.report
        if trainer.is_global_zero:
            kinds = dict.fromkeys(one.new for one in self.report.replaced)
            flavour = type(trainer).__module__.partition(".trainer")[0]
            logging.getLogger(flavour).info(
                f"NormSwap: norms replaced: {len(self.report.replaced)}, by {', '.join(kinds)}; "
                f"left alone: {len(self.report.skipped)}; print(callback.report) names them"
            )

    def _unpatch(self, trainer: Any, pl_module: nn.Module) -> None:
        for module in (pl_module, *copies(trainer, pl_module)):
            unpatch(module, *_BUILDING, *_CHECKPOINTS)
        self._job = None


if TYPE_CHECKING:
    from pytorch_lightning import Callback

    class NormSwap(NormSwapHooks, Callback):
        """See `NormSwapHooks`."""


def __getattr__(name: str) -> Any:
    if name == "NormSwap":
        return callback_class(NormSwapHooks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
