"""Mark functions whose result torch.compile takes as a constant, without importing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def mark_constant(function: Function) -> Function:
    """Return the function, marked as ``torch.compiler.assume_constant_result`` does.

    That one imports all of torch's compiler, a second in every process that converts a model.
    """
    cast(Any, function)._dynamo_marked_constant = True
    return function
