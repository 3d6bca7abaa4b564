"""``NormMonitor``: log statistics of each norm in training, and warn when they go wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.monitor.statistics import Layer, Numbers, Watch, norm_layers
from normtrain.norms.base import positive
from normtrain.swap.callback.flavours import callback_class


class NormWarning(UserWarning):
    """A norm's input, output or gain has collapsed or exploded, or a norm was not measured."""


class NormMonitorHooks:
    """Logs statistics of every norm of the model every `every` optimizer steps, to all loggers.

    In steps `every`, 2 * `every`, … it measures one batch (the first, if gradients are
    accumulated) and logs for each norm, as ``norms/<module name>/<number>``:

    - ``input_mean``: mean of all input values
    - ``input_rms``: their root mean square
    - ``input_std``: their standard deviation
    - ``near_zero_rows``: share of the rows (values normalized together: a position's features, a
      batch norm's channel, a group) whose variance is below `near_zero`
    - ``output_rms``: root mean square of the output
    - ``gain_mean``, ``gain_min``, ``gain_max``, ``gain_std``: of the gain (Gemma's stored ``w``
      counts as ``1 + w``); absent without one
    - ``gradient_norm``: Euclidean norm of the gradient with respect to the output, of the loss that
      the training step returned: loss scaling and accumulation are undone; absent if the output is
      the input itself

    `last` holds the newest numbers as ``{module name: {number: float}}`` and `step` their step.

    Norms are this package's, PyTorch's, and every module with "norm" in its class name whose input
    and output are one tensor each of the same shape. A norm called several times in a step is
    reported once, over all calls; one that is not called is not reported. With several ranks, only
    rank 0 measures its batch, logs, warns and has `last`.

    Hooks are in the model only while a step is measured: other steps, validation and testing run
    as without the monitor, and training is bitwise identical. The host waits for the device once
    in a measured step.

    Norms in code compiled by ``torch.compile`` call no hooks and are not measured, which gives one
    warning. With ``eager=True`` measured steps run without ``torch.compile`` (slower, and rounded
    as uncompiled code), so that all norms are measured.

    A `NormWarning` names a norm and a number, once for each norm and problem: **collapse** if the
    input's or the output's RMS is below `collapse` (except an output that is exactly zero, as from
    a gain that starts at zero), or if more than half of the rows are near zero; **explosion** if
    either RMS or a gain is above `explosion`, or any number is NaN or Inf (except gradients under
    loss scaling).

    Args:
        every: optimizer steps between two measurements.
        near_zero: rows with a variance below this count as near zero.
        collapse: warn if an RMS is below this.
        explosion: warn if an RMS or a gain is above this.
        eager: whether measured steps run without ``torch.compile``.

    Raises:
        UserError: an argument is out of range; when training starts, if the model has no norm.
    """

    def __init__(
        self,
        every: int = 50,
        near_zero: float = 1e-6,
        collapse: float = 1e-3,
        explosion: float = 1e3,
        *,
        eager: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"every must be an integer >= 1, got {every!r}")
        if not isinstance(eager, bool):
            raise UserError(f"eager must be True or False, got {eager!r}")
        self.every, self.eager = every, eager
        self.near_zero = positive("near_zero", near_zero)
        self.collapse = positive("collapse", collapse)
        self.explosion = positive("explosion", explosion)
        if self.collapse >= self.explosion:
            raise UserError(f"collapse ({collapse}) must be below explosion ({explosion})")
        self.last: dict[str, Numbers] = {}
        self.step: int | None = None
        self._warned: set[tuple[str, str]] = set()
        self._reached: int | None = None
        self._watch: Watch | None = None
        self._loss_scale: Tensor | None = None
        self._stance: ExitStack | None = None
        self._measured: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Exclude a measurement in progress and the attributes that Lightning sets during hooks."""
        lent = ("log", "log_dict")
        away = dict.fromkeys(("_watch", "_loss_scale", "_stance", "_measured"))
        return {key: v for key, v in vars(self).items() if key not in lent} | away

    @property
    def state_key(self) -> str:
        """The callback's key in checkpoints: the same for all arguments and flavours."""
        return "NormMonitor"

    def state_dict(self) -> dict[str, Any]:
        """Return the newest numbers, their step, and the last step that was considered."""
        return {"last": self.last, "step": self.step, "reached": self._reached}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.last, self.step = state_dict["last"], state_dict["step"]
        self._reached = state_dict["reached"]

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Check that there are norms.

        Raises:
            UserError: there are none.
        """
        if not norm_layers(pl_module):
            raise UserError(
                f"NormMonitor found no norm in {type(pl_module).__name__}: no norm of PyTorch or "
                f"normtrain, and no class with 'norm' in its name; remove the callback"
            )
        # A new Trainer starts again at 0.
        if self._reached is None or self._reached > trainer.global_step:
            self._reached = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Start measuring if this step is due."""
        self._stop()
        assert self._reached is not None
        step = trainer.global_step + 1
        # With several optimizers a batch takes several steps, so a multiple may be skipped.
        if step // self.every <= self._reached // self.every:
            return
        self._measured = step
        if self.eager:  # on every rank, for the same collectives
            self._stance = ExitStack()
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        if trainer.is_global_zero:
            self._loss_scale = _loss_scale(trainer)
            layers = norm_layers(pl_module)
            self._watch = Watch(layers, self.near_zero, lambda: bool(trainer.interrupted))

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """Finish measuring: log, and warn of problems."""
        if self._measured is None:
            return
        watch, scale, self._reached = self._watch, self._loss_scale, self._measured
        self._stop()
        if watch is None:
            return
        self.last, self.step = watch.numbers(scale), self._reached
        flat = {f"norms/{name}/{key}": v for name, n in self.last.items() for key, v in n.items()}
        for logger in trainer.loggers if flat else ():
            logger.log_metrics(flat, self.step)
        self._warn_of_unseen(watch.layers)
        tries_scales = _scaler(trainer) is not None
        for name, numbers in self.last.items():
            for kind, what in self._problems(numbers, tries_scales):
                self._warn((name, kind), f"step {self.step}, norm {name}: {kind}, {what}")

    def _problems(self, numbers: Numbers, tries_scales: bool) -> Iterator[tuple[str, str]]:
        """Yield the problems of one norm, each with the number that shows it."""
        limit = self.explosion
        gain = max(abs(numbers.get("gain_min", 0.0)), abs(numbers.get("gain_max", 0.0)))
        sizes = {
            "the input's RMS": numbers["input_rms"],
            "the output's RMS": numbers["output_rms"],
            "the largest gain": gain,
        }
        for what, value in sizes.items():
            if not value <= limit:  # also NaN
                yield "explosion", f"{what} is {value:.4g}, above {limit:g}"
        gradient = numbers.get("gradient_norm", 0.0)
        if not math.isfinite(gradient) and not tries_scales:
            yield "explosion", f"the norm of the gradient is {gradient}"
        if numbers["input_rms"] < self.collapse:
            yield "collapse", f"the input's RMS is {numbers['input_rms']:.4g}, {self._below}"
        if 0 < numbers["output_rms"] < self.collapse:
            yield "collapse", f"the output's RMS is {numbers['output_rms']:.4g}, {self._below}"
        if (share := numbers["near_zero_rows"]) > 0.5:
            what = f"of the input's rows have a variance below {self.near_zero:g}"
            yield "collapse", f"{share:.0%} {what}"

    @property
    def _below(self) -> str:
        return f"below {self.collapse:g}"

    def _warn_of_unseen(self, layers: list[Layer]) -> None:
        unseen = [layer for layer in layers if layer.name not in self.last]
        if self.last:  # some norms may not be called in every step, such as those of experts
            unseen = [layer for layer in unseen if layer.compiled]
        if unseen:
            how = "" if self.eager else "; if that is due to torch.compile, use eager=True"
            self._warn(
                ("", "unseen"),
                f"step {self.step}: {len(unseen)} of {len(layers)} norms were not measured, "
                f"{unseen[0].name} among them{how}",
            )

    def _warn(self, key: tuple[str, str], text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(f"NormMonitor, {text}", NormWarning, stacklevel=3)

    def _stop(self) -> None:
        """Remove every hook, and restore torch.compile's stance."""
        if self._watch is not None:
            self._watch.close()
        if self._stance is not None:
            self._stance.close()
        self._watch = self._stance = self._loss_scale = self._measured = None

    def teardown(self, *_: Any, **__: Any) -> None:
        """Remove the hooks, also those of a skipped batch."""
        self._stop()

    setup = on_validation_start = on_train_end = on_exception = teardown


def _scaler(trainer: Any) -> Any:
    """Return the loss scaler of float16 training; None otherwise."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _loss_scale(trainer: Any) -> Tensor:
    """Return the factor of the training step's loss, ``()``, on the model's device."""
    one = torch.ones((), device=trainer.strategy.root_device)
    scaler = _scaler(trainer)
    whole = one if scaler is None else scaler.scale(one)
    return whole / trainer.accumulate_grad_batches


if TYPE_CHECKING:
    from pytorch_lightning import Callback

    class NormMonitor(NormMonitorHooks, Callback):
        """`NormMonitorHooks` as a callback."""


def __getattr__(name: str) -> Any:
    if name == "NormMonitor":
        return callback_class(NormMonitorHooks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
