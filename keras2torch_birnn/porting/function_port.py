"""A port that is a plain function, with the tensors and modules of its file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class FunctionPort(nn.Module):
    """A function of tensors as a module, which holds what the function reads.

    Copies share these tensors and modules: the function knows no others.
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

    def __deepcopy__(self, _: Any) -> FunctionPort:
        return FunctionPort(self.forward)


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
    """Yield the tensors and modules of a function's file and closure, by their paths."""
    outer = inspect.unwrap(function)
    held = {**getattr(outer, "__globals__", {})}
    if inspect.isfunction(outer):
        held |= inspect.getclosurevars(outer).nonlocals
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
