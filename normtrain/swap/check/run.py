"""Whether a model still trains and evaluates as it should with other norms, tried on copies."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from normtrain.errors import UserError, described
from normtrain.swap.check.inputs import Inputs, choose_inputs
from normtrain.swap.check.probe import generators_kept
from normtrain.swap.check.runs import ModelFailed, copied
from normtrain.swap.check.trials import Check, Trials
from normtrain.swap.report import SwapReport

_LIGHTNING = ("pytorch_lightning", "lightning")


@dataclass
class SwapCheck:
    """What a swap would do to a model, and whether the model with the new norms works.

    Attributes:
        report: what `swap_norms` said.
        checks: what was tried, in order.
        change: by how much the output in eval differs from the original's, relative to its size;
            0 exactly if no bit changed, None if it is not known. No verdict: other norms are meant
            to compute something else.
        inputs: what the model was called with.
        notes: what was done to have the model at all.
    """

    report: SwapReport
    checks: list[Check]
    change: float | None
    inputs: str
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if check.status == "FAILED"]

    def plain(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers only; a change that is not finite is None."""
        finite = self.change is not None and math.isfinite(self.change)
        return {
            "report": dataclasses.asdict(self.report),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "change": self.change if finite else None,
            "inputs": self.inputs,
            "notes": self.notes,
            "passed": not self.failed,
        }

    def __str__(self) -> str:
        """The report's table, then a line a check."""
        rows = [(check.name, check.status, check.detail) for check in self.checks]
        wide = max((len(name) for name, _, _ in rows), default=0)
        lines = [str(self.report), "", f"inputs: {self.inputs}"]
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            f"{name:<{wide}}  {status:<7}  {detail}".rstrip() for name, status, detail in rows
        ]
        if self.change is not None:
            much = f"{self.change:.3g} of its size" if self.change else "not a bit"
            much = much if math.isfinite(self.change) else "its shape, or what of it is finite"
            lines.append(f"change of the output in eval: {much} (information, not a verdict)")
        return "\n".join(lines)


def check_swap(
    model: nn.Module,
    rules: Any,
    inputs: Any = None,
    *,
    specs: Sequence[str] = (),
    init: str = "keep",
    seed: int = 0,
) -> SwapCheck:
    """Swap the norms of a copy of a model and try what training and evaluation need of it.

    The model, the global random generators and the file system stay as they are. It runs where the
    model is. A Lightning module is called as its ``forward``; where it overrides
    ``configure_model``, that is called on the copy first.

    Args:
        model: any module that `swap_norms` takes.
        rules: as `swap_norms` takes them.
        inputs: a tensor, a tuple or list of arguments, or a dict of named ones; None for the
            model's own ``example_input_array`` or ``dummy_inputs``.
        specs: shapes of inputs to make up instead: ``"2,16,64"``, ``"ids=int:2,16:1000"``.
        init: as `swap_norms` takes it.
        seed: of the inputs that are made up, and of what the model draws.

    Raises:
        UserError: there is nothing to call the model with, it can't be copied, its own forward
            fails on these inputs, the rules are wrong, or no norm would be replaced.
        RunError: out of memory; or as `swap_norms`.
    """
    with generators_kept(), _eagerly():
        before = copied(model)
        notes, hint = _configure(before)
        chosen = choose_inputs(before, specs, inputs, seed)
        trials = Trials(before, rules, init, chosen, seed)
        report = _report(trials, hint)
        try:
            trials.run_original()
        except ModelFailed as error:
            raise UserError(_of_original(error, chosen, hint)) from error.__cause__
        checks = [_outcome(name, trial) for name, trial in trials.all()]
    return SwapCheck(report, checks, trials.change, str(chosen), [*notes, *trials.notes])


def _eagerly() -> AbstractContextManager[Any]:
    """Run what torch.compile made as it was written: compiling takes long and changes no result."""
    compiles = "torch._dynamo" in sys.modules  # importing it takes seconds
    return torch.compiler.set_stance("force_eager") if compiles else nullcontext()


def _report(trials: Trials, hint: str) -> SwapReport:
    """What swapping a copy says.

    Raises:
        UserError: it is refused, or nothing is replaced.
    """
    try:
        report = trials.swap()
    except UserError as error:
        if not str(error).startswith("no norm of this"):
            raise
        raise UserError(f"{error}{hint}") from error
    if not report.replaced:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in report.skipped[:3])
        raise UserError(f"no norm would be replaced: {reasons}{hint}")
    return report


def _outcome(name: str, trial: Callable[[], tuple[str, str]]) -> Check:
    try:
        return Check(name, *trial())
    except ModelFailed as error:
        return Check(name, "FAILED", f"{error} (the original does not)")


def _of_original(error: ModelFailed, inputs: Inputs, hint: str) -> str:
    others = "" if inputs.source == "from --input" else "; --input gives others"
    return f"the original model itself fails on its inputs ({inputs}), {error}{others}{hint}"


def _configure(model: nn.Module) -> tuple[list[str], str]:
    """Call what Lightning would call before training, in place; what to say of it.

    Returns:
        Notes, and what to add to a message about a model in which something is missing.

    Raises:
        UserError: the module's ``configure_model`` fails.
    """
    kinds = type(model).__mro__
    lightning = [
        kind
        for kind in kinds
        if kind.__name__ == "LightningModule" and kind.__module__.split(".")[0] in _LIGHTNING
    ]
    if not lightning:
        return [], ""
    kind, base = type(model), lightning[0]
    hint = ""
    if getattr(kind, "setup", None) is not getattr(base, "setup", None):
        hint = (
            f"; what the setup of {kind.__name__} builds is missing, since only Lightning calls it:"
            f" let the factory call it"
        )
    if getattr(kind, "configure_model", None) is getattr(base, "configure_model", None):
        return [], hint
    try:
        model.configure_model()  # type: ignore[operator]
    except Exception as error:  # theirs may fail in any way
        raise UserError(
            f"the configure_model of {kind.__name__} fails without a Trainer: {described(error)}; "
            f"let the factory build the whole model"
        ) from error
    return [f"configure_model of {kind.__name__} was called on the copy"], hint
