"""The benchmark of norms: what it measures, prints and rejects; not how fast anything is."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_misuse

from normtrain import kernels
from normtrain.bench import measure, show
from normtrain.kernels import active, native
from normtrain.norms import build_norm

QUICK = ("--rounds", 2, "--seconds", 0.0001, "--shape", "8x16", "--no-inductor")


def test_rows_of_every_arm_as_json(command: Callable[..., Any]) -> None:
    words = ("--norm", "rmsnorm", "--backend", "plain", "--backend", "aten", "--dtype", "float32")
    done = command("bench", "norms", *words, *QUICK, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["torch"] == torch.__version__
    rows = {row["arm"]: row for row in report["rows"]}
    assert list(rows) == ["copy", "F.layer_norm", "F.rms_norm", "rmsnorm (plain)", "rmsnorm (aten)"]
    assert rows["F.layer_norm"]["to_layer_norm"] == 1.0
    assert "native_layer_norm" in rows["F.layer_norm"]["operations"]
    assert "linalg_vector_norm" in rows["rmsnorm (aten)"]["operations"]
    assert "linalg_vector_norm" not in rows["F.rms_norm"]["operations"]
    for row in rows.values():
        middle, low, high = row["forward"]
        assert 0 < low <= middle <= high
        assert row["bandwidth"] == pytest.approx(2 * 8 * 16 * 4 / middle)


def test_the_table(command: Callable[..., Any]) -> None:
    done = command("bench", "norms", "--norm", "adanorm", "--backend", "plain", *QUICK)
    assert done.exit_code == 0, done.stderr
    assert "8×16, float32" in done.stdout
    assert "8×16, bfloat16" in done.stdout
    assert len(re.findall(r"^\| `adanorm \(plain\)` +\|", done.stdout, re.MULTILINE)) == 2
    assert "adanorm" in done.stderr  # progress


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--norm", "rmsnrm"), ("rmsnrm",)),
        (("--backend", "cuda"), ("backend must be one of", "'cuda'")),
        (("--dtype", "int8"), ("float32, bfloat16, float16", "'int8'")),
        (("--shape", "4096"), ("ROWSxDIM", "'4096'")),
        (("--shape", "0x4"), ("ROWSxDIM", "'0x4'")),
    ],
)
def test_unsupported_options_are_errors(
    command: Callable[..., Any], words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    assert_misuse(command("bench", "norms", *words), *parts)


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    wanted = measure.settings(("rmsnorm",), ("plain",), ("float32",), ("4x8",), rounds=1,
                            seconds=1e-5, inductor=False)  # fmt: skip
    show.plot(list(measure.measure(wanted)), tmp_path / "norms.svg")
    assert (
        "F.layer_norm = 1" in (tmp_path / "norms.svg").read_text(encoding="utf-8")
        or (tmp_path / "norms.svg").stat().st_size
    )


def test_what_runs_is_observed() -> None:
    x = torch.randn(4, 16, requires_grad=True)
    for backend, want in (("plain", "plain"), ("aten", "aten")):
        with kernels.use(backend):
            assert active.active_backend(build_norm("rmsnorm", 16), x) == want
            assert measure.what_runs("rmsnorm").startswith(f"{want} on CPU")
    if native.unavailable() is None:
        with kernels.use("native"):
            assert measure.what_runs("layernorm").startswith("native (")
            assert measure.what_runs("linfnorm").startswith("plain on CPU")


def test_norms_show_says_what_runs(command: Callable[..., Any]) -> None:
    with kernels.use("plain"):
        shown = command("norms", "show", "rmsnorm")
    assert "runs here by  plain on CPU" in shown.stdout
