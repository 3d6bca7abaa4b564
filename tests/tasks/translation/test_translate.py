"""Translating text: order, line counts, blank and long lines, batches, streams, model modes."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from normtrain.errors import RunError, UserError
from normtrain.tasks.translation.decoding.translate import (
    SearchSettings,
    translate_lines,
    translate_stream,
)

EOS = 2
SETTINGS = SearchSettings(beam=2, length_penalty=0.6, max_length=60, max_source=40)


class Letters:
    """One token a character, from id 4 on; decoding writes them back in upper case."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[4 + ord(letter) - ord("a") for letter in text] for text in texts]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i - 4 + ord("A")) for i in ids)


class CopyState:
    def __init__(self, rows: Tensor, beams: int) -> None:
        self.rows, self.beams, self.at = rows, beams, 0

    def reorder(self, index: Tensor) -> None:
        self.rows = self.rows[index]

    def keep(self, sentences: Tensor) -> None:
        self.rows = self.rows.unflatten(0, (-1, self.beams))[sentences].flatten(0, 1)


class Copier(nn.Module):
    """Repeats its source; keeps count of the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Dropout()
        self.free = nn.Dropout()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches: list[tuple[int, int]] = []
        self.modes: set[bool] = set()

    def start(self, source: Tensor, beams: int, max_length: int) -> CopyState:
        self.batches.append(tuple(source.shape))
        self.modes.add(self.training or self.free.training)
        assert not torch.is_grad_enabled()
        return CopyState(source.repeat_interleave(beams, 0), beams)

    def step(self, tokens: Tensor, state: CopyState) -> Tensor:
        column = min(state.at, state.rows.shape[1] - 1)
        state.at += 1
        return nn.functional.one_hot(state.rows[:, column], 32).float() * 12 * self.weight


@pytest.fixture
def model() -> Copier:
    return Copier()


def test_keeps_order_and_line_count(model: Copier) -> None:
    lines = ["abc", "", "z", "   ", "abcdefghij", "\n", "abc\n", "b" * 30]
    got = translate_lines(model, Letters(), lines, SETTINGS)
    assert got.lines == ["ABC", "", "Z", "", "ABCDEFGHIJ", "", "ABC", "B" * 30]
    assert got.truncated == []
    assert got.tokens == 4 + 2 + 11 + 4 + 31
    assert got.scores[1] == 0
    assert all(score < 0 for line, score in zip(got.lines, got.scores, strict=True) if line)


def test_batches_are_sorted_and_within_the_budget(model: Copier) -> None:
    lines = ["a" * (1 + i * 7 % 30) for i in range(60)]
    got = translate_lines(model, Letters(), lines, replace(SETTINGS, batch_tokens=128))
    assert got.lines == [line.upper() for line in lines]
    assert sum(rows for rows, _ in model.batches) == 60
    assert all(2 * rows * width <= 128 for rows, width in model.batches)
    widths = [width for _, width in model.batches]
    assert widths == sorted(widths, reverse=True)
    assert model.batches[0] == (2, 31)
    translate_lines(model, Letters(), ["a" * 30, "b" * 30], replace(SETTINGS, batch_tokens=5))
    assert model.batches[-2:] == [(1, 31), (1, 31)]
    assert max(rows for rows, _ in model.batches) >= 8


def test_output_length_is_bounded(model: Copier) -> None:
    class Endless(Copier):
        def step(self, tokens: Tensor, state: CopyState) -> Tensor:
            return torch.zeros(len(tokens), 32).index_fill(1, torch.tensor([4]), 90.0)

    settings = replace(SETTINGS, max_length=80)
    got = translate_lines(Endless(), Letters(), ["ab", "b" * 35], settings)
    # 50 tokens more than the source; and at most 80 with the EOS.
    assert [len(line) for line in got.lines] == [52, 79]


def test_progress_reaches_the_end(model: Copier) -> None:
    seen: list[tuple[int, int]] = []
    lines = ["", *(["abc"] * 9), ""]
    translate_lines(
        model,
        Letters(),
        lines,
        replace(SETTINGS, batch_tokens=24),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(5, 11), (8, 11), (11, 11)]


def test_modes_are_put_back(model: Copier) -> None:
    model.train()
    model.frozen.eval()
    translate_lines(model, Letters(), ["abc"], SETTINGS)
    assert model.modes == {False}
    assert (model.training, model.free.training, model.frozen.training) == (True, True, False)
    model.weight.data.fill_(float("nan"))
    with pytest.raises(RunError, match="NaN"):
        translate_lines(model, Letters(), ["abc"], SETTINGS)
    assert model.training
    model.eval()
    model.weight.data.fill_(1)
    translate_lines(model, Letters(), ["abc"], SETTINGS)
    assert not model.training


def test_line_breaks_in_the_output_become_spaces(model: Copier) -> None:
    class Breaking(Letters):
        def decode(self, ids: list[int]) -> str:
            return "a\nb\r\n c \u2028d\n"

    assert translate_lines(model, Breaking(), ["x"], SETTINGS).lines == ["a b  c  d"]


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), RunError, "batch_tokens=8192"),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), RunError, "batch_tokens=8192"),
        (RuntimeError("sizes differ"), RuntimeError, "sizes differ"),
    ],
)
def test_out_of_memory_says_what_to_lower(
    raised: Exception, expected: type[Exception], message: str
) -> None:
    class Large(Copier):
        def step(self, tokens: Tensor, state: CopyState) -> Tensor:
            raise raised

    with pytest.raises(expected, match=message):
        translate_lines(Large(), Letters(), ["abc"], SETTINGS)


@pytest.mark.parametrize("name", ["beam", "max_length", "max_source"])
def test_wrong_numbers(model: Copier, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be >= 1"):
        translate_lines(model, Letters(), ["abc"], replace(SETTINGS, **{name: 0}))


@pytest.mark.timeout(20)
def test_stream_answers_each_line_before_the_next(model: Copier) -> None:
    typed: queue.Queue[str | None] = queue.Queue()
    got = translate_stream(model, Letters(), iter(typed.get, None), SETTINGS)
    for word in ("one", "", "three"):
        typed.put(word)
        assert next(got) == word.upper()
    typed.put(None)
    assert list(got) == []


@pytest.mark.timeout(20)
def test_abandoned_stream_stops_reading(model: Copier) -> None:
    read, ended = [], threading.Event()

    def endless() -> Iterator[str]:
        try:
            while True:
                read.append(1)
                yield "a"
        finally:
            ended.set()

    got = translate_stream(model, Letters(), endless(), SETTINGS, chunk=4)
    assert next(got) == "A"
    got.close()  # type: ignore[attr-defined]
    assert ended.wait(10)
    assert len(read) < 20


def test_stream_equals_lines_and_reports_truncated_lines(model: Copier) -> None:
    lines = ["a" * (i % 11) + "\n" for i in range(100)] + ["b" * 41, "c", "d" * 99]
    seen: list[int] = []
    got = translate_stream(
        model, Letters(), iter(lines), SETTINGS, chunk=32, on_truncated=seen.append
    )
    assert list(got) == [line.strip().upper()[:40] for line in lines]
    assert len(model.batches) < 20
    assert seen == [101, 103]
    assert translate_lines(model, Letters(), lines, SETTINGS).truncated == [100, 102]


def test_an_error_of_the_lines_comes_after_the_lines_before_it(model: Copier) -> None:
    def broken() -> Iterator[str]:
        yield "abc"
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    got = translate_stream(model, Letters(), broken(), SETTINGS)
    assert next(got) == "ABC"
    with pytest.raises(UnicodeDecodeError):
        next(got)
    assert list(translate_stream(model, Letters(), [], SETTINGS)) == []
    before = len(model.batches)
    assert translate_lines(model, Letters(), ["", " \t\n"], SETTINGS).lines == ["", ""]
    assert len(model.batches) == before  # nothing to translate never calls the model
