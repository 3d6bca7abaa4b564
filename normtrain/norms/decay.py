"""Replaces weight decay ahead of a batch norm by a correction of the learning rate.

Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814. A batch norm's output
does not depend on the norm of an output channel w of the layer before it, so the gradient by w is
orthogonal to w and proportional to 1/||w||, and an SGD step of rate eta changes the direction
u = w/||w|| by

    u' = u - (eta / ||w||^2) * (I - u u^T) grad L(u) + O(eta^2).

Weight decay acts along w only, so it changes u' in O(eta^2) only and acts through the effective
rate eta / ||w||^2 alone. A run without it follows a run with it, up to O(eta^2), if each channel's
step is multiplied by ||w||^2 / ||w_WD||^2, where w_WD is the weight of the run with decay at the
same step: its effective rate is then eta / ||w_WD||^2.

Record the first run, and correct the second (the layer after the last batch norm keeps its decay):

    weights = scale_invariant_weights(model)
    log = WeightNormLog()
    handle = log.attach(optimizer, weights)   # ...train with weight decay...
    optimizer = SGD(decay_groups(other_model, 5e-4), lr=0.1)
    DecayCorrection(optimizer, log, scale_invariant_weights(other_model))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from normtrain.errors import UserError
from normtrain.norms.base import not_negative, positive, whole
from normtrain.norms.batch import BatchNormBase
from normtrain.norms.weight import channel_norms

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (_BatchNorm, BatchNormBase)


class WeightNormLog:
    """The norm of every output channel of some weights, before each step of a run.

    Args:
        dim: the axis of the output channels: 0 for linear and convolution weights, 1 for
            transposed convolutions (which need a separate log).

    Raises:
        UserError: ``dim`` is not an integer.
    """

    def __init__(self, dim: int = 0) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise UserError(f"dim must be the number of an axis, got {dim!r}")
        self.dim = dim
        self._norms: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of recorded steps."""
        return max((len(steps) for steps in self._norms.values()), default=0)

    @property
    def names(self) -> list[str]:
        """Names of the recorded weights."""
        return list(self._norms)

    @torch.no_grad()
    def record(self, weights: Mapping[str, Tensor]) -> None:
        """Record the current norms as one step.

        Args:
            weights: weights by name, with the same names at every step.

        Raises:
            UserError: there are no weights, the names differ from those of the first step, or a
                weight has no channels along ``dim``.
        """
        if not weights or (self._norms and self._norms.keys() != weights.keys()):
            raise UserError(
                f"the log needs the same weights at every step: expected "
                f"{sorted(self._norms) or 'at least one'}, got {sorted(weights)}"
            )
        for name, weight in weights.items():
            if weight.dim() < 2 or not -weight.dim() <= self.dim < weight.dim():
                raise UserError(
                    f"{name} of shape {tuple(weight.shape)} has no channels along axis {self.dim}"
                )
            norms = channel_norms(weight.detach(), self.dim % weight.dim()).flatten()
            self._norms.setdefault(name, []).append(norms)

    def attach(self, optimizer: Optimizer, weights: Mapping[str, Tensor]) -> RemovableHandle:
        """Record before each step of an optimizer from now on.

        Args:
            optimizer: trains the weights.
            weights: weights by name.

        Returns:
            A handle; its ``remove()`` stops the recording.

        Raises:
            UserError: the optimizer does not train a weight.
        """
        weights = dict(weights)
        _check_trained(optimizer, weights)
        return optimizer.register_step_pre_hook(lambda *_: self.record(weights))

    def at(self, name: str, step: int) -> Tensor:
        """Return the norms ``(channels,)`` of a weight before a step, counted from 0."""
        return self._norms[name][step]

    def to_plain(self) -> dict[str, Any]:
        """Return the log as plain types and tensors ``(steps, channels)`` on the CPU.

        ``torch.save`` writes it, and ``torch.load(..., weights_only=True)`` reads it.
        """
        norms = {name: torch.stack(steps).cpu() for name, steps in self._norms.items()}
        return {"dim": self.dim, "norms": norms}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> WeightNormLog:
        """Return the log that `to_plain` returned as plain types.

        Args:
            plain: the result of `to_plain`.

        Raises:
            UserError: ``plain`` has another form.
        """
        found = plain if isinstance(plain, Mapping) else {}
        dim, norms = found.get("dim"), found.get("norms")
        if not isinstance(dim, int) or not isinstance(norms, Mapping):
            raise UserError("a log of weight norms must have 'dim' and 'norms', as from to_plain()")
        if any(not isinstance(t, Tensor) or t.dim() != 2 or not len(t) for t in norms.values()):
            raise UserError("the norms of each weight must be one tensor (steps, channels)")
        if len({t.shape[0] for t in norms.values()}) > 1:
            raise UserError("the norms of all weights must cover the same steps")
        log = cls(dim)
        log._norms = {str(name): list(steps.unbind()) for name, steps in norms.items()}
        return log


class DecayCorrection:
    """Scales each channel's steps so that a run without weight decay follows a run with it.

    Every optimizer step on a channel w is multiplied by (||w|| / ||w_WD||)^power, with w before the
    step and ||w_WD|| from the log. The step is scaled, not the gradient, so the optimizer's state
    (momentum, for example) keeps its meaning. The smaller the learning rate, the closer the two
    runs (see the module's docstring).

    Args:
        optimizer: trains the weights without weight decay.
        log: weight norms of the run with weight decay, from the same initial weights.
        weights: this run's weights by the log's names.
        power: 2 where the optimizer's step is proportional to the gradient (SGD with or without
            momentum: the paper's case); 1 where it does not depend on the gradient's size (Lion,
            sign descent), since the gradient's factor 1/||w|| is then lost. Adam is between the
            two, as its second moment averages over past sizes, and follows only approximately.
        start: the log's step of the optimizer's next step, for a resumed run.

    Attributes:
        step: the log's step of the optimizer's next step.

    Raises:
        UserError: names, shapes or axes do not fit the log, a logged norm is not > 0, the optimizer
            does not train a weight, or decays it, or its steps are already corrected, or an
            argument is out of range. Raised by the optimizer's step if the log is too short.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        log: WeightNormLog,
        weights: Mapping[str, Tensor],
        *,
        power: float = 2.0,
        start: int = 0,
    ) -> None:
        self.power = positive("power", power)
        self.step = whole("start", start, least=0)
        self._weights = dict(weights)
        self._log = log
        self._before: dict[str, Tensor] = {}
        _check_trained(optimizer, self._weights)
        self._check_log()
        self._check_alone(optimizer)
        if start >= len(log):
            raise UserError(f"start is {start}, but the log ends after {len(log)} steps")
        self._handles = (
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._correct),
        )

    def remove(self) -> None:
        """Stop correcting the optimizer's steps."""
        for handle in self._handles:
            handle.remove()

    def _check_log(self) -> None:
        missing = sorted(self._weights.keys() - set(self._log.names))
        if missing or not self._weights:
            raise UserError(
                f"the log must have the weights to correct: expected {missing or 'at least one'}, "
                f"got {self._log.names}"
            )
        for name, weight in self._weights.items():
            norms = torch.stack([self._log.at(name, step) for step in range(len(self._log))])
            channels = weight.shape[self._log.dim]
            if norms.shape[1] != channels:
                raise UserError(
                    f"{name} has {channels} channels in axis {self._log.dim}, but the log has "
                    f"{norms.shape[1]}"
                )
            if not (norms.isfinite() & (norms > 0)).all():
                raise UserError(f"the log has a norm of {name} that is not finite and > 0")

    def _check_alone(self, optimizer: Optimizer) -> None:
        ours = {id(weight): name for name, weight in self._weights.items()}
        for group in optimizer.param_groups:
            decayed = [ours[id(p)] for p in group["params"] if id(p) in ours]
            if decayed and group.get("weight_decay"):
                raise UserError(
                    f"the optimizer decays {decayed[0]}, which the correction replaces; set "
                    f"its group's weight_decay to 0, as decay_groups does"
                )
        for hook in optimizer._optimizer_step_post_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, DecayCorrection) and other._weights.keys() & self._weights.keys():
                raise UserError(
                    "the optimizer's steps are already corrected; remove() that correction first"
                )

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        if self.step >= len(self._log):
            raise UserError(
                f"step {self.step} has no weight norms: the log ends after {len(self._log)} steps"
            )
        self._before = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def _correct(self, *_: Any) -> None:
        for name, weight in self._weights.items():
            before = self._before.pop(name)
            own = channel_norms(before, self._log.dim % weight.dim())
            target = self._log.at(name, self.step).to(own).view_as(own)
            factor = (own / target) ** self.power
            weight.copy_(before + factor * (weight - before))
        self.step += 1


def _check_trained(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    strange = [name for name, weight in weights.items() if id(weight) not in trained]
    if strange:
        raise UserError(f"the optimizer does not train {', '.join(strange)}")


class _Tracer(fx.Tracer):
    """Records this package's batch norms, like PyTorch's, as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is recorded as one call."""
        return isinstance(m, _BATCH_NORMS) or super().is_leaf_module(m, module_qualified_name)


def scale_invariant_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights whose channel norms do not change the output, because of a batch norm.

    They are those of linear and convolution layers whose output goes into batch norms (PyTorch's
    or this package's) and nowhere else, found by tracing the model (`torch.fx`). Transposed
    convolutions are excluded: their channels are along another axis. Batch norms are assumed to be
    in training mode; with running statistics, in eval mode, no weight is scale-invariant.

    Args:
        model: any module that `torch.fx` can trace.

    Returns:
        Weights by their names in `named_parameters`, without weights that are also used elsewhere.

    Raises:
        UserError: the model cannot be traced (select its weights yourself), or has no such weight.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's code may raise anything when run on proxies
        raise UserError(
            f"torch.fx cannot trace {type(model).__name__} ({error}); select the weights from "
            "named_parameters() instead"
        ) from error
    free, bound = _free_and_bound(model, graph)
    weights = {n: p for n, p in model.named_parameters() if id(p) in free - bound}
    if not weights:
        raise UserError(f"no layer of {type(model).__name__} goes directly into a batch norm")
    return weights


def _free_and_bound(model: nn.Module, graph: fx.Graph) -> tuple[set[int], set[int]]:
    """Return the ids of weights used before batch norms, and of parameters used otherwise."""
    modules = dict(model.named_modules(remove_duplicate=False))
    free: set[int] = set()
    bound: set[int] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            bound.add(id(_attribute(model, node.target)))
        if node.op != "call_module":
            continue
        module = modules[node.target]
        ids = {id(p) for p in module.parameters()}
        if isinstance(module, _WEIGHTED) and _normed_only(node, module.weight.shape[0], modules):
            free.add(id(module.weight))
            ids -= {id(module.weight)}
        bound |= ids
    return free, bound


def _attribute(model: nn.Module, path: str) -> object:
    found: object = model
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _normed_only(node: fx.Node, channels: int, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether a layer's output goes into batch norms of its channels only."""
    users = [modules.get(str(u.target)) if u.op == "call_module" else None for u in node.users]
    # A batch norm after a linear layer may normalize another axis than the layer's channels.
    return bool(users) and all(
        isinstance(user, _BATCH_NORMS) and user.num_features == channels for user in users
    )


def decay_groups(
    model: nn.Module, weight_decay: float, free: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Return optimizer parameter groups without weight decay for scale-invariant weights.

    Args:
        model: its parameters that require gradients are in one group each.
        weight_decay: weight decay of all but the scale-invariant weights, >= 0.
        free: the names of the scale-invariant weights; those of `scale_invariant_weights` by
            default.

    Returns:
        Two groups with ``params`` and ``weight_decay``: the rest, and the scale-invariant weights
        with 0.

    Raises:
        UserError: weight_decay is out of range, a name is unknown, or the model cannot be traced or
            has no scale-invariant weight.
    """
    not_negative("weight_decay", weight_decay)
    parameters = dict(model.named_parameters())
    names: Sequence[str] = list(scale_invariant_weights(model) if free is None else free)
    strange = [name for name in names if name not in parameters]
    if strange:
        raise UserError(f"the model has no parameter named {', '.join(strange)}")
    split: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            split[name in names].append(parameter)
    return [
        {"params": split[False], "weight_decay": weight_decay},
        {"params": split[True], "weight_decay": 0.0},
    ]
