"""A small model's whole ``forward`` as one call of the native library, where that is the same.

Without gradients and in evaluation mode. The first call with new sizes records the program and runs
it, so that all calls with the same inputs give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.layers.recording import is_ours, record
from keras2torch_birnn.limits import MAX_PROGRAMS_PER_MODEL
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.native.library import why_missing
from keras2torch_birnn.rnn.native.program import GIVEN, Program, run_program
from keras2torch_birnn.rnn.tensor_memory import has_global_hooks, is_plain

# Of a program, about as many multiply-adds times the number of torch's threads, and floats of its
# workspace: for more, torch's kernels on all threads may take no longer.
SMALL_WORK, SMALL_FLOATS = 8_000_000, 1 << 20
# So often a model may change after a recording, which takes as long as many calls.
_PATIENCE = 16

_FLOAT = torch.empty((), dtype=torch.float32, device="cpu")
_make_like = partial(torch.empty_like, memory_format=torch.contiguous_format)
_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")
_TYPES = {Tensor, nn.Parameter}
_CONTENTS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_function_modes: Any = cast(Any, torch._C)._len_torch_function_stack


def _is_option(name: str) -> bool:
    """Return whether an attribute is not one of those that all modules have."""
    return not name.startswith("_")


class _Guard:
    """The state in which a model was recorded, compared before every call.

    Attributes of all modules, by identity, and where the weights are; their values are read anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, modules = model, list(model.modules())
        named: Any = [m.__dict__ for m in modules]
        self._named = named
        self._get = [itemgetter("training", *filter(_is_option, d)) for d in named]
        self._options, self._counts = self._get_options(), [*map(len, named)]
        self._dicts = [d[kind] for d in named for kind in _CONTENTS if d[kind]]
        self._values = [*chain.from_iterable(map(dict.values, self._dicts))]
        self._modules, self._classes = modules, [*map(type, modules)]
        self._hooks = [d[kind] for d in named[1:] for kind in _HOOKS]
        tensors = (*model.parameters(), *model.buffers())
        self._tensors = [t for t in tensors if t.dtype is torch.float32]
        self._addresses = [*map(Tensor.data_ptr, self._tensors)]
        self._counts_of_numbers = [*map(Tensor.numel, self._tensors)]

    def allows(self) -> bool:
        """Return whether a model can be recorded: all its code is known, and evaluates."""
        named = self._named
        return (
            all(map(is_ours, self._classes[1:]))
            and not any(d["training"] or "forward" in d for d in named)
            and not any(d.get("_compiled_call_impl") for d in named)
            and is_plain(self._tensors)
            and self.holds(self._model)
        )

    def _get_options(self) -> list[Any]:
        return [get(named) for get, named in zip(self._get, self._named, strict=True)]

    def holds(self, model: nn.Module) -> bool:
        """Return whether this is the model, as it was."""
        try:
            if (
                model is not self._model
                or self._get_options() != self._options
                or [*chain.from_iterable(map(dict.values, self._dicts))] != self._values
            ):
                return False
        except (RuntimeError, TypeError, ValueError):  # others that cannot be compared
            return False
        tensors = self._tensors
        return (
            [*map(len, self._named)] == self._counts
            and not any(self._hooks)
            and [*map(type, self._modules)] == self._classes
            and [*map(Tensor.data_ptr, tensors)] == self._addresses
            and [*map(Tensor.numel, tensors)] == self._counts_of_numbers
            and all(map(Tensor.is_contiguous, tensors))
            and _TYPES.issuperset(map(type, tensors))
        )


class _Recorded(NamedTuple):
    """A program, the guard of its model, tensors like the outputs, and whether it has several."""

    program: Program
    guard: _Guard
    like: Sequence[Tensor]
    several: bool


class OneCall:
    """The programs of a model, by the sizes of its inputs. A copy or a pickle of it is None."""

    def __init__(self, graph: fx.Graph) -> None:
        """Make none yet. graph: what its outputs need."""
        self._graph = graph
        # False: it cannot be recorded.
        self._found: dict[Any, _Recorded | bool] = {}
        self._changes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as None: what holds it makes its own."""
        return type(None), ()

    def run(self, model: nn.Module, given: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return the outputs; None if the model has to be called as torch calls it."""
        if named or not _TYPES.issuperset(map(type, given)):
            return None
        key = (*map(_SHAPE, given), *map(_DTYPE, given))
        found = self._found.get(key)
        if found is False or not self._can_run(given):
            return None
        if isinstance(found, _Recorded) and not found.guard.holds(model):
            self._forget()
            found = None
        found = found or self._meet(key, model, given)
        if not isinstance(found, _Recorded):
            return None
        outputs = [*map(_make_like, found.like)]
        inputs = [*map(Tensor.contiguous, given)]
        program, computed = run_program(
            found.program, [*map(Tensor.data_ptr, inputs), *map(Tensor.data_ptr, outputs)]
        )
        if program is not found.program:
            self._found[key] = found._replace(program=program)
        if not computed:
            return None
        return tuple(outputs) if found.several else outputs[0]

    def _can_run(self, given: Sequence[Tensor]) -> bool:
        """Return whether torch would compute the same with these inputs now."""
        return (
            engines.REQUESTED in ("auto", "native")
            and is_plain(given)
            and not (_function_modes() or has_global_hooks() or torch.is_autocast_enabled("cpu"))
            and all(map(_IS_CPU, given))
        )

    def _forget(self) -> None:
        """Drop the programs of a model that has changed; record no more if it does so often."""
        self._found.clear()
        self._changes += 1

    def _meet(self, key: Any, model: nn.Module, given: Sequence[Tensor]) -> _Recorded | bool:
        """Record sizes that are new."""
        if len(self._found) >= MAX_PROGRAMS_PER_MODEL or self._changes > _PATIENCE:
            return False
        self._found[key] = found = self._record(model, given)
        return found

    def _record(self, model: nn.Module, given: Sequence[Tensor]) -> _Recorded | bool:
        guard = _Guard(model)
        if why_missing() or not guard.allows() or not all(map(torch.numel, given)):
            return False
        try:
            work = SMALL_WORK // torch.get_num_threads()
            writer, sizes, several = record(model, self._graph, given, work, SMALL_FLOATS)
        except Exception:  # whatever it is, the model itself shows it
            return False
        if len(given) + len(sizes) >= GIVEN:
            return False
        return _Recorded(Program(writer), guard, [*map(_FLOAT.expand, sizes)], several)


_IS_CPU = attrgetter("is_cpu")
