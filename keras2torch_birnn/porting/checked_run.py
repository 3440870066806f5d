"""One run of a port, and the reference on the same inputs: what of it the port computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any

import numpy as np

from keras2torch_birnn.porting.call_graph import path_of
from keras2torch_birnn.porting.layer_call import Key, LayerCall, Weights, all_equations
from keras2torch_birnn.porting.observing import PortRun, keep_valid, with_marked_nan
from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec, Structure, leaves


@dataclass(frozen=True)
class Traced:
    """A run of the reference: its trace, and every call with what it gave, inner ones first."""

    trace: Trace
    calls: Mapping[Key, LayerCall]
    results: Mapping[Key, Result]


@dataclass
class CheckedRun:
    """One run of a port, and the reference on the same inputs.

    ``calls``: how often the port was called with them, the last of which counts. ``weights``: the
    port's own of some layers.
    """

    spec: ModelSpec
    name: str
    inputs: Sequence[Array]
    run: PortRun
    calls: int = 1
    weights: Mapping[Key, Weights] = field(default_factory=dict)

    def record(
        self, forced: Mapping[Key, Result], weights: Mapping[Key, Weights] | None = None
    ) -> Traced:
        """Run the reference with the results that are known of some calls (path, class)."""
        own = self.weights if weights is None else weights
        calls: dict[Key, LayerCall] = {}
        results: dict[Key, Result] = {}

        def noted(
            equation: Equation, layer: LayerSpec, x: Structure, mask: Structure, context: Context
        ) -> Result:
            layer = _with_weights(layer, context.place, own)
            key = context.path, layer.class_name
            carried = (context.states or {}).get(context.place)
            result = forced.get(key) or equation(layer, x, mask, context)
            aside = context.aside().with_fields(equations=all_equations())
            if carried is not None and aside.initial_state is None:
                aside = aside.starting(carried)
            calls[key] = LayerCall(equation, layer, x, mask, aside)
            results[key] = result
            return result

        equations = {name: partial(noted, one) for name, one in all_equations().items()}
        states: dict[str, tuple[Array, ...]] | None = {} if self.calls > 1 else None
        for _ in range(self.calls):
            trace = compute(self.spec, self.inputs, states=states, equations=equations)
        return Traced(trace, calls, results)

    @cached_property
    def exact(self) -> Traced:
        """Keras' own results, with the weights of the file."""
        return self.record({}, {})

    def valid(self, key: Key) -> Array | None:
        """Return the steps (B, T) that count in a call's output, by Keras' own masks."""
        return _steps_of(self.exact.results[key][1]) if key in self.exact.results else None

    def output_masks(self) -> list[Array | None]:
        """Return for each of the model's outputs the steps (B, T) that count; None: all."""
        return [_steps_of(self.exact.trace.masks[path]) for path in self.output_paths()]

    def is_right(self) -> bool:
        """Tell whether the port's outputs are Keras'."""
        return self.are_same(self.run.outputs, self.exact.trace.outputs)

    def are_same(self, there: Sequence[Array], right: Sequence[Array]) -> bool:
        """Tell whether outputs are those of a run of the reference, at steps that count."""
        trios = zip(there, right, self.output_masks(), strict=False)
        return len(there) >= len(right) and all(
            same(one, other, mask, self.run.tolerance) for one, other, mask in trios
        )

    def has(self, key: Key, output: Structure, *, in_place: bool = True) -> bool:
        """Tell whether the port computed a call's output, whole or by single steps.

        in_place: also in another order of the rows, or by rows.
        """
        values = np.asarray(next(leaves(output)), np.float64)
        digest = key, in_place, values.shape, blake2b(values.tobytes()).digest()
        if digest not in self._known:
            self._known[digest] = self._has(key, values, in_place=in_place)
        return self._known[digest]

    @cached_property
    def _known(self) -> dict[Any, bool]:
        return {}

    def _has(self, key: Key, values: Array, *, in_place: bool) -> bool:
        if not in_place and np.ptp(values) == 0:
            return False  # zeros, which a port has for many reasons, are no evidence
        valid = self.valid(key)
        turned = key[0].endswith("/backward_layer") and values.ndim == 3
        own = valid[:, ::-1] if turned and valid is not None else valid
        if self.run.has(values, own) or (turned and self.run.has(values[:, ::-1], valid)):
            return True
        if self._has_steps(values, own):
            return True
        return in_place and self._has_pieces(values, own)

    def _has_steps(self, values: Array, valid: Array | None) -> bool:
        """Tell whether the port computed each step of values (B, T, F) that counts."""
        if values.ndim != 3:
            return False
        counts = _counts(values, valid)
        return all(
            self.run.has(values[:, t : t + 1], counts[:, t : t + 1])
            for t in np.flatnonzero(counts.any(axis=0))
        )

    def _has_pieces(self, values: Array, valid: Array | None) -> bool:
        for order in self._row_orders:
            if len(order) == len(values):
                if self.run.has(values[order], None if valid is None else valid[order]):
                    return True
        return values.ndim > 1 and all(
            self.run.has(row[steps]) or self.run.has(row[np.newaxis], steps[np.newaxis])
            for row, steps in zip(values, _counts(values, valid), strict=True)
            if steps.any()
        )

    @cached_property
    def _row_orders(self) -> list[Array]:
        """Orders of the rows by their lengths, in which the port sorted them for packing."""
        masks = [next(iter(leaves(one)), None) for one in self.exact.trace.masks.values()]
        found: dict[tuple[int, ...], Array] = {}
        for mask in masks:
            if isinstance(mask, np.ndarray) and mask.ndim == 2:
                lengths = mask.sum(axis=1)
                for order in (np.argsort(-lengths, kind="stable"), np.argsort(lengths)):
                    if any(np.any(x[order] != x) and self.run.has(x[order]) for x in self.inputs):
                        found[tuple(order)] = order
        return list(found.values())

    def as_padded(self, key: Key, result: Result) -> Result:
        """Return a call's result with the port's own values where a mask leaves steps out."""
        valid = self.valid(key)
        values = np.asarray(next(leaves(result[0])), np.float64)
        if valid is None or valid.all() or values.shape[:2] != valid.shape:
            return result
        there = self.run.latest(values, valid)
        if there is None:
            return result
        output = result[0]
        return (there, *output[1:]) if isinstance(output, tuple) else there, result[1]

    def output_paths(self) -> Iterator[str]:
        """Yield the paths of the calls that give the model's outputs."""
        yield from (path_of(ref) for ref in leaves(self.spec.graph.outputs))


def _with_weights(layer: LayerSpec, place: str, own: Mapping[Key, Weights]) -> LayerSpec:
    """Return a layer with other weights, in its halves or in the layer that it wraps, too."""
    if not own:
        return layer
    parts = {}
    for name, part in layer.parts.items():
        inner = f"{place}/{name}" if layer.class_name == "Bidirectional" else place
        parts[name] = _with_weights(part, inner, own)
    weights = {**layer.weights, **own.get((place, layer.class_name), {})}
    return replace(layer, parts=parts, weights=weights)


def _steps_of(mask: Structure) -> Array | None:
    first = next(iter(leaves(mask)), None)
    return first.astype(bool) if isinstance(first, np.ndarray) and first.ndim == 2 else None


def _counts(values: Array, valid: Array | None) -> Array:
    """Return what counts of the first two axes of values."""
    fits = valid is not None and valid.shape == values.shape[:2]
    return valid if valid is not None and fits else np.ones(values.shape[:2], bool)


def same(there: Array, right: Array, mask: Array | None, tolerance: float) -> bool:
    """Compare an output with the right one, without axes of size 1, where the mask counts."""
    there, right = with_marked_nan(there), with_marked_nan(right)
    if [n for n in there.shape if n > 1] != [n for n in right.shape if n > 1]:
        return False
    there = there.reshape(right.shape)
    there, right = keep_valid(there, mask), keep_valid(right, mask)
    limit = tolerance * (1 + float(np.abs(right).max(initial=0.0)))
    return bool(np.isfinite(limit)) and bool(np.abs(there - right).max(initial=0.0) <= limit)
