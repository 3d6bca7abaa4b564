"""One table: when each norm is swapped and what then computes, for every stage and strategy."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hook_table
import pytest
from hook_table import BUILT, FLAVOURS, STAGES, STRATEGIES

CELLS = list(itertools.product(FLAVOURS, BUILT, STAGES, STRATEGIES))


def _is_quick(cell: tuple[str, ...]) -> bool:
    flavour, built, stage, strategy = cell
    return strategy == "single" and flavour == FLAVOURS[0] and stage in ("resume", "test")


def expected_events(built: str, stage: str, strategy: str) -> list[list[str | None]]:
    """Each hook in Lightning's order, with the norm that the module has by then."""
    shards, swapping = strategy == "fsdp2", stage != "load"
    own = shards and built == "configure_model"  # the module swaps its norms itself
    first = "RMSNorm" if swapping or own else "LayerNorm"
    # Layers appear in a hook with the norm that the module's code builds.
    fresh = "RMSNorm" if own else "LayerNorm"
    norm = first if built == "init" else None
    events: list[list[str | None]] = [["callback setup", norm]]
    events.append(["module setup", fresh if built == "setup" else norm])
    if built == "setup":
        norm = first
    if built == "configure_model" or shards:
        events.append(["configure_model", fresh if built == "configure_model" else norm])
    norm = first
    fits = stage in ("fit", "resume", "load")
    loads = stage in ("resume", "load")
    if loads and not shards:
        norm = "RMSNorm"
        events.append(["load", norm])
    events += [["optimizers", norm], ["start", norm]] if fits else []
    return [*events, ["load", norm]] if loads and shards else events


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks saw in all cells of DDP and FSDP2."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run(
        [*torchrun, hook_table.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def outcomes(request: pytest.FixtureRequest, tmp_path: Path) -> list[dict[str, Any]]:
    """A cell's outcome on each of its ranks."""
    cell = request.param
    if cell[-1] == "single":
        return [json.loads(json.dumps(hook_table.run_cell(*cell, tmp_path)))]
    return [rank["/".join(cell)] for rank in request.getfixturevalue("ranks")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("outcomes", "cell"),
    [
        pytest.param(cell, cell, marks=() if _is_quick(cell) else pytest.mark.extended)
        for cell in CELLS
    ],
    indirect=["outcomes"],
    ids=map("/".join, CELLS),
)
def test_cell(outcomes: list[dict[str, Any]], cell: tuple[str, ...]) -> None:
    _, built, stage, strategy = cell
    assert all("failed" not in each for each in outcomes), outcomes
    if stage == "load" and strategy == "fsdp2" and built != "configure_model":
        # The weights are loaded before the module is asked: no swap, but an error with both norms.
        for each in outcomes:
            assert "was saved with rmsnorm:eps=1e-05 at net.1" in each["error"]
            assert "the model has torch.nn.LayerNorm there" in each["error"]
        return
    for each in outcomes:
        assert each["events"] == expected_events(built, stage, strategy)
        assert each["counts"]["LayerNorm"] == 0
        assert each["counts"]["RMSNorm"] >= 2
        assert each["exact"] is (True if stage in ("fit", "resume", "load") else None)
        assert each["patched"] == []
    assert len({each["digest"] for each in outcomes}) == 1
    if "loaded" in outcomes[0]:
        assert outcomes[0]["loaded"] == ["RMSNorm", "RMSNorm"]


def test_the_table_is_whole() -> None:
    assert len(CELLS) == 3 * 6 * 3 * 2
    loaded = [cell for cell in CELLS if cell[2] == "load" and cell[3] == "single"]
    assert len(loaded) == 6
