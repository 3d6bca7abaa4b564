"""Beam search against an exhaustive search and a plain one, on toy models without a cache."""

import itertools
import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from normtrain.errors import RunError, UserError
from normtrain.tasks.translation.decoding.beam import Hypothesis, beam_search, length_penalties

PAD, BOS, EOS = 0, 1, 2


@dataclass
class ToyState:
    """A recurrent state, one row a hypothesis."""

    hidden: Tensor
    beams: int
    max_length: int
    steps: int = 0
    sizes: list[int] = field(default_factory=list)

    def reorder(self, index: Tensor) -> None:
        rows = torch.arange(len(self.hidden))
        assert torch.equal(index // self.beams, rows // self.beams), "left its sentence"
        self.hidden = self.hidden[index]

    def keep(self, sentences: Tensor) -> None:
        assert torch.equal(sentences, sentences.sort().values)
        self.hidden = self.hidden.view(-1, self.beams, self.hidden.shape[1])[sentences].flatten(
            0, 1
        )


class ToyModel:
    """A small random recurrent network in float64 whose logits depend on the whole prefix."""

    def __init__(self, seed: int, vocab: int, sharpness: float = 2.0, whole: bool = False) -> None:
        draw = torch.Generator().manual_seed(seed)
        make = {"generator": draw, "dtype": torch.float64}
        self.embed = torch.randn(vocab, 6, **make)
        self.mix = torch.randn(6, 6, **make) * 0.8
        self.out = torch.randn(6, vocab, **make) * sharpness
        self.whole = whole
        self.state: ToyState | None = None

    def start(self, source: Tensor, beams: int, max_length: int) -> ToyState:
        hidden = torch.zeros(len(source), 6, dtype=torch.float64)
        for column in source.T:
            moved = torch.tanh(self.embed[column] + hidden @ self.mix)
            hidden = torch.where((column != PAD).unsqueeze(1), moved, hidden)
        self.state = ToyState(hidden.repeat_interleave(beams, 0), beams, max_length)
        return self.state

    def step(self, tokens: Tensor, state: ToyState) -> Tensor:
        state.steps += 1
        state.sizes.append(len(tokens))
        assert state.steps <= state.max_length, "more steps than announced"
        state.hidden = torch.tanh(self.embed[tokens] + state.hidden @ self.mix)
        logits = state.hidden @ self.out
        return logits.round() if self.whole else logits

    def log_probs(self, source: list[int], prefix: list[int]) -> tuple[list[float], list[float]]:
        """The next token's log-probabilities and logits, all computed anew."""
        state = self.start(torch.tensor([source]), 1, len(prefix) + 1)
        for token in [BOS, *prefix]:
            logits = self.step(torch.tensor([token]), state)
        return logits.log_softmax(1)[0].tolist(), logits[0].tolist()


def penalty(length: int, alpha: float) -> float:
    return ((5 + length) / 6) ** alpha


def exhaustive(model: ToyModel, source: list[int], vocab: int, limit: int, alpha: float) -> list:
    """Score every sequence there is."""
    found = []
    for words in range(limit):
        for tokens in itertools.product(range(3, vocab), repeat=words):
            total = 0.0
            for i, token in enumerate([*tokens, EOS]):
                total += model.log_probs(source, list(tokens[:i]))[0][token]
            found.append((total / penalty(words + 1, alpha), list(tokens), total))
    return sorted(found, key=lambda item: -item[0])


def naive(model: ToyModel, source: list[int], limit: int, beam: int, alpha: float) -> list:
    """One sentence, plain lists, no cache, no early stop."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    done: list[tuple[float, list[int], float]] = []
    for length in range(1, limit + 1):
        ranked = []
        for place, (total, tokens) in enumerate(live):
            log_probs, logits = model.log_probs(source, tokens)
            for token, log_prob in enumerate(log_probs):
                allowed = token == EOS if length == limit else token not in (PAD, BOS)
                if allowed:
                    ranked.append((-(total + log_prob), place, -logits[token], token))
        ranked.sort()
        done += [
            (-cost / penalty(length, alpha), live[place][1], -cost)
            for cost, place, _, token in ranked[:beam]
            if token == EOS
        ]
        on = [item for item in ranked if item[3] != EOS][:beam]
        live = [(-cost, [*live[place][1], token]) for cost, place, _, token in on]
    return sorted(done, key=lambda item: -item[0])[:beam]


def batch(sources: list[list[int]]) -> Tensor:
    width = max(map(len, sources))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in sources])


def assert_same(got: list[Hypothesis], expected: list) -> None:
    assert [h.tokens for h in got] == [tokens for _, tokens, _ in expected]
    assert [h.score for h in got] == pytest.approx([score for score, _, _ in expected], abs=1e-9)
    assert [h.log_prob for h in got] == pytest.approx([total for *_, total in expected], abs=1e-9)


SOURCES = [[3, 5, 4, EOS], [4, EOS], [5, 5, 3, 3, 4, 3, EOS], [3, EOS], [4, 4, 5, EOS]]


@pytest.mark.parametrize(
    ("vocab", "limit", "alpha"), [(5, 5, 0.6), (6, 4, 0.0), (4, 6, 1.0), (5, 4, -0.5)]
)
def test_wide_beam_finds_every_sequence_in_order(vocab: int, limit: int, alpha: float) -> None:
    model = ToyModel(vocab, vocab=max(vocab, 6))
    model.embed, model.out = model.embed[:vocab], model.out[:, :vocab]
    sources = [[3, EOS], [3, 3, EOS]]
    width = (vocab - 2) ** limit
    found = beam_search(model, batch(sources), beam=width, length_penalty=alpha, max_length=limit)
    for source, hypotheses in zip(sources, found, strict=True):
        expected = exhaustive(model, source, vocab, limit, alpha)
        assert len(hypotheses) == len(expected)
        assert_same(hypotheses, expected)


@pytest.mark.parametrize(
    ("beam", "alpha", "whole"),  # every pair of values
    [
        *((1, 0.0, False), (2, 0.6, True), (3, 1.0, False), (4, -0.7, True), (6, 0.6, False)),
        *(
            pytest.param(*case, marks=pytest.mark.extended)
            for case in [(1, 1.0, True), (1, -0.7, True), (2, 0.0, False), (3, 0.0, True)]
            + [(4, 0.6, False), (5, 1.0, True), (5, -0.7, False), (6, 0.0, True)]
        ),
    ],
)
def test_equals_naive_search(beam: int, alpha: float, whole: bool) -> None:
    for seed, limits in enumerate([[9] * 5, [1, 12, 3, 7, 2], [4, 1, 1, 14, 14]]):
        model = ToyModel(seed, vocab=9, sharpness=1.2, whole=whole)
        found = beam_search(
            model, batch(SOURCES), beam=beam, length_penalty=alpha, max_length=torch.tensor(limits)
        )
        for source, limit, hypotheses in zip(SOURCES, limits, found, strict=True):
            assert_same(hypotheses, naive(model, source, limit, beam, alpha))


def test_float32_and_half_logits_give_the_same_tokens() -> None:
    class Rounded(ToyModel):
        dtype = torch.float32

        def step(self, tokens: Tensor, state: ToyState) -> Tensor:
            # Multiples of 1/8 are exact in every dtype, so ties are the same too.
            return (super().step(tokens, state) * 8).round().div(8).to(self.dtype)

    model, found = Rounded(3, vocab=9), []
    for model.dtype in (torch.float64, torch.float32, torch.bfloat16):
        found.append(beam_search(model, batch(SOURCES), beam=1, length_penalty=0.6, max_length=8))
    tokens = [[h[0].tokens for h in each] for each in found]
    assert tokens[0] == tokens[1] == tokens[2]
    assert found[2][0][0].score == pytest.approx(found[1][0][0].score, abs=0.2)


def test_stops_early_and_drops_finished_sentences() -> None:
    class Eager(ToyModel):
        """Ends a sentence soon when its source is short."""

        def start(self, source: Tensor, beams: int, max_length: int) -> ToyState:
            state = super().start(source, beams, max_length)
            self.ends = (source != PAD).sum(1).repeat_interleave(beams)
            keep = state.keep

            def keep_both(sentences: Tensor) -> None:
                keep(sentences)
                self.ends = self.ends.view(-1, beams)[sentences].flatten()

            state.keep = keep_both  # type: ignore[method-assign]
            return state

        def step(self, tokens: Tensor, state: ToyState) -> Tensor:
            logits = super().step(tokens, state)
            logits[:, EOS] += torch.where(state.steps >= self.ends, 40.0, -40.0)
            return logits

    model = Eager(2, vocab=8)
    sources = [[3] * n + [EOS] for n in (1, 2, 9, 3)]
    found = beam_search(model, batch(sources), beam=2, length_penalty=0.6, max_length=100)
    state = model.state
    assert state.steps < 20
    assert state.sizes[0] == 8
    assert state.sizes[-1] == 2
    assert [len(h[0].tokens) for h in found] == [1, 2, 9, 3]


def test_impossible_eos_leaves_no_hypothesis() -> None:
    model = ToyModel(1, vocab=8)
    step = model.step
    ban = torch.zeros(8).index_fill(0, torch.tensor(EOS), -torch.inf)
    model.step = lambda tokens, state: step(tokens, state) + ban  # type: ignore[method-assign]
    options = {"beam": 2, "length_penalty": 0, "max_length": 4}
    assert beam_search(model, batch(SOURCES[:2]), **options) == [[], []]
    assert beam_search(model, torch.zeros(0, 4, dtype=torch.int64), **options) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_damaged_logits_are_an_error(value: float) -> None:
    class Damaged(ToyModel):
        def step(self, tokens: Tensor, state: ToyState) -> Tensor:
            logits = super().step(tokens, state)
            if state.steps == 2:
                logits[1, 5] = value
            return logits

    with pytest.raises(RunError, match="target position 2"):
        beam_search(Damaged(0, 8), batch(SOURCES), beam=2, length_penalty=0.6, max_length=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam must be >= 1"),
        ({"max_length": 0}, "max_length must be >= 1"),
        ({"max_length": torch.tensor([3, 3])}, r"shape \(5,\), got \(2,\)"),
    ],
)
def test_wrong_use(options: dict, message: str) -> None:
    given = {"beam": 2, "length_penalty": 0.6, "max_length": 5} | options
    with pytest.raises(UserError, match=message):
        beam_search(ToyModel(0, 8), batch(SOURCES), **given)


def test_length_penalties_are_the_published_ones() -> None:
    got = length_penalties(3, 0.6, torch.float64).tolist()
    assert got[1:4] == pytest.approx([1.0, (7 / 6) ** 0.6, (8 / 6) ** 0.6])
    assert length_penalties(9, 0.0).tolist() == [1.0] * 11
