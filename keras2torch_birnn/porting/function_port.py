"""A port that is a plain function, with the tensors and modules of its file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import deepcopy
from inspect import isfunction
from typing import Any

from torch import Tensor, nn


class FunctionPort(nn.Module):
    """A function of tensors as a module, which holds what the function reads.

    Copies share these tensors and modules: the function knows no others. An object that is called
    like a function is copied with its own.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = function
        self.held = dict(_held_by(function))
        for path, value in self.held.items():
            name = f"_{path}" if hasattr(self, path) else path
            if isinstance(value, nn.Module):
                self.register_module(name, value)
            else:
                self.register_buffer(name, value.detach())

    def __deepcopy__(self, memo: dict[int, Any]) -> FunctionPort:
        return FunctionPort(deepcopy(self.forward, memo))


def is_function(port: Any) -> bool:
    """Tell whether this is a function, or an object that is called by its own ``__call__``."""
    return not isinstance(port, type) and isfunction(_code_of(port))


def _code_of(port: Any) -> Any:
    return port if isfunction(port) else inspect.getattr_static(type(port), "__call__", None)


def has_values(tensor: Tensor) -> bool:
    """Tell whether a tensor holds values: not one of a lazy module, nor one on meta."""
    return not (nn.parameter.is_lazy(tensor) or tensor.is_meta)


def needs_arguments(function: Callable[..., Any]) -> bool:
    """Return whether a function cannot be called without arguments."""
    try:
        inspect.signature(function).bind()
    except TypeError:
        return True
    except ValueError:  # it is written in C
        return False
    return False


def _held_by(function: Callable[..., Any]) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """Yield the tensors and modules of a function's file, closure and object, by their paths."""
    outer = inspect.unwrap(function)
    code = inspect.unwrap(_code_of(outer))
    held = {**getattr(code, "__globals__", {}), **getattr(outer, "__dict__", {})}
    if isfunction(code):
        held |= inspect.getclosurevars(code).nonlocals
    seen: set[int] = set()
    for name, value in _walk("", held, 2):
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _walk(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor | nn.Module]]:
    if isinstance(value, nn.Module):
        if all(map(has_values, (*value.parameters(), *value.buffers()))):
            yield path, value
    elif isinstance(value, Tensor):
        if has_values(value):
            yield path, value
    elif depth and isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in pairs:
            yield from _walk(f"{path} {key}".strip().replace(".", " "), part, depth - 1)
