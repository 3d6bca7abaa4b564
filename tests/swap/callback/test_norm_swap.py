"""NormSwap: what it replaces, writes, refuses, and that it leaves nothing behind."""

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from swapping import InSetup, Lazy, Task, data, fit, kinds, patched, trainer
from torch import Tensor, nn

from normtrain import NormSpec, NormSwap, swap_norms
from normtrain.errors import UserError
from normtrain.swap.callback import trainer_checks
from normtrain.swap.callback.method_patch import unpatch
from normtrain.swap.norm_record import record

pytestmark = pytest.mark.filterwarnings("ignore")


def test_options_reach_the_swap() -> None:
    swap = NormSwap([("net.*", NormSpec("dyt"))], init="fresh", filter_fn=lambda m, name: True)
    task = Task()
    with torch.no_grad():
        task.net[1].weight.fill_(3.0)
    trainer(swap).validate(task, data(), verbose=False)
    assert kinds(task) == ["DyT"]
    assert torch.equal(task.net[1].weight, torch.ones(8))
    assert [one.name for one in swap.report.replaced] == ["net.1"]
    assert swap.state_dict() == {"rules": [["net.*", "dyt"]]}
    lenient = NormSwap([("nowhere.*", "rmsnorm")], strict=False)
    fit(Task(), lenient)
    assert lenient.report is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rules": "rmsnrm"}, "did you mean rmsnorm"),
        ({"rules": 3}, "got 3"),
        ({"rules": "rmsnorm", "init": "old"}, "'keep' or 'fresh'"),
        ({"rules": "rmsnorm", "filter_fn": "net"}, "filter_fn must be a function"),
        ({"rules": "rmsnorm", "strict": 1}, "strict must be True or False"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        NormSwap(**arguments)


@pytest.mark.parametrize("kind", [Task, Lazy, InSetup])
def test_a_pattern_that_matches_nothing_is_an_error_once_all_is_built(kind: Any) -> None:
    task = kind()
    with pytest.raises(UserError, match=r"'encoder\.\*' matches no norm \(norms are net\.1\)"):
        fit(task, NormSwap([("*", "rmsnorm"), ("encoder.*", "adanorm")]))
    assert patched(task) == []


def test_norms_built_in_several_places_are_all_swapped() -> None:
    class Both(Lazy):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.LayerNorm(8)

        def setup(self, stage: str) -> None:
            self.second = nn.LayerNorm(8)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(self.second(self.first(batch)), batch_idx)

    task, swap = Both(), NormSwap([("*", "rmsnorm"), ("second", "adanorm")])
    fit(task, swap)
    assert [(one.name, one.new.partition(":")[0]) for one in swap.report.replaced] == [
        ("first", "rmsnorm"),
        ("second", "adanorm"),
        ("net.1", "rmsnorm"),
    ]
    assert sorted(kinds(task)) == ["AdaNorm", "RMSNorm", "RMSNorm"]


def test_one_model_goes_through_many_trainers() -> None:
    task = Task()
    swap = NormSwap("rmsnorm")
    fit(task, swap)
    norm, report = task.net[1], swap.report
    for stage in ("validate", "test"):
        getattr(trainer(swap), stage)(task, data(), verbose=False)
    trainer(NormSwap("rmsnorm")).predict(task, data())
    fit(task, swap)
    assert task.net[1] is norm
    assert swap.report is report
    fit(task, NormSwap("adanorm"))
    assert kinds(task) == ["AdaNorm"]
    assert record(task)["was"] == {"net.1": "torch.nn.LayerNorm"}


@pytest.mark.parametrize(
    ("kind", "stage", "failure"),
    [
        (Task, "fit", RuntimeError),
        (Lazy, "fit", KeyboardInterrupt),
        (InSetup, "validate", RuntimeError),
        (Task, "validate", KeyboardInterrupt),
    ],
)
def test_nothing_stays_patched_after_a_failure(kind: Any, stage: str, failure: Any) -> None:
    class Failing(kind):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise failure("stop")

        def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            raise failure("stop")

    task, swap = Failing(), NormSwap("rmsnorm")
    with pytest.raises((failure, SystemExit)):
        getattr(trainer(swap, num_sanity_val_steps=0), stage)(task, data())
    assert patched(task) == []
    assert kinds(task) == ["RMSNorm"]


def test_a_method_of_the_instance_is_given_back() -> None:
    task = Lazy()

    def mine() -> None:
        task.net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))

    task.configure_model = mine  # type: ignore[method-assign]
    fit(task, NormSwap("rmsnorm"))
    assert kinds(task) == ["RMSNorm"]
    assert vars(task)["configure_model"] is mine


def test_copies_and_pickles_in_between_build_into_themselves() -> None:
    task, swap = Lazy(), NormSwap("rmsnorm")
    made = trainer(swap)
    made.strategy.connect(task)
    swap.setup(made, task, "fit")
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        twin.configure_model()
        assert kinds(twin) == ["RMSNorm"]
        assert task.net is None
        unpatch(twin, "configure_model")
        assert "configure_model" not in vars(twin)
    swap.teardown(made, task, "fit")
    assert patched(task) == []


# Optimizers


class Early(Task):
    """Makes its optimizer in __init__."""

    def __init__(self) -> None:
        super().__init__()
        self.made = torch.optim.AdamW(self.parameters(), 1e-2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.made


def test_an_optimizer_made_before_the_swap_is_refused() -> None:
    text, task = "holds 1 parameters of norms that were replaced", Early()
    for _ in range(2):  # a cell of a notebook that is run again
        with pytest.raises(UserError, match=text):
            fit(task, NormSwap("rmsnorm"))
    task = Early()
    trainer(NormSwap("rmsnorm", init="fresh")).validate(task, data(), verbose=False)
    with pytest.raises(UserError, match="holds 2 parameters"):
        fit(task, NormSwap("rmsnorm", init="fresh"))
    task = Early()
    swap_norms(task, "rmsnorm")
    with pytest.raises(UserError, match=text):
        fit(task, NormSwap("rmsnorm"))
    task = Early()
    fit(task, NormSwap("layernorm"))  # the same parameters
    assert not torch.equal(task.net[1].weight, torch.ones(8))


@pytest.mark.filterwarnings("default")
def test_a_new_parameter_that_is_not_trained_is_named() -> None:
    with pytest.warns(UserWarning, match=r"no optimizer holds net\.1\.alpha of a new norm"):
        fit(Early(), NormSwap("dyt"))

    class ByClass(Task):
        """Chooses what it trains by class, and does not know the new one."""

        def configure_optimizers(self) -> torch.optim.Optimizer:
            chosen = [m for m in self.modules() if isinstance(m, nn.Linear | nn.LayerNorm)]
            return torch.optim.SGD([p for m in chosen for p in m.parameters()], 0.1)

    with pytest.warns(UserWarning, match=r"no optimizer holds net\.1\.weight of a new norm"):
        fit(ByClass(), NormSwap("rmsnorm"))


# What is refused


@pytest.mark.parametrize("kind", [Task, Lazy, InSetup])
def test_spawned_processes_are_refused_unless_swapped_before(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_checks, "in_spawned_process", lambda trainer: True)
    text = r"by spawn or fork.*call swap_norms\(model, 'rmsnorm'\) before trainer\.fit"
    with pytest.raises(UserError, match=text):
        fit(kind(), NormSwap("rmsnorm"))
    if kind is Task:
        task = Task()
        swap_norms(task, "rmsnorm")
        fit(task, NormSwap("rmsnorm"))


def test_tasks_of_this_package_have_recipes_for_that(tiny_recipe: Any) -> None:
    from normtrain.tasks.translation.module import TranslationModule
    from normtrain.tasks.translation.tokenizer import train_tokenizer

    class Mine(TranslationModule):
        """Still one."""

    recipe = tiny_recipe(norm="layernorm")
    with pytest.raises(UserError, match="chosen in its recipe"):
        fit(Mine(recipe, train_tokenizer(["an at be by"] * 9, 300)), NormSwap("rmsnorm"))


# Words


def test_what_was_done_is_said_once() -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda entry: said.append(entry.getMessage())  # type: ignore[method-assign]
    logger, swap, task = logging.getLogger("pytorch_lightning"), NormSwap("rmsnorm"), Task()
    logger.addHandler(handler)
    try:
        fit(task, swap)
        trainer(swap).test(task, data(), verbose=False)
    finally:
        logger.removeHandler(handler)
    (line,) = [line for line in said if line.startswith("NormSwap")]
    assert "1 norms replaced by rmsnorm:eps=1e-05; 0 skipped" in line
