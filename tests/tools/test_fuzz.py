"""The campaign of bad inputs: a few of each kind here, thousands in the slow test."""

import os
from pathlib import Path

import pytest

from tools.campaigns.arena import Arena, Case
from tools.campaigns.bad_checkpoints import Trap
from tools.campaigns.bad_recipes import write
from tools.campaigns.fuzz import KINDS, Tally, campaign, failures, share, table
from tools.campaigns.stock import Stock

QUICK = {"recipes": 20, "overrides": 20, "corpora": 6, "checkpoints": 20}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"))


def cache() -> Path:
    return Path(os.environ["NORMTRAIN_CACHE"])


@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs_are_told_in_a_line(kind: str, stock: Stock, tmp_path: Path) -> None:
    tally = campaign(kind, stock, tmp_path, cache(), examples=QUICK.get(kind, 12), start=0)
    assert not tally.broken, failures({kind: tally}, 0)
    assert tally.codes[2], "no input was bad: the campaign looks at nothing"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_bad_inputs(stock: Stock, tmp_path: Path) -> None:
    tallies = {}
    for kind in KINDS:
        count = share(kind, 2000, list(KINDS))
        tallies[kind] = campaign(kind, stock, tmp_path, cache(), examples=count, start=1)
    assert sum(tally.codes.total() for tally in tallies.values()) >= 2000
    assert not any(tally.broken for tally in tallies.values()), failures(tallies, 1)


# The campaign must see what it is there to see


def test_a_campaign_repeats(stock: Stock, tmp_path: Path) -> None:
    def said(root: str, at: int) -> list[str]:
        where = tmp_path / root
        tally = campaign("overrides", stock, where, cache(), examples=5, start=3, at=at)
        return [line.partition(", exit")[2] for line in tally.said]

    whole = said("whole", 0)
    assert said("again", 0) == whole
    assert said("one", 4) == whole[3:4]


def test_a_broken_promise_is_seen(
    stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import normtrain.config.recipe

    case = Case(("fit", "--recipe", "bad.yaml", "--dry-run"), "empty", write("bad.yaml", b""))
    assert Arena(tmp_path / "good", stock, cache()).run(case).broken == []

    def careless(*_: object, **__: object) -> None:
        Path("half.ckpt").write_bytes(b"")
        Path("left.tmp").write_bytes(b"")
        Trap().__reduce__()[0]("canary")
        raise KeyError("no promise")

    monkeypatch.setattr(normtrain.config.recipe, "resolve", careless)
    outcome = Arena(tmp_path / "bad", stock, cache()).run(case)
    told = "\n".join(outcome.broken)
    assert outcome.code == 1
    for part in ("no error: internal", "CODE WAS EXECUTED", "left-overs", "half.ckpt, which can"):
        assert part in told
    tallies = {"recipes": Tally(broken=[(1, case, outcome)])}
    assert "| recipes | 0 | 0 | 0 | 0 | 1 |" in table(tallies)
    assert "--only recipes --seed 7 --at 1" in failures(tallies, 7)
