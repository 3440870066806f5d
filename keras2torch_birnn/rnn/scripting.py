"""Refuse ``torch.jit.script``, which cannot compile these modules."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from keras2torch_birnn.errors import UsageError


def refuse_scripting(module: nn.Module) -> NoReturn:
    """Refuse a module; ``__prepare_scriptable__`` is what torch calls for each before it compiles.

    Raises:
        UsageError: always.
    """
    raise UsageError(
        f"torch.jit.script cannot compile {type(module).__name__}, which looks for the fastest "
        "kernel at every call",
        "use torch.jit.trace(model, example), torch.export.export or `k2t export`",
    )
