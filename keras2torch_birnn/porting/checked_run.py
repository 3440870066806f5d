"""One run of a port, and the reference on the same inputs: what of it the port computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from hashlib import blake2b
from typing import Any

import numpy as np

from keras2torch_birnn.porting.batches import Batch
from keras2torch_birnn.porting.layer_call import Key, LayerCall, all_equations
from keras2torch_birnn.porting.observing import PortRun, keep_valid, with_marked_nan
from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec, Structure, leaves, map_structure


@dataclass(frozen=True)
class Traced:
    """A run of the reference: its trace, and every call with what it gave, inner ones first.

    ``sources``: the calls whose outputs each call was given.
    """

    trace: Trace
    calls: Mapping[Key, LayerCall]
    results: Mapping[Key, Result]
    sources: Mapping[Key, Sequence[Key]]


@dataclass(frozen=True, eq=False)
class CheckedRun:
    """One run of a port, and the reference on the same inputs."""

    spec: ModelSpec
    batch: Batch
    run: PortRun

    def record(self, spec: ModelSpec, forced: Mapping[Key, Result]) -> Traced:
        """Run the reference with the results that are known of some calls (path, class)."""
        calls: dict[Key, LayerCall] = {}
        results: dict[Key, Result] = {}
        sources: dict[Key, Sequence[Key]] = {}
        makers: dict[int, tuple[Key, Array]] = {}  # by memory, which the array keeps

        def noted(
            equation: Equation, layer: LayerSpec, x: Structure, mask: Structure, context: Context
        ) -> Result:
            key = context.path, layer.class_name
            given = map(_memory_of, leaves((x, mask, context.initial_state)))
            read = list(dict.fromkeys(makers[one][0] for one in given if one in makers))
            carried = (context.states or {}).get(context.place)
            output, out_mask = forced.get(key) or equation(layer, x, mask, context)
            if not context.keep:  # computed again for its mask alone
                return output, out_mask
            aside = context.aside().with_fields(equations=all_equations())
            if carried is not None and aside.initial_state is None:
                aside = aside.starting(carried)
            calls[key] = LayerCall(equation, layer, x, mask, aside)
            sources[key] = read
            results[key] = map_structure(np.array, output), out_mask
            # An input of an inner model is what that model was given.
            for maker in read[:1] if layer.class_name == "InputLayer" else [key]:
                makers.update({id(one): (maker, one) for one in leaves(results[key][0])})
            return results[key]

        equations = {name: partial(noted, one) for name, one in all_equations().items()}
        states: dict[str, tuple[Array, ...]] | None = {} if self.batch.calls > 1 else None
        for _ in range(self.batch.calls):
            trace = compute(spec, self.batch.arrays, states=states, equations=equations)
        return Traced(trace, calls, results, sources)

    @cached_property
    def exact(self) -> Traced:
        """Keras' own results, with the weights of the file."""
        return self.record(self.spec, {})

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
        fits = valid is not None and valid.shape == values.shape[:2]
        counts = valid if valid is not None and fits else np.ones(values.shape[:2], bool)
        if key[0].endswith("/backward_layer") and values.ndim == 3:
            if self.run.has(values[:, ::-1], counts):
                return True
            counts = counts[:, ::-1]
        ways = self._ways(values, counts, in_place=in_place)
        return any(all(self.run.has(*one) for one in way) for way in ways)

    def _ways(
        self, values: Array, counts: Array, *, in_place: bool
    ) -> Iterator[Iterable[tuple[Array, ...]]]:
        """Yield ways in which a port may have what counts of values: in one piece or in several."""
        yield [(values, counts)]
        if values.ndim == 3:
            steps = np.flatnonzero(counts.any(axis=0))
            yield ((values[:, t : t + 1], counts[:, t : t + 1]) for t in steps)
        if in_place:
            yield from (
                [(values[order], counts[order])]
                for order in self._row_orders
                if len(order) == len(values)
            )
        if in_place and values.ndim > 1:
            rows = [pair for pair in zip(values, counts, strict=True) if pair[1].any()]
            yield ((row[steps],) for row, steps in rows)
            yield ((row[np.newaxis], steps[np.newaxis]) for row, steps in rows)

    @cached_property
    def _row_orders(self) -> list[Array]:
        """Orders of the rows by their lengths, in which a port may sort them for packing."""
        masks = map(_steps_of, self.exact.trace.masks.values())
        orders = [np.argsort(-one.sum(axis=1), kind="stable") for one in masks if one is not None]
        return list({tuple(order): order for order in orders}.values())

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
        for ref in leaves(self.spec.graph.outputs):
            yield f"{ref.layer}#{ref.call}" if ref.call else ref.layer


def _memory_of(value: Any) -> int:
    """Return what names the memory of an array, which its views share."""
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    return id(value)


def _steps_of(mask: Structure) -> Array | None:
    first = next(iter(leaves(mask)), None)
    return first.astype(bool) if isinstance(first, np.ndarray) and first.ndim == 2 else None


def same(there: Array, right: Array, mask: Array | None, tolerance: float) -> bool:
    """Compare an output with the right one, without axes of size 1, where the mask counts."""
    there, right = with_marked_nan(there), with_marked_nan(right)
    if [n for n in there.shape if n > 1] != [n for n in right.shape if n > 1]:
        return False
    there = there.reshape(right.shape)
    there, right = keep_valid(there, mask), keep_valid(right, mask)
    limit = tolerance * (1 + float(np.abs(right).max(initial=0.0)))
    return bool(np.isfinite(limit)) and bool(np.abs(there - right).max(initial=0.0) <= limit)
