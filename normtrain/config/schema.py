"""What recipes of every task have in common: sections, keys, defaults, limits, what a key takes.

The models only hold and check values; `normtrain.config.tasks` adds what one task alone has, and
`normtrain.config.recipe` loads, changes, writes and explains them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from normtrain.errors import UserError


@dataclass(frozen=True)
class Wanted:
    """What a key takes, in words; shown when it was given something else."""

    text: str


# Sizes above which torch's own counts overflow, and numbers of things that are made one by one:
# beyond them a typing error would be answered by hours of work, or by thousands of processes.
LARGEST, MOST_LAYERS, WIDEST_BEAM, MOST_WORKERS = 2**31 - 1, 1000, 1000, 256

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST), Wanted("a whole number of 1 or more")]
Whole = Annotated[int, Strict(), Field(ge=0, le=LARGEST), Wanted("a whole number of 0 or more")]
Layers = Annotated[
    int, Strict(), Field(ge=1, le=MOST_LAYERS), Wanted("a whole number of 1 or more")
]
Beam = Annotated[int, Strict(), Field(ge=1, le=WIDEST_BEAM), Wanted("a whole number of 1 or more")]
Positive = Annotated[float, Strict(), Field(gt=0), Wanted("a number above 0")]
NonNegative = Annotated[float, Strict(), Field(ge=0), Wanted("a number of 0 or more")]
Fraction = Annotated[
    float, Strict(), Field(ge=0, lt=1), Wanted("a number of 0 or more and below 1")
]
OptionalCount = Annotated[
    int | None,
    Strict(),
    Field(ge=1, le=LARGEST),
    Wanted("a whole number of 1 or more, or null"),
]
Text = Annotated[str, Strict(), Field(min_length=1), Wanted("text, and not empty")]
Flag = Annotated[bool, Strict(), Wanted("true or false")]
Rules = Annotated[
    tuple[tuple[Text, Text], ...],
    Wanted("a list of [module-name pattern, norm] pairs, such as [['encoder.*', layernorm]]"),
]
Precision = Annotated[
    Literal["auto", "32", "bf16-mixed", "bf16-true"],
    BeforeValidator(lambda value: str(value) if type(value) is int else value),  # unquoted 32
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataRecipe(Section):
    """Which text, and how it becomes batches. ``source``: a corpus name, ``hf:owner/name`` or a
    folder; ``max_tokens``: target positions in a batch."""

    source: Text
    revision: Annotated[str | None, Strict(), Wanted("text in quotes, or null")] = None
    max_tokens: Count = 4096
    workers: Annotated[
        int, Strict(), Field(ge=0, le=MOST_WORKERS), Wanted("a whole number of 0 or more")
    ] = 0


class ModelRecipe(Section):
    """The model. ``norm`` is the default for every place, ``norm_rules`` (last match wins) are the
    exceptions; ``embedding_norm``: the norm of embedding
    vectors before their scale √d_model, and of the rows of an output matrix tied to them
    (fixnorm); ``zero_mean`` recentres the features of the embeddings, or of all that enters the
    residual stream, which makes RMSNorm train as LayerNorm does; ``d_stream``: width of that
    stream, embeddings and norms (null: d_model, which stays the width of attention);
    ``head_bias``: the logits have a bias."""

    norm: Text = "rmsnorm"
    norm_rules: Rules = ()
    placement: Literal["pre", "post", "sandwich"] = "pre"
    qk_norm: Text = "none"
    embedding_norm: Text = "none"
    zero_mean: Literal["none", "embeddings", "stream"] = "none"
    d_model: Count = 256
    d_stream: OptionalCount = None
    heads: Count = 4
    d_ff: Count = 1024
    activation: Literal["relu", "gelu", "gelu-tanh", "swiglu"] = "relu"
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.0
    activation_dropout: Fraction = 0.0
    max_positions: Count = 1024
    bias: Flag = True
    head_bias: Flag = False


class OptimRecipe(Section):
    """AdamW, its schedule and the loss. ``clip`` is the largest gradient norm (0: off);
    ``accumulate`` the number of batches in one update."""

    lr: Positive = 1e-3
    betas: Annotated[
        tuple[Fraction, Fraction], Wanted("two numbers of 0 or more and below 1, as [0.9, 0.98]")
    ] = (0.9, 0.98)
    eps: Positive = 1e-9
    weight_decay: NonNegative = 0.01
    schedule: Literal["inverse-sqrt", "cosine", "linear", "constant"] = "inverse-sqrt"
    warmup_steps: Whole = 400
    min_lr: NonNegative = 0.0
    label_smoothing: Fraction = 0.0
    clip: NonNegative = 1.0
    accumulate: Count = 1


class TrainRecipe(Section):
    """The run, counted in updates. ``keep``: numbered checkpoints kept for averaging; ``patience``:
    validations without improvement before it stops; ``ema``: decay of the averaged weights;
    ``activation_checkpointing``: layers are computed again in the backward pass, which takes less
    memory, more time, and changes no bit; ``deterministic``: on a GPU too, only operations that
    give the same bits each time (docs/determinism.md)."""

    max_steps: Count = 3000
    val_every: Count = 250
    checkpoint_every: Count = 250
    keep: Count = 5
    precision: Precision = "auto"
    seed: Annotated[
        int, Strict(), Field(ge=0, lt=2**32), Wanted("a whole number from 0 to 4294967295")
    ] = 1
    patience: OptionalCount = None
    ema: Annotated[
        float | None, Strict(), Field(gt=0, lt=1), Wanted("a number between 0 and 1, or null")
    ] = None
    log_every: Count = 50
    activation_checkpointing: Flag = False
    deterministic: Flag = False


class DecodeRecipe(Section):
    """What is written: at most ``max_length`` tokens."""

    max_length: Count = 200


class Recipe(Section):
    """Everything that decides a run, whatever its task. Frozen; change one with `override`."""

    name: Annotated[
        str,
        Strict(),
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        Wanted("a name of letters, digits, '.', '_' and '-'"),
    ]
    task: str
    data: DataRecipe
    model: ModelRecipe
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe = TrainRecipe()
    decode: DecodeRecipe = DecodeRecipe()

    def plain(self) -> dict[str, Any]:
        """The recipe as nested dicts and lists of plain values, as a checkpoint stores it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for problem in self.contradictions():
            raise UserError(problem)
        return self

    def contradictions(self) -> Iterator[str]:
        """What keys say against each other, a sentence each."""
        model, optim, train = self.model, self.optim, self.train
        if model.d_model % model.heads:
            yield (
                f"model.d_model ({model.d_model}) must be a multiple of model.heads ({model.heads})"
            )
        if model.placement == "post" and model.zero_mean != "none":
            yield (
                f"model.zero_mean ({model.zero_mean}) needs model.placement pre or sandwich; a "
                "post-norm stream has no mean to keep at 0"
            )
        if optim.warmup_steps >= train.max_steps:
            yield (
                f"optim.warmup_steps ({optim.warmup_steps}) must be below train.max_steps "
                f"({train.max_steps})"
            )
        if optim.min_lr > 0 and optim.schedule == "constant":
            yield f"optim.min_lr ({optim.min_lr:g}) does nothing with optim.schedule constant"
        if optim.min_lr > optim.lr:
            yield f"optim.min_lr ({optim.min_lr:g}) must not be above optim.lr ({optim.lr:g})"
