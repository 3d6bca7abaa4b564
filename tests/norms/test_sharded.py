"""Norms of distributed tensors (two processes, gloo) give what one process gives on the whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from variants import NAMES, SPECS, build, has_parameters

from normtrain.norms import build_norm, norm_names

pytestmark = pytest.mark.extended

WORLD = 2
DIM = 8
SHAPES = {"even": (4, 6, DIM), "uneven": (3, 5, DIM), "empty": (1, 1, DIM)}
LAYOUTS = ("replicated", "batch", "time", "features", "partial")
PARAMETERS = ("plain", "replicated", "split")


def data(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) + 0.5
    return x, torch.randn(shape, dtype=torch.float64, generator=generator)


def norm_of(spec: str) -> nn.Module:
    torch.manual_seed(5)
    return build(spec, DIM)


def whole(spec: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Output and gradients in one process."""
    norm, (x, upstream) = norm_of(spec), data(shape)
    x.requires_grad_()
    y = norm(x)
    y.backward(upstream)
    grads = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


def spread(x: Tensor, layout: str, mesh: Any) -> Any:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    if layout == "partial":
        part = x * (0.25 if mesh.get_rank() == 0 else 0.75)
        return DTensor.from_local(part, mesh, [Partial()], run_check=False)
    place = {"batch": Shard(0), "time": Shard(1), "features": Shard(2)}.get(layout, Replicate())
    return distribute_tensor(x, mesh, [place])


def sharded(spec: str, shape: tuple[int, ...], layout: str, kept: str, mesh: Any) -> dict[str, Any]:
    """The same with a distributed input."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    norm, (x, upstream) = norm_of(spec), data(shape)
    if kept != "plain":
        for name, parameter in list(norm.named_parameters()):
            place = Shard(0) if kept == "split" else Replicate()
            spread_out = distribute_tensor(parameter.detach(), mesh, [place])
            norm.register_parameter(name, nn.Parameter(spread_out))
    inputs = spread(x, layout, mesh).requires_grad_()
    y = norm(inputs)
    y.backward(spread(upstream, "replicated" if layout == "partial" else layout, mesh))
    found = {"y": y.detach(), "x": inputs.grad}
    found |= {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    kinds = {name: type(value).__name__ for name, value in found.items()}
    full = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in found.items()}
    return {**full, "kinds": kinds}


def layouts_of(spec: str) -> tuple[str, ...]:
    return LAYOUTS if ":" not in spec else ("time", "features")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD)
    from torch.distributed.tensor import init_device_mesh

    mesh = init_device_mesh("cpu", (WORLD,))
    found: dict[Any, Any] = {}
    for spec in SPECS:
        for layout in layouts_of(spec):
            for kept in PARAMETERS if has_parameters(spec) and ":" not in spec else ("plain",):
                names = SHAPES if ":" not in spec and kept == "plain" else ("even",)
                for name in names:
                    shape = SHAPES[name]
                    found[spec, layout, kept, name] = sharded(spec, shape, layout, kept, mesh)
    found["plain input"] = refusal(mesh)
    torch.save(found, f"{folder}/found-{rank}.pt")
    dist.destroy_process_group()


def refusal(mesh: Any) -> str:
    from torch.distributed.tensor import Replicate, distribute_tensor

    norm = build_norm("rmsnorm", DIM)
    norm.weight = nn.Parameter(distribute_tensor(norm.weight.detach(), mesh, [Replicate()]))
    try:
        norm(torch.randn(2, DIM))
    except ValueError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    torch.multiprocessing.start_processes(work, (str(folder),), WORLD, start_method="spawn")
    return [torch.load(Path(folder) / f"found-{rank}.pt") for rank in range(WORLD)]


def test_every_norm_is_here() -> None:
    assert set(norm_names()) >= set(NAMES)


@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_whole_tensor(spec: str, found: list[dict[Any, Any]]) -> None:
    keys = [key for key in found[0] if key[0] == spec]
    assert {key[1] for key in keys} == set(layouts_of(spec))
    for key in keys:
        wanted = whole(spec, SHAPES[key[3]])
        for rank in range(WORLD):
            ours = found[rank][key]
            kinds = ours.pop("kinds")
            assert ours.keys() == wanted.keys(), key
            assert kinds["y"] == kinds["x"] == "DTensor"
            plain = {k for k, kind in kinds.items() if kind == "Tensor"}
            assert plain == (wanted.keys() - {"x", "y"} if key[2] == "plain" else set())
            for name, tensor in wanted.items():
                assert torch.allclose(ours[name], tensor, rtol=1e-9, atol=1e-12), (key, name)


def test_a_plain_input_beside_distributed_parameters_is_refused(
    found: list[dict[Any, Any]],
) -> None:
    for rank in range(WORLD):
        message = found[rank]["plain input"]
        assert message.startswith("rms_norm: the norm's parameters are distributed")
        assert "SequenceParallel" in message
