"""Running a model in training and in eval, and keeping what it gave or how it failed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import RunError, UserError, described
from normtrain.swap.check import probe
from normtrain.swap.check.inputs import Inputs
from normtrain.swap.check.probe import Outputs

Names = tuple[str, ...]

FIRST = "with gradients"
CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    FIRST: nullcontext,
    "under no_grad": torch.no_grad,
    "under inference_mode": torch.inference_mode,
}


class ModelFailed(Exception):
    """A model's own code failed; its failure is the cause, the message says when and how."""


@dataclass
class Trained:
    """What one step in training mode gave.

    Attributes:
        outputs: the floating tensors of the forward's output.
        gradients: by the names of the parameters, each of several names included.
        no_backward: why there was no backward; empty if there was one.
    """

    outputs: Outputs
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    no_backward: str = ""


@dataclass
class Evaluated:
    """What a model gave in eval.

    Attributes:
        outputs: by context, the floating tensors of the output.
        calls: by context, how often each of the norms watched ran.
        failures: by context, how the forward failed there.
    """

    outputs: dict[str, Outputs] = field(default_factory=dict)
    calls: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[str, ModelFailed] = field(default_factory=dict)

    def apart(self, allowed: float) -> tuple[float, str, str]:
        """The largest difference from the first context beyond rounding; the context, the tensor.

        It is 0 where all agree.
        """
        base, found = self.outputs[FIRST], [(0.0, "", "")]
        for context, outputs in self.outputs.items():
            if not probe.agree(outputs, base, allowed):
                ratio, where = probe.relative_difference(outputs, base)
                found.append((ratio, context, where))
        return max(found)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        UserError: it can't be copied.
        RunError: out of memory.
    """
    try:
        return copy.deepcopy(model)
    except torch.OutOfMemoryError as error:
        raise RunError(_out_of_memory(error)) from error
    except Exception as error:  # foreign classes may fail in any way
        raise UserError(
            f"this {type(model).__name__} can't be copied, so it can't be tried without changing "
            f"it: {described(error)}"
        ) from error


def _out_of_memory(error: BaseException) -> str:
    return f"out of memory: {str(error).splitlines()[0]}; check a smaller model, or one on the CPU"


def guarded(run: Callable[[], Any], when: str) -> Any:
    """What a piece of somebody's code gives.

    Raises:
        ModelFailed: it fails.
        RunError: out of memory.
    """
    try:
        return run()
    except torch.OutOfMemoryError as error:
        raise RunError(_out_of_memory(error)) from error
    except Exception as error:  # foreign code may fail in any way
        raise ModelFailed(f"{when}: {described(error)}") from error


@dataclass(frozen=True)
class Runs:
    """Forwards on the same inputs with the same seed.

    Attributes:
        inputs: what every forward gets a fresh copy of.
        device: where the models are.
        seed: what the generators are seeded with before each.
    """

    inputs: Inputs
    device: torch.device
    seed: int

    def forward(self, model: nn.Module, when: str, further: int = 0) -> Any:
        """The output, in the mode that the model is in, with the seed moved by ``further``.

        Raises:
            ModelFailed: it fails; ``when`` is for the message.
        """
        args, kwargs = self.inputs.fresh(self.device)
        probe.seed_all(self.seed + further)
        return guarded(lambda: model(*args, **kwargs), when)

    def train(self, model: nn.Module) -> Trained:
        """A step in training mode, with the gradients of the sum of the outputs' mean squares.

        The model is a copy, so without gradients from before.

        Raises:
            ModelFailed: the forward fails.
        """
        model.train()
        with torch.enable_grad():
            output = self.forward(model, "in training")
            seen = Trained(probe.kept(output))
            tensors = [t for _, t in probe.floats(output) if t.requires_grad and t.numel()]
            if not tensors:
                seen.no_backward = "no floating output depends on a parameter that is trained"
                return seen
            loss = torch.stack([t.float().square().mean() for t in tensors]).sum()
            try:
                guarded(loss.backward, "in backward")
            except ModelFailed as error:
                seen.no_backward = str(error)
        seen.gradients = {n: p.grad for n, p in model.named_parameters(remove_duplicate=False)}
        return seen

    def evaluate(self, model: nn.Module, norms: Names = ()) -> Evaluated:
        """Run in eval in each context, one after the other.

        Tensors that a forward keeps under inference_mode, the last, are of no use outside: run
        nothing else with this model.

        Args:
            model: the model, whose mode is changed.
            norms: the names of the modules whose calls are counted.
        """
        seen = Evaluated()
        model.eval()
        for context, enter in CONTEXTS.items():
            with torch.enable_grad(), enter(), probe.calls_counted(named(model, norms)) as calls:
                try:
                    when = "in eval" if context == FIRST else f"in eval {context}"
                    seen.outputs[context] = probe.kept(self.forward(model, when))
                except ModelFailed as error:
                    seen.failures[context] = error
            seen.calls[context] = calls
        return seen

    def undropped(self, model: nn.Module, norms: Names = ()) -> tuple[Outputs, Counter[str]]:
        """Outputs in training mode with dropout off, and how often each norm ran; it is changed.

        Raises:
            ModelFailed: the forward fails.
        """
        probe.without_dropout(model).train()
        with torch.enable_grad(), probe.calls_counted(named(model, norms)) as calls:
            return probe.kept(self.forward(model, "in training with dropout off")), calls

    def is_random(self, make: Callable[[], nn.Module]) -> bool:
        """Whether outputs in training depend on the seed with dropout off.

        Raises:
            ModelFailed: the forward fails.
        """
        seen = []
        for further in (0, 1):
            model = probe.without_dropout(make()).train()
            with torch.enable_grad():
                seen.append(probe.kept(self.forward(model, "in training", further)))
        return not probe.agree(seen[0], seen[1], probe.tolerance(model, seen[0]))


def named(model: nn.Module, names: Names) -> dict[str, nn.Module]:
    """Modules by the names of a SwapReport, which leave out torch.compile's wrappers."""
    found: dict[str, nn.Module] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        name = ".".join(part for part in path.split(".") if part != "_orig_mod")
        if name in names:
            found.setdefault(name, module)
    return found
