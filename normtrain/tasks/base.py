"""What a task is: its recipe, data, model, training module, metrics, evaluation and model card.

A task of another package subclasses `Task` and is named in the entry-point group
`normtrain.tasks`. Importing this module imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from normtrain.config.registry import load_task
from normtrain.errors import UserError

if TYPE_CHECKING:
    import torch

    from normtrain.config.schema import Recipe
    from normtrain.data.base import CorpusData
    from normtrain.models.embedding import TokenModel


class TaskTokenizer(Protocol):
    """What a task needs of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def to_json(self) -> str: ...


@dataclass(frozen=True)
class Metric:
    """A number that validations log as ``val_<name>``, a column of ``metrics.csv``.

    Attributes:
        name: of the number.
        mode: whether lower (``"min"``) or higher (``"max"``) is better.
        log: the text of a validation's log line, with the number as ``{}``.
    """

    name: str
    mode: Literal["min", "max"]
    log: str

    @property
    def column(self) -> str:
        """Name of the column in ``metrics.csv``, and in a Trainer's ``callback_metrics``."""
        return f"val_{self.name}"


LOSS = Metric("loss", "min", "loss {:.4f}")


@dataclass(frozen=True)
class Card:
    """What a task says on the model card of an export.

    Attributes:
        front: lines of the YAML front matter.
        title: what the model does.
        scores: column heads of the table of scores, and how each is formatted, by the key of the
            evaluation.
    """

    front: tuple[str, ...]
    title: str
    scores: Mapping[str, tuple[str, str]]


@dataclass(frozen=True)
class TrainedModel:
    """A model read from a checkpoint, in eval mode.

    Attributes:
        path: the checkpoint, for messages.
        recipe: what it was trained by.
        tokenizer: its tokenizer.
        model: on the device that computes.
        data: provenance of the training data, as the checkpoint has it.
    """

    path: Path
    recipe: Recipe
    tokenizer: Any
    model: TokenModel
    data: Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on, and with which share of the work.

    Attributes:
        split: ``train``, ``valid``, ``test`` or another split of the corpus.
        data: another corpus than the run's, or None.
        options: the options that the user gave, by name; a task's `Task.evaluation_options`.
        rank: of this process.
        world: number of processes that share the work.
        device: where this process computes.
        progress: called with the work done and in all.
    """

    split: str
    data: str | None
    options: Mapping[str, Any]
    rank: int
    world: int
    device: torch.device
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; the same on every rank.

    Attributes:
        scores: numbers and how they were obtained, plain values.
        corpus: provenance of the text.
        variant: parts of the result's file name: what differs from the recipe's settings.
        lines: outputs, a line each, where there are any.
    """

    scores: dict[str, Any]
    corpus: dict[str, Any]
    variant: Sequence[str] = field(default=())
    lines: Sequence[str] | None = None


class Task(ABC):
    """One task, as runs and commands see it.

    Attributes:
        name: the ``task`` of its recipes.
        metrics: what validations log besides the loss.
        card: of the model cards of its exports.
        libraries: distributions whose versions are recorded with scores.
        command: the command that uses its models, for messages.
        evaluation_options: the options of ``evaluate`` that it has, by name.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    card: ClassVar[Card]
    libraries: ClassVar[tuple[str, ...]] = ("torch",)
    command: ClassVar[str] = "evaluate"
    evaluation_options: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def recipe_type(self) -> type[Recipe]:
        """The class of the task's recipes."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of `transformers` that its models can be exported to."""
        return ()

    @abstractmethod
    def corpora(self) -> list[str]:
        """Return the corpora that the task knows by name."""

    @property
    @abstractmethod
    def data_type(self) -> type[CorpusData[Any]]:
        """The class of the task's data modules."""

    @property
    @abstractmethod
    def module_type(self) -> type[Any]:
        """The class of the task's LightningModules, a `normtrain.tasks.module.TaskModule`."""

    def data(self, recipe: Any, **options: Any) -> CorpusData[Any]:
        """Build the data module of a run, not yet set up; ``options`` are those of its class."""
        return self.data_type(recipe.data, seed=recipe.train.seed, **options)

    def module(self, recipe: Any, tokenizer: Any, **options: Any) -> Any:
        """Build the LightningModule of a run; ``options`` are those of its class."""
        return self.module_type(recipe, tokenizer, **options)

    def model(self, config: Any, vocab_size: int) -> TokenModel:
        """Build the model of a recipe's ``model`` section."""
        from normtrain.models import build_model

        return build_model(config, vocab_size)

    @abstractmethod
    def tokenizer(self, text: str) -> TaskTokenizer:
        """Read a tokenizer's JSON.

        Raises:
            UserError: it is not one of the task's.
        """

    @abstractmethod
    def vocab_size(self, recipe: Any) -> int | None:
        """Return the most ids that the tokenizer can have; None where only the text tells."""

    @abstractmethod
    def evaluate(self, trained: TrainedModel, request: EvaluationRequest) -> Evaluation:
        """Evaluate a trained model on a split; every rank takes its share.

        Raises:
            UserError: the corpus or an option cannot be used.
        """

    def best(self, recipe: Any) -> Metric:
        """Return the metric of the best checkpoint."""
        return LOSS

    def metric(self, name: str) -> Metric:
        """Return the metric of a name, the loss among them."""
        return next(each for each in (LOSS, *self.metrics) if each.name == name)

    def check_options(self, options: Mapping[str, Any], path: Path) -> None:
        """Refuse an option of ``evaluate`` that another task has.

        Raises:
            UserError: one is given.
        """
        for name in options:
            if name not in self.evaluation_options:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} is unsupported for the task {self.name} of {path}")


def task_of(recipe: Recipe) -> Task:
    """Return the task of a recipe."""
    task: Task = load_task(recipe.task)
    return task


def whole_source(recipe: Recipe) -> str:
    """Return ``data.source``, as an absolute path where it is a file or a folder."""
    source = recipe.data.source
    named = source in task_of(recipe).corpora() or source.startswith("hf:")
    return source if named or not Path(source).exists() else str(Path(source).resolve())
