"""The checkpoint format: every part is declared here, and validated when a checkpoint is read.

A checkpoint may come from a damaged disk or from another author, so every refusal names the part
that is wrong. Lightning writes what is not declared here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError
from torch import Tensor

from normtrain.config.explain import brief
from normtrain.errors import DamagedFile, UserError
from normtrain.training.callbacks.random_state import check_state
from normtrain.training.launch import LaunchConfig

FORMAT_VERSION = 2


class Part(BaseModel):
    """Base of the parts: strict types, finite numbers, further keys are kept."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow", frozen=True)


def _wrong(expected: str, **context: Any) -> PydanticCustomError:
    return PydanticCustomError("part", "{expected}", {"expected": expected, **context})


def _dense(value: Any) -> Any:
    dense = isinstance(value, Tensor) and value.layout is torch.strided
    if not dense or value.is_meta or value.is_complex() or value.is_quantized:
        raise _wrong("a dense tensor of numbers")
    return value


def _counters(value: Any, at: str = "") -> Any:
    """Check that Lightning's counts are integers however deep they are nested."""
    if not isinstance(value, dict):
        raise _wrong("a mapping", at=at, found=value)
    for key, inner in value.items():
        where = f"{at} {key}".strip()
        if isinstance(inner, dict):
            _counters(inner, where)
        elif isinstance(inner, int) and not 0 <= inner < 2**63:
            raise _wrong("an integer >= 0", at=where, found=inner)
        elif not isinstance(inner, int | list | None):
            raise _wrong("an integer", at=where, found=inner)
    return value


def _generators(value: Any) -> Any:
    try:
        check_state(value)
    except Exception as error:  # the generators raise errors of any type
        raise _wrong("the states that generators saved") from error
    return value


Count = Annotated[int, Field(ge=0, lt=2**63)]
Weights = dict[str, Annotated[Any, PlainValidator(_dense)]]


class DataOrigin(Part):
    """Where the training text came from.

    Attributes:
        kind: of the corpus; ``"hub"`` pins its revision.
        source: a folder, a file or a name.
        revision: of a dataset of the Hub.
        sha256: of all the text.
    """

    kind: str
    source: str | None
    revision: str | None
    sha256: str | None


class Environment(Part):
    """What the last bits of a run's results depend on besides its recipe."""

    kernels: str | None = None
    threads: Count | None = None
    torch: str | None = None
    device: str | None = None


class CheckpointSection(Part):
    """What makes a checkpoint self-contained: ``checkpoint["normtrain"]``.

    Attributes:
        version: of the format.
        recipe: every choice of the run, as `Recipe.plain` gives it.
        tokenizer: its JSON.
        norms: the norm at every module name.
        rules: the norm rules of the model.
        data: where the text came from.
        launch: how the run was launched; only a run's own checkpoints have it.
        environment: versions and hardware of the run.
        init: the pretrained weights that training started from.
        swap: what `NormSwap` recorded.
    """

    version: Literal[2]
    recipe: dict[Any, Any]
    tokenizer: str
    norms: dict[str, str]
    rules: list[Any] = []
    data: DataOrigin
    launch: LaunchConfig | None = None
    environment: Environment = Environment()
    init: dict[str, str] | None = None
    swap: dict[str, Any] | None = None

    def plain(self) -> dict[str, Any]:
        """Return the section as a checkpoint stores it: plain types only."""
        return self.model_dump(exclude_unset=True)


class Contents(Part):
    """What every checkpoint has: enough to evaluate, export, convert and average."""

    state_dict: Weights
    global_step: Count
    normtrain: CheckpointSection


class Scheduler(Part):
    """State of a learning-rate schedule."""

    last_epoch: Count


class OptimizerState(Part):
    """State of an optimizer; what it holds is compared with the optimizer itself."""

    state: dict[Any, dict[Any, Any]]
    param_groups: list[dict[Any, Any]]


class Totals(Part):
    """What a run has done so far."""

    tokens: float
    seconds: float


class ShardedState(Part):
    """What resuming needs besides `Contents`; the optimizer's state is in the ranks' files."""

    lr_schedulers: list[Scheduler] = Field(min_length=1, max_length=1)
    loops: Annotated[dict[str, Any], PlainValidator(_counters)]
    callbacks: dict[str, dict[Any, Any]]
    random_state: list[Annotated[Any, PlainValidator(_generators)]]
    totals: Totals
    current_model_state: Weights = {}  # of weight averaging


class TrainingState(ShardedState):
    """What resuming needs besides `Contents`."""

    optimizer_states: list[OptimizerState] = Field(min_length=1, max_length=1)


_EXPECTED: dict[str, str] = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a string",
    "string_unicode": "a string of Unicode characters",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "a number >= {ge}",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "too_short": "a list of {min_length}",
    "too_long": "a list of {max_length}",
    "literal_error": "{expected}",
    "extra_forbidden": "absent: another version wrote it",
    "part": "{expected}",
}


def refusal(path: Path, error: ValidationError) -> UserError:
    """Return the error that names the first part of a checkpoint that is wrong."""
    problems = error.errors(include_url=False)
    missing = [".".join(map(str, p["loc"])) for p in problems if p["type"] == "missing"]
    lacking = [name.removeprefix("normtrain.") for name in missing]
    if lacking and all(name.count(".") < 1 for name in lacking):
        return DamagedFile(f"{path} is not a whole checkpoint: it lacks {', '.join(lacking)}")
    first = problems[0]
    parts = [str(part) for part in first["loc"] if part not in ("normtrain", "[key]")]
    if first["type"] == "missing":
        return damaged(path, f"{' '.join(parts[:-1])} lacks {parts[-1]}")
    found, context = first["input"], first.get("ctx", {})
    template = _EXPECTED.get(first["type"])
    expected = template.format(**context) if template else first["msg"]
    if first["loc"][-1] == "[key]":
        expected = f"named by {expected}"
    parts += [str(context["at"])] if context.get("at") else []
    return wrong_part(path, " ".join(parts), expected, context.get("found", found))


def wrong_part(path: Path, place: str, expected: str, found: Any) -> UserError:
    """Return the error for one part with a wrong value; damage of a disk does not cause these."""
    if not isinstance(found, Tensor):
        shown = " ".join(brief(found).split())
    elif found.layout is torch.strided:
        shown = f"a tensor of {tuple(found.shape)}, {found.dtype} on {found.device}"
    else:
        shown = f"a {found.layout} tensor"
    place = place.encode("ascii", "backslashreplace").decode().replace("\n", " ")[:120]
    return damaged(path, f"{place} must be {expected}, got {shown}")


def damaged(path: Path, what: str) -> UserError:
    """Return the error for a checkpoint that is complete but wrong."""
    return UserError(
        f"{path} is damaged or was edited: {what}; use an earlier checkpoint of the run"
    )
