"""Check every layer alone, in float64: same input as the reference, outputs compared.

The converted model's code runs node by node. Each layer's output is compared and then replaced by
the reference's, so that one wrong layer does not affect the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.comparison.outputs import FAILURES
from keras2torch_birnn.comparison.report import LayerParity
from keras2torch_birnn.comparison.tolerance import (
    EXACT,
    all_close,
    describe_index,
    find_worst,
    max_errors,
)
from keras2torch_birnn.errors import UsageError, printable
from keras2torch_birnn.golden import copy_in_float64
from keras2torch_birnn.layers.recurrent import TimeDistributed, fold_steps
from keras2torch_birnn.layers.running import flat, forget_states
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.reference.context import Scan
from keras2torch_birnn.rnn.modules import AnyRecurrent
from keras2torch_birnn.spec import (
    Array,
    Generation,
    LayerSpec,
    ModelSpec,
    Structure,
    leaves,
    map_structure,
)
from keras2torch_birnn.verification.error_maps import map_sequence
from keras2torch_birnn.verification.recurrent_check import RecurrentCall, recurrent_parity


def check_layers(
    model: nn.Module,
    spec: ModelSpec,
    trace: Trace,
    inputs: Sequence[Array],
) -> tuple[LayerParity, ...]:
    """Judge every layer of a converted model; ``trace`` holds the reference's run with its scans.

    Raises:
        UsageError: the model was not made by k2t.
    """
    copy = copy_in_float64(model)
    if not isinstance(copy, fx.GraphModule):
        raise UsageError("this model was not made by k2t")
    forget_states(copy)
    checker = _Checker(copy, spec, trace)
    begin("comparing", len(trace.layers), "layers")
    given = [torch.from_numpy(np.asarray(x)) for x in inputs]
    try:
        with torch.no_grad():
            checker.run(*[x.double() if x.is_floating_point() else x for x in given])
    except FAILURES as failure:
        checker.found[_BETWEEN] = _failed(_BETWEEN, failure)
    return tuple(checker.found.values())


_BETWEEN = "between the layers"


def keep_worse(
    first: Sequence[LayerParity], second: Sequence[LayerParity]
) -> tuple[LayerParity, ...]:
    """Keep the worse of two results of each layer."""
    others = {one.path: one for one in second}
    pairs = [(one, others.pop(one.path, one)) for one in first]
    return (*(max(pair, key=_badness) for pair in pairs), *others.values())


def _badness(parity: LayerParity) -> tuple[bool, float]:
    return not parity.ok, parity.max_abs_error


@dataclass(frozen=True)
class _Place:
    """A node's Keras call, and the number of time axes that are folded into its batch."""

    path: str
    folds: int

    def arrays(self, structure: Structure) -> list[Array]:
        """Return the reference's arrays of this call, in the shape that the node sees."""
        return [self.folded(np.asarray(leaf)) for leaf in leaves(structure)]

    def folded(self, array: Array) -> Array:
        """Fold (B, T, ...) to (B T, ...), once for each TimeDistributed around the layer."""
        axes = self.folds + 1
        if array.ndim < axes:
            return array
        return array.reshape(int(np.prod(array.shape[:axes])), *array.shape[axes:])


class _Checker(fx.Interpreter):
    """Interpreter that judges every Keras layer's output and continues with the reference's."""

    def __init__(self, module: fx.GraphModule, spec: ModelSpec, trace: Trace) -> None:
        super().__init__(module)
        self.found: dict[str, LayerParity] = {}
        self.meta: Mapping[str, Any] = module.meta
        self.layers = dict(calls_of(spec.root, ""))
        self.generation: Generation = spec.generation
        self.trace = trace

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; judge and replace the outputs and masks of Keras layers."""
        folds = self.meta["folded"].get(n.name, 0)
        if (path := self.meta["paths"].get(n.name)) is not None and path in self.trace.layers:
            return self._value(n, _Place(path, folds))
        if (path := self.meta["mask_paths"].get(n.name)) is not None:
            return self._mask(n, _Place(path, folds))
        return super().run_node(n)

    def _value(self, n: fx.Node, place: _Place) -> Any:
        structure = self.trace.layers[place.path]
        expected = place.arrays(structure)
        advance(1)
        try:
            result = super().run_node(n)
            actual = [tensor.numpy() for tensor in flat(result)]
        except FAILURES as failure:
            self.found[place.path] = _failed(place.path, failure)
            return _to_tensors(place, structure, None)
        if place.folds and [a.shape for a in actual] != [b.shape for b in expected]:
            return result  # the reference has no value for each step; the outer layer is judged
        self.found[place.path] = self._judged(n, place, result, actual, expected)
        return _to_tensors(place, structure, result)

    def _judged(
        self, n: fx.Node, place: _Place, result: Any, actual: list[Array], expected: list[Array]
    ) -> LayerParity:
        whole = parity(place.path, actual, expected)
        called = self._recurrent_call(n, place)
        if called is None:
            return whole
        try:
            found = recurrent_parity(called, whole)
        except FAILURES as failure:
            return _failed(place.path, failure)
        if found.ok:
            return replace(found, maps=())
        with suppress(*FAILURES):  # a picture that cannot be drawn is no wrong layer
            maps = tuple(map_sequence(called, actual, expected))
            return replace(found, maps=(*maps, *found.maps))
        return found

    def _recurrent_call(self, n: fx.Node, place: _Place) -> RecurrentCall | None:
        """Return the call of a recurrent layer, also inside TimeDistributed, or None."""
        layer = self.layers.get(place.path)
        if n.op != "call_module" or layer is None:
            return None
        module: Any = self.fetch_attr(str(n.target))
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        x, mask, path = args[0], kwargs.get("mask"), place.path
        if not isinstance(x, Tensor):
            return None
        while layer.class_name == "TimeDistributed" and isinstance(module, TimeDistributed):
            layer, module = layer.parts["layer"], module.layer
            x, mask = fold_steps(x), None if mask is None else fold_steps(mask)
            path, place = f"{path}/{layer.name}", replace(place, folds=place.folds + 1)
        scans = self._scans(layer, path, place)
        if not scans or not isinstance(module, AnyRecurrent):
            return None
        start = kwargs.get("initial_state")
        return RecurrentCall(place.path, module, layer, scans, x, mask, start, self.generation)

    def _scans(self, layer: LayerSpec, path: str, place: _Place) -> tuple[Scan, ...]:
        ends = ("/forward_layer", "/backward_layer") if "forward_layer" in layer.parts else ("",)
        found = [self.trace.scans.get(f"{path}{end}") for end in ends]
        return tuple(
            Scan(*map_structure(lambda a: None if a is None else place.folded(a), tuple(scan)))
            for scan in found
            if scan is not None
        )

    def _mask(self, n: fx.Node, place: _Place) -> Any:
        result = super().run_node(n)
        expected = self.trace.masks.get(place.path)
        if not isinstance(result, Tensor) or not isinstance(expected, np.ndarray):
            return result
        flags = place.folded(expected.astype(bool))
        if result.shape != flags.shape or flags.ndim != 2:
            return result
        before = self.found.get(place.path)
        apart = np.argwhere(result.bool().numpy() != flags)
        if len(apart) and before is not None and before.ok:
            worst = tuple(map(int, apart[0]))
            where = f"its mask, row {worst[0]}, step {worst[1]}"
            self.found[place.path] = replace(
                before, ok=False, max_abs_error=1.0, worst_index=worst, where=where
            )
        return torch.from_numpy(flags).to(result.dtype)


def parity(path: str, actual: Sequence[Array], expected: Sequence[Array]) -> LayerParity:
    """Compare a layer's outputs with the reference's."""
    absolute, relative = max_errors(actual, expected)
    ok = all_close(actual, expected, [0.0] * len(expected), EXACT)
    number, worst = find_worst(actual, expected)
    prefix = f"output {number}, " if len(expected) > 1 else ""
    where = "" if ok else f"{prefix}{describe_index(worst)}" if worst else "another shape"
    return LayerParity(path, absolute, relative, worst, ok, where)


def _failed(path: str, failure: Exception) -> LayerParity:
    lines = f"{type(failure).__name__}: {failure}".splitlines()
    where = f"cannot be computed ({printable(lines[0])})"
    return LayerParity(path, float("inf"), float("inf"), (), False, where, "not computed")


def _to_tensors(place: _Place, structure: Structure, like: Any) -> Any:
    """Return the reference's output in the form of the node's: a tensor or a tuple of tensors."""
    given = repeat(None) if like is None else flat(like)
    tensors = [_to_tensor(a, b) for a, b in zip(place.arrays(structure), given, strict=False)]
    single = isinstance(like, Tensor) or (like is None and len(tensors) == 1)
    return tensors[0] if single else tuple(tensors)


def _to_tensor(array: Array, like: Tensor | None) -> Tensor:
    """Convert to a tensor: floats to float64, integers and bools to the dtype of ``like``."""
    tensor = torch.from_numpy(np.asarray(array, order="C"))
    if like is None or like.is_floating_point():
        return tensor.double() if tensor.is_floating_point() or like is not None else tensor
    return tensor.to(like.dtype)


def calls_of(layer: LayerSpec, path: str) -> Iterator[tuple[str, LayerSpec]]:
    """Yield every call in a model by its path, with the layer that is called."""
    inner = layer
    while inner.class_name == "TimeDistributed":
        inner = inner.parts["layer"]
        path = f"{path}{inner.name}/"
    for call in inner.graph.calls if inner.graph else ():
        called = inner.graph.layer(call.layer) if inner.graph else inner
        where = f"{path}{call.layer}" + (f"#{call.index}" if call.index else "")
        yield where, called
        yield from calls_of(called, f"{where}/")
