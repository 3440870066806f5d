"""Types of the public names: nothing that a user calls, reads or writes for us is ``Any``.

The values of a mapping by names may be: those of a config or of JSON. So may the dtype of arrays.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ForwardRef, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

import keras2torch_birnn
from keras2torch_birnn import spec

PACKAGE = keras2torch_birnn.__name__
# Aliases that are texts; one that names itself holds something else there, too.
TEXTS = ("Array", "Shapes")


def is_any(hint: Any, seen: frozenset[Any] = frozenset()) -> bool:
    """Tell whether Any is in a hint, but for the values of mappings by names."""
    if hint is Any or isinstance(hint, str | ForwardRef):
        return hint is Any
    if isinstance(hint, TypeVar):
        inside = [*hint.__constraints__, *([hint.__bound__] if hint.__bound__ else [])]
        return any(is_any(one) for one in inside)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (np.ndarray, np.dtype, npt.NDArray):  # an alias of its own since NumPy 2.5
        return False
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[:1] == (str,):
        arguments = tuple(one for one in arguments[1:] if one is not Any)
    flat = [part for one in arguments for part in (one if isinstance(one, list) else [one])]
    return any(is_any(one) for one in flat)


def functions_of(public: Any) -> Iterator[tuple[str, Any]]:
    """A function itself, or the methods, properties and fields that a class defines."""
    if not isinstance(public, type):
        yield "", public
        return
    if dataclasses.is_dataclass(public) or issubclass(public, tuple):
        yield "", public
    for name, member in vars(public).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if isinstance(member, property):
            yield f".{name}", member.fget
        elif isinstance(member, functools.cached_property):
            yield f".{name}", member.func
        elif isinstance(member, staticmethod | classmethod):
            yield f".{name}", member.__func__
        elif inspect.isfunction(member):
            yield f".{name}", inspect.unwrap(member)


@functools.cache
def names_of(module: str) -> dict[str, Any]:
    """Names for the annotations of a module: also those it imports for type checkers alone."""
    found = sys.modules[module]
    names = {**vars(found)}
    for node in ast.parse(inspect.getsource(found)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module, "exec"), names)
    inside = {**vars(spec), "npt": npt, **dict.fromkeys(TEXTS, object)}
    return {**names, **{name: eval(vars(spec)[name], inside) for name in TEXTS}}


def hints_of(public: Any) -> Iterator[tuple[str, Any]]:
    for where, one in functions_of(public):
        if not (getattr(one, "__module__", "") or "").startswith(PACKAGE):
            continue  # torch's own
        names = names_of(one.__module__)
        for name, hint in get_type_hints(one, globalns=names, localns=names).items():
            yield f"{where}({name})", hint


def returned_classes(hint: Any) -> Iterator[type]:
    """The classes of this package in a hint."""
    if isinstance(hint, type) and hint.__module__.startswith(PACKAGE):
        yield hint
    for one in get_args(hint):
        for part in one if isinstance(one, list) else [one]:
            yield from returned_classes(part)


def public_objects() -> dict[str, Any]:
    """The public names, and the classes of what their functions return and their fields hold."""
    found = {name: getattr(keras2torch_birnn, name) for name in keras2torch_birnn.__all__}
    for public in list(found.values()):
        for where, hint in hints_of(public):
            if "(return)" in where or dataclasses.is_dataclass(public):
                found |= {one.__name__: one for one in returned_classes(hint)}
    return found


# As the calls of torch's own modules.
CALLS = {"Frozen.__call__(return): typing.Any"}


def test_nothing_public_is_any() -> None:
    wrong = [
        f"{name}{where}: {hint}"
        for name, public in public_objects().items()
        for where, hint in hints_of(public)
        if is_any(hint)
    ]
    assert {*wrong} == CALLS


@pytest.mark.parametrize(
    ("hint", "found"),
    [
        (Any, True),
        (tuple[Any, ...], True),
        (dict[str, Any], False),
        (dict[str, list[Any]], True),
        (npt.NDArray[Any], False),
        (TypeVar("T", bound=list[Any]), True),
        (int | None, False),
    ],
    ids=str,
)
def test_any_is_found_inside_of_hints(hint: Any, found: bool) -> None:
    assert is_any(hint) is found


def required(public: Any) -> list[inspect.Parameter]:
    given = inspect.signature(public).parameters.values()
    return [one for one in given if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]


OF_MODULES = [
    name
    for name, public in (
        (name, getattr(keras2torch_birnn, name)) for name in keras2torch_birnn.__all__
    )
    if inspect.isfunction(public) and next(hints_of(public))[1] is nn.Module
]


@pytest.mark.parametrize("name", OF_MODULES)
def test_a_path_in_the_place_of_a_module_is_named(name: str) -> None:
    public = getattr(keras2torch_birnn, name)
    with pytest.raises(keras2torch_birnn.K2TError) as refused:
        public("model.pt", *["new.pt"] * (len(required(public)) - 1))
    text = "found the path 'model.pt'; k2t.convert(path) reads a Keras model, k2t.load(path) a"
    assert text in str(refused.value)
