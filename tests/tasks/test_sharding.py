"""A model sharded over two ranks: gathered again, and its gradients reduced once a step."""

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from normtrain.config.recipe import resolve
from normtrain.models import build_model
from normtrain.tasks.sharding import (
    hold_whole,
    scale_gradients,
    shard,
    sync_gradients,
    whole_tensor,
)

SIZES = ("d_model=16", "heads=2", "layers=2", "d_ff=24", "dropout=0", "tie=true")


def model() -> Any:
    recipe: Any = resolve("lm", overrides=[f"model.{size}" for size in SIZES])
    torch.manual_seed(0)
    return build_model(recipe.model, 50)


def loss(module: Any, tokens: torch.Tensor) -> torch.Tensor:
    return (module.hidden(tokens) @ module.output_matrix().T).square().mean()


def exchanges(call: Callable[[], Any], kind: str = "") -> int:
    """How many collective operations of a kind a call makes."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    names = {event.key: event.count for event in seen.key_averages()}
    return sum(n for name, n in names.items() if name.startswith("c10d::") and kind in name)


def check(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    plain, cut = model(), model()
    shard(cut, init_device_mesh("cpu", (2,)))
    shard(cut, init_device_mesh("cpu", (2,)))  # a second time changes nothing
    assert all(isinstance(p, DTensor) for p in cut.parameters())
    assert sum(isinstance(m, FSDPModule) for m in cut.modules()) == 3  # two layers and the rest
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(cut, tokens), loss(plain, tokens))

    # Gradients of two passes, reduced once.
    def passes() -> None:
        loss(cut, tokens).backward()

    sync_gradients(cut, False)
    assert exchanges(passes, "reduce_scatter") == 0
    sync_gradients(cut, True)
    assert exchanges(passes, "reduce_scatter") == 3
    for _ in range(2):
        loss(plain, tokens).backward()
    scale_gradients(cut.parameters(), 0.25)
    for mine, theirs in zip(cut.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole_tensor(mine.grad), theirs.grad / 4)

    # Gathered, each rank may run it any number of times, in any way.
    hold_whole(cut, True)

    @torch.no_grad()
    def any_number_of_times() -> None:
        for _ in range(1 + rank):
            torch.testing.assert_close(cut(tokens), plain(tokens))
        torch.testing.assert_close(cut.prefill(tokens, cut.start(2)), plain(tokens))

    assert exchanges(any_number_of_times) == 0
    hold_whole(cut, False)
    assert all(isinstance(p, DTensor) for p in cut.parameters())
    torch.testing.assert_close(loss(cut, tokens), loss(plain, tokens))
    dist.destroy_process_group()


@pytest.mark.extended
def test_a_model_sharded_over_two_ranks() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(check, (port,), nprocs=2)


def test_a_plain_model_is_left_as_it_is() -> None:
    plain = model()
    hold_whole(plain, True)
    sync_gradients(plain, False)
    loss(plain, torch.zeros(1, 4, dtype=torch.int64)).backward()
    before = plain.head.weight.grad.clone()
    scale_gradients(plain.parameters(), torch.tensor(2.0))
    assert torch.equal(plain.head.weight.grad, 2 * before)
    assert whole_tensor(before) is before
