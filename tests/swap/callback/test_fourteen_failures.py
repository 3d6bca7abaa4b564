"""Failures of a swap of norms that are silent elsewhere, and prevented or refused here.

The numbers are those of docs/existing-project.md; 5, 6 and 13 are in test_norm_swap_resume.py.
"""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import spawn_worker
import torch
from pytorch_lightning.plugins import Precision
from swapping import Task, data, fit, kinds, trained, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from normtrain import NormSwap, load_checkpoint, swap_norms
from normtrain.errors import UserError
from normtrain.norms import RMSNorm, build_norm
from normtrain.tasks.optimizers import parameter_groups

pytestmark = pytest.mark.filterwarnings("ignore")


class Encoder(Task):
    """An encoder of torch's, validated with and without its fast path's conditions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.net = nn.TransformerEncoder(layer, 2)
        self.gaps: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return super().training_step(batch[:, None] + torch.zeros(4, 3, 8), batch_idx)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        x = batch[:, None] * torch.arange(1.0, 4.0)[:, None]
        padding = torch.arange(3) >= torch.tensor([3, 2, 1, 3])[:, None]
        for mask in (None, padding):
            found = self.net(x, src_key_padding_mask=mask)
            self.net.train()
            wanted = self.net(x, src_key_padding_mask=mask)
            self.net.eval()
            gap = (found - wanted).abs()
            self.gaps.append(float((gap if mask is None else gap[~mask]).max()))


def _encoder(norm: str) -> Encoder:
    task = Encoder()
    with torch.no_grad():  # a gain of 1 and a bias of 0 would hide some of it
        for name, parameter in task.named_parameters():
            if "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    fit(task, NormSwap(norm))
    return task


@pytest.mark.parametrize(
    "norm", ["rmsnorm:bias=true", pytest.param("derf", marks=pytest.mark.extended)]
)
def test_01_the_fast_path_does_not_compute_layernorm_in_their_place(norm: str) -> None:
    assert max(_encoder(norm).gaps) < 1e-5


@pytest.mark.extended
@pytest.mark.parametrize("norm", ["rmsnorm", "adanorm", "layernorm:bias=false", "dyt", "none"])
def test_02_nor_does_it_crash_on_what_a_norm_lacks(norm: str) -> None:
    task = _encoder(norm)
    assert len(task.gaps) == 2 * (2 + 4)
    assert max(task.gaps) < 1e-5


@pytest.mark.slow
def test_03_spawned_processes_do_not_leave_the_caller_with_other_norms() -> None:
    done = subprocess.run(
        [sys.executable, spawn_worker.__file__],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "call swap_norms(model, 'rmsnorm') before trainer.fit" in found["refused"]
    assert found["left"] == ["LayerNorm"]
    assert found["trained"] == ["RMSNorm"]
    assert found["moved"]


@pytest.mark.extended
@pytest.mark.parametrize(
    ("first", "second"),
    [("rmsnorm", "layernorm:bias=false"), ("prmsnorm", "rmsnorm"), ("adanorm", "layernorm-simple")],
)
def test_04_norms_with_the_same_keys_do_not_load_each_other(
    first: str, second: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.ckpt"
    old = trained(path, NormSwap(first))
    other = Task()
    swap_norms(other, second)
    other.load_state_dict(old.state_dict())  # what Lightning alone would do
    with pytest.raises(UserError, match=rf"saved with {first}.*has {second.partition(':')[0]}"):
        trainer(NormSwap(second)).test(Task(), data(), ckpt_path=path)
    assert kinds(load_checkpoint(Task, path)) == kinds(old)


def test_07_the_state_in_checkpoints_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    trained(path, NormSwap([("net.*", "prmsnorm:p=0.5")], filter_fn=lambda module, name: True))
    found = torch.load(path, weights_only=True)
    assert found["callbacks"]["NormSwap"] == {"rules": [["net.*", "prmsnorm:p=0.5"]]}
    assert json.loads(json.dumps(found["normtrain"])) == found["normtrain"]


class Shared(Task):
    """One norm at two places and in a list, one frozen, one with a hook."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.LayerNorm(8)
        self.net = nn.Sequential(nn.Linear(8, 8), norm, nn.Linear(8, 8), norm, nn.LayerNorm(8))
        self.net[4].requires_grad_(False)
        self.seen = 0
        self.net[1].register_forward_hook(self.count)

    def count(self, *args: Any) -> None:
        self.seen += 1


def test_08_sharing_freezing_hooks_dtype_and_device_are_kept() -> None:
    task = Shared()
    fit(task, NormSwap("dyt"), precision="bf16-true")
    assert task.net[1] is task.net[3]
    assert task.seen == 2 * (2 + 4 + 4)  # the sanity check, training, validation
    assert not any(p.requires_grad for p in task.net[4].parameters())
    assert {p.dtype for p in task.net.parameters()} == {torch.bfloat16}
    with torch.device("meta"):
        meta = Shared()
    swap_norms(meta, "dyt")
    assert all(p.is_meta for p in meta.parameters())


def test_09_functional_norms_are_reported_and_nothing_replaced_is_an_error() -> None:
    class Functional(Task):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return super().training_step(F.layer_norm(batch, (8,)), batch_idx)

    swap = NormSwap("rmsnorm")
    fit(Functional(), swap)
    assert "calls F.layer_norm itself" in str(swap.report)
    bare = Functional()
    bare.net = nn.Sequential(nn.Linear(8, 1))
    with pytest.raises(UserError, match=r"no norm of this Functional was replaced.*F\.layer_norm"):
        fit(bare, NormSwap("rmsnorm"))


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "l1norm"])  # all: tests/norms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_10_statistics_are_float32_and_the_output_has_the_dtype_of_the_input(
    norm: str, dtype: torch.dtype
) -> None:
    made = build_norm(norm, 64)  # float32 parameters, whatever the input
    x = (torch.randn(5, 64) * 3 + 50).to(dtype)  # bfloat16 statistics would lose the variance
    with torch.no_grad():
        wanted = made.double()(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            found = made.float()(x)
    assert found.dtype == dtype
    allowed = 2 * torch.finfo(dtype).eps * wanted.abs() + 1e-5
    assert ((found.double() - wanted).abs() <= allowed).all()


@pytest.mark.extended
def test_11_names_that_others_go_by_are_kept() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.trainer_pt_utils import get_parameter_names

    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config)
    swap_norms(model, "rmsnorm")
    assert all("Norm" in type(model.get_submodule(n)).__name__ for n in ("transformer.h.0.ln_1",))
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = get_parameter_names(model, [nn.LayerNorm, RMSNorm], forbidden)
    assert not any("ln_" in name for name in decayed)
    with torch.no_grad():
        model.transformer.h[0].ln_1.weight.fill_(3.0)
    model._init_weights(model.transformer.h[0].ln_1)
    assert torch.equal(model.transformer.h[0].ln_1.weight, torch.ones(8))


@pytest.mark.extended
def test_11_weight_decay_goes_by_the_kind_of_module(tiny_recipe: Any) -> None:
    from normtrain.models import build_model

    recipe = tiny_recipe(norm="layernorm")
    model = build_model(recipe.model, 50)
    swap_norms(model, "dyt")
    _, free_group = parameter_groups(model, 0.1)
    free = {id(p) for p in free_group["params"]}
    norms = [m for m in model.modules() if type(m).__name__ == "DyT"]
    assert norms
    assert all(id(p) in free for norm in norms for p in norm.parameters())


def test_12_transformer_engines_own_replacing_is_warned_of() -> None:
    about = {"__module__": "lightning.pytorch.plugins.x"}
    plugin = type("TransformerEnginePrecision", (Precision,), about)()
    with pytest.warns(UserWarning, match="but not the norms that NormSwap put in"):
        fit(Task(), NormSwap("rmsnorm"), plugins=plugin)


@pytest.mark.extended
@pytest.mark.parametrize("how", ["whole", "part", "in place", "after"])
def test_14_compiled_models_compute_the_new_norms(how: str, tmp_path: Path) -> None:
    task: Any = Task()
    run: Any = task
    if how == "whole":
        run = torch.compile(task, backend="eager")
    elif how == "part":
        task.net = torch.compile(task.net, backend="eager")
    elif how == "in place":
        task.net.compile(backend="eager")
    plain = copy.deepcopy(Task())
    fit(run, NormSwap("rmsnorm"))
    if how == "after":
        task.net.compile(backend="eager")
    swap_norms(plain, "rmsnorm")
    plain.load_state_dict({k.replace("_orig_mod.", ""): v for k, v in task.state_dict().items()})
    x = torch.randn(3, 8)
    assert kinds(task) == ["RMSNorm"]
    assert torch.equal(task.eval().net(x), plain.eval().net(x))
    assert not torch.equal(plain.net[1].weight, torch.ones(8)), "the new norm was not trained"
