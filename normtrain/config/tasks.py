"""The two tasks' recipes: the keys that one of them alone has, and what their keys forbid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, Strict

from normtrain.config.schema import (
    Beam,
    Count,
    DataRecipe,
    DecodeRecipe,
    Flag,
    Fraction,
    Layers,
    ModelRecipe,
    NonNegative,
    OptimRecipe,
    OptionalCount,
    Positive,
    Recipe,
    Section,
    Text,
    TrainRecipe,
    Wanted,
    Whole,
)


class TranslationData(DataRecipe):
    """Sentence pairs. ``max_length``: tokens in a sentence; see `DataRecipe` for the rest."""

    source: Text = "phrasebook"
    max_length: Count = 128
    vocab_size: Count = 4000


class TranslationModel(ModelRecipe):
    """An encoder-decoder. ``word_dropout`` replaces source tokens by UNK in training; ``tie``:
    which of the source, target and output embeddings are one matrix."""

    encoder_layers: Layers = 3
    decoder_layers: Layers = 3
    word_dropout: Fraction = 0.0
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    tie: Literal["all", "decoder", "embeddings", "none"] = "all"


class TranslationOptim(OptimRecipe):
    """Translations are smoothed by default (Szegedy et al. 2016)."""

    label_smoothing: Fraction = 0.1


class TranslationTrain(TrainRecipe):
    """``best``: what the best checkpoint is best in; ``samples``: translations that a validation
    shows."""

    best: Literal["bleu", "loss"] = "bleu"
    val_beam: Beam = 1
    samples: Whole = 3


class TranslationDecode(DecodeRecipe):
    """Beam search: width, Wu et al.'s length penalty exponent (2016, eq. 14), longest output."""

    beam: Beam = 5
    length_penalty: NonNegative = 0.6


class TranslationRecipe(Recipe):
    """Translation by an encoder-decoder."""

    task: Literal["translation"] = "translation"
    data: TranslationData = TranslationData()
    model: TranslationModel = TranslationModel()
    optim: TranslationOptim = TranslationOptim()
    train: TranslationTrain = TranslationTrain()
    decode: TranslationDecode = TranslationDecode()

    def contradictions(self) -> Iterator[str]:
        """See `Recipe`; sentences have to fit the positions and a batch."""
        yield from super().contradictions()
        data, positions = self.data, self.model.max_positions
        lengths = {"data": data.max_length, "decode": self.decode.max_length}
        for section, length in lengths.items():
            if length >= positions:  # one position is the start or end mark's
                yield (
                    f"{section}.max_length ({length}) must be below model.max_positions "
                    f"({positions})"
                )
        if data.max_tokens <= data.max_length:  # a batch holds its longest sentence and end mark
            yield (
                f"data.max_tokens ({data.max_tokens}) must be above data.max_length "
                f"({data.max_length}), so that a batch holds any one sentence"
            )


class LanguageData(DataRecipe):
    """Running text. ``tokenizer``: byte-level BPE, the words of WikiText and PTB, bytes, or
    characters; ``vocab_size``: ids at most (null: 8000 for bpe, else all that the text has);
    ``window``: tokens that the model sees at once, in training and in evaluation;
    ``document_mark``: an end-of-text token between documents."""

    source: Text = "python"
    tokenizer: Literal["bpe", "word", "byte", "char"] = "bpe"
    vocab_size: OptionalCount = None
    window: Count = 256
    document_mark: Flag = True


class LanguageModel(ModelRecipe):
    """A decoder-only Transformer. ``kv_heads``: heads of keys and values, shared by groups of
    queries (null: as many as ``heads``); ``rotary_base``: the longest wavelength of rotary
    positions; ``tie``: embedding and output matrix are one."""

    activation: Literal["relu", "gelu", "gelu-tanh", "swiglu"] = "gelu"
    layers: Layers = 6
    kv_heads: OptionalCount = None
    positions: Literal["rotary", "learned", "sinusoidal", "none"] = "rotary"
    rotary_base: Positive = 10000.0
    tie: Flag = True


class LanguageDecode(DecodeRecipe):
    """Sampling: ``temperature`` 0 takes the likeliest token; ``top_k`` the k likeliest alone;
    ``top_p`` the smallest set of that probability (Holtzman et al. 2020)."""

    temperature: NonNegative = 1.0
    top_k: OptionalCount = None
    top_p: Annotated[
        float | None,
        Strict(),
        Field(gt=0, le=1),
        Wanted("a number above 0 and up to 1, or null"),
    ] = None


class LanguageRecipe(Recipe):
    """Language modelling by a decoder."""

    task: Literal["language"] = "language"
    data: LanguageData = LanguageData()
    model: LanguageModel = LanguageModel()
    decode: LanguageDecode = LanguageDecode()

    def contradictions(self) -> Iterator[str]:
        """See `Recipe`; windows have to fit the positions and a batch, heads their groups."""
        yield from super().contradictions()
        data, model = self.data, self.model
        if data.window > model.max_positions:
            yield (
                f"data.window ({data.window}) must not be above model.max_positions "
                f"({model.max_positions})"
            )
        if data.max_tokens < data.window:
            yield (
                f"data.max_tokens ({data.max_tokens}) must not be below data.window "
                f"({data.window}), so that a batch holds a window"
            )
        if data.tokenizer == "byte" and data.vocab_size is not None:
            yield "data.vocab_size must be null with data.tokenizer byte: there are 256 bytes"
        if model.kv_heads is not None and model.heads % model.kv_heads:
            yield (
                f"model.heads ({model.heads}) must be a multiple of model.kv_heads "
                f"({model.kv_heads})"
            )
        if model.positions == "rotary" and model.d_model // model.heads % 2:
            yield (
                f"model.positions rotary turns pairs of features: model.d_model / model.heads "
                f"({model.d_model // model.heads}) must be even"
            )


TASKS: dict[str, type[Recipe]] = {"translation": TranslationRecipe, "language": LanguageRecipe}

SECTIONS = tuple(name for name in Recipe.model_fields if name not in ("name", "task"))


def sections(task: str) -> dict[str, type[Section]]:
    """A task's sections by name."""
    fields = TASKS[task].model_fields
    return {name: fields[name].annotation for name in SECTIONS}  # type: ignore[misc]


def keys(task: str) -> list[str]:
    """Every key of a task that ``--set`` takes, dotted, in canonical order."""
    return [
        "name",
        "task",
        *(f"{name}.{key}" for name, part in sections(task).items() for key in part.model_fields),
    ]


def choices(task: str, key: str) -> tuple[str, ...]:
    """The words a dotted key may take, or nothing if it takes other values."""
    if key == "task":
        return tuple(TASKS)
    return tuple(arg for arg in get_args(_field(task, key).annotation) if isinstance(arg, str))


def takes_text(task: str, key: str) -> bool:
    """Whether a dotted key's value is a string, so that ``32`` on a command line is text too."""
    annotation = _field(task, key).annotation
    return annotation is str or str in get_args(annotation) or bool(choices(task, key))


def wanted(task: str, key: str) -> str:
    """What a dotted key takes, in words that follow "it must be"."""
    if words := choices(task, key):
        return f"one of {', '.join(words)}" if len(words) > 1 else repr(words[0])
    return next(mark.text for mark in _field(task, key).metadata if isinstance(mark, Wanted))


def _field(task: str, key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (sections(task)[section] if section else TASKS[task]).model_fields[name]
