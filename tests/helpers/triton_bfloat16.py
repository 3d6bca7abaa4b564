"""Makes Triton's interpreter round to bfloat16 as a GPU does.

Triton 3.7's interpreter truncates, and loses subnormal numbers both ways. Importing this module
corrects it for the process; to run other tests on the interpreted kernels:

    TRITON_INTERPRET=1 NORMTRAIN_KERNELS=triton PYTHONPATH=tests/helpers \\
        python -m pytest -p triton_bfloat16 tests/kernels/test_table.py
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_plain = interpreter._convert_float


def convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """Triton's conversion, with its own code for bfloat16 from and to float32."""
    if (source, target) == (tl.bfloat16, tl.float32):
        return data.view(np.uint16).astype(np.uint32) << 16
    if (source, target) == (tl.float32, tl.bfloat16):
        wide = torch.from_numpy(np.ascontiguousarray(data).view(np.float32).copy())
        return wide.bfloat16().view(torch.uint16).numpy().reshape(data.shape)
    return _plain(data, source, target, rounding)


interpreter._convert_float = convert
