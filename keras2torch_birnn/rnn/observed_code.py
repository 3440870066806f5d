"""The Python code that computes a model: which runs, and what it looks up.

A call that was prepared replaces that code, so it has to go when the code changes.
"""

from __future__ import annotations

import builtins
import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter, is_
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FrameType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Code objects that ran, each with the global names of its module.
Codes = dict[CodeType, dict[str, Any]]

# Code of others may do more than torch's operators show. The last ones only look things up.
_OURS = ("torch", "_operator", "keras2torch_birnn")
# Of Python's own, mocks stand for other functions.
_KNOWN = {*_OURS, *sys.stdlib_module_names} - {"unittest"}
# What calls the model while it is recorded, and how recurrent layers call their engines: not what
# a model computes.
_MACHINERY = (
    *("torch.compiler", "torch.jit", "torch._jit_internal"),
    *("torch.utils._python_dispatch", "torch._library", "torch._ops"),
    "keras2torch_birnn.layers.record",
    *(f"keras2torch_birnn.rnn.{name}" for name in ("call", "cell_kind", "chain", "dropout_masks")),
    *(f"keras2torch_birnn.rnn.{name}" for name in ("engines", "layer", "native", "tensor_")),
    *("namedtuple_", __name__, *sys.stdlib_module_names),
)
_ABSENT = object()


class CodeOfOthersError(Exception):
    """Code ran that is neither torch's nor of this package, or that another profiler watches."""


class Observer:
    """Within its context, take note of all Python code that this thread runs.

    Raises:
        CodeOfOthersError: there is another profiler, which would see nothing.
    """

    def __init__(self) -> None:
        # Of the model, and what runs because something is recorded.
        self.codes: Codes = {}
        self._of_recording: Codes = {}
        self._noted, self._collects = self.codes, False

    def __enter__(self) -> None:
        if sys.getprofile() is not None:
            raise CodeOfOthersError("a profiler")
        # A collection would run code that belongs to other objects.
        self._collects = gc.isenabled()
        gc.disable()
        sys.setprofile(self._see)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        if self._collects:
            gc.enable()

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            self._noted[frame.f_code] = frame.f_globals

    def record(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that records, whose code is not that of the model."""
        self._noted = self._of_recording
        try:
            return function(*args)
        finally:
            self._noted = self.codes

    def finish(self) -> Codes:
        """Return the code of the model.

        Raises:
            CodeOfOthersError: some code is neither of torch nor of this package.
        """
        for code, names in (*self.codes.items(), *self._of_recording.items()):
            package = _package(names.get("__name__", ""))
            if package not in _KNOWN and not package.startswith("namedtuple_"):
                raise CodeOfOthersError(f"{package}: {code.co_name}")
        return {code: names for code, names in self.codes.items() if _computes(names)}


def is_ours(function: Any) -> bool:
    """Return whether a function or a class is of torch or of this package."""
    return _package(getattr(function, "__module__", "")) in _OURS


def _package(name: Any) -> str:
    return str(name).partition(".")[0]


class Names(NamedTuple):
    """Names of one namespace, and what each stands for; ``_ABSENT`` for nothing."""

    namespace: Mapping[str, Any]
    names: Sequence[str]
    values: Sequence[Any]

    def hold(self) -> bool:
        """Return whether each name stands for the same object."""
        get = self.namespace.get
        return all(map(is_, [get(name, _ABSENT) for name in self.names], self.values))


def find_names(codes: Codes) -> list[Names]:
    """Return all that code looks up in modules, its own and those that it names."""
    wanted: dict[int, tuple[Mapping[str, Any], set[str]]] = {}

    def want(namespace: Mapping[str, Any], names: Iterable[str]) -> None:
        wanted.setdefault(id(namespace), (namespace, set()))[1].update(names)

    for code, own in codes.items():
        names = code.co_names
        want(own, names)
        of_all = [name for name in names if name not in own and hasattr(builtins, name)]
        want(vars(builtins), of_all)
        imported = [sys.modules[name] for name in names if name in sys.modules]  # within functions
        modules, seen = [*(own[name] for name in names if name in own), *imported], set()
        while modules:
            module = modules.pop()
            if isinstance(module, ModuleType) and module not in seen and _computes(vars(module)):
                seen.add(module)
                want(vars(module), names)
                modules += [vars(module)[name] for name in names if name in vars(module)]
    return [
        Names(found, (*names,), [found.get(name, _ABSENT) for name in names])
        for found, names in wanted.values()
        if names
    ]


def _computes(names: Mapping[str, Any]) -> bool:
    """Return whether a module, given by its global names, has code that computes something."""
    return not str(names.get("__name__", "")).startswith(_MACHINERY)


class Reached:
    """Functions that ran and containers, found from values that a model or its code holds."""

    def __init__(self, codes: Codes) -> None:
        self._codes, self._seen = codes, dict[int, Any]()
        self.functions: list[FunctionType] = []
        self.dicts: list[dict[Any, Any]] = []
        self.lists: list[Any] = []
        self.cells: list[Any] = []
        self.modules: list[nn.Module] = []

    def visit(self, values: Iterable[Any], *, objects: bool) -> None:
        """Look into values. objects: whether also into those of other classes.

        Raises:
            CodeOfOthersError: an object hides what it holds.
        """
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if isinstance(value, _ATOMS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, nn.Module):
                self.modules.append(value)
            elif isinstance(value, FunctionType):
                waiting += self._visit_function(value)
            elif isinstance(value, dict):
                self.dicts.append(value)
                waiting += value.values()
            elif isinstance(value, (list, set)):
                self.lists.append(value)
                waiting += value
            elif isinstance(value, (tuple, frozenset)):
                waiting += value
            elif (parts := _PARTS.get(type(value))) is not None:
                waiting += [getattr(value, name) for name in parts]
            elif objects:
                waiting += self._visit_object(value)

    def _visit_function(self, function: FunctionType) -> list[Any]:
        if function.__code__ not in self._codes:
            return []
        self.functions.append(function)
        cells = [cell for cell in function.__closure__ or () if _is_filled(cell)]
        self.cells += cells
        options = [*(function.__defaults__ or ()), function.__kwdefaults__]
        return [*map(_CONTENTS, cells), *options]

    def _visit_object(self, value: Any) -> list[Any]:
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            raise CodeOfOthersError(type(value).__name__)
        self.dicts.append(own)
        return [*own.values()]


def _is_filled(cell: CellType) -> bool:
    """Return whether a cell has contents, other than the class that super() needs."""
    try:
        return not isinstance(cell.cell_contents, type)
    except ValueError:
        return False


_CONTENTS = attrgetter("cell_contents")
_PARTS: Mapping[type, Sequence[str]] = {
    MethodType: ("__func__", "__self__"),
    partial: ("func", "args", "keywords"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget",),
}
_ATOMS = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice),
    *(type, ModuleType, BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType),
    *(Tensor, torch.dtype, torch.device, torch.layout, torch.memory_format),
)
