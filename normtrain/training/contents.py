"""What has to be in a checkpoint, checked before anything is done with it.

A checkpoint comes from a disk or from another person, so it is read as a user's input is: each
refusal names the part that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.config.yamlio import kind_of
from normtrain.errors import DamagedFile, UserError
from normtrain.tasks.optimizers import state_template
from normtrain.training.callbacks.random_state import check_state

_TEXT, _COUNT, _FLAG, _NUMBER = "text", "a whole number", "true or false", "a number"
_SIZE, _STRATEGIES = "a whole number of 1 or more", ("auto", "ddp", "fsdp2")
_KINDS = {str: _TEXT, int: _SIZE, bool: _FLAG, float: _NUMBER}
_REFERENCE = {"kind": _TEXT, "source": _TEXT, "revision": _TEXT, "sha256": _TEXT}
_SURROUNDINGS = {"kernels": _TEXT, "threads": _COUNT, "torch": _TEXT, "device": _TEXT}
_TOTALS = ("tokens", "seconds")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Contents:
    """The parts of one checkpoint.

    Args:
        path: the file, for messages.
        raw: everything, as loaded.
    """

    def __init__(self, path: Path, raw: Mapping[str, Any]) -> None:
        self.path, self.raw = path, raw

    def check(self) -> None:
        """See that it is whole: what evaluating, exporting and averaging need.

        Raises:
            DamagedFile: a part is missing.
            UserError: one is of another kind.
        """
        ours = self.raw["normtrain"]
        lacking = [key for key in ("state_dict", "global_step") if key not in self.raw]
        lacking += [key for key in ("recipe", "tokenizer", "norms", "data") if key not in ours]
        if lacking:
            raise DamagedFile(
                f"{self.path} is not a whole checkpoint: it lacks {', '.join(lacking)}"
            )
        self._weights("state_dict")
        self._plain("global_step", self.raw["global_step"], _COUNT)
        self._mapping("recipe", ours["recipe"])
        self._plain("tokenizer", ours["tokenizer"], _TEXT)
        for name, norm in self._mapping("norms", ours["norms"]).items():
            self._plain(f"norms {name}", norm, _TEXT)
        data = self._mapping("data", ours["data"])
        for key, kind in _REFERENCE.items():
            if key not in data and key != "kind":
                raise UserError(f"{self.path} is damaged or was edited: data lacks {key}")
            if data.get(key) is not None or key == "kind":
                self._plain(f"data {key}", data.get(key), kind)
        for key, kind in _SURROUNDINGS.items():
            if ours.get(key) is not None:
                self._plain(key, ours[key], kind)
        for name, text in self._mapping("init", ours.get("init") or {}).items():
            self._plain(f"init {name}", text, _TEXT)

    def check_training(
        self, model: nn.Module, machine: Mapping[str, Any], *, sharded: bool = False
    ) -> None:
        """See that training can go on from it.

        Args:
            model: as the run trains it, on any device: its parameters' shapes count.
            machine: values of the kinds that the machine section has, by key.
            sharded: whether the optimizer's state lies apart, in the processes' files.

        Raises:
            UserError: a part is missing, of another kind, or of another model.
        """
        parts = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "random_state")
        for key in parts[sharded:]:
            if key not in self.raw:
                raise UserError(
                    f"{self.path} can't be gone on with: it lacks {key} (a checkpoint made by "
                    "average, convert or import has none)"
                )
        for key, value in self._mapping("machine", self.raw["normtrain"].get("machine")).items():
            if key not in machine:
                raise UserError(f"{self.path} was written by another version: machine has {key!r}")
            self._plain(f"machine {key}", value, _KINDS[type(machine[key])])
            if key == "strategy" and value not in _STRATEGIES:
                raise self.wrong("machine strategy", " or ".join(_STRATEGIES), value)
        self._plain("data sha256", self.raw["normtrain"]["data"]["sha256"], _TEXT)
        self._shapes(self.raw["state_dict"], {f"model.{k}": v for k, v in _state(model).items()})
        if not sharded:
            self._optimizer(model)
        for key in ("loops", "callbacks"):
            for name, state in self._mapping(key, self.raw[key]).items():
                self._mapping(f"{key} {name}", state)
        self._loops("loops", self.raw["loops"])
        schedules = self.raw["lr_schedulers"]
        if not isinstance(schedules, list) or len(schedules) != 1:
            raise self.wrong("lr_schedulers", "a list of one schedule's state", schedules)
        self._plain(
            "last_epoch", self._mapping("lr_schedulers", schedules[0]).get("last_epoch"), _COUNT
        )
        for key in _TOTALS:
            self._plain(
                f"totals {key}", self._mapping("totals", self.raw.get("totals")).get(key), _NUMBER
            )
        if "current_model_state" in self.raw:  # of weight averaging
            self._weights("current_model_state")
        self._generators()

    def _weights(self, key: str) -> None:
        for name, weight in self._mapping(key, self.raw[key]).items():
            where = f"{key} {name}" if isinstance(name, str) else key
            if not isinstance(name, str):
                raise self.wrong(where, "named by text", name)
            dense = isinstance(weight, Tensor) and weight.layout is torch.strided
            if not dense or weight.is_meta or weight.is_complex() or weight.is_quantized:
                raise self.wrong(where, "a dense tensor of numbers", weight)

    def _shapes(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
        for name in sorted(found.keys() | wanted.keys()):
            theirs, ours = (_shape(side.get(name)) for side in (found, wanted))
            if theirs != ours:
                raise UserError(
                    f"{self.path} can't be gone on with: {name} has {theirs} there, and by its "
                    f"recipe {ours}"
                )

    def _optimizer(self, model: nn.Module) -> None:
        states, where = self.raw["optimizer_states"], "optimizer_states"
        if not isinstance(states, list) or len(states) != 1:
            raise self.wrong(where, "a list of one optimizer's state", states)
        state = self._mapping(where, states[0])
        groups, moments = state.get("param_groups"), self._mapping(where, state.get("state"))
        wanted = parameter_groups(model, 0.0)
        if not isinstance(groups, list) or len(groups) != len(wanted):
            raise self.wrong(f"{where} param_groups", f"a list of {len(wanted)}", groups)
        for group, ours in zip(groups, wanted, strict=True):
            numbers = self._mapping(f"{where} param_groups", group).get("params")
            if not isinstance(numbers, list) or len(numbers) != len(ours["params"]):
                raise self.wrong(f"{where} params", f"a list of {len(ours['params'])}", numbers)
            for key in ("lr", "eps", "weight_decay"):
                self._plain(f"{where} {key}", group.get(key), _NUMBER)
            for number, parameter in zip(numbers, ours["params"], strict=True):
                if not isinstance(number, int):
                    raise self.wrong(f"{where} params", "a list of whole numbers", numbers)
                self._moments(f"{where} {number}", moments.get(number), parameter)

    def _moments(self, where: str, found: Any, parameter: Tensor) -> None:
        if found is None:  # a parameter that no gradient has reached
            return
        for key in ("step", *_MOMENTS):
            tensor = self._mapping(where, found).get(key)
            shape = parameter.shape if key in _MOMENTS else torch.Size()
            if not (
                isinstance(tensor, Tensor)
                and tensor.layout is torch.strided
                and tensor.shape == shape
                and tensor.is_floating_point()
            ):
                raise self.wrong(f"{where} {key}", f"a float tensor of {tuple(shape)}", tensor)

    def _loops(self, where: str, state: Mapping[Any, Any]) -> None:
        """Lightning's counts are whole numbers however deep they lie."""
        for key, value in state.items():
            if isinstance(value, dict):
                self._loops(f"{where} {key}", value)
            elif isinstance(value, int):
                self._plain(f"{where} {key}", int(value), _COUNT)
            elif not isinstance(value, list | None):
                raise self.wrong(f"{where} {key}", "a whole number", value)

    def _generators(self) -> None:
        states = self.raw["random_state"]
        if not isinstance(states, list):
            raise self.wrong("random_state", "a list", states)
        for state in states:
            try:
                check_state(state)
            except Exception as error:  # the generators raise what they like
                raise self.wrong("random_state", "what the generators saved", state) from error

    def _mapping(self, where: str, value: Any) -> Mapping[Any, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, "a mapping", value)
        return value

    def _plain(self, where: str, value: Any, kind: str) -> None:
        good = {
            _TEXT: lambda: isinstance(value, str),
            _COUNT: lambda: type(value) is int and 0 <= value < 2**63,
            _SIZE: lambda: type(value) is int and 1 <= value < 2**31,
            _FLAG: lambda: type(value) is bool,
            _NUMBER: lambda: type(value) in (int, float) and math.isfinite(value),
        }
        if not good[kind]():
            raise self.wrong(where, kind, value)

    def wrong(self, where: str, wanted: str, found: Any) -> UserError:
        """The refusal of one part; no accident on a disk puts another value in its place."""
        shown = f"a {found.layout} tensor" if isinstance(found, Tensor) else kind_of(found)
        if isinstance(found, Tensor) and found.layout is torch.strided:
            shown = f"a tensor of {tuple(found.shape)}, {found.dtype} on {found.device}"
        place = where.encode("ascii", "backslashreplace").decode().replace("\n", " ")[:120]
        return UserError(
            f"{self.path} is damaged or was edited: {place} should be {wanted}, not {shown}; use "
            "an earlier checkpoint of the run"
        )


def _state(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


def _shape(weight: Tensor | None) -> str:
    return "no weight" if weight is None else f"shape {tuple(weight.shape)}"
