"""Read files that users wrote with ``torch.save`` or safetensors, without running code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.suggestions import explain_missing

# How torch begins to tell of its archives; some go on for a page.
_OF_TORCH = ("Weights only load failed", "PytorchStreamReader", "[enforce fail", "Cannot use ``w")


def read_plain(path: Path, advice: str) -> Any:
    """Return the content of a ``.pt``, ``.pth`` or ``.safetensors`` file, on the CPU.

    Raises:
        InvalidModelFileError: there is none, or it holds something else; ``advice``: a remedy.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InvalidModelFileError(
            "there is no such file", explain_missing(path) or advice
        ) from None
    except IsADirectoryError:
        raise InvalidModelFileError("is a folder", advice) from None
    except Exception as error:  # torch raises many kinds
        reason = printable(str(error).strip().partition("\n")[0] or type(error).__name__)
        if reason.startswith(_OF_TORCH):
            reason = "torch.load finds more than tensors, or another kind of file"
        raise InvalidModelFileError(f"cannot be read as tensors ({reason})", advice) from error
