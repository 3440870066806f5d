"""Settings of torch that are of the whole process: a test leaves them as it found them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def read_settings(torch: Any) -> dict[str, Any]:
    """Return the settings that change what later tests compute."""
    matmul = torch.backends.cuda.matmul
    return {
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "precision on CUDA": getattr(matmul, "fp32_precision", None),  # of torch 2.9 and newer
    }


@contextmanager
def unchanged_settings() -> Iterator[None]:
    """Fail where a setting is left changed; set the number of threads back.

    Raises:
        AssertionError: names each, with both values.
    """
    before = read_settings(sys.modules["torch"]) if "torch" in sys.modules else None
    yield
    if "torch" in sys.modules:
        torch = import_module("torch")  # which another thread may still be importing
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        after = read_settings(torch)
        was = before or after
        left = {name: (was[name], value) for name, value in after.items() if value != was[name]}
        assert not left, f"settings of torch are left changed: {left}"
