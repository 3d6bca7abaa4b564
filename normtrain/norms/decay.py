"""What weight decay does in front of a batch norm, done to the learning rate instead.

Hoffer, Banner, Golan, Soudry 2018, Norm matters, arXiv:1803.01814. A batch norm's output
does not depend on the norm of an output channel w of the layer before it, so the gradient by w is
orthogonal to w and proportional to 1/||w||, and an SGD step of rate eta moves the direction
u = w/||w|| by

    u' = u - (eta / ||w||^2) * (I - u u^T) grad L(u) + O(eta^2).

Weight decay (which only pulls along w, hence changes u' in O(eta^2) only) thus acts through the
effective rate eta / ||w||^2 alone. A run without it follows one with it, up to those O(eta^2)
terms, if each channel's step is multiplied by ||w||^2 / ||w_WD||^2, w_WD being that run's weight at
the same step: its effective rate is then eta / ||w_WD||^2.

Record the one run, and correct the other (the layer after the last batch norm keeps its decay):

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
from normtrain.norms.base import positive
from normtrain.norms.batch import BatchNormBase
from normtrain.norms.weight import channel_norms

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (_BatchNorm, BatchNormBase)


class WeightNormLog:
    """The norm of every output channel of some weights, before each step of a run.

    Args:
        dim: the axis of the output channels: 0 for linear and convolution weights, 1 for
            transposed convolutions (which need a log of their own).
    """

    def __init__(self, dim: int = 0) -> None:
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise UserError(f"dim must be the number of an axis, not {dim!r}")
        self.dim = dim
        self._norms: dict[str, list[Tensor]] = {}

    def __len__(self) -> int:
        """How many steps are recorded."""
        return max((len(steps) for steps in self._norms.values()), default=0)

    @property
    def names(self) -> list[str]:
        """The weights recorded."""
        return list(self._norms)

    @torch.no_grad()
    def record(self, weights: Mapping[str, Tensor]) -> None:
        """Add one step: the norms as they are now.

        Args:
            weights: name to weight, the same names at every step.

        Raises:
            UserError: there are no weights, or others than at the first step, or one without
                channels along ``dim``.
        """
        if not weights or (self._norms and self._norms.keys() != weights.keys()):
            raise UserError(
                f"the log needs the same weights at every step: {sorted(self._norms) or 'some'}, "
                f"not {sorted(weights)}"
            )
        for name, weight in weights.items():
            if weight.dim() < 2 or not -weight.dim() <= self.dim < weight.dim():
                raise UserError(
                    f"{name} of shape {tuple(weight.shape)} has no channels along axis {self.dim}"
                )
            norms = channel_norms(weight.detach(), self.dim % weight.dim()).flatten()
            self._norms.setdefault(name, []).append(norms)

    def attach(self, optimizer: Optimizer, weights: Mapping[str, Tensor]) -> RemovableHandle:
        """Record before each of an optimizer's steps from now on.

        Args:
            optimizer: the one that trains the weights.
            weights: name to weight.

        Returns:
            The handle whose ``remove()`` ends it.

        Raises:
            UserError: a weight is not among the optimizer's.
        """
        weights = dict(weights)
        _check_trained(optimizer, weights)
        return optimizer.register_step_pre_hook(lambda *_: self.record(weights))

    def at(self, name: str, step: int) -> Tensor:
        """The norms ``(channels,)`` of a weight before a step, counted from 0."""
        return self._norms[name][step]

    def to_plain(self) -> dict[str, Any]:
        """The log as plain types and tensors ``(steps, channels)`` on the CPU.

        ``torch.save`` writes it, and ``torch.load(..., weights_only=True)`` reads it.
        """
        norms = {name: torch.stack(steps).cpu() for name, steps in self._norms.items()}
        return {"dim": self.dim, "norms": norms}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> WeightNormLog:
        """The log that `to_plain` gave.

        Raises:
            UserError: it is something else.
        """
        found = plain if isinstance(plain, Mapping) else {}
        dim, norms = found.get("dim"), found.get("norms")
        if not isinstance(dim, int) or not isinstance(norms, Mapping):
            raise UserError("a log of weight norms holds 'dim' and 'norms', as to_plain() gives")
        if any(not isinstance(t, Tensor) or t.dim() != 2 or not len(t) for t in norms.values()):
            raise UserError("the norms of each weight must be one tensor (steps, channels)")
        if len({t.shape[0] for t in norms.values()}) > 1:
            raise UserError("the norms of all weights must cover the same steps")
        log = cls(dim)
        log._norms = {str(name): list(steps.unbind()) for name, steps in norms.items()}
        return log


class DecayCorrection:
    """Scales each channel's steps so that a run without weight decay follows one with it.

    Every step the optimizer takes on a channel w is multiplied by (||w|| / ||w_WD||)^power, w as it
    is before the step and ||w_WD|| from the log. The step is scaled, not the gradient, so whatever
    the optimizer makes of the gradient (momentum, say) keeps its meaning. Closer the smaller the
    learning rate (see the module's docstring).

    Args:
        optimizer: trains the weights without weight decay.
        log: the run with weight decay, from the same initial weights.
        weights: name to weight: the log's names, this run's weights.
        power: 2 where the optimizer's step is proportional to the gradient (SGD with or without
            momentum: the paper's case); 1 where it does not depend on the gradient's size (Lion,
            sign descent), since the gradient's own 1/||w|| is then lost. Adam lies between, as
            its second moment remembers old sizes, and follows only roughly.
        start: the log's step that the optimizer's next one corresponds to, for a resumed run.

    Attributes:
        step: the log's step that the optimizer's next one corresponds to.

    Raises:
        UserError: names, shapes or axes do not fit the log, a logged norm is not above 0, a weight
            is not among the optimizer's or is decayed or corrected by it already, or an argument
            is out of range. At a step after the log's last: the log is too short.
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
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise UserError(f"start must be a whole number of at least 0, not {start!r}")
        self.power = positive("power", power)
        self.step = start
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
        """Leave the optimizer's steps alone from now on."""
        for handle in self._handles:
            handle.remove()

    def _check_log(self) -> None:
        missing = sorted(self._weights.keys() - set(self._log.names))
        if missing or not self._weights:
            raise UserError(
                f"the log holds {self._log.names}; not {missing or 'nothing, as was asked for'}"
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
                raise UserError(f"the log has a norm of {name} that is not a number above 0")

    def _check_alone(self, optimizer: Optimizer) -> None:
        ours = {id(weight): name for name, weight in self._weights.items()}
        for group in optimizer.param_groups:
            decayed = [ours[id(p)] for p in group["params"] if id(p) in ours]
            if decayed and group.get("weight_decay"):
                raise UserError(
                    f"the optimizer decays {decayed[0]}, which the correction stands in for; set "
                    f"its group's weight_decay to 0 (decay_groups does)"
                )
        for hook in optimizer._optimizer_step_post_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, DecayCorrection) and other._weights.keys() & self._weights.keys():
                raise UserError("the optimizer's steps are corrected already; remove() that first")

    @torch.no_grad()
    def _remember(self, *_: Any) -> None:
        if self.step >= len(self._log):
            raise UserError(
                f"step {self.step} has no weight norms to follow: the log ends after "
                f"{len(self._log)} steps"
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
    """Sees this package's batch norms, like PyTorch's, as one call each."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is not looked into."""
        return isinstance(m, _BATCH_NORMS) or super().is_leaf_module(m, module_qualified_name)


def scale_invariant_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights whose output channels a batch norm frees of their norm.

    They are those of linear and convolution layers whose output goes into batch norms (PyTorch's
    or this package's) and nowhere else, found by tracing the model (`torch.fx`). Transposed
    convolutions are left out: their channels lie along another axis. A batch norm counts as one
    that trains: in eval mode, with running statistics, it frees nothing.

    Args:
        model: any module that `torch.fx` can trace.

    Returns:
        Name to weight, as `named_parameters` names them; a weight used elsewhere too is left out.

    Raises:
        UserError: the model can't be traced (name its weights yourself), or has no such weight.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # whatever the model's own code does when run on proxies
        raise UserError(
            f"torch.fx can't trace {type(model).__name__} ({error}); pick the weights from "
            "named_parameters() instead"
        ) from error
    free, bound = _free_and_bound(model, graph)
    weights = {n: p for n, p in model.named_parameters() if id(p) in free - bound}
    if not weights:
        raise UserError(f"no layer of {type(model).__name__} goes straight into a batch norm")
    return weights


def _free_and_bound(model: nn.Module, graph: fx.Graph) -> tuple[set[int], set[int]]:
    """The ids of weights used before batch norms, and of parameters used in any other way."""
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
    """Whether a layer's output goes into batch norms of its channels, and nowhere else."""
    users = [modules.get(str(u.target)) if u.op == "call_module" else None for u in node.users]
    # A linear layer's channels are not those of a norm over the sequence it sits in.
    return bool(users) and all(
        isinstance(user, _BATCH_NORMS) and user.num_features == channels for user in users
    )


def decay_groups(
    model: nn.Module, weight_decay: float, free: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: weight decay only where it does what it says.

    Args:
        model: its parameters that require gradients are grouped, each once.
        weight_decay: for all but the scale-invariant weights, at least 0.
        free: the names of the scale-invariant weights; those of `scale_invariant_weights` by
            default.

    Returns:
        Two groups with ``params`` and ``weight_decay``: the rest, and the scale-invariant weights
        with 0.

    Raises:
        UserError: a name is not a parameter's, or the model can't be traced or has no such weight.
    """
    number = isinstance(weight_decay, int | float) and not isinstance(weight_decay, bool)
    if not (number and 0 <= weight_decay < float("inf")):
        raise UserError(f"weight_decay must be at least 0, not {weight_decay!r}")
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
