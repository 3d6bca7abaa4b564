"""The single trials of `check_swap`: each holds a swapped copy of a model against the original."""

from __future__ import annotations

import contextlib
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.swap.check import probe
from normtrain.swap.check.inputs import Inputs
from normtrain.swap.check.probe import Outputs
from normtrain.swap.check.runs import (
    CONTEXTS,
    FIRST,
    Evaluated,
    ModelFailed,
    Names,
    Runs,
    Trained,
    copied,
    guarded,
)
from normtrain.swap.report import SwapReport
from normtrain.swap.swap import swap_norms

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"
Outcome = tuple[str, str]
Maker = Callable[[], nn.Module]
_NO_FLOATS = (SKIPPED, "there is no floating tensor in the output")
_NOTHING_IN_EVAL = (SKIPPED, "there is no floating output in eval to compare with")


@dataclass(frozen=True)
class Check:
    """One thing that was tried.

    Attributes:
        name: what it is about.
        status: ``"ok"``, ``"FAILED"`` or ``"skipped"``.
        detail: what was seen, or why it failed or could not be tried.
    """

    name: str
    status: str
    detail: str


class Trials:
    """What can be tried of a model with other norms. The model that is given is never run.

    Where the original has a fault too, it is none of the swap's, and the trial is skipped.

    Args:
        before: the model to copy.
        rules: as `swap_norms` takes them.
        init: as `swap_norms` takes it.
        inputs: what to call it with.
        seed: seeds every forward alike.

    Attributes:
        change: the relative difference of the outputs in eval, once that was tried.
        notes: what else was noticed.
    """

    def __init__(self, before: nn.Module, rules: Any, init: str, inputs: Inputs, seed: int) -> None:
        self.change: float | None = None
        self.notes: list[str] = []
        self._before, self._rules, self._init = before, rules, init
        self._runs = Runs(inputs, probe.device_of(before), seed)
        self._names: Names = ()
        self._old, self._new = Evaluated(), Evaluated()
        self._old_step, self._new_step = Trained({}), Trained({}, no_backward="no forward")
        self._meta_failure = ""

    def swap(self) -> SwapReport:
        """Swap the norms of a copy and remember which they are.

        Raises:
            UserError, RunError: as `swap_norms`.
        """
        report = swap_norms(self._original(), self._rules, init=self._init)
        self._names = tuple(one.name for one in report.replaced)
        return report

    def run_original(self) -> None:
        """Train and evaluate the original, to compare with.

        Raises:
            ModelFailed: its forward fails.
        """
        try:
            self._old = self._runs.evaluate(self._original())
            if FIRST in self._old.failures:
                raise self._old.failures[FIRST]
            self._old_step = self._runs.train(self._original())
        except ModelFailed as error:
            if not self._on_meta:
                raise
            self._meta_failure = f"the model is on meta and can't be run there: {error}"

    def all(self) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        """The trials by name, to be run in this order; one may raise ModelFailed."""
        trials = {
            "train forward": self._train_forward,
            "backward": self._backward,
            "eval forward": self._eval_forward,
            "eval contexts": self._eval_contexts,
            "eval as in training": self._eval_as_in_training,
            "deepcopy": lambda: self._beside(self._deepcopy),
            "state dict": lambda: self._beside(self._state_dict),
            "bf16 autocast": self._autocast,
        }
        for name, trial in trials.items():
            if self._meta_failure:
                yield name, lambda: (SKIPPED, self._meta_failure)
            elif self._on_meta and name not in ("train forward", "backward", "eval forward"):
                yield name, lambda: (SKIPPED, "the model is on meta, where there are no numbers")
            else:
                yield name, trial

    @property
    def _on_meta(self) -> bool:
        return self._runs.device.type == "meta"

    def _original(self) -> nn.Module:
        return copied(self._before)

    def _swapped(self) -> nn.Module:
        model = self._original()
        swap_norms(model, self._rules, init=self._init)
        return model

    def _tolerance(self, outputs: Outputs) -> float:
        return probe.tolerance(self._before, outputs)

    def _train_forward(self) -> Outcome:
        self._new_step = self._runs.train(self._swapped())
        return self._finite(self._new_step.outputs, self._old_step.outputs)

    def _finite(self, found: Outputs, wanted: Outputs) -> Outcome:
        if not found:
            return _NO_FLOATS
        if self._on_meta:
            same = _kinds(found) == _kinds(wanted)
            return (OK, "shapes as before") if same else (FAILED, _unlike(found, wanted))
        bad = probe.not_finite(found)
        if not bad:
            return OK, f"{_count(len(found), 'tensor')}, finite"
        if set(bad) <= set(probe.not_finite(wanted)):
            return SKIPPED, f"not finite before the swap either: {_few(bad)}"
        return FAILED, f"not finite: {_few(bad)} (finite before the swap)"

    def _backward(self) -> Outcome:
        old, new = self._old_step, self._new_step
        if old.no_backward:
            return SKIPPED, f"none of the original either: {old.no_backward}"
        if new.no_backward:
            return FAILED, f"{new.no_backward} (not so before the swap)"
        lost = [
            n for n, g in new.gradients.items() if g is None and old.gradients.get(n) is not None
        ]
        bad, before = ([], []) if self._on_meta else (_bad(new.gradients), _bad(old.gradients))
        faults = [f"no gradient any more: {_few(lost)}"] if lost else []
        faults += [f"gradient not finite: {_few(bad)}"] if bad and not before else []
        if faults:
            return FAILED, "; ".join(faults)
        if bad:
            return SKIPPED, f"not finite before the swap either: {_few(before)}"
        got = sum(gradient is not None for gradient in new.gradients.values())
        return OK, f"{_count(got, 'gradient')}{'' if self._on_meta else ', finite'}"

    def _eval_forward(self) -> Outcome:
        self._new = self._runs.evaluate(self._swapped(), self._names)
        if FIRST in self._new.failures:
            raise self._new.failures[FIRST]
        found, wanted = self._new.outputs[FIRST], self._old.outputs[FIRST]
        if not self._on_meta and wanted:
            self.change, _ = probe.relative_difference(found, wanted)
        idle = [name for name in self._names if not self._new.calls[FIRST][name]]
        if idle:
            self.notes.append(f"not run in eval on these inputs: {_few(idle)}")
        return self._finite(found, wanted)

    def _eval_contexts(self) -> Outcome:
        new, old = self._new, self._old
        if not new.outputs.get(FIRST):
            return _NOTHING_IN_EVAL
        for context, failure in new.failures.items():
            if context not in old.failures:
                raise failure
        allowed = self._tolerance(new.outputs[FIRST])
        ratio, context, where = new.apart(allowed)
        if not ratio:
            return OK, f"equal {', '.join(name for name in CONTEXTS if name in new.outputs)}"
        detail = f"{context}, {where} differs {_much(ratio)}"
        before = old.apart(allowed)[0]
        return self._differs(detail, new.calls[context], new.calls[FIRST], bool(before))

    def _eval_as_in_training(self) -> Outcome:
        if not self._new.outputs.get(FIRST):
            return _NOTHING_IN_EVAL
        if any(getattr(m, "running_mean", None) is not None for m in self._before.modules()):
            return SKIPPED, "batch norm computes something else in training by its nature"
        try:
            if self._runs.is_random(self._original):
                return SKIPPED, "training is random even with dropout off"
            old, _ = self._runs.undropped(self._original())
        except ModelFailed as error:
            return SKIPPED, f"the original fails {error}"
        new, calls = self._runs.undropped(self._swapped(), self._names)
        wanted = self._new.outputs[FIRST]
        allowed = self._tolerance(wanted)
        if probe.agree(wanted, new, allowed):
            return OK, "equal with dropout off"
        ratio, where = probe.relative_difference(wanted, new)
        detail = f"{where} differs {_much(ratio)} from training with dropout off"
        before = not probe.agree(self._old.outputs[FIRST], old, allowed)
        return self._differs(detail, self._new.calls[FIRST], calls, before)

    def _differs(
        self, detail: str, calls: Counter[str], more: Counter[str], before: bool
    ) -> Outcome:
        """The outcome where outputs differ: the swap's fault if the original's don't, or if norms
        that ran in the one case did not in the other."""
        idle = [name for name in self._names if calls[name] < more[name]]
        if idle:
            return FAILED, f"{detail}; passed over there: {_few(idle)}"
        return (SKIPPED, f"{detail}; so does the original") if before else (FAILED, detail)

    def _beside(self, trial: Callable[[Maker], Outcome]) -> Outcome:
        """What a trial gives for the swapped model, unless it fails for the original too."""
        try:
            outcome = trial(self._swapped)
        except ModelFailed as error:
            outcome = FAILED, str(error)
        if outcome[0] != FAILED:
            return outcome
        try:
            before = trial(self._original)
        except ModelFailed as error:
            before = FAILED, str(error)
        return outcome if before[0] != FAILED else (SKIPPED, f"the original too: {before[1]}")

    def _deepcopy(self, make: Maker) -> Outcome:
        model = make()
        twin = guarded(lambda: copy.deepcopy(model), "in deepcopy")
        return self._same(twin, model, "computes the same")

    def _state_dict(self, make: Maker) -> Outcome:
        model, twin = make(), make()
        state = guarded(model.state_dict, "in state_dict")
        with torch.no_grad():
            for tensor in twin.state_dict(keep_vars=True).values():
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    # What is not loaded shall show; expanded tensors can't be written into.
                    with contextlib.suppress(RuntimeError):
                        tensor.add_(1)
        guarded(lambda: twin.load_state_dict(state), "in load_state_dict")
        return self._same(twin, model, f"{_count(len(state), 'entry', 'entries')} loaded again")

    def _same(self, found: nn.Module, wanted: nn.Module, detail: str) -> Outcome:
        outputs = []
        for model in (found, wanted):
            with torch.no_grad():
                outputs.append(probe.kept(self._runs.forward(model.eval(), "in eval")))
        if not outputs[1]:
            return _NO_FLOATS
        if probe.agree(outputs[0], outputs[1], self._tolerance(outputs[1])):
            return OK, detail
        ratio, where = probe.relative_difference(outputs[0], outputs[1])
        return FAILED, f"{where} differs {_much(ratio)}"

    def _autocast(self) -> Outcome:
        kind = self._runs.device.type
        dtypes = {str(p.dtype)[6:] for p in self._before.parameters() if p.is_floating_point()}
        if dtypes - {"float32"}:
            return SKIPPED, f"for float32; this model is {', '.join(sorted(dtypes))}"
        if not torch.amp.is_autocast_available(kind):
            return SKIPPED, f"there is no autocast on {kind}"
        try:
            old = self._half(self._original(), kind)
        except ModelFailed as error:
            return SKIPPED, f"the original fails {error}"
        new = self._half(self._swapped(), kind)
        status, detail = self._finite(new, old)
        if status != OK or _kinds(new) == _kinds(old):
            return status, detail
        if kind == "cuda" and _narrowed(new, old):
            return OK, f"{detail}; bfloat16 where torch's LayerNorm gave float32"
        return FAILED, _unlike(new, old)

    def _half(self, model: nn.Module, kind: str) -> Outputs:
        # In training: in eval torch's encoders take their fast path on the CPU, with other dtypes.
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16):
            return probe.kept(self._runs.forward(model.train(), "under autocast"))


def _bad(gradients: dict[str, Tensor | None]) -> list[str]:
    """Names of gradients with a number that is not finite."""
    given = [(n, g.to_dense() if g.is_sparse else g) for n, g in gradients.items() if g is not None]
    return [name for name, gradient in given if not bool(gradient.isfinite().all())]


def _kinds(outputs: Outputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {path: (tensor.shape, tensor.dtype) for path, tensor in outputs.items()}


def _narrowed(new: Outputs, old: Outputs) -> bool:
    """Whether the only difference in kind is bfloat16 where there was float32."""
    a, b = _kinds(new), _kinds(old)
    changes = {(a[p][1], b[p][1]) for p in a.keys() & b.keys() if a[p] != b[p]}
    shapes = {p: kind[0] for p, kind in a.items()} == {p: kind[0] for p, kind in b.items()}
    return shapes and changes == {(torch.bfloat16, torch.float32)}


def _unlike(found: Outputs, wanted: Outputs) -> str:
    """Where outputs differ in shape or dtype."""
    both = _kinds(found), _kinds(wanted)
    path = next(p for p in [*both[0], *both[1]] if both[0].get(p) != both[1].get(p))
    is_now, was = (
        f"{str(kinds[path][1])[6:]} {tuple(kinds[path][0])}" if path in kinds else "missing"
        for kinds in both
    )
    return f"{path} is {is_now}, and was {was} before the swap"


def _much(ratio: float) -> str:
    return (
        f"by {ratio:.2g} of its size" if math.isfinite(ratio) else "in shape or in what is finite"
    )


def _count(number: int, what: str, several: str = "") -> str:
    return f"{number} {what if number == 1 else several or what + 's'}"


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
