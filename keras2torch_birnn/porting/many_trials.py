"""Calls behind one call, computed for many trials at once: each trial's rows are further rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.porting.call_graph import path_of
from keras2torch_birnn.porting.changes import Change
from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import (
    Array,
    Graph,
    LayerSpec,
    ModelSpec,
    Structure,
    leaves,
    map_structure,
)

Equations = Mapping[str, Equation]
# What a run may raise that does not fit the model.
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    StopIteration,
    TypeError,
    UnsupportedOptionError,
    ValueError,
)


class _ReachedError(Exception):
    """The call is computed at which a run ends; what is known there."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.path)
        self.trace = Trace((), context.layers, context.masks)


def compute_until(
    last: str, spec: ModelSpec, inputs: Sequence[Array], equations: Equations
) -> Trace:
    """Run a model until a call of its graph is computed; without outputs if calls follow."""

    def stopping(equation: Equation) -> Equation:
        def run(layer: LayerSpec, inputs: Structure, mask: Structure, context: Context) -> Result:
            if last in context.masks:
                raise _ReachedError(context)
            return equation(layer, inputs, mask, context)

        return run

    try:
        stopped = {name: stopping(equation) for name, equation in equations.items()}
        return compute(spec, inputs, equations=stopped)
    except _ReachedError as reached:
        return reached.trace


def last_reached(graph: Graph, path: str, changes: Iterable[Change]) -> str | None:
    """Return the last call of a graph that is this one, or of a layer with changes in it.

    path: a call of the graph, or one inside of it. None if no call follows.
    """
    places = [place for change in changes for place, _ in change.applied]
    last = None
    for call in graph.calls[::-1]:
        own = path_of(call)
        if _is_in(path, own) or any(_is_in(place, call.layer) for place in places):
            return last and own
        last = own
    return None


def _is_in(path: str, outer: str) -> bool:
    return f"{path}/".startswith(f"{outer}/")


class Rest:
    """The calls of a model's graph behind one of them, ``last``."""

    def __init__(self, spec: ModelSpec, inputs: Sequence[Array], last: str) -> None:
        self._spec, self._inputs, self.last = spec, inputs, last
        paths = [path_of(call) for call in spec.graph.calls]
        given = [path_of(ref) for ref in leaves(spec.graph.inputs)]
        self._done = [*dict.fromkeys([*given, *paths[: paths.index(last) + 1]])]

    def keeps_rows_apart(self, trace: Trace, equations: Equations) -> bool:
        """Tell whether twice as many rows give the same outputs twice; ``trace``: a whole run."""
        found = list(self.outputs([trace, trace], equations))
        pairs = [pair for _, some in found for pair in zip(some, trace.outputs, strict=True)]
        return len(found) == 2 and all(np.allclose(*pair, equal_nan=True) for pair in pairs)

    def outputs(
        self, traces: Sequence[Trace], equations: Equations
    ) -> Iterator[tuple[int, tuple[Array, ...]]]:
        """Yield the number of each run that ended at the call, and the outputs that follow.

        Runs with which the rest cannot be computed are left out.
        """
        alike: dict[Any, list[int]] = {}
        for number, trace in enumerate(traces):
            alike.setdefault(self._shapes(trace), []).append(number)
        for numbers in alike.values():
            try:
                joined = self._outputs_of_all([traces[one] for one in numbers], equations)
            except FAILURES:
                continue
            yield from zip(numbers, joined, strict=True)

    def _shapes(self, trace: Trace) -> tuple[Any, ...]:
        return tuple(
            np.shape(leaf) if isinstance(leaf, np.ndarray) else type(leaf)
            for path in self._done
            for kept in (trace.layers[path], trace.masks[path])
            for leaf in leaves(kept)
        )

    def _outputs_of_all(
        self, traces: Sequence[Trace], equations: Equations
    ) -> list[tuple[Array, ...]]:
        count = len(traces)
        given = {
            path: (
                _as_rows([trace.layers[path] for trace in traces]),
                _as_rows([trace.masks[path] for trace in traces]),
            )
            for path in self._done
        }
        some = {name: partial(_given_or, given, one) for name, one in equations.items()}
        rows = [np.concatenate([x] * count) for x in self._inputs]
        trace = compute(self._spec, rows, equations=some)
        return list(zip(*(np.split(y, count) for y in trace.outputs), strict=True))


def _as_rows(some: Sequence[Structure]) -> Structure:
    """Join the rows of arrays (B, ...) that are in the same places; None stays what it is."""
    places = zip(*(leaves(one) for one in some), strict=True)
    joined = iter([None if one[0] is None else np.concatenate(one) for one in places])
    return map_structure(lambda _: next(joined), some[0])


def _given_or(
    results: Mapping[str, Result],
    equation: Equation,
    layer: LayerSpec,
    inputs: Structure,
    mask: Structure,
    context: Context,
) -> Result:
    """Take what is known of a call; compute the others."""
    found = results.get(context.path)
    return equation(layer, inputs, mask, context) if found is None else found
