"""Detect any change of modules since they were prepared for a fast call.

A prepared call computes what modules computed when it was prepared. It may run as long as these
are the same objects with the same contents, their weights are where they were (their values are
read anew), and the Python code that computed them is the same. ``change_signals`` tells at once
that nothing changed; where it does not, all is compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import chain
from operator import attrgetter, is_
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from keras2torch_birnn.rnn.change_signals import KnownTensors, States, class_dict
from keras2torch_birnn.rnn.observed_code import (
    CodeOfOthersError,
    Codes,
    Names,
    Observer,
    Reached,
    find_names,
    is_ours,
)
from keras2torch_birnn.rnn.tensor_memory import is_plain

_CONTENTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DICT, _CODE, _CELL = attrgetter("__dict__"), attrgetter("__code__"), attrgetter("cell_contents")
_DEFAULTS = attrgetter("__defaults__", "__kwdefaults__")
_CONTAINERS = (dict, list, set, tuple, frozenset)
# Modules whose classes cannot change.
_FIXED = ("builtins", "torch._C", "typing")
# States that a stateful layer carries from one call to the next are no options.
_CARRIED = "carried"
# Changes of modules until nothing is prepared any more: to prepare takes as long as many calls.
PATIENCE = 16
Prepared = TypeVar("Prepared")


class Guard:
    """The state of modules and of the code that computes them.

    caller: the module that calls the others, None if none does; its own hooks do not matter.
    """

    def __init__(
        self, modules: Sequence[nn.Module], codes: Codes, caller: nn.Module | None = None
    ) -> None:
        """Take note of modules. codes: all that ran when they computed something.

        Raises:
            CodeOfOthersError: what they hold cannot be watched.
        """
        self.caller = caller
        self._modules: Any = list(modules)
        self._called = [m for m in modules if m is not caller]
        self._classes = [*map(type, modules)]
        self._dtype = torch.get_default_dtype()
        self._hooks = [vars(m)[kind] for m in self._called for kind in _HOOKS]
        self._names = find_names(codes)
        classes = _find_classes(self._classes, self._names, codes)
        reached = _reach(self._called, classes, self._names, codes)
        if not set(reached.modules) <= set(modules):
            raise CodeOfOthersError("a module that is no child of another")
        contents = [vars(m)[kind] for m in modules for kind in _CONTENTS]
        self._empty = [d for d in (*contents, *self._hooks) if not d]
        self._inner = [*filter(None, contents), *reached.dicts, *map(class_dict, classes)]
        self._own = [*map(_DICT, modules)]
        namespaces = [found.namespace for found in self._names]
        watched = (*self._own, *self._inner, *self._empty, *namespaces)
        self._lists, self._copies = reached.lists, [*map(copy, reached.lists)]
        self._functions, self._cells = reached.functions, reached.cells
        self._optional = [f for f in reached.functions if f.__defaults__ or f.__kwdefaults__]
        held = (vars(m)[kind].values() for m in modules for kind in ("_parameters", "_buffers"))
        tensors: Iterable[Tensor | None] = chain.from_iterable(held)
        self._tensors = [*{id(t): t for t in tensors if t is not None}.values()]
        self._states = States(watched, [*self._functions, *self._cells, *modules])
        self._state = self._read_dicts()
        self._codes = [*map(_CODE, self._functions)]
        self._defaults = [*map(_DEFAULTS, self._optional)]
        self._held = [*map(_CELL, self._cells)]
        self._known = KnownTensors(self._tensors)

    def allows(self) -> bool:
        """Return whether a call can be prepared: all code is known, and evaluates."""
        named = [*map(_DICT, self._called)]
        return (
            all(map(is_ours, map(type, self._called)))
            and not any(d["training"] or "forward" in d for d in named)
            and not any(d.get("_compiled_call_impl") for d in map(_DICT, self._modules))
            and not any(self._hooks)
            and is_plain(self._tensors)
            and all(map(Tensor.is_contiguous, self._tensors))
            and self.holds()
        )

    def is_of(self, modules: Sequence[nn.Module]) -> bool:
        """Return whether these are its modules."""
        known: Sequence[nn.Module] = self._modules
        return len(modules) == len(known) and all(map(is_, modules, known))

    def watches(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether these are among the parameters and buffers of its modules."""
        return set(map(id, self._tensors)).issuperset(map(id, tensors))

    def accept_states(self, module: nn.Module) -> None:
        """Take note that a prepared call has just set the states that a module carries."""
        self._states.accept_one(self._modules.index(module))

    def holds(self) -> bool:
        """Return whether nothing that the prepared calls depend on has changed."""
        try:
            return (
                (self._states.hold() or self._objects_hold())
                and self._lists == self._copies
                and self._known.match(self._tensors)
                and torch.get_default_dtype() is self._dtype
            )
        except (KeyError, RuntimeError, TypeError, ValueError):
            return False  # what took the place of something cannot be compared with it

    def _objects_hold(self) -> bool:
        """Return whether all names and parts stand for the same objects, one by one."""
        states = self._states.read()
        keys, values, sizes = self._read_dicts()
        known = self._state
        if not (
            [*map(type, self._modules)] == self._classes
            and not any(self._empty)
            and all(map(is_, map(_DICT, self._modules), self._own))
            and all(map(is_, map(_CELL, self._cells), self._held))
            and sizes == known[2]
            and keys == known[0]
            and all(map(is_, values, known[1]))
            and all(map(Names.hold, self._names))
            and [*map(_CODE, self._functions)] == self._codes
            and [*map(_DEFAULTS, self._optional)] == self._defaults
        ):
            return False
        self._states.accept(states)
        return True

    def _read_dicts(self) -> tuple[list[Any], list[Any], list[int]]:
        dicts = [*map(_without_states, self._own), *self._inner]
        values = chain.from_iterable(map(dict.values, dicts))
        return [*chain.from_iterable(dicts)], [*values], [*map(len, dicts)]


def guard_calls(
    modules: Sequence[nn.Module],
    compute: Callable[[Observer], Prepared],
    caller: nn.Module | None = None,
) -> tuple[Prepared, Guard] | None:
    """Prepare calls of modules; return what was computed for them, and the guard of it.

    compute: runs the modules while the observer watches. caller: as for ``Guard``. None where
    nothing can be prepared, whatever the reason: the modules themselves show it.
    """
    observer = Observer()
    try:
        before = Guard(modules, {}, caller)
        if not before.allows():
            return None
        prepared, codes = compute(observer), observer.finish()
        if caller is not None:
            plain: Any = inspect.unwrap(cast(Any, type(caller)).forward)
            codes = {**codes, plain.__code__: plain.__globals__}
        guard = Guard(modules, codes, caller)
    except Exception:
        return None
    # Another thread may have changed the modules meanwhile.
    return (prepared, guard) if before.holds() and guard.allows() else None


def _without_states(named: dict[str, Any]) -> dict[str, Any]:
    if _CARRIED not in named:
        return named
    return {name: value for name, value in named.items() if name != _CARRIED}


def _find_classes(kinds: Iterable[type], names: Iterable[Names], codes: Codes) -> list[type]:
    """Return the classes of modules, of tensors, and those whose methods ran, with their bases."""
    values = chain.from_iterable(found.values for found in names)
    others = (v for v in values if isinstance(v, type) and _has_method(v, codes))
    bases = chain.from_iterable(kind.__mro__ for kind in (*kinds, Tensor, *others))
    return [kind for kind in dict.fromkeys(bases) if kind.__module__ not in _FIXED]


def _has_method(kind: type, codes: Codes) -> bool:
    return any(getattr(value, "__code__", None) in codes for value in vars(kind).values())


def _reach(
    modules: Iterable[nn.Module], classes: Iterable[type], names: Iterable[Names], codes: Codes
) -> Reached:
    """Find what modules hold, and the functions and tables that their code names."""
    reached = Reached(codes)
    for module in modules:
        options = [value for name, value in vars(module).items() if not name.startswith("_")]
        reached.visit(options, objects=True)
    named = [pair for found in names for pair in zip(found.names, found.values, strict=True)]
    for kind in classes:
        named += vars(kind).items()
    constants = [v for name, v in named if name.isupper() or not isinstance(v, _CONTAINERS)]
    reached.visit(constants, objects=False)
    return reached
