"""Swap the norms of a copy of a model, and run forward, backward, saving and loading on copies.

A check that fails for the original model too is skipped: the swap is not the cause.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import random
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normtrain.errors import RunError, UserError, described
from normtrain.swap.check.inputs import Inputs, choose_inputs
from normtrain.swap.check.outputs import agree, float_tensors, outputs_of, relative_difference
from normtrain.swap.report import SwapReport
from normtrain.swap.swap import swap_norms

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
_LIGHTNING = ("pytorch_lightning", "lightning")


@dataclass(frozen=True)
class Check:
    """A check's name, its status (``ok``, ``FAILED`` or ``skipped``), and what was seen."""

    name: str
    status: str
    detail: str


@dataclass
class SwapCheck:
    """The report of `swap_norms`, the checks, and the relative change of the eval output.

    Other norms are meant to compute something else, so the change is information only.
    """

    report: SwapReport
    checks: list[Check]
    change: float
    inputs: str
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [check.name for check in self.checks if check.status == FAILED]

    def plain(self) -> dict[str, Any]:
        """Return plain types only; a change that is not finite is None."""
        change = self.change if math.isfinite(self.change) else None
        return {**dataclasses.asdict(self), "change": change, "passed": not self.failed}

    def __str__(self) -> str:
        """Format the report's table, then one line for each check."""
        lines = [str(self.report), "", f"inputs: {self.inputs}"]
        lines += [f"note: {note}" for note in self.notes]
        width = max(len(check.name) for check in self.checks)
        lines += [f"{c.name:<{width}}  {c.status:<7}  {c.detail}".rstrip() for c in self.checks]
        change = f"{self.change:.3g}" if math.isfinite(self.change) else "in shape or NaN/Inf"
        return "\n".join([*lines, f"relative change of the eval output: {change} (information)"])


class _Failed(Exception):
    """A check failed; the message says when and how."""


def check_swap(
    model: nn.Module, rules: Any, inputs: Any = None, *, init: str = "keep", seed: int = 0
) -> SwapCheck:
    """Swap the norms of a copy of a model and run what training and evaluation need.

    The model and torch's global random generators are not changed. A LightningModule is called by
    its ``forward``, after ``configure_model`` on the copy.

    Args:
        model: any module that `swap_norms` supports.
        rules: as for `swap_norms`.
        inputs: as for `choose_inputs`.
        init: as for `swap_norms`.
        seed: seeds every forward.

    Raises:
        UserError: there are no inputs, the model cannot be copied, its own forward fails on the
            inputs, the rules are wrong, or no norm would be replaced.
        RunError: out of memory; or as `swap_norms`.
    """
    # Compiling takes long and does not change what is checked; importing dynamo takes seconds.
    eager = "torch._dynamo" in sys.modules
    with (
        torch.random.fork_rng(),
        torch.compiler.set_stance("force_eager") if eager else nullcontext(),
    ):
        original = _copy(model)
        notes, hint = _configure(original)
        chosen = choose_inputs(original, inputs)
        swapped = _copy(original)
        try:
            report = swap_norms(swapped, rules, init=init)
        except UserError as error:
            raise UserError(f"{error}{hint}") from error
        if not report.replaced:
            why = "; ".join(f"{name}: {reason}" for name, reason in report.skipped[:3])
            raise UserError(f"no norm would be replaced: {why}{hint}")
        runs = _Runs(chosen, seed)
        try:
            before = runs.forward(_copy(original).eval())
        except _Failed as error:
            raise UserError(
                f"the original model itself fails on its inputs ({chosen}): {error}{hint}"
            ) from error.__cause__
        checks = [_compared(name, runs, swapped, original) for name in _CHECKS]
        change = math.inf
        with suppress(_Failed):
            change = relative_difference(runs.forward(_copy(swapped).eval()), before)
    return SwapCheck(report, checks, change, str(chosen), notes)


@dataclass
class _Runs:
    """Runs a copy of a model, always on the same inputs and with the same seed."""

    inputs: Inputs
    seed: int

    def call(self, model: nn.Module) -> Any:
        device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
        args, kwargs = self.inputs.copied(device or torch.device("cpu"))
        seed_all(self.seed)
        return _guarded(lambda: model(*args, **kwargs), "forward")

    def forward(self, model: nn.Module) -> dict[str, Tensor]:
        with torch.no_grad():
            return outputs_of(self.call(model))

    def eval_forward(self, model: nn.Module) -> str:
        """Compare with and without gradients: torch's fast path runs only without."""
        with_gradients = outputs_of(self.call(_copy(model).eval()))
        without = self.forward(model.eval())
        if not agree(without, with_gradients):
            raise _Failed("the output under no_grad differs from the one with gradients")
        return f"{_finite(without, 'output')}, equal under no_grad"

    def backward(self, model: nn.Module) -> str:
        outputs = [t for _, t in float_tensors(self.call(model)) if t.requires_grad and t.numel()]
        if not outputs:
            raise _Failed("no output depends on a trainable parameter")
        loss = torch.stack([t.float().square().mean() for t in outputs]).sum()
        _guarded(loss.backward, "backward")
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        dense = {n: g.to_dense() if g.is_sparse else g for n, g in gradients.items()}
        return _finite(dense, "gradient")

    def save_and_load(self, model: nn.Module) -> str:
        expected, file = self.forward(_copy(model).eval()), io.BytesIO()
        _guarded(lambda: torch.save(model.state_dict(), file), "saving the state dict")
        with torch.no_grad():
            for parameter in model.parameters():  # so that what is not loaded shows
                parameter.add_(1)
        file.seek(0)
        loaded = _guarded(lambda: torch.load(file, weights_only=True), "loading the file")
        _guarded(lambda: model.load_state_dict(loaded), "load_state_dict")
        if not agree(self.forward(model.eval()), expected):
            raise _Failed("the output differs after loading the state dict")
        return f"{len(loaded)} entries"


_CHECKS: dict[str, Callable[[_Runs, nn.Module], str]] = {
    "train forward": lambda runs, model: _finite(outputs_of(runs.call(model.train())), "output"),
    "train backward": lambda runs, model: runs.backward(model.train()),
    "eval forward": _Runs.eval_forward,
    "eval backward": lambda runs, model: runs.backward(model.eval()),
    "save and load": _Runs.save_and_load,
}


def _compared(name: str, runs: _Runs, swapped: nn.Module, original: nn.Module) -> Check:
    """Run a check on a copy of the swapped model, and on the original if it fails."""
    run = _CHECKS[name]
    try:
        return Check(name, OK, run(runs, _copy(swapped)))
    except _Failed as error:
        failure = error
    try:
        run(runs, _copy(original))
    except _Failed as error:
        return Check(name, SKIPPED, f"the original fails too: {error}")
    return Check(name, FAILED, f"{failure} (the original passes)")


def _finite(tensors: dict[str, Tensor], what: str) -> str:
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad or not tensors:
        raise _Failed(f"{what} is NaN or Inf: {', '.join(bad[:3])}" if bad else f"no float {what}")
    return f"{len(tensors)} {what}{'s' if len(tensors) > 1 else ''}, finite"


def _guarded(run: Callable[[], Any], what: str) -> Any:
    """Run the user's code; raise its failure as a failed check."""
    try:
        return run()
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise RunError(f"out of memory: {first}; use a smaller model, or the CPU") from error
    except Exception as error:  # the user's code may raise anything
        raise _Failed(f"{what} fails: {described(error)}") from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return _guarded(lambda: copy.deepcopy(model), "copying the model")
    except _Failed as error:
        raise UserError(f"{error}; swap-check needs a model that can be copied") from error


def _configure(model: nn.Module) -> tuple[list[str], str]:
    """Call a LightningModule's ``configure_model``; return notes, and a hint for messages.

    Raises:
        UserError: the module's ``configure_model`` fails.
    """
    cls = type(model)
    bases = [b for b in cls.__mro__ if b.__name__ == "LightningModule"]
    if not bases or bases[0].__module__.split(".")[0] not in _LIGHTNING:
        return [], ""
    base: Any = bases[0]
    hint = "" if cls.setup is base.setup else f"; call setup of {cls.__name__} in the factory"  # type: ignore[attr-defined]
    if cls.configure_model is base.configure_model:  # type: ignore[attr-defined]
        return [], hint
    try:
        _guarded(model.configure_model, f"configure_model of {cls.__name__}")  # type: ignore[arg-type]
    except _Failed as error:
        raise UserError(f"{error}, without a Trainer; build the model in the factory") from error
    return [f"configure_model of {cls.__name__} was called on the copy"], hint


def seed_all(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
