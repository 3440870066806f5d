"""The precision of products and convolutions of float32 in torch: full, or TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Literal

import torch

# Torch refuses questions in the older form (``allow_tf32``) once one of these is set. Those of
# cuDNN have values from the start, the others follow a setting above them.
_OWN = ("cudnn.rnn", "cudnn.conv")
_SETTINGS = (*_OWN, "cuda.matmul", "mkldnn.matmul", "mkldnn.rnn", "mkldnn.conv")


@contextmanager
def float32_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute float32 in full precision ("ieee") or in TF32 for a while, on every device.

    cuDNN's default for RNNs is TF32 (errors of 1e-3). All settings are restored.
    """
    backends: Any = torch.backends
    settings: dict[str, Any] = {path: attrgetter(path)(backends) for path in _SETTINGS}
    before = {path: setting.fp32_precision for path, setting in settings.items()}
    for setting in settings.values():
        setting.fp32_precision = precision
    try:
        yield
    finally:
        for path, setting in settings.items():
            if path not in _OWN:
                setting.fp32_precision = "none"  # follow the setting above, if that says the same
            if setting.fp32_precision != before[path]:
                setting.fp32_precision = before[path]
