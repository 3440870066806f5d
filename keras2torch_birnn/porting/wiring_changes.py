"""Known mistakes in how layers are connected: an input of a layer is another tensor."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.activation_changes import SOFTMAX_MASKS
from keras2torch_birnn.porting.call_graph import later_uses, path_of
from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    Key,
    LayerCall,
    Maker,
    configured,
    followed_by,
    left_out,
    only_at,
    reading_one,
)
from keras2torch_birnn.porting.layer_changes import JOINING, MASKING
from keras2torch_birnn.porting.observing import keep_valid
from keras2torch_birnn.porting.recurrent_changes import (
    CELLS,
    first_step,
    largest_step,
    last_step,
    mean_step,
    sum_of_steps,
)
from keras2torch_birnn.porting.state_changes import last_states, state_form
from keras2torch_birnn.porting.step_changes import MASKED_POOLINGS
from keras2torch_birnn.reference import EQUATIONS, Trace
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import (
    Array,
    Call,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)

# Calls behind a layer after which it may come instead.
_LATER = 4


class _Place(NamedTuple):
    """A call of a model's graph, and what was computed there and before."""

    graph: Graph
    call: Call
    trace: Trace

    @property
    def path(self) -> str:
        """The call's path."""
        return path_of(self.call)

    @property
    def layer(self) -> LayerSpec:
        """The layer that is called."""
        return self.graph.layer(self.call.layer)

    @property
    def refs(self) -> list[Any]:
        """Tensors and constants that the call is given."""
        return list(leaves(self.call.args))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the call's output."""
        return self.shape_of(self.path)

    def shape_of(self, path: str) -> tuple[int, ...]:
        """Return the shape of another call's output."""
        return np.shape(next(leaves(self.trace.layers[path])))

    def before(self) -> Iterator[tuple[str, Call, LayerSpec]]:
        """Yield the calls before this one, and their layers."""
        return _calls_before(self.graph, self.call)

    def behind(self) -> Iterator[tuple[Call, LayerSpec]]:
        """Yield the calls whose one input is this one's output, and their layers."""
        return _calls_behind(self.graph, self.path)

    def change(self, kind: str, words: str, apply: Apply) -> Change:
        """Make a change of this call's layer."""
        return Change(kind, self.path, words, {_key(self.call, self.layer): apply})

    def tensors_before(self) -> dict[TensorRef, Array]:
        """Return the inputs of the graph, and what the calls before this one return."""
        earlier = {
            ref: np.asarray(self.trace.layers[path_of(ref)]) for ref in leaves(self.graph.inputs)
        }
        for path, call, _ in self.before():
            for number, array in enumerate(leaves(self.trace.layers[path])):
                earlier[TensorRef(call.layer, call.index, number)] = np.asarray(array)
        return earlier


def _find(graph: Graph, path: str, trace: Trace) -> _Place | None:
    """Return a call by its path; None if it is none of this graph."""
    return next((_Place(graph, one, trace) for one in graph.calls if path_of(one) == path), None)


def _key(call: Call, layer: LayerSpec) -> Key:
    return call.layer, layer.class_name


def _calls_before(graph: Graph, last: Call) -> Iterator[tuple[str, Call, LayerSpec]]:
    for call in takewhile(lambda one: one is not last, graph.calls):
        yield path_of(call), call, graph.layer(call.layer)


def _calls_behind(graph: Graph, path: str) -> Iterator[tuple[Call, LayerSpec]]:
    for call in graph.calls:
        found = list(leaves(call.args))
        if len(found) == 1 and path_of(found[0]) == path:
            yield call, graph.layer(call.layer)


def wiring_changes(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield a change for each earlier tensor that could be in the place of one of the inputs.

    path: a call of this graph. Before a layer with one input there is more to be wrong: see
    ``other_input_changes``.
    """
    place = _find(graph, path, trace)
    if place is None:
        return
    for make in _WIRINGS:
        yield from make(place)
    yield from lost_mask_changes(graph, path)
    yield from steps_of_others(graph, path, trace)
    yield from _states_before(place)
    refs = place.refs
    if place.layer.class_name.endswith("Attention") and len(refs) == 2:
        yield from _apart_inputs(place)
    given = set(leaves(graph.inputs))
    if sum(isinstance(ref, TensorRef) for ref in refs) > 1:
        yield from _other_inputs(place)
    elif given & set(refs):
        yield from _other_inputs(place, given)


def other_input_changes(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield each earlier tensor that could be in the place of a layer's only input."""
    place = _find(graph, path, trace)
    if place is not None and sum(isinstance(ref, TensorRef) for ref in place.refs) == 1:
        yield from _other_inputs(place)


def _other_inputs(here: _Place, among: Container[TensorRef] | None = None) -> Iterator[Change]:
    """Yield earlier tensors, all or those ``among`` some, in the place of each input of a call."""
    earlier = here.tensors_before()
    for place, ref in enumerate(here.refs):
        if not isinstance(ref, TensorRef):
            continue
        for other in earlier:
            if (among is None or other in among) and _are_others([(ref, other)], earlier):
                there, own = (_describe(one, earlier) for one in (other, ref))
                words = f"its input {place + 1} is {there}, Keras has {own}"
                apply = only_at(here.path, partial(_take_tensor, place, other))
                yield here.change("other input", words, apply)


def _apart_inputs(here: _Place) -> Iterator[Change]:
    """Yield an attention whose keys and values are two tensors, where Keras has one for both."""
    earlier, own = here.tensors_before(), here.refs[1]
    for other, array in earlier.items():
        if array.ndim == 3 and array.shape[:2] == earlier[own].shape[:2] and other != own:
            there = _describe(other, earlier)
            for place, what in ((1, "values"), (2, "keys")):
                words = f"its {what} are {there}, Keras has its second input as keys and values"
                apply = only_at(here.path, partial(_with_third, place, other))
                yield here.change("other input", words, apply)


def _tensor(call: LayerCall, ref: TensorRef) -> Array:
    """Return an output of an earlier call of the model."""
    tensor: Array = list(leaves(call.context.layers[path_of(ref)]))[ref.output]
    return tensor


def _with_third(place: int, other: TensorRef, call: LayerCall) -> Result:
    query, own = leaves(call.inputs)
    given = [query, own, own]
    given[place] = _tensor(call, other)
    masks = (call.masks[0], call.masks[1], call.masks[1]) if call.masks else call.mask
    return call._replace(inputs=tuple(given), mask=masks).run()


def sum_of(path: str, layer: LayerSpec, factors: Mapping[str, float]) -> Change:
    """Return the change that gives a sum of outputs of calls, maybe its own, times factors."""
    terms = {one: float(factor) for one, factor in factors.items() if factor}
    shown = " + ".join(
        f"{'' if np.isclose(factor, 1) else f'{factor:.6g} times '}"
        f"{'what Keras has there' if one == path else f'the output of {printable(one)}'}"
        for one, factor in terms.items()
    )
    apply = only_at(path, partial(_summed, path, terms))
    return Maker(path, layer).change("other sum", f"its output is {shown}", apply)


def _summed(path: str, terms: Mapping[str, float], call: LayerCall) -> Result:
    def total(own: Array) -> Array:
        known = {**call.context.layers, path: own}
        values: Array = sum(factor * next(leaves(known[one])) for one, factor in terms.items())
        return values

    return followed_by(total)(call)


def _later_order(here: _Place) -> Iterator[Change]:
    """Yield the layer behind a merge as if it came before it, in one of the merge's branches."""
    refs, merge = here.refs, printable(here.path)
    if len(refs) < 2 or not all(isinstance(ref, TensorRef) for ref in refs):
        return
    for call, behind in here.behind():
        for place, ref in enumerate(refs):
            words = (
                f"it is applied to the output of {printable(path_of(ref))} alone, before {merge}; "
                f"Keras applies it to what {merge} gives"
            )
            apply = partial(_before, here.layer, refs, place)
            yield Change("order", path_of(call), words, {_key(call, behind): apply})


def _exchanged_order(here: _Place) -> Iterator[Change]:
    """Yield the layer after one that uses its output, where both give the same features."""
    if len(here.refs) != 1 or not isinstance(here.refs[0], TensorRef):
        return
    right = here.shape
    uses = later_uses(here.graph, "")[here.path]
    for call in [one for one in here.graph.calls if path_of(one) in uses][:_LATER]:
        there = here.shape_of(path_of(call))
        if (len(there), there[-1:]) != (len(right), right[-1:]):
            continue  # (a pooling has fewer steps)
        words = f"it comes after {printable(path_of(call))}, Keras has it before"
        applied: dict[Key, Apply] = {
            _key(here.call, here.layer): left_out,
            _key(call, here.graph.layer(call.layer)): partial(_then, here.layer),
        }
        yield Change("order", here.path, words, applied)


def _later_activation(here: _Place) -> Iterator[Change]:
    """Yield the layer's activation as if it came after the layer behind it."""
    inner = here.layer
    while inner.class_name == "TimeDistributed":
        inner = inner.parts["layer"]
    own = inner.config.get("activation", "linear")
    if own == "linear" or "recurrent_activation" in inner.config or inner.graph is not None:
        return
    name = own["name"] if isinstance(own, Mapping) else own
    for call, behind in here.behind():
        words = f"its {name} comes after {printable(path_of(call))}, Keras has it before"
        applied = {
            _key(here.call, inner): configured(activation="linear"),
            _key(call, behind): followed_by(partial(activate, own)),
        }
        yield Change("order", here.path, words, applied)


def _exchanged_activations(here: _Place) -> Iterator[Change]:
    """Yield the activations of two layers that one merge reads, in each other's place."""
    graph, layer, path = here.graph, here.layer, here.path
    own = layer.config.get("activation", "linear")
    if own == "linear" or "recurrent_activation" in layer.config:
        return
    for call in graph.calls:
        refs = list(leaves(call.args))
        if path not in [path_of(ref) for ref in refs if isinstance(ref, TensorRef)]:
            continue
        for number, ref in enumerate(refs):
            there = graph.layer(ref.layer) if isinstance(ref, TensorRef) else layer
            other = there.config.get("activation")
            if other in (None, own) or "recurrent_activation" in there.config:
                continue
            # Of a linear layer the port has the output, before the activation.
            key, apply = (ref.layer, there.class_name), configured(activation=own)
            if other == "linear":
                key = _key(call, graph.layer(call.layer))
                apply = reading_one(number, partial(activate, own))
            words = f"its activation and that of {printable(ref.layer)} are exchanged"
            applied = {_key(here.call, layer): configured(activation=other), key: apply}
            yield Change("activation", path, words, applied)


def _earlier_norm(here: _Place) -> Iterator[Change]:
    """Yield the layer behind a merge as if this one, in a branch of the merge, read its output."""
    graph, sources = here.graph, here.refs
    uses = later_uses(graph, "").get(here.path, frozenset()) | {here.path}
    for call in graph.calls if len({*sources}) == 1 else ():
        refs = list(leaves(call.args))
        branches = [ref for ref in refs if isinstance(ref, TensorRef) and ref != sources[0]]
        if len(branches) + 1 != len(refs) or len(refs) < 2:
            continue
        if not all(path_of(ref) in uses for ref in branches):
            continue
        for behind_call, behind in _calls_behind(graph, path_of(call)):
            words = (
                f"it is applied to the input of {printable(here.path)}, Keras applies it to what "
                f"{printable(path_of(call))} gives"
            )
            applied: dict[Key, Apply] = {
                _key(here.call, here.layer): partial(_reading_after, behind),
                _key(behind_call, behind): left_out,
            }
            yield Change("order", path_of(behind_call), words, applied)


def _states_below(here: _Place) -> Iterator[Change]:
    """Yield the last states of each earlier Bidirectional in the place of this one's."""
    right = here.shape
    if here.layer.class_name != "Bidirectional" or len(right) != 2:
        return
    for other, _, below in here.before():
        shape = here.shape_of(other)
        if below.class_name == "Bidirectional" and (*shape[:1], *shape[2:]) == right:
            words = (
                f"takes the last states of {printable(other)} (h_n has those of all layers, the "
                "first layer's first)"
            )
            yield here.change("other layer", words, partial(_ends_of, other))


def steps_of_others(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield one step of an earlier sequence (B, T, F), or all in one, in a call's place."""
    here = _find(graph, path, trace)
    if here is None or len(here.shape) != 2:
        return
    for other, _, below in here.before():
        shape = here.shape_of(other)
        if len(shape) == 3 and (shape[0], shape[2]) == here.shape:
            for words, pick in _PICKS.items():
                told = f"{words} of {printable(other)} is in its place"
                yield here.change("other layer", told, partial(_step_of, other, pick))
            if below.class_name == "Bidirectional":
                told = f"the last states (h_n) of {printable(other)} are in its place"
                yield here.change("other layer", told, partial(_ends_of, other))


_PICKS: Mapping[str, Callable[[Array], Array]] = {
    "the last step": last_step,
    "the first step": first_step,
    "the mean of all steps": mean_step,
    "the maximum of all steps": largest_step,
    "the sum of all steps": sum_of_steps,
}


def _step_of(path: str, pick: Callable[[Array], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    if isinstance(output, tuple):
        raise ValueError("there are several outputs")
    return pick(next(leaves(call.context.layers[path]))), out_mask


def _states_before(here: _Place) -> Iterator[Change]:
    """Yield a recurrent layer's state before each step in the place of its output, as an input."""
    calls = {path: (call, layer) for path, call, layer in here.before()}
    for place, ref in enumerate(here.refs):
        source = calls.get(path_of(ref)) if isinstance(ref, TensorRef) else None
        if source is None or ref.output or source[1].class_name not in CELLS:
            continue
        state = next(tensors(source[0].kwargs.get("initial_state")), None)
        words = (
            f"its input {place + 1} is the state of {printable(path_of(ref))} before each step, "
            "Keras has the one after it"
        )
        apply = only_at(here.path, partial(_one_state_earlier, place, state))
        yield here.change("other input", words, apply)


def _one_state_earlier(place: int, state: TensorRef | None, call: LayerCall) -> Result:
    def moved(right: Array) -> Array:
        if right.ndim != 3:
            raise ValueError("there are no steps")
        first = np.zeros_like(right[:, 0]) if state is None else _tensor(call, state)
        return np.concatenate([first[:, np.newaxis], right[:, :-1]], axis=1)

    return reading_one(place, moved)(call)


def _states_of_others(here: _Place) -> Iterator[Change]:
    """Yield the last states of each earlier call of such a layer, with which this one starts.

    As where one that is called twice keeps its states.
    """
    own = state_form(here.layer)
    for other, call, below in here.before() if own else ():
        refs = list(leaves(call.args))
        if len(refs) == 1 and not call.kwargs and state_form(below) == own:
            words = f"it starts with the last states of {printable(other)}, Keras with zeros"
            start = only_at(here.path, partial(_starting_after, below, refs[0]))
            yield here.change("other state", words, start)


def _starting_after(below: LayerSpec, ref: TensorRef, call: LayerCall) -> Result:
    if call.context.initial_state is not None:
        raise ValueError("it is called with initial states")
    source = path_of(ref)
    x, valid = (
        list(leaves(some[source]))[ref.output] for some in (call.context.layers, call.context.masks)
    )
    states = last_states(call._replace(layer=below, inputs=x, mask=valid))
    return call.starting(states).run()


def _other_states(here: _Place) -> Iterator[Change]:
    """Yield earlier tensors in the place of the initial states of a call: all of them, or one."""
    refs = list(tensors(here.call.kwargs.get("initial_state")))
    earlier = here.tensors_before() if refs else {}
    by_source: dict[str, list[TensorRef]] = {}
    for ref in earlier:
        by_source.setdefault(path_of(ref), []).append(ref)
    for source, some in by_source.items():
        last = some[-len(refs) :]
        pairs = list(zip(refs, last, strict=False))
        if len(last) == len(refs) > 1 and _are_others(pairs, earlier):
            words = f"it starts with the last states of {printable(source)}, Keras with others"
            yield _with_states(here, words, dict(enumerate(last)))
    for place, ref in enumerate(refs):
        own = _describe(ref, earlier)
        for other in earlier:
            if _are_others([(ref, other)], earlier):
                words = (
                    f"its initial state {place + 1} is {_describe(other, earlier)}, Keras has {own}"
                )
                yield _with_states(here, words, {place: other})
            for what, pick in (
                _PICKS.items() if _has_such_steps(earlier[other], earlier[ref]) else ()
            ):
                words = f"its initial state {place + 1} is {what} of {_describe(other, earlier)}"
                yield _with_states(here, f"{words}, Keras has {own}", {place: other}, pick)


def _are_others(
    pairs: Sequence[tuple[TensorRef, TensorRef]], known: Mapping[TensorRef, Array]
) -> bool:
    """Tell whether tensors could be in the place of these, and are not the same."""
    alike = all(known[one].shape == known[other].shape for one, other in pairs)
    return alike and not all(np.array_equal(known[one], known[other]) for one, other in pairs)


def _has_such_steps(steps: Array, state: Array) -> bool:
    return steps.ndim == 3 and (steps.shape[0], steps.shape[2]) == state.shape


def _with_states(
    here: _Place,
    words: str,
    places: Mapping[int, TensorRef],
    pick: Callable[[Array], Array] = np.asarray,
) -> Change:
    """Return the change that gives a call other initial states in some places."""
    apply = only_at(here.path, partial(_starting_from, places, pick))
    return here.change("other state", words, apply)


def _starting_from(
    places: Mapping[int, TensorRef], pick: Callable[[Array], Array], call: LayerCall
) -> Result:
    states = list(call.context.initial_state or ())
    for place, ref in places.items():
        states[place] = pick(np.asarray(_tensor(call, ref)))
    return call.starting(tuple(states)).run()


def _other_masks(here: _Place) -> Iterator[Change]:
    """Yield the mask of each earlier layer that makes one, where no mask arrives in Keras."""
    for other, call, below in here.before():
        if below.class_name in MASKING:
            words = f"the mask of {printable(other)} is used, in Keras no mask arrives here"
            if below.config.get("mask_zero") is False:
                words = f"id 0 of {printable(other)} is left out as padding, Keras reads it as data"
            ids = path_of(next(tensors(call.args)))
            yield here.change("other mask", words, partial(_masked_as, other, ids, ""))
            words = f"the mask of {printable(other)} is used, in Keras another one arrives here"
            yield here.change("other mask", words, partial(_masked_as, other, ids, here.path))


# What may be wrong at any call, in this order
_WIRINGS: Sequence[Callable[[_Place], Iterator[Change]]] = (
    _later_order,
    _exchanged_order,
    _later_activation,
    _exchanged_activations,
    _earlier_norm,
    _states_below,
    _states_of_others,
    _other_states,
    _other_masks,
)


# Classes -> what they may do by a mask that does not arrive in Keras
_BY_LOST_MASKS: Mapping[str, Mapping[str, Callable[..., Result]]] = {
    **dict.fromkeys(("Activation", "Softmax", "ops.Activation"), SOFTMAX_MASKS),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalMaxPooling1D"), MASKED_POOLINGS),
}


def _zeroed_by(what: str, path: str, call: LayerCall) -> Result:
    """Set the input or the output to zero where an earlier call has a mask and this one none."""
    steps = call.context.masks[path]
    if isinstance(call.mask, np.ndarray) or not isinstance(steps, np.ndarray):
        raise ValueError("another mask arrives, or there is none")

    def zeroed(x: Structure) -> Array:
        if not isinstance(x, np.ndarray) or x.ndim < 3 or x.shape[:2] != steps.shape:
            raise ValueError("these are not its steps")
        return keep_valid(x, steps.astype(bool))

    if what == "input":
        return call._replace(inputs=zeroed(call.inputs)).run()
    output, out_mask = call.run()
    return zeroed(output), out_mask


_ZEROED_BY_LOST_MASKS: Mapping[str, Callable[..., Result]] = {
    f"its {what} is zero at padded steps": partial(_zeroed_by, what) for what in ("output", "input")
}


def lost_mask_changes(graph: Graph, path: str) -> Iterator[Change]:
    """Yield what is done by an earlier layer's mask, which Keras does not use there."""
    own = next((one for one in graph.calls if path_of(one) == path), None)
    if own is None:
        return
    layer = graph.layer(own.layer)
    known = {**_BY_LOST_MASKS.get(layer.class_name, {}), **_ZEROED_BY_LOST_MASKS}
    for other, _, below in _calls_before(graph, own):
        if below.class_name in (*MASKING, *JOINING):
            for what, leave_out in known.items():
                words = f"{what}, by the mask of {printable(other)}; Keras does not do that here"
                apply = partial(leave_out, other)
                yield Change("other mask", path, words, {_key(own, layer): apply})


def _masked_as(path: str, ids: str, only: str, call: LayerCall) -> Result:
    """Use the mask of another call, or of its ids; in place of another mask in call ``only``."""
    if only and only != call.context.path:
        return call.run()
    there = call.context.masks[path]
    if there is None:  # of an Embedding without one
        there = np.asarray(call.context.layers[ids]) != 0
    if not isinstance(call.inputs, np.ndarray) or call.inputs.shape[: there.ndim] != there.shape:
        raise ValueError("there is no mask, or several may arrive")
    if only and not isinstance(call.mask, np.ndarray):
        raise ValueError("none arrives")
    if not only and call.mask is not None and not np.all(call.mask):
        raise ValueError("another one arrives")
    _, out_mask = call.aside().run()
    output, _ = call._replace(mask=there).run()
    return output, out_mask


def _ends_of(path: str, call: LayerCall) -> Result:
    """Give the last step that counts of another layer's first half, the first one of its second."""
    output, out_mask = call.run()
    y, valid = next(leaves(call.context.layers[path])), call.context.masks[path]
    valid = valid if isinstance(valid, np.ndarray) else np.ones(y.shape[:2], bool)
    rows, half = np.arange(len(y)), y.shape[-1] // 2
    last = y.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    ends = y[rows, last, :half], y[rows, valid.argmax(axis=1), half:]
    if isinstance(output, tuple) or np.shape(output) != (len(y), y.shape[-1]):
        raise ValueError("another shape")
    return np.concatenate(ends, axis=-1), out_mask


def _reading_after(before: LayerSpec, call: LayerCall) -> Result:
    """Let a layer read what another layer makes of its input."""
    one, aside = next(leaves(call.mask), None), call.context.aside()

    def normalized(x: Structure) -> Structure:
        output, _ = EQUATIONS[before.class_name](before, x, one, aside)
        return output

    read = map_structure(normalized, call.inputs)
    return call._replace(inputs=read).run()


def _then(after: LayerSpec, call: LayerCall) -> Result:
    """Apply another layer to the output."""
    output, out_mask = call.run()
    more, _ = EQUATIONS[after.class_name](after, output, call.mask, call.context.aside())
    return more, out_mask


def _before(merge: LayerSpec, refs: list[TensorRef], place: int, call: LayerCall) -> Result:
    """Apply a layer to one input of the merge before it, then merge."""
    values = [_tensor(call, ref) for ref in refs]
    values[place], out_mask = call._replace(inputs=values[place]).run()
    no_masks = [None] * len(values)
    output, _ = EQUATIONS[merge.class_name](merge, values, no_masks, call.context.aside())
    return output, out_mask


def _describe(ref: TensorRef, known: Mapping[TensorRef, Array]) -> str:
    """Name a tensor by the call that returns it, and by its number if there are several."""
    several = TensorRef(ref.layer, ref.call, 1) in known
    number = f" {ref.output + 1}" if several else ""
    return f"the output{number} of {printable(path_of(ref))}"


def _take_tensor(place: int, other: TensorRef, call: LayerCall) -> Result:
    """Give the layer another tensor in this place of its inputs."""
    return reading_one(place, lambda _: _tensor(call, other))(call)
