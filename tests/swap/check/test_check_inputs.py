"""What a model is called with: the order of the sources, the shapes, and what is refused."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.swap.check.inputs import choose_inputs, made_up

CPU = torch.device("cpu")
X = torch.arange(6.0)


class WithExamples(nn.Linear):
    example_input_array: Any = None
    dummy_inputs: Any = None


def with_examples(**examples: Any) -> nn.Module:
    model = WithExamples(3, 3)
    for name, value in examples.items():
        setattr(model, name, value)
    return model


def test_the_order_of_the_sources() -> None:
    example, dummy, given = (torch.zeros(1), {"y": torch.ones(1)}, (X, 3))
    model = with_examples(example_input_array=example, dummy_inputs=dummy)
    made = choose_inputs(model, ["2,3"], given)
    assert (made.source, made.args[0].shape) == ("from --input", (2, 3))
    assert choose_inputs(model, [], given).args == given
    assert choose_inputs(model).args == (example,)
    model.example_input_array = None
    assert choose_inputs(model).kwargs == dummy
    assert choose_inputs(model).source == "from dummy_inputs"


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, None), (X, None), {}),
        ([X], (X,), {}),
        ({"x": X}, (), {"x": X}),
        (UserDict(x=X), (), {"x": X}),
    ],
)
def test_tensors_and_tuples_are_positional_and_dicts_named(
    given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    chosen = choose_inputs(nn.Linear(2, 2), [], given)
    assert (chosen.args, chosen.kwargs) == (args, kwargs)


@pytest.mark.parametrize("given", ["text", 3, {1: X}])
def test_other_inputs_are_refused(given: Any) -> None:
    with pytest.raises(
        UserError,
        match="given with the model are a .* should be a tensor, a tuple or list of arguments",
    ):
        choose_inputs(nn.Linear(2, 2), [], given)


def test_without_any_the_ways_are_named() -> None:
    model = with_examples(dummy_inputs="no dict: another's attribute of this name")
    with pytest.raises(UserError) as caught:
        choose_inputs(model)
    for way in ("WithExamples", "--input", "(module, inputs)", "example_input_array", "dummy_in"):
        assert way in str(caught.value)


def test_a_failing_example_is_named() -> None:
    class Broken(nn.Linear):
        @property
        def example_input_array(self) -> Tensor:
            raise KeyError("size")

    with pytest.raises(UserError, match=r"example_input_array of this Broken fails: KeyError: 'si"):
        choose_inputs(Broken(2, 2))


def test_floats_are_standard_normal_in_the_models_dtype() -> None:
    chosen = choose_inputs(nn.Linear(2, 2).double(), [" 100, 50 "])
    [x] = chosen.args
    assert (x.dtype, x.shape) == (torch.float64, (100, 50))
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    assert choose_inputs(nn.Identity(), ["3"]).args[0].dtype == torch.float32


def test_whole_numbers_are_below_the_limit() -> None:
    [ids] = made_up(["int:40,50:7"], torch.bfloat16, 0).args
    assert ids.dtype == torch.int64
    assert sorted(ids.unique().tolist()) == list(range(7))


def test_names_make_keyword_arguments_and_the_seed_decides() -> None:
    specs = ["2,3", "ids=int:2,5:9", "2", "x=4"]
    chosen, same, other = (made_up(specs, torch.float32, seed) for seed in (1, 1, 2))
    assert [tuple(x.shape) for x in chosen.args] == [(2, 3), (2,)]
    assert {name: tuple(x.shape) for name, x in chosen.kwargs.items()} == {"ids": (2, 5), "x": (4,)}
    assert torch.equal(chosen.args[0], same.args[0])
    assert not torch.equal(chosen.args[0], other.args[0])
    assert (
        str(chosen)
        == "float32 (2, 3), float32 (2,), ids int64 (2, 5), x float32 (4,); from --input"
    )


def test_making_inputs_touches_no_global_generator() -> None:
    state = torch.get_rng_state()
    made_up(["2,3", "int:4:5"], torch.float32, 3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "should be a shape"),
        ("2x3", "should be a shape"),
        ("0,3", "should be a shape"),
        ("-1", "should be a shape"),
        ("2,", "should be a shape"),
        ("2,3:5", "should be a shape"),
        ("int:2,3", "should be a shape"),
        ("int:2,3:0", "should be a shape"),
        ("int:2:3:4", "should be a shape"),
        ("float:2", "should be a shape"),
        ("=2,3", "'' can't be the name"),
        ("a b=2", "'a b' can't be the name"),
        ("class=2", "'class' can't be the name"),
        ("9999999999999,9999999999999", "can't be made"),
        ("int:2:99999999999999999999", "can't be made"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        made_up([spec], torch.float32, 0)
    assert message in str(caught.value)
    assert repr(spec) in str(caught.value)


def test_a_name_twice_is_refused() -> None:
    with pytest.raises(UserError, match="gives x twice"):
        made_up(["x=2", "x=3"], torch.float32, 0)


def test_fresh_inputs_are_copies_all_the_way_down() -> None:
    Pair = namedtuple("Pair", "left right")
    learned = nn.Parameter(torch.ones(2))
    graph = learned * 2  # no leaf, which deepcopy would refuse
    given = ([X, {"y": X}], Pair(X, "text"), graph, [1])
    chosen = choose_inputs(nn.Linear(2, 2), [], given)
    (listed, pair, leaf, plain), _ = chosen.fresh(CPU)
    listed[0].zero_()
    listed[1]["y"].zero_()
    pair.left.zero_()
    plain.append(2)
    assert (pair.right, type(pair)) == ("text", Pair)
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert torch.equal(X, torch.arange(6.0))
    assert given[3] == [1]


def test_fresh_inputs_go_where_the_model_is() -> None:
    args, kwargs = choose_inputs(nn.Linear(2, 2), [], {"x": [X]}).fresh(torch.device("meta"))
    assert args == ()
    assert kwargs["x"][0].is_meta
