"""The precision of products and convolutions of float32 in torch: full, or TF32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, Literal

import torch

# Settings of torch 2.9 and later; it refuses questions in the older form once one of them is set.
# Those of cuDNN have values from the start, the others follow a setting above them.
_OWN = ("cudnn.rnn", "cudnn.conv")
_SETTINGS = (*_OWN, "cuda.matmul", "mkldnn.matmul", "mkldnn.rnn", "mkldnn.conv")
_OLD_SETTINGS = ("cuda.matmul", "cudnn")


@contextmanager
def float32_precision(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Compute float32 in full precision ("ieee") or in TF32 for a while, on every device.

    cuDNN's default for RNNs is TF32 (errors of 1e-3). All settings are restored.
    """
    backends: Any = torch.backends
    new = hasattr(backends.cuda.matmul, "fp32_precision")
    name = "fp32_precision" if new else "allow_tf32"
    settings = {path: attrgetter(path)(backends) for path in (_SETTINGS if new else _OLD_SETTINGS)}
    before = {path: getattr(setting, name) for path, setting in settings.items()}
    for setting in settings.values():
        setattr(setting, name, precision if new else precision == "tf32")
    try:
        yield
    finally:
        for path, setting in settings.items():
            if new and path not in _OWN:
                setting.fp32_precision = "none"  # follow the setting above, if that says the same
            if getattr(setting, name) != before[path]:
                setattr(setting, name, before[path])
