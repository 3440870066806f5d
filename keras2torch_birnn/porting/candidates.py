"""Changes that are tried at a call of a model, as what may be wrong there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.activation_changes import moved_before_activation
from keras2torch_birnn.porting.call_graph import nearest_sources, path_of, place_of
from keras2torch_birnn.porting.changes import Change, Maker, configured, in_one_call, reading
from keras2torch_birnn.porting.checked_run import CheckedRun, first_output
from keras2torch_birnn.porting.general_changes import (
    added_to,
    clipped_to,
    input_scaled,
    on_line,
    reordered,
    scaled_by,
    show_bounds,
    show_line,
)
from keras2torch_birnn.porting.layer_changes import (
    DROPOUTS,
    MASKING,
    MOVING,
    changes_of,
    is_recurrent,
    mask_changes,
)
from keras2torch_birnn.porting.step_changes import mixes_steps, reading_part
from keras2torch_birnn.porting.wiring_changes import (
    lost_mask_changes,
    other_input_changes,
    sum_of,
    wiring_changes,
)
from keras2torch_birnn.reference import Trace
from keras2torch_birnn.spec import Array, TensorRef, leaves

# Earlier tensors at most of which sums are looked for.
_TERMS = 6
# Layers before a wrong one, the nearest in the graph, whose mistakes are tried there.
BEFORE = 3
# Kinds that leave the right values, in another order of axes, in which they count as computed.
_IN_ANY_ORDER = ("not permuted", "repeated")


@dataclass
class Candidates(CheckedRun):
    """One run of a port, and the changes that may explain it.

    ``evidence``: changes that follow from the port's weights; ``guesses``: others that are known
    for this model alone; ``found``: those that are in the port for certain.
    """

    evidence: Sequence[Change]
    guesses: Sequence[Change]
    found: list[Change]
    _known: dict[str, Sequence[Change]] = field(default_factory=dict, kw_only=True)

    def changes_at(self, path: str, trace: Trace) -> tuple[list[Change], list[Change]]:
        """Return what may be wrong at a call, and at those before it, without what is found.

        trace: with the changes found so far.
        """
        layer = self.layers[path]
        own = [*self._mask_sources(path), *self._at(path, self.guesses), *self.changes_of(path)]
        if not is_recurrent(layer):  # an attention takes its masks apart from what others read
            own.sort(key=lambda one: one.kind != "mask missing" or one.layer != path)
        own += wiring_changes(self.spec.graph, path, trace)
        before = [*self._changes_before(path), *self._scaled(path, trace)]
        before += self._changes_in_call(path)
        for other in nearest_sources(self.sources, path):
            before += lost_mask_changes(self.spec.graph, other)
        before += [*other_input_changes(self.spec.graph, path, trace), *self._sums(path, trace)]
        before += [*self._parts(path, trace), *self._padded_inputs(path)]
        own = [*(one for one in before if one.kind in _IN_ANY_ORDER), *own]
        known = {(one.layer, one.kind, one.words) for one in self.found}
        own, before = (
            [one for one in some if (one.layer, one.kind, one.words) not in known]
            for some in (own, before)
        )
        if layer.class_name in MOVING:
            before += [one for one in own if one.kind == "extra"]
            own = [one for one in own if one.kind != "extra"]
        before.sort(key=self._is_of_moving)
        own.sort(key=_is_unused_operation)  # where the layer's own mask is, that tells more
        return own, before

    def _at(self, path: str, changes: Iterable[Change]) -> list[Change]:
        return [one for one in changes if one.layer == place_of(path)]

    def changes_of(self, path: str) -> Sequence[Change]:
        """Return the known mistakes of a call: the same ones each time, whose results are kept."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = list(changes_of(path, self.layers[path]))
        return found

    def _changes_in_call(self, path: str) -> list[Change]:
        """Return the same mistakes in this call alone, of a layer that is called several times."""
        if not self._is_called_again(path):
            return []
        own = (*self._at(path, self.guesses), *self.changes_of(path))
        return [in_one_call(one, path) for one in own]

    def _is_called_again(self, path: str) -> bool:
        return sum(place_of(other) == place_of(path) for other in self.layers) > 1

    def _mask_sources(self, path: str) -> Iterator[Change]:
        """Yield the mistakes with masks that are made before this call."""
        for other, layer in self.layers.items():
            if path in self.later.get(other, ()):
                yield from mask_changes(place_of(other), layer, self._masking(other))

    def _masking(self, path: str) -> str:
        """Return the Embedding or Masking that makes a mask by an operation at this call, or it."""
        read = set(self.sources.get(path, ()))
        read |= {other for one in read for other in self.sources.get(one, ())}
        found = (
            other
            for other, layer in self.layers.items()
            if layer.class_name in MASKING and set(self.sources.get(other, ())) <= read
        )
        own = self.layers[path].class_name
        return next(found, path) if own.startswith("ops.") else place_of(path)

    def _changes_before(self, path: str) -> list[Change]:
        """Return the mistakes of the calls just before: an operation may follow what was right."""
        return [
            change
            for other in nearest_sources(self.sources, path)[:BEFORE]
            for change in self.changes_of(other)
            if change.kind != "gate order"
        ]

    def _changes_behind(self, path: str) -> Iterator[Change]:
        """Yield the mistakes of the calls that take the output of this one."""
        for other, given in self.sources.items():
            if path in given:
                yield from self._at(other, self.evidence)
                for change in self.changes_of(other):
                    if change.kind != "gate order":
                        yield change

    def _scaled(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield the factors by which the port multiplied this call's output or one before it."""
        for other in (path, *nearest_sources(self.sources, path)[:BEFORE]):
            layer = self.layers.get(other)
            values = next(iter(leaves(trace.layers.get(other))), None)
            if layer is None or not isinstance(values, np.ndarray) or self._is_before(other):
                continue  # (what is before a dropout has its values)
            maker, given = Maker(other, layer), np.asarray(values, np.float64)
            yield from self._moved(maker, "output", given, self.valid.get(other))
            for added in self.run.added(given, self.valid.get(other)):
                yield added_to(maker, added)
        yield from self._moved_before_activation(path)
        if not self.sources.get(path):  # it takes an input of the model
            for given in self.inputs:
                yield from self._moved(
                    Maker(path, self.layers[path]), "input", np.asarray(given, np.float64), None
                )
        yield from self._scaled_inputs(path, trace)

    def _moved(
        self, maker: Maker, what: str, values: Array, valid: Array | None
    ) -> Iterator[Change]:
        """Yield the factors, orders and bounds of what the port made of an input or an output."""
        for line in self.run.lines(values, valid):
            yield scaled_by(maker, what, line)
        for order in self.run.orders(values, valid):
            yield reordered(maker, what, order)
        for bounds in self.run.bounds(values, valid):
            yield clipped_to(maker, what, bounds)

    def _is_before(self, path: str) -> bool:
        """Tell whether a dropout gives what the one call before it gives to it alone."""
        sources = self.sources.get(path, ())
        return self.layers[path].class_name in DROPOUTS and not any(map(self._is_shared, sources))

    def _is_shared(self, path: str) -> bool:
        """Tell whether several calls take the output of this one."""
        return sum(path in given for given in self.sources.values()) > 1

    def _scaled_inputs(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield the factors of one input of this call, whose source others read as it is."""
        calls = (one for one in self.spec.graph.calls if path_of(one) == path)
        refs = [ref for call in calls for ref in leaves(call.args)]
        for number, ref in enumerate(refs):
            other = path_of(ref) if isinstance(ref, TensorRef) else ""
            if self._is_shared(other) and other in trace.layers:
                values = np.asarray(list(leaves(trace.layers[other]))[ref.output], np.float64)
                for line in self.run.lines(values, self.valid.get(other)):
                    yield input_scaled(Maker(path, self.layers[path]), number, line)

    def _before_activation(self, path: str) -> tuple[Maker, Array] | None:
        """Return what makes changes of a layer with an activation, and what that reads."""
        layer = self.layers[path]
        while layer.class_name == "TimeDistributed":
            layer = layer.parts["layer"]
        if is_recurrent(layer) or "activation" not in layer.config:
            return None
        maker = Maker(path, layer)
        linear = maker.change("", "", configured(activation="linear"))
        trace = self.compute([*self.found, linear])
        if trace is None or path not in trace.layers:
            return None
        return maker, first_output(trace, path)

    def _moved_before_activation(self, path: str) -> Iterator[Change]:
        """Yield the factors and bounds of what a layer's activation reads."""
        found = self._before_activation(path)
        if found is None or found[0].config["activation"] == "linear":
            return
        maker, values = found
        for line in self.run.lines(values, self.valid.get(path)):
            yield moved_before_activation(maker, show_line(*line), partial(on_line, *line))
        for low, high in self.run.bounds(values, self.valid.get(path)):
            clip = partial(np.clip, a_min=low, a_max=high)
            yield moved_before_activation(maker, show_bounds(low, high), clip)

    def _parts(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield that the port cuts off steps here, which Keras does at a later call or never.

        Or that it cuts them off what this call alone reads.
        """
        behind = [one for one in trace.layers if one in self.later.get(path, ())]
        yield from self._cut(path, path, [path, *behind], trace)
        for source in nearest_sources(self.sources, path)[:1]:
            yield from self._cut(source, path, [path], trace)

    def _cut(
        self, source: str, path: str, readers: Sequence[str], trace: Trace
    ) -> Iterator[Change]:
        """Yield that of the steps of one call's output these readers are given a part alone."""
        values = first_output(trace, source)
        found = self.run.part(values, self.valid.get(source))
        if found is None:
            return
        start, stop = found
        steps = values.shape[1]
        users = [one for one in readers if one in self.layers and "/" not in one]
        some = reading_part(start, stop, steps)
        applied = {
            (place_of(one), self.layers[one].class_name): some
            for one in users
            if mixes_steps(self.layers[one])
        }
        ends = "first" if start == 0 else "last"
        words = f"the {ends} {stop - start} of {steps} steps alone are used from here on"
        cut = next((one for one in readers[1:] if self._cuts(one, start, stop, trace)), None)
        if cut is not None:
            words = f"its steps are cut off before {printable(path)} already, Keras does it here"
        if applied:
            yield Change("steps", cut or path, words, applied)

    def _cuts(self, path: str, start: int, stop: int, trace: Trace) -> bool:
        """Tell whether a call of the model does nothing but take these steps."""
        given = [one for one in self.sources.get(path, ()) if one in trace.layers]
        if len(given) != 1:
            return False
        whole, part = (np.asarray(next(leaves(trace.layers[one]))) for one in (given[0], path))
        return part.ndim > 2 and np.array_equal(whole[:, start:stop], part)

    def _padded_inputs(self, path: str) -> Iterator[Change]:
        """Yield steps that the port adds to an input of the model, which are read as data."""
        near = (path, *nearest_sources(self.sources, path)[:BEFORE])
        for other in (one for one in near if one in self.layers and not self.sources.get(one)):
            layer = self.layers[other]
            for front, back, value in chain.from_iterable(map(self.run.paddings, self.inputs)):
                steps = f"{front + back} {'step' if front + back == 1 else 'steps'} of {value:g}"
                words = f"{steps} {'in front of' if front else 'behind'} its input are read, too"
                apply = reading(partial(_with_ends, front, back, value))
                yield Maker(other, layer).change("steps", words, apply)

    def _sums(self, path: str, trace: Trace) -> Iterator[Change]:
        """Yield sums of earlier tensors that the port has in the place of this call's output."""
        for other in (path, *nearest_sources(self.sources, path)[:BEFORE]):
            layer = self.layers.get(other)
            before = nearest_sources(self.sources, other)
            arrays = {
                one: first_output(trace, one)
                for one in (*before, other)
                if one in trace.layers and "/" not in one
            }
            if layer is None or other not in arrays or other not in self.layers:
                continue
            shape = arrays[other].shape
            terms = {one: x for one, x in arrays.items() if x.shape == shape}
            terms = dict([*islice(terms.items(), _TERMS), (other, arrays[other])])
            if len(terms) < 2 or not np.issubdtype(arrays[other].dtype, np.floating):
                continue
            for factors in self.run.sums([*terms.values()], self.valid.get(other)):
                yield sum_of(other, layer, dict(zip(terms, factors, strict=True)))

    def _is_of_moving(self, change: Change) -> bool:
        """Tell whether something follows a layer that moves values: what computed them tells it."""
        layer = self.layers.get(change.layer)
        if change.kind != "extra" or layer is None:
            return False
        return layer.class_name in MOVING or "MaxPooling" in layer.class_name


def _with_ends(front: int, back: int, value: float, x: Array) -> Array:
    """Add steps of one value in front of (B, T, ...) and behind it."""
    widths = [(0, 0), (front, back), *[(0, 0)] * (x.ndim - 2)]
    longer: Array = np.pad(x, widths, constant_values=value)
    return longer


def _is_unused_operation(change: Change) -> bool:
    """Tell whether a mask that an operation makes is not used."""
    made = any(name.startswith("ops.") for _, name in change.applied)
    return made and change.kind == "mask missing"
