"""Batch norms over two processes (gloo) give what one process gives on the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from normtrain.norms import batch
from normtrain.norms.batch_swap import replace_batchnorm

pytestmark = pytest.mark.extended

WORLD = 2
KINDS = ["L1BatchNorm", "LInfBatchNorm", "TopKBatchNorm"]
# how the first axis is shared out; a rank may hold a single row, or none
SPLITS = {"unequal": (5, 3), "one-row": (7, 1), "empty": (0, 8), "equal": (4, 4)}
SHAPES = {"1d": (8, 3), "2d": (8, 3, 2, 2)}
STEPS = 2


def build(kind: str, suffix: str, **options: Any) -> nn.Module:
    extra = {"k": 4} if kind == "TopKBatchNorm" else {}
    norm = getattr(batch, kind + suffix)(3, dtype=torch.float64, **extra, **options)
    generator = torch.Generator().manual_seed(7)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator)
    return norm


def data(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The whole batch, its channels of different scales, and a gradient for the output."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * (seed + 2) + seed
    return x, torch.randn(shape, dtype=torch.float64, generator=generator)


def own_rows(whole: Tensor, split: tuple[int, ...], rank: int) -> Tensor:
    return whole.split(list(split))[rank].clone()


def run_norm(norm: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Train steps (without an optimizer): outputs, gradients and buffers."""
    result: dict[str, Any] = {"y": [], "dx": []}
    for x, upstream in batches:
        x.requires_grad_()
        y = norm(x)
        y.backward(upstream)
        result["y"].append(y.detach())
        result["dx"].append(x.grad)
    result["parameters"] = [p.grad for p in norm.parameters()]
    result["buffers"] = dict(norm.named_buffers())
    return result


def net(norm: str, sync: bool) -> nn.Module:
    """A net with norms at two depths, so that a gradient passes through one into the other."""
    torch.manual_seed(3)
    layers = [nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3), nn.BatchNorm1d(3)]
    model = nn.Sequential(*layers, nn.Linear(3, 2)).double()
    replace_batchnorm(model, norm, k=4 if norm == "topk" else None, sync=sync)
    return model


def train_net(model: nn.Module, split: tuple[int, ...], rank: int | None) -> list[Tensor]:
    """Two steps of SGD on the mean loss of the whole batch; the parameters at the end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(STEPS):
        x, _ = data(step, (8, 4))
        target = x.sin().sum(1, keepdim=True).expand(-1, 2)
        count = len(x)
        if rank is not None:
            x, target = own_rows(x, split, rank), own_rows(target, split, rank)
        loss = (model(x) - target).square().sum() / count
        optimizer.zero_grad()
        # DDP takes the mean over ranks, and the parts' losses add up to the whole's
        (loss if rank is None else loss * WORLD).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def rank_main(rank: int, folder: str) -> None:
    """What each process does; its results go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    alone = [dist.new_group([r]) for r in range(WORLD)][rank]
    both = dist.new_group([0, 1])
    results: dict[str, Any] = {}

    def case(name: str, norm: nn.Module, suffix: str, split: tuple[int, ...]) -> None:
        whole = [data(step, SHAPES[suffix]) for step in range(STEPS)]
        mine = [tuple(own_rows(t, split, rank) for t in pair) for pair in whole]
        results[name] = run_norm(norm, mine)

    for kind in KINDS:
        for name, split in SPLITS.items():
            for suffix in SHAPES:
                case(f"{kind}-{name}-{suffix}", build(kind, suffix, sync=True), suffix, split)
        averaged = build(kind, "1d", sync=True, momentum=None, process_group=both)
        case(f"{kind}-group", averaged, "1d", (5, 3))
        case(f"{kind}-alone", build(kind, "1d", sync=True, process_group=alone), "1d", (5, 3))
        case(f"{kind}-local", build(kind, "1d"), "1d", (5, 3))
        huge = torch.tensor([[3e38 if rank else 1.0], [-3e38 if rank else 2.0]])
        wide = getattr(batch, kind + "1d")(1, sync=True)
        results[f"{kind}-huge"] = run_norm(wide, [(huge, torch.ones_like(huge))])
        norm = {"L1BatchNorm": "l1", "LInfBatchNorm": "linf", "TopKBatchNorm": "topk"}[kind]
        wrapped = nn.parallel.DistributedDataParallel(net(norm, sync=True))
        results[f"{kind}-ddp"] = train_net(wrapped, (5, 3), rank)
        evaluated = build(kind, "1d", sync=True).eval()  # no collective: one rank may do it alone
        results[f"{kind}-eval"] = evaluated(data(0, (8, 3))[0]).detach() if rank else None
    second = data(5, (8, 3))[0]
    x = own_rows(second, (5, 3), rank).requires_grad_()
    (first,) = torch.autograd.grad(
        build("L1BatchNorm", "1d", sync=True)(x).square().sum(), x, create_graph=True
    )
    results["second order"] = torch.autograd.grad(first.pow(3).sum(), x)[0]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank_main, args=(str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def assert_as_one(
    results: list[dict[str, Any]], expected: dict[str, Any], split: tuple[int, ...]
) -> None:
    """Rows are those of the whole batch, parameters' gradients add up, buffers agree."""
    near = {"rtol": 1e-11, "atol": 1e-12}
    for rank, result in enumerate(results):
        for key in ("y", "dx"):
            for step, whole in enumerate(expected[key]):
                torch.testing.assert_close(result[key][step], own_rows(whole, split, rank), **near)
        torch.testing.assert_close(result["buffers"], expected["buffers"], **near)
    for index, whole in enumerate(expected["parameters"]):
        total = sum(result["parameters"][index] for result in results)
        torch.testing.assert_close(total, whole, **near)


@pytest.mark.parametrize("suffix", SHAPES)
@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_together_are_one_batch(
    ranks: list[dict[str, Any]], kind: str, name: str, suffix: str
) -> None:
    expected = run_norm(build(kind, suffix), [data(s, SHAPES[suffix]) for s in range(STEPS)])
    assert_as_one([r[f"{kind}-{name}-{suffix}"] for r in ranks], expected, SPLITS[name])


@pytest.mark.parametrize("kind", KINDS)
def test_a_process_group_and_cumulative_averages(ranks: list[dict[str, Any]], kind: str) -> None:
    norm = build(kind, "1d", momentum=None)
    expected = run_norm(norm, [data(s, (8, 3)) for s in range(STEPS)])
    assert_as_one([r[f"{kind}-group"] for r in ranks], expected, (5, 3))


@pytest.mark.parametrize("case", ["alone", "local"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_one_and_no_sync_are_local(
    ranks: list[dict[str, Any]], kind: str, case: str
) -> None:
    for rank, results in enumerate(ranks):
        whole = [data(step, (8, 3)) for step in range(STEPS)]
        mine = [tuple(own_rows(t, (5, 3), rank) for t in pair) for pair in whole]
        expected = run_norm(build(kind, "1d"), mine)
        torch.testing.assert_close(results[f"{kind}-{case}"], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_trains_as_one_process(ranks: list[dict[str, Any]], kind: str) -> None:
    norm = {"L1BatchNorm": "l1", "LInfBatchNorm": "linf", "TopKBatchNorm": "topk"}[kind]
    expected = train_net(net(norm, sync=False), (8,), None)
    before = list(net(norm, sync=False).parameters())
    assert not any(torch.allclose(a, b) for a, b in zip(before[::2], expected[::2], strict=True))
    for results in ranks:
        torch.testing.assert_close(results[f"{kind}-ddp"], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_with_huge_values(ranks: list[dict[str, Any]], kind: str) -> None:
    whole = torch.tensor([[1.0], [2.0], [3e38], [-3e38]])
    expected = run_norm(getattr(batch, kind + "1d")(1), [(whole, torch.ones_like(whole))])
    for rank, results in enumerate(ranks):
        result = results[f"{kind}-huge"]
        torch.testing.assert_close(result["y"][0], own_rows(expected["y"][0], (2, 2), rank))
        assert result["dx"][0].isfinite().all()
        # (the mean, where the huge ones cancel, is not to be had in float32)
        assert result["buffers"]["running_mean"].isfinite().all()
        name = "running_scale"
        torch.testing.assert_close(result["buffers"][name], expected["buffers"][name])


@pytest.mark.parametrize("kind", KINDS)
def test_eval_needs_no_other_rank(ranks: list[dict[str, Any]], kind: str) -> None:
    expected = build(kind, "1d").eval()(data(0, (8, 3))[0])
    torch.testing.assert_close(ranks[1][f"{kind}-eval"], expected.detach())


def test_second_order(ranks: list[dict[str, Any]]) -> None:
    """A gradient's gradient crosses ranks too."""
    x = data(5, (8, 3))[0].requires_grad_()
    y = build("L1BatchNorm", "1d")(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(first.pow(3).sum(), x)
    for rank, results in enumerate(ranks):
        torch.testing.assert_close(results["second order"], own_rows(expected, (5, 3), rank))


def test_without_a_process_group_sync_is_local() -> None:
    x = data(0, (8, 3))[0]
    assert torch.equal(build("L1BatchNorm", "1d", sync=True)(x), build("L1BatchNorm", "1d")(x))
    with pytest.raises(ValueError, match="more than 1 value"):
        build("L1BatchNorm", "1d", sync=True)(x[:1])
