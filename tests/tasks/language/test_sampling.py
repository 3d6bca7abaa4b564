"""Sampling: kept tokens by brute force, draws against the softmax, windows, seeds, modes."""

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normtrain.errors import RunError, UserError
from normtrain.models import CausalLM
from normtrain.models.config import CausalLMConfig
from normtrain.tasks.language.sampling import filter_logits, generate

VOCAB = 11


class Fixed(nn.Module):
    """A model whose logits follow from the last token alone; it notes what it was fed."""

    def __init__(self, table: Tensor, max_positions: int = 1000) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.vocab_size, self.max_positions = table.size(1), max_positions
        self.fed: list[list[int]] = []
        self.modes: set[tuple[bool, bool]] = set()

    def start(self, rows: int) -> list[int]:
        assert rows == 1
        return []

    def prefill(self, tokens: Tensor, state: list[int], *, last: bool) -> Tensor:
        assert last
        self.modes.add((self.training, torch.is_grad_enabled()))
        self.fed.append(tokens[0].tolist())
        state += tokens[0].tolist()
        assert len(state) <= self.max_positions
        return self.table[tokens[:, -1:]]


def lm(**options: Any) -> CausalLM:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "heads": 2, "d_ff": 24, "kv_heads": 1, "layers": 2, "dropout": 0.0}
    sizes |= {"max_positions": 64, "activation": "relu"} | options
    model = CausalLM(CausalLMConfig(**sizes), VOCAB)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


MODEL = lm()


def probabilities(
    logits: list[float], temperature: float, k: int | None, p: float | None
) -> list[float]:
    """What is sampled from, token by token, in plain Python."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[:k]
    weights = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in kept}
    if p is not None and p < 1:
        total, reached, nucleus = sum(weights.values()), 0.0, []
        for i in kept:
            nucleus.append(i)
            reached += weights[i] / total
            if reached >= p:
                break
        kept = nucleus
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(logits))]


@settings(deadline=None, max_examples=100)
@given(
    logits=st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=9),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    k=st.none() | st.integers(1, 10),
    p=st.none() | st.sampled_from([1e-9, 0.113, 0.377, 0.613, 0.871, 0.9993, 1.0]),
)
def test_filtered_logits_are_those_of_brute_force(
    logits: list[float], temperature: float, k: int | None, p: float | None
) -> None:
    row = torch.tensor(logits, dtype=torch.float64)
    found = filter_logits(torch.stack([row, row + 7]), temperature, k, p).softmax(-1)
    expected = torch.tensor(probabilities(logits, temperature, k, p), dtype=torch.float64)
    for each in found:
        assert torch.equal(each > 0, expected > 0)
        torch.testing.assert_close(each, expected, rtol=1e-9, atol=1e-12)


def test_a_filter_keeps_its_dtype_and_survives_extremes() -> None:
    logits = torch.tensor([3.0, -torch.inf, 1e30, 1e30, -1e30])
    assert filter_logits(logits.bfloat16(), 1.0, 2, None).dtype == torch.float32
    assert filter_logits(logits.double(), 1.0, 2, None).dtype == torch.float64
    for temperature in (1e-300, 1e-30, 1.0):
        found = filter_logits(logits, temperature, None, 0.9)
        assert found.softmax(-1).tolist() == [0, 0, 0.5, 0.5, 0]
    assert filter_logits(logits, 0, None, None).isfinite().tolist() == [0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("temperature", "k", "p"),
    [
        (1.0, 6, 0.8),
        pytest.param(1.0, None, None, marks=pytest.mark.extended),
        pytest.param(0.5, None, None, marks=pytest.mark.extended),
        pytest.param(2.0, 5, None, marks=pytest.mark.extended),
    ],
)
def test_draws_follow_the_probabilities(temperature: float, k: int | None, p: float | None) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4)) * 1.5
    model, draws = Fixed(logits.repeat(VOCAB, 1)), 1500
    found = Counter(
        generate(model, [0], max_tokens=draws, temperature=temperature, top_k=k, top_p=p, seed=5)
    )
    expected = probabilities(logits.tolist(), temperature, k, p)
    statistic = 0.0
    for token, share in enumerate(expected):
        if share == 0:
            assert found[token] == 0
        else:
            statistic += (found[token] - draws * share) ** 2 / (draws * share)
    freedom = sum(share > 0 for share in expected) - 1
    # Mean `freedom`, variance twice that: five standard deviations.
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_a_seed_repeats_itself_and_no_other() -> None:
    model = lm()

    def tokens(seed: int | None) -> list[int]:
        return list(generate(model, [1, 2], max_tokens=30, seed=seed))

    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert tokens(3) == tokens(3)
    different = {tuple(tokens(seed)) for seed in (3, 4, None, None)}
    assert len(different) == 4
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not used


@pytest.mark.parametrize("window", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 20])
def test_a_full_window_goes_on_from_its_last_half(window: int, length: int) -> None:
    table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(2))
    model = Fixed(table, max_positions=window)
    prompt = [i % VOCAB for i in range(length)]
    found = list(generate(model, prompt, max_tokens=20, seed=1))
    text, at, seen, expected = [*prompt, *found], length, 0, []
    for _ in found:
        new = length if not expected else 1
        if seen + new > window:
            new = seen = max(1, window // 2)
        else:
            seen += new
        expected.append(text[at - new : at])
        at += 1
    assert model.fed == expected
    # The cache makes a token one step: what is fed again is at most the half window each half.
    assert window < 4 or sum(map(len, model.fed[1:])) <= 3 * len(found)


@pytest.mark.parametrize("positions", ["rotary", "learned", "sinusoidal", "none"])
def test_greedy_takes_the_most_likely_token_of_the_whole_model(positions: str) -> None:
    model = lm(max_positions=8, positions=positions).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # or the text would repeat one token
            parameter.mul_(2)
    found = list(generate(model, [1, 2, 3], max_tokens=30, temperature=0, top_k=4, top_p=0.3))
    context = [1, 2, 3]
    for token in found:
        if len(context) > 8:
            context = context[-4:]
        with torch.no_grad():
            assert token == int(model(torch.tensor([context]))[0, -1].argmax())
        context.append(token)
    assert len(found) == 30
    assert len(set(found)) > 1


def test_a_stop_token_ends_the_text_and_is_kept_back() -> None:
    table = torch.full((4, 4), -50.0)
    for token, following in itertools.pairwise([0, 1, 3, 2]):
        table[token, following] = 0
    table[2, 0] = 0
    model = Fixed(table)
    assert list(generate(model, [0], max_tokens=9, stop_ids=[2])) == [1, 3]
    assert list(generate(model, [0], max_tokens=9, stop_ids=iter([1]))) == []
    assert list(generate(model, [0], max_tokens=5)) == [1, 3, 2, 0, 1]
    assert len(model.fed) == 3 + 1 + 5  # no step after the last token


def test_modes_are_restored_between_tokens() -> None:
    model = Fixed(torch.zeros(VOCAB, VOCAB))
    stream = generate(model, [1], max_tokens=3, seed=1)
    assert model.fed == []  # nothing is computed before it is asked for
    for _ in stream:
        assert model.training
        assert torch.is_grad_enabled()
    assert model.modes == {(False, False)}
    model.table.data.fill_(torch.nan)
    with pytest.raises(RunError, match="NaN or Inf logits for generated token 1"):
        list(generate(model, [1], max_tokens=3))
    assert model.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_ids": []}, "the prompt is empty; start it with the end-of-text token"),
        ({"prompt_ids": [1, 11]}, "prompt token ids must be >= 0 and < 11, got 11"),
        ({"prompt_ids": [-1]}, "prompt token ids .* got -1"),
        ({"stop_ids": [2, 12]}, "stop token ids .* got 12"),
        ({"max_tokens": 0}, "max_tokens must be >= 1"),
        *(({"temperature": t}, f"temperature .* got {t}") for t in (-0.1, math.nan, math.inf)),
        ({"top_k": 0}, "top_k must be >= 1"),
        *(({"top_p": p}, f"top_p must be > 0 and <= 1, got {p}") for p in (0.0, 1.5, math.nan)),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(changes: dict[str, Any], message: str) -> None:
    settings = {"prompt_ids": [1], "max_tokens": 3} | changes
    with pytest.raises(UserError, match=message) as caught:
        generate(MODEL, settings.pop("prompt_ids"), **settings)
    assert "\n" not in str(caught.value)
