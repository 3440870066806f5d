"""Consecutive layers in one call of the native kernel, prepared once for many calls. No gradient.

B batch, T time, F features, H units, D directions.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from keras2torch_birnn.rnn.call import State
from keras2torch_birnn.rnn.native.codes import STALE, ReducedPrecision, merge_code
from keras2torch_birnn.rnn.native.library import (
    STACK,
    STACK_LAYER,
    STACK_STATES,
    NativeCell,
    check_code,
    instruction_set,
    library,
)
from keras2torch_birnn.rnn.native.op import can_run, to_int64, use_torch_threads
from keras2torch_birnn.rnn.native.packing import Packed, cached_pack, weight_sizes
from keras2torch_birnn.rnn.native.precision import reduced_kernel
from keras2torch_birnn.rnn.native.reused_memory import empty_reused
from keras2torch_birnn.rnn.tensor_memory import is_plain


class StackLayer(NamedTuple):
    """One layer of a stack.

    parameters: four for each direction. merge: a key of ``MERGE_MODES``, None to keep the
    directions apart. from_end: it reads its input from the last step on.
    """

    cell: NativeCell
    parameters: Sequence[Tensor | None]
    merge: str | None = None
    from_end: bool = False


# Addresses of memory (D, B, H) for a layer's final states: h, and an LSTM's c.
FinalStates: TypeAlias = Sequence[int]


class _Described(NamedTuple):
    """Two arrays of ``K2tStackLayer``: weights are compared by the kernel or not; their memory."""

    compared: Any
    unchecked: Any
    packed: tuple[Packed, ...]


class PreparedStack:
    """Packed weights and options of consecutive layers. A copy of what holds it prepares its own.

    features, units, directions: F of the first layer, H and D of each. precision: None for float32.
    alive: whether the memory of the weights has not been freed.
    """

    def __init__(
        self,
        layers: Sequence[StackLayer],
        fetched: Sequence[Tensor],
        precision: ReducedPrecision | None,
    ) -> None:
        self.precision = precision
        self.features = weight_sizes(layers[0].parameters)[0]
        self.units = tuple(weight_sizes(one.parameters)[1] for one in layers)
        self.directions = tuple(len(one.parameters) // 4 for one in layers)
        self._addresses = list(map(Tensor.data_ptr, fetched))
        self._shapes = list(map(_SHAPE, fetched))
        self._described: dict[str | None, _Described] = {}
        # Memory that is freed may come back with other contents at the same address.
        self.alive = True
        mine = weakref.ref(self)
        self._watches = [weakref.ref(p.untyped_storage(), lambda _: _forget(mine)) for p in fetched]
        self._isa = instruction_set() if precision is None else reduced_kernel(precision).bit
        self._packed = self._pack(layers, stale=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as None."""
        return type(None), ()

    def forget(self) -> None:
        """Drop the weights."""
        self.alive, self._packed = False, ()
        self._described.clear()

    def holds(self, fetched: Sequence[Tensor], precision: ReducedPrecision | None) -> bool:
        """Return whether the weights of these parameters are held, in the order of the first time.

        In this precision. The kernel compares the values.
        """
        return (
            self.alive
            and precision == self.precision
            and _TYPES.issuperset(map(type, fetched))
            and list(map(Tensor.data_ptr, fetched)) == self._addresses
            and list(map(_SHAPE, fetched)) == self._shapes
            and all(map(Tensor.is_contiguous, fetched))
            and _FLOAT32.issuperset(map(_DTYPE, fetched))
            and not any(map(Tensor.is_neg, fetched))
        )

    def run(
        self,
        layers: Callable[[], Sequence[StackLayer]],
        x: Tensor,
        lengths: Tensor | None,
        merge: str | None,
        initial: Sequence[Sequence[State]] | None = None,
        final: Sequence[FinalStates] | None = None,
        *,
        sequences: bool = True,
    ) -> tuple[Tensor, ...]:
        """Return the last layer's outputs, merged or one for each direction, (B, T, H).

        layers: those that were prepared, asked for where their values have changed. x: (B, T, F).
        lengths: (B,), the number of valid steps of each row; None where a layer reads from the end.
        merge: of the last layer. initial: for each layer the states of each direction. final: the
        memory for each layer's final states. sequences: if False, only these are computed.

        Raises:
            MemoryError: no scratch memory. ValueError: a length does not fit.
        """
        batch, time, _ = x.shape
        directions, merged = self.directions[-1], merge_code(merge)
        width = self.units[-1] * (1 if merged else directions)
        out = empty_reused(batch, time, width) if sequences else None
        states, alive = self._states(initial, final)  # alive: until the kernel has run
        self._execute(layers, x, lengths, merge, states, 0 if out is None else out.data_ptr())
        del alive
        if out is None:
            return ()
        return (out,) if merge or directions == 1 else tuple(out.chunk(directions, dim=2))

    def run_to_last_step(
        self, layers: Callable[[], Sequence[StackLayer]], x: Tensor, lengths: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the last layer's h of each direction, (B, H), after the last step that it reads.

        layers, x, lengths: as in ``run``. States are zero at first.

        Raises:
            MemoryError: no scratch memory. ValueError: a length does not fit.
        """
        rows, units, directions = x.shape[0], self.units[-1], self.directions[-1]
        ends = x.new_empty((rows, units) if directions == 1 else (directions, rows, units))
        of_last = STACK_STATES.pack(*_NONE, ends.data_ptr(), 0)
        others = bytes((len(self.units) - 1) * STACK_STATES.size)
        self._execute(layers, x, lengths, None, others + of_last, 0)
        return (ends,) if directions == 1 else ends.unbind(0)

    def _execute(
        self,
        layers: Callable[[], Sequence[StackLayer]],
        x: Tensor,
        lengths: Tensor | None,
        merge: str | None,
        states: bytes,
        out: int,
    ) -> None:
        """Call the kernel. states: ``K2tStackStates``, or none; out: an address, or 0."""
        if x.stride(2) != 1:
            x = x.contiguous()
        if lengths is not None:
            lengths = to_int64(lengths)
        batch, time, _ = x.shape
        batch_stride, time_stride, _ = x.stride()
        call = (
            *(len(self.units), batch, time, torch.get_num_threads()),
            *(x.data_ptr(), batch_stride, time_stride),
            *(0 if lengths is None else lengths.data_ptr(), bool(states), out),
        )
        use_torch_threads()
        found = self._described.get(merge) or self._describe(layers(), merge)
        at = ctypes.addressof(found.compared)
        code = library().k2t_run_stack(self._isa, STACK.pack(at, *call) + states)
        if code == STALE:
            self._described.clear()
            self._packed = self._pack(layers(), stale=True)
            # Not compared again: another thread may change them all the time.
            found = self._describe(layers(), merge)
            at = ctypes.addressof(found.unchecked)
            code = library().k2t_run_stack(self._isa, STACK.pack(at, *call) + states)
        check_code(code)

    def _pack(self, layers: Sequence[StackLayer], *, stale: bool) -> tuple[Packed, ...]:
        return tuple(
            cached_pack(one.cell.kind, one.parameters, self._isa, stale=stale) for one in layers
        )

    def _describe(self, layers: Sequence[StackLayer], merge: str | None) -> _Described:
        """Describe the layers to the kernel. merge: of the last one."""
        packed = self._packed or self._pack(layers, stale=False)
        merges = (*(one.merge for one in layers[:-1]), merge)

        def array(addresses: Iterable[int]) -> Any:
            fields = b"".join(
                STACK_LAYER.pack(
                    address,
                    *one.cell.codes[1:],
                    *one.cell.options,
                    merge_code(mode),
                    one.from_end,
                )
                for address, one, mode in zip(addresses, layers, merges, strict=True)
            )
            return ctypes.create_string_buffer(fields, len(fields))

        found = _Described(
            array(p.address for p in packed), array(p.unchecked for p in packed), packed
        )
        if self.alive:
            self._described[merge] = found
        return found

    def _states(
        self, initial: Sequence[Sequence[State]] | None, final: Sequence[FinalStates] | None
    ) -> tuple[bytes, list[Tensor]]:
        """Return the ``K2tStackStates`` of all layers, if there are any; and what they point to."""
        alive: list[Tensor] = []
        if initial is None:
            packed = [] if final is None else [STACK_STATES.pack(*_NONE, *_two(f)) for f in final]
            return b"".join(packed), alive
        packed = []
        for layer, before in enumerate(initial):
            starts: list[int] = []
            for which in range(2):
                found = [state[which].contiguous() for state in before if which < len(state)]
                alive += found
                starts += _two(map(Tensor.data_ptr, found))
            ends = _two(() if final is None else final[layer])
            packed.append(STACK_STATES.pack(*starts, *ends))
        return b"".join(packed), alive


def can_read(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Return whether the kernel can read an input (B, T, F), not empty, and other tensors."""
    return (
        type(x) is Tensor
        and x.dim() == 3
        and 0 not in x.shape
        and _FLOAT32.issuperset(map(_DTYPE, (x, *others)))
        and all(map(_IS_CPU, (x, *others)))
        and is_plain((x, *others))
    )


def prepare(
    layers: Sequence[StackLayer],
    fetched: Sequence[Tensor],
    precision: ReducedPrecision | None = None,
) -> PreparedStack | None:
    """Prepare layers; None if the kernel cannot read their parameters, or they do not fit together.

    fetched: their parameters in the order in which ``PreparedStack.holds`` gets them. precision: a
    reduced one that the kernel has for all of them, None for float32.
    """
    if not can_run(fetched) or not all(map(Tensor.is_contiguous, fetched)):
        return None
    width = None
    for one in layers:
        features, units = weight_sizes(one.parameters)
        if width not in (None, features):
            return None
        width = units * (1 if merge_code(one.merge) else len(one.parameters) // 4)
    return PreparedStack(layers, fetched, precision)


class Fetch:
    """Access to the tensors of these names in a module, faster than by attribute.

    Parametrizations compute a tensor anew and are not for this.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        own, buffers = _tensors_of(module)
        wanted = set(names)
        self._own = _getter([name for name in own if name in wanted])
        self._buffers = _getter([name for name in buffers if name in wanted])
        self._absent = wanted.difference(own, buffers)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as None."""
        return type(None), ()

    def __call__(self, module: nn.Module) -> tuple[Tensor, ...] | None:
        """Return the tensors in a fixed order; None if the module has others than at first."""
        own, buffers = _tensors_of(module)
        absent = self._absent
        if absent and not all(map(absent.isdisjoint, (own, buffers, module.__dict__))):
            return None
        try:
            found: tuple[Tensor, ...] = self._own(own) + self._buffers(buffers)
        except KeyError:
            return None
        return found


def _tensors_of(module: nn.Module) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    own: Any = module._parameters  # nn.Module's attribute access is slow
    buffers: Any = module._buffers
    return own, buffers


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """Return a function that gets the values of these keys."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda found: tuple(found[name] for name in names)


_DTYPE, _SHAPE, _IS_CPU = attrgetter("dtype"), attrgetter("shape"), attrgetter("is_cpu")
_NONE = (0, 0, 0, 0)
_FLOAT32, _TYPES = {torch.float32}, {Tensor, nn.Parameter}


def _forget(reference: weakref.ref[PreparedStack]) -> None:
    found = reference()
    if found is not None:
        found.forget()


def _two(addresses: Iterable[int]) -> list[int]:
    """Return two addresses, 0 in place of missing ones."""
    return [*addresses, 0, 0][:2]
