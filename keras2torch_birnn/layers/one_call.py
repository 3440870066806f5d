"""Fast path: run a whole small model as one recorded program of the native library.

Without gradients and in evaluation mode. The first call with new sizes records the program and runs
it, so that all calls with the same inputs give the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.limits import MAX_PROGRAMS_PER_MODEL
from keras2torch_birnn.rnn import engines
from keras2torch_birnn.rnn.guard import PATIENCE, Guard, guard_calls
from keras2torch_birnn.rnn.modules import Plan
from keras2torch_birnn.rnn.native.library import why_missing
from keras2torch_birnn.rnn.native.program import ARGUMENTS_AT_MOST, PreparedCalls, Program
from keras2torch_birnn.rnn.tensor_memory import has_global_hooks, is_plain
from keras2torch_birnn.torch_private import assume_so, find

# Of a program, about as many multiply-adds times the number of torch's threads, and floats of its
# workspace: for more, torch's kernels on all threads may take no longer.
SMALL_WORK, SMALL_FLOATS = 8_000_000, 1 << 20

_FLOAT = torch.empty((), dtype=torch.float32, device="cpu")
_make_like = partial(torch.empty_like, memory_format=torch.contiguous_format)
_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")
_TYPES = {Tensor, nn.Parameter}
_function_modes: Any = find("count_function_modes") or assume_so


class _Recorded(NamedTuple):
    """A program, the guard of its model, tensors like the outputs, and whether it has several."""

    program: Program
    guard: Guard
    like: Sequence[Tensor]
    several: bool


class OneCall(PreparedCalls):
    """The programs of a model, by the sizes of its inputs."""

    def __init__(self, graph: fx.Graph) -> None:
        """Make none yet. graph: what its outputs need."""
        self._graph = graph
        # False: it cannot be recorded.
        self._found: dict[Any, _Recorded | bool] = {}
        self._changes = 0

    def run(self, model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return the outputs; None if the model has to be called as torch calls it."""
        if named or not _TYPES.issuperset(map(type, inputs)):
            return None
        key = (*map(_SHAPE, inputs), *map(_DTYPE, inputs))
        found = self._found.get(key)
        if found is False or not self._can_run(inputs):
            return None
        if isinstance(found, _Recorded) and not (
            found.guard.caller is model and found.guard.holds()  # a shallow copy shares programs
        ):
            self._forget()
            found = None
        found = found or self._record_new_sizes(key, model, inputs)
        if not isinstance(found, _Recorded):
            return None
        outputs = [*map(_make_like, found.like)]
        dense = [*map(Tensor.contiguous, inputs)]
        if not found.program.run([*map(Tensor.data_ptr, dense), *map(Tensor.data_ptr, outputs)]):
            return None
        return tuple(outputs) if found.several else outputs[0]

    def _can_run(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether torch would compute the same with these inputs now."""
        return (
            engines.REQUESTED in ("auto", "native")
            and is_plain(inputs)
            and not (_function_modes() or has_global_hooks() or torch.is_autocast_enabled("cpu"))
            and all(map(_IS_CPU, inputs))
        )

    def _forget(self) -> None:
        """Drop the programs of a model that has changed; record no more if it does so often."""
        self._found.clear()
        self._changes += 1

    def _record_new_sizes(
        self, key: Any, model: nn.Module, inputs: Sequence[Tensor]
    ) -> _Recorded | bool:
        """Record a program for input sizes that are new; return False if there can be none."""
        if (
            len(self._found) >= MAX_PROGRAMS_PER_MODEL
            or self._changes > PATIENCE
            or sys.getprofile() is not None  # the code could not be observed
        ):
            return False
        self._found[key] = found = self._record(model, inputs)
        return found

    def _record(self, model: nn.Module, inputs: Sequence[Tensor]) -> _Recorded | bool:
        if why_missing() or not all(map(torch.numel, inputs)):
            return False
        from keras2torch_birnn.layers.recording import record  # most processes record nothing

        modules = [*model.modules()]
        if any(map(_carries_states, modules)):  # to record is to call them once more
            return False
        work = SMALL_WORK // torch.get_num_threads()
        recording = partial(record, model, self._graph, inputs, work, SMALL_FLOATS)
        prepared = guard_calls(modules, recording, model)
        if prepared is None:
            return False
        (writer, sizes, several), guard = prepared
        if writer.argument_count + len(writer.layers) >= ARGUMENTS_AT_MOST:
            return False
        return _Recorded(Program(writer), guard, [*map(_FLOAT.expand, sizes)], several)


def _carries_states(module: Any) -> bool:
    plan = getattr(module, "plan", None)
    return isinstance(plan, Plan) and plan.stateful


_IS_CPU = attrgetter("is_cpu")
