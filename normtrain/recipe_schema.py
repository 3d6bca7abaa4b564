"""The recipe's schema: its sections, their keys, defaults, limits, and what each key takes.

The models only hold and check values; `normtrain.recipe` loads, changes, writes and explains them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from normtrain.errors import UserError


@dataclass(frozen=True)
class Wanted:
    """What a key takes, in words; shown when it was given something else."""

    text: str


Count = Annotated[int, Strict(), Field(ge=1), Wanted("a whole number of 1 or more")]
Whole = Annotated[int, Strict(), Field(ge=0), Wanted("a whole number of 0 or more")]
Positive = Annotated[float, Strict(), Field(gt=0), Wanted("a number above 0")]
NonNegative = Annotated[float, Strict(), Field(ge=0), Wanted("a number of 0 or more")]
Fraction = Annotated[
    float, Strict(), Field(ge=0, lt=1), Wanted("a number of 0 or more and below 1")
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
    folder; ``max_tokens``: target positions in a batch; ``max_length``: tokens in a sentence."""

    source: Text = "phrasebook"
    revision: Annotated[str | None, Strict(), Wanted("text in quotes, or null")] = None
    max_tokens: Count = 4096
    max_length: Count = 128
    vocab_size: Count = 4000
    workers: Whole = 0


class ModelRecipe(Section):
    """The model. ``norm`` is the default for every place, ``norm_rules`` (last match wins) are the
    exceptions; ``word_dropout`` replaces source tokens by UNK in training; ``tie``: which of the
    source, target and output embeddings are one matrix; ``embedding_norm``: the norm of embedding
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
    d_stream: Annotated[
        int | None, Strict(), Field(ge=1), Wanted("a whole number of 1 or more, or null")
    ] = None
    heads: Count = 4
    encoder_layers: Count = 3
    decoder_layers: Count = 3
    d_ff: Count = 1024
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.0
    activation_dropout: Fraction = 0.0
    word_dropout: Fraction = 0.0
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_positions: Count = 1024
    tie: Literal["all", "decoder", "embeddings", "none"] = "all"
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
    label_smoothing: Fraction = 0.1
    clip: NonNegative = 1.0
    accumulate: Count = 1


class TrainRecipe(Section):
    """The run, counted in updates. ``keep``: numbered checkpoints kept for averaging; ``patience``:
    validations without improvement before it stops; ``ema``: decay of the averaged weights."""

    max_steps: Count = 3000
    val_every: Count = 250
    checkpoint_every: Count = 250
    keep: Count = 5
    best: Literal["bleu", "loss"] = "bleu"
    val_beam: Count = 1
    samples: Whole = 3
    precision: Precision = "auto"
    seed: Annotated[
        int, Strict(), Field(ge=0, lt=2**32), Wanted("a whole number from 0 to 4294967295")
    ] = 1
    patience: Annotated[
        int | None, Strict(), Field(ge=1), Wanted("a whole number of 1 or more, or null")
    ] = None
    ema: Annotated[
        float | None, Strict(), Field(gt=0, lt=1), Wanted("a number between 0 and 1, or null")
    ] = None
    log_every: Count = 50


class DecodeRecipe(Section):
    """Beam search: width, Wu et al.'s length penalty exponent (2016, eq. 14), longest output."""

    beam: Count = 5
    length_penalty: NonNegative = 0.6
    max_length: Count = 200


class Recipe(Section):
    """Everything that decides a run. Frozen; change one with `override`."""

    name: Annotated[
        str,
        Strict(),
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"),
        Wanted("a name of letters, digits, '.', '_' and '-'"),
    ]
    task: Literal["translation"] = "translation"
    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    optim: OptimRecipe = OptimRecipe()
    train: TrainRecipe = TrainRecipe()
    decode: DecodeRecipe = DecodeRecipe()

    def plain(self) -> dict[str, Any]:
        """The recipe as nested dicts and lists of plain values, as a checkpoint stores it."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for problem in _contradictions(self):
            raise UserError(problem)
        return self


def _contradictions(recipe: Recipe) -> Iterator[str]:
    data, model, optim, train = recipe.data, recipe.model, recipe.optim, recipe.train
    if model.d_model % model.heads:
        yield f"model.d_model ({model.d_model}) must be a multiple of model.heads ({model.heads})"
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
    lengths = {"data": data.max_length, "decode": recipe.decode.max_length}
    for section, length in lengths.items():
        if length >= model.max_positions:  # one position is the start or end mark's
            yield (
                f"{section}.max_length ({length}) must be below model.max_positions "
                f"({model.max_positions})"
            )
    if data.max_tokens <= data.max_length:  # a batch has to hold its longest sentence and end mark
        yield (
            f"data.max_tokens ({data.max_tokens}) must be above data.max_length "
            f"({data.max_length}), so that a batch holds any one sentence"
        )


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def keys() -> list[str]:
    """Every key that ``--set`` takes, dotted, in canonical order."""
    dotted = [name for name in Recipe.model_fields if name not in SECTIONS]
    return dotted + [
        f"{name}.{key}" for name, part in SECTIONS.items() for key in part.model_fields
    ]


def choices(key: str) -> tuple[str, ...]:
    """The words a dotted key may take, or nothing if it takes other values."""
    return tuple(arg for arg in get_args(_field(key).annotation) if isinstance(arg, str))


def takes_text(key: str) -> bool:
    """Whether a dotted key's value is a string, so that ``32`` on a command line is text too."""
    annotation = _field(key).annotation
    return annotation is str or str in get_args(annotation) or bool(choices(key))


def wanted(key: str) -> str:
    """What a dotted key takes, in words that follow "it must be"."""
    if words := choices(key):
        return f"one of {', '.join(words)}" if len(words) > 1 else repr(words[0])
    return next(mark.text for mark in _field(key).metadata if isinstance(mark, Wanted))


def _field(key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (SECTIONS[section] if section else Recipe).model_fields[name]
