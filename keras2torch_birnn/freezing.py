"""``freeze``: a snapshot of a model to serve it, run as recorded programs of the native library.

A snapshot has weights of its own, so nothing that happens to the model later reaches it, and no
call asks whether something has changed. The first call with new sizes records a program; what
cannot be recorded is computed by the copied modules.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any, NoReturn, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import FrozenModelError, UsageError, check_module
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.recorded_values import NotRecordedError
from keras2torch_birnn.layers.recording import Program, Twin, UnknownStructureError, take_apart
from keras2torch_birnn.layers.running import find_float_dtype, move_inputs
from keras2torch_birnn.limits import MAX_PROGRAMS_PER_MODEL
from keras2torch_birnn.rnn.bidirectional_stack import BidirectionalStack
from keras2torch_birnn.rnn.modules import AnyRecurrent
from keras2torch_birnn.rnn.tensor_memory import is_plain

InputShape: TypeAlias = Sequence[int]
"""Shape of an input, with the batch."""

_PLAIN = frozenset((Tensor,))
_SHAPE, _DTYPE = attrgetter("shape"), attrgetter("dtype")
_IS_CPU, _WANTS_GRADIENT = attrgetter("is_cpu"), attrgetter("requires_grad")
ONE_CALL = "one call"
_AGAIN = "change, move or train the model itself, and freeze it again"


def freeze(
    model: nn.Module, shapes: Sequence[InputShape | Sequence[InputShape]] | None = None
) -> Frozen:
    """Return a snapshot of a model to serve it: called as the model, as fast as it gets.

    It has copies of all modules and weights: what is done to the model later does not reach it. It
    computes in evaluation mode and without gradients, and gives the numbers of the model. Several
    threads may call it. On the CPU and in float32 the first call with new sizes records a program
    of the native library, which later calls run; of 64 sets of sizes at most. Other calls run the
    copied modules; ``explain`` tells why.

    Args:
        model: A model of ``convert`` or ``load``, or a ``BiLSTM`` and its kin; other modules, too.
        shapes: Shapes of inputs to prepare for, with the batch; of a model with several inputs, for
            each call a sequence of their shapes in Keras' order.

    Returns:
        What to call in the model's place. It can be copied and pickled, and is no ``nn.Module``.

    Raises:
        UsageError: The model keeps states from call to call, or the shapes do not fit it or are for
            another module.

    Example:
        >>> fast = freeze(BiLSTM(5, 7, batch_first=True), [(1, 11, 5)])
        >>> output, state = fast(torch.randn(1, 11, 5))
    """
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, AnyRecurrent) and module.plan.stateful:
            raise UsageError(
                "a stateful layer keeps states from call to call, a frozen model none",
                "build it with stateful=False, return_state=True, and give the states it returns",
                place=name,
            )
    inputs = [_inputs(model, shape) for shape in shapes or ()]
    with torch.inference_mode(False):
        frozen = Frozen(copy.deepcopy(model).eval().requires_grad_(False))
    for given in inputs:
        frozen(*given)
    return frozen


class Frozen:
    """A frozen model: called as the model that it was made of."""

    def __init__(self, model: nn.Module) -> None:
        """Take a model that nothing else changes."""
        self._model = model
        self._twin: Twin | None = None
        self._device_types = {"cpu", *(t.device.type for t in model.parameters())}
        self._calls: dict[Any, Program | str] = {}  # or the reason why there is no program
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the modules; a copy records programs of its own."""
        return Frozen, (self._model,)

    def __call__(self, *inputs: object, **named: object) -> Any:
        """Compute the outputs of the model.

        Raises:
            UsageError: An input wants a gradient. All else that the model raises.
        """
        if torch.compiler.is_compiling():
            return self._call_modules(inputs, named)
        leaves: list[Tensor] = []
        if named or not _PLAIN.issuperset(map(type, inputs)):
            inputs, named = self._without_lengths(inputs, named)
            try:
                form = take_apart((inputs, named), leaves)
            except UnknownStructureError:
                return self._call_modules(inputs, named)
        else:
            leaves, form = cast(list[Tensor], list(inputs)), None
        if torch.is_grad_enabled() and any(map(_WANTS_GRADIENT, leaves)):
            raise UsageError(
                "a frozen model gives no gradients, and an input wants one",
                "call the model itself, or this one under torch.no_grad()",
            )
        key = (form, torch.get_num_threads(), *map(_SHAPE, leaves), *map(_DTYPE, leaves))
        found = self._calls.get(key)
        if type(found) is Program and all(map(_IS_CPU, leaves)) and is_plain(leaves):
            outputs = found.run(leaves)
            return self._call_modules(inputs, named) if outputs is None else outputs
        computed = self._call_modules(inputs, named)  # first: its errors are the model's own
        if found is None and len(self._calls) < MAX_PROGRAMS_PER_MODEL and is_plain(leaves):
            recorded = self._record(key, form, leaves)
            # The numbers of all calls to come.
            outputs = recorded.run(leaves) if isinstance(recorded, Program) else None
            return computed if outputs is None else outputs
        return computed

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what only a module has."""
        if hasattr(nn.Module, name) and not name.startswith("_"):
            raise FrozenModelError(f"a frozen model does not change: it has no {name!r}", _AGAIN)
        raise AttributeError(f"a frozen model has no attribute {name!r}")

    def __repr__(self) -> str:
        """Return the modules."""
        return f"Frozen({self._model!r})"

    def explain_calls(self) -> Mapping[str, str]:
        """Tell of each set of sizes so far: "one call", or why its modules are called."""
        return {
            _describe(key): ONE_CALL if isinstance(found, Program) else found
            for key, found in self._calls.items()
        }

    def _call_modules(self, inputs: Any, named: Mapping[str, Any]) -> Any:
        with torch.no_grad(), self._without_autocast():
            return self._model(*inputs, **named)

    @contextmanager
    def _without_autocast(self) -> Iterator[None]:
        """Compute in the precision of the weights, as a program does."""
        with ExitStack() as stack:
            for kind in filter(torch.is_autocast_enabled, self._device_types):
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield

    def _without_lengths(self, inputs: Any, named: Any) -> tuple[Any, Any]:
        """Give a stack a mask in place of lengths, whose values would be part of a program."""
        model, lengths = self._model, named.get("lengths")
        if lengths is None or named.get("mask") is not None or len(inputs) == 0:
            return inputs, named
        x = inputs[0]
        if not (isinstance(model, BidirectionalStack) and type(x) is Tensor and x.dim() in (2, 3)):
            return inputs, named
        return inputs, {**named, "lengths": None, "mask": model.mark_valid(lengths, x)}

    def _record(self, key: Any, form: Any, leaves: Sequence[Tensor]) -> Program | str:
        with self._lock:
            found = self._calls.get(key)
            if found is None:
                try:
                    if self._twin is None:
                        self._twin = Twin(self._model)
                    found = self._twin.record(form, leaves)
                except NotRecordedError as error:
                    found = str(error)
                self._calls[key] = found
            return found


def _describe(key: Any) -> str:
    """Return a key of the calls in words."""
    _, threads, *tensors = key
    half = len(tensors) // 2
    inputs = ", ".join(
        f"{str(dtype).removeprefix('torch.')} {list(shape)}"
        for shape, dtype in zip(tensors[:half], tensors[half:], strict=True)
    )
    return f"{inputs}; {threads} thread{'s' * (threads > 1)}"


def _inputs(model: nn.Module, shape: Any) -> tuple[Tensor, ...]:
    """Return inputs of these shapes: the golden ones of a converted model, repeated."""
    if isinstance(shape, int):
        raise UsageError("a list of shapes is expected, found sizes", "[(1, 11)] is a list of one")
    wanted = [shape] if all(isinstance(size, int) for size in shape) else list(shape)
    if any(size < 1 for sizes in wanted for size in sizes):
        raise UsageError(f"shape {list(shape)}: sizes of at least 1 are expected")
    if isinstance(model, BidirectionalStack):
        known: Sequence[Tensor] = [torch.zeros((), dtype=find_float_dtype(model))]
    else:
        try:
            known = origin(model).golden.inputs
        except UsageError:
            raise UsageError(
                "shapes are for models of k2t.convert and k2t.load, and BiLSTM and its kin",
                "call what freeze returns, with inputs of these sizes",
            ) from None
    if len(known) != len(wanted):
        raise UsageError(f"shapes of {len(known)} inputs are expected, found {len(wanted)}")
    inputs = tuple(
        torch.from_numpy(np.resize(x.numpy(), tuple(sizes)))
        for x, sizes in zip(known, wanted, strict=True)
    )
    return move_inputs(model, inputs)
