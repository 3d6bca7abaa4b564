"""The scripts in examples/ run from start to end on little data."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
EXAMPLES = {
    "encoder_classifier": ("rmsnorm", "adanorm"),
    "gpt2_finetune": ("rmsnorm", "layernorm-simple"),
    "convnet_batchnorm": ("l1batchnorm", "topkbatchnorm:k=5"),
}


def run(name: str, out: Path, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    args = ("--out", str(out), "--batches", "4", *args)
    monkeypatch.setattr(sys, "argv", [name, *args])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        pytest.param(name, norm, marks=pytest.mark.slow if number else pytest.mark.extended)
        for name, norms in EXAMPLES.items()
        for number, norm in enumerate(norms)
    ],
)
def test_example(
    name: str,
    norm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(name, tmp_path / "new", monkeypatch, "--norm", norm)
    output = capsys.readouterr().out
    lines = [line.partition(":")[0] for line in output.splitlines()]
    assert [word for word in lines if word in ("before", "after", "resume", "evaluate")] == [
        *("before", "after", "resume", "evaluate")
    ]
    assert all(float(number) >= 0 for number in re.findall(r" (\d+\.\d+)", output))
    section = torch.load(tmp_path / "new" / "half.ckpt", weights_only=True)["normtrain"]["swap"]
    assert {spec.partition(":")[0] for spec in section["replaced"].values()} == {
        norm.partition(":")[0]
    }


def test_every_script_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXAMPLES)


@pytest.mark.filterwarnings("ignore")
def test_a_wrong_norm_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="rmsnorm"):
        run("encoder_classifier", tmp_path, monkeypatch, "--norm", "rmsnrm")
