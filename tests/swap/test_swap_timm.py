"""timm's models, whose LayerNorm and LayerNorm2d are replaced without changing a bit."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import timm_worker

pytestmark = pytest.mark.extended


@pytest.mark.skipif(
    importlib.util.find_spec("timm") is None,
    reason="timm is not installed (pip install --no-deps timm)",
)
def test_layernorm_for_layernorm_changes_no_bit() -> None:
    done = subprocess.run(
        [sys.executable, timm_worker.__file__],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(timm_worker.MODELS)
    for name, each in found.items():
        kind = "LayerNorm2d" if name == "convnext_atto" else "LayerNorm"
        assert each == {"replaced": [kind], "skipped": 0, "left": 0, "equal": True}, name
