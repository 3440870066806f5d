"""Known mistakes in how layers are connected: an input of a layer is another tensor."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import count

import numpy as np

from keras2torch_birnn.errors import printable
from keras2torch_birnn.porting.activation_changes import SOFTMAX_MASKS
from keras2torch_birnn.porting.call_graph import call_path, later_uses, place_of
from keras2torch_birnn.porting.changes import (
    Apply,
    Change,
    LayerCall,
    configured,
    followed_by,
    left_out,
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


def wiring_changes(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield a change for each earlier tensor that could be in the place of one of the inputs.

    path: a call of this graph. Before a layer with one input there is more to be wrong: see
    ``other_input_changes``.
    """
    for call in graph.calls:
        if call_path(call.layer, call.index) == path:
            break
    else:
        return
    found, layer = list(leaves(call.args)), graph.layer(call.layer)
    yield from _later_order(graph, path, layer, found)
    yield from _exchanged_order(graph, path, layer, found, trace)
    yield from _later_activation(graph, path, layer)
    yield from _exchanged_activations(graph, path, layer)
    yield from _earlier_norm(graph, path, layer, found)
    yield from _states_below(graph, path, layer, trace)
    yield from _states_of_others(graph, path, layer)
    yield from _other_states(graph, call, layer, trace)
    yield from _other_masks(graph, path, layer)
    yield from lost_mask_changes(graph, path)
    yield from steps_of_others(graph, path, trace)
    yield from _states_before(graph, path, found)
    if layer.class_name.endswith("Attention") and len(found) == 2:
        yield from _apart_inputs(graph, path, layer, found[1], trace)
    given = set(leaves(graph.inputs))
    if sum(isinstance(ref, TensorRef) for ref in found) > 1:
        yield from _other_inputs(graph, path, trace)
    elif given & set(found):
        yield from _other_inputs(graph, path, trace, given)


def other_input_changes(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield each earlier tensor that could be in the place of a layer's only input."""
    for call in graph.calls:
        refs = [ref for ref in leaves(call.args) if isinstance(ref, TensorRef)]
        if call_path(call.layer, call.index) == path and len(refs) == 1:
            yield from _other_inputs(graph, path, trace)


def _other_inputs(
    graph: Graph, path: str, trace: Trace, among: Container[TensorRef] | None = None
) -> Iterator[Change]:
    """Yield earlier tensors, all or those ``among`` some, in the place of each input of a call."""
    call = next(one for one in graph.calls if call_path(one.layer, one.index) == path)
    earlier = _tensors_before(graph, path, trace)
    key = call.layer, graph.layer(call.layer).class_name
    for place, ref in enumerate(leaves(call.args)):
        if not isinstance(ref, TensorRef):
            continue
        right = earlier[ref]
        for other, array in earlier.items():
            if (among is None or other in among) and array.shape == right.shape:
                if np.array_equal(array, right):
                    continue
                there, own = (_describe(one, earlier) for one in (other, ref))
                words = f"its input {place + 1} is {there}, Keras has {own}"
                yield Change("other input", path, words, {key: _take_tensor(path, place, other)})


def _tensors_before(graph: Graph, path: str, trace: Trace) -> dict[TensorRef, Array]:
    """Return the inputs of a graph, and what its calls before this one return."""
    earlier: dict[TensorRef, Array] = {}
    for ref in leaves(graph.inputs):
        earlier[ref] = np.asarray(trace.layers[call_path(ref.layer, ref.call)])
    for call in graph.calls:
        if call_path(call.layer, call.index) == path:
            break
        for number, array in enumerate(leaves(trace.layers[call_path(call.layer, call.index)])):
            earlier[TensorRef(call.layer, call.index, number)] = np.asarray(array)
    return earlier


def _apart_inputs(
    graph: Graph, path: str, layer: LayerSpec, own: TensorRef, trace: Trace
) -> Iterator[Change]:
    """Yield an attention whose keys and values are two tensors, where Keras has one for both."""
    earlier = _tensors_before(graph, path, trace)
    right = earlier[own].shape
    key = path.partition("#")[0], layer.class_name
    for other, array in earlier.items():
        if array.ndim == 3 and array.shape[:2] == right[:2] and other != own:
            there = _describe(other, earlier)
            for place, what in ((1, "values"), (2, "keys")):
                words = f"its {what} are {there}, Keras has its second input as keys and values"
                apply = partial(_with_third, path, place, other)
                yield Change("other input", path, words, {key: apply})


def _tensor(call: LayerCall, ref: TensorRef) -> Array:
    """Return an output of an earlier call of the model."""
    tensor: Array = list(leaves(call.context.layers[call_path(ref.layer, ref.call)]))[ref.output]
    return tensor


def _with_third(path: str, place: int, other: TensorRef, call: LayerCall) -> Result:
    if call.context.path != path:
        return call.run()
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
    key = "/".join(part.partition("#")[0] for part in path.split("/")), layer.class_name
    apply = partial(_summed, path, terms)
    return Change("other sum", path, f"its output is {shown}", {key: apply})


def _summed(path: str, terms: Mapping[str, float], call: LayerCall) -> Result:
    output, out_mask = call.run()
    if call.context.path != path:
        return output, out_mask
    heads = output if isinstance(output, tuple) else (output,)
    known = {**call.context.layers, path: heads[0]}
    total = sum(factor * next(leaves(known[one])) for one, factor in terms.items())
    return ((total, *heads[1:]) if isinstance(output, tuple) else total), out_mask


def _calls_behind(graph: Graph, path: str) -> Iterator[tuple[Call, LayerSpec]]:
    """Yield the calls whose one input is the output of this call, and their layers."""
    for call in graph.calls:
        found = list(leaves(call.args))
        if len(found) == 1 and call_path(found[0].layer, found[0].call) == path:
            yield call, graph.layer(call.layer)


def _later_order(
    graph: Graph, path: str, layer: LayerSpec, refs: list[TensorRef]
) -> Iterator[Change]:
    """Yield the layer behind a merge as if it came before it, in one of the merge's branches."""
    if len(refs) < 2 or not all(isinstance(ref, TensorRef) for ref in refs):
        return
    for call, behind in _calls_behind(graph, path):
        for place, ref in enumerate(refs):
            source = printable(call_path(ref.layer, ref.call))
            words = (
                f"it is applied to the output of {source} alone, before {printable(path)}; Keras "
                f"applies it to what {printable(path)} gives"
            )
            apply = _before(layer, refs, place)
            key = (call.layer, behind.class_name)
            yield Change("order", call_path(call.layer, call.index), words, {key: apply})


def _exchanged_order(
    graph: Graph, path: str, layer: LayerSpec, refs: list[TensorRef], trace: Trace
) -> Iterator[Change]:
    """Yield the layer after one that uses its output, where both give the same features."""
    if len(refs) != 1 or not isinstance(refs[0], TensorRef):
        return
    own = next(one for one in graph.calls if call_path(one.layer, one.index) == path)
    right = np.shape(next(leaves(trace.layers[path])))
    uses = later_uses(graph, "")[path]
    later = [one for one in graph.calls if call_path(one.layer, one.index) in uses]
    for call in later[:_LATER]:
        behind = graph.layer(call.layer)
        other = printable(call_path(call.layer, call.index))
        there = np.shape(next(leaves(trace.layers[call_path(call.layer, call.index)])))
        if (len(there), there[-1:]) != (len(right), right[-1:]):
            continue  # (a pooling has fewer steps)
        words = f"it comes after {other}, Keras has it before"
        applied = {
            (own.layer, layer.class_name): left_out,
            (call.layer, behind.class_name): _then(layer),
        }
        yield Change("order", path, words, applied)


def _later_activation(graph: Graph, path: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the layer's activation as if it came after the layer behind it."""
    place = call_path(path.partition("#")[0], 0)
    inner = layer
    while inner.class_name == "TimeDistributed":
        inner = inner.parts["layer"]
    own = inner.config.get("activation", "linear")
    if own == "linear" or "recurrent_activation" in inner.config or inner.graph is not None:
        return
    name = own["name"] if isinstance(own, Mapping) else own
    for call, behind in _calls_behind(graph, path):
        other = printable(call_path(call.layer, call.index))
        words = f"its {name} comes after {other}, Keras has it before"
        applied = {
            (place, inner.class_name): configured(activation="linear"),
            (call.layer, behind.class_name): followed_by(partial(activate, own)),
        }
        yield Change("order", path, words, applied)


def _exchanged_activations(graph: Graph, path: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the activations of two layers that one merge reads, in each other's place."""
    own = layer.config.get("activation", "linear")
    if own == "linear" or "recurrent_activation" in layer.config:
        return
    for call in graph.calls:
        refs = list(leaves(call.args))
        if path not in [
            call_path(ref.layer, ref.call) for ref in refs if isinstance(ref, TensorRef)
        ]:
            continue
        for number, ref in enumerate(refs):
            there = graph.layer(ref.layer) if isinstance(ref, TensorRef) else layer
            other = there.config.get("activation")
            if other in (None, own) or "recurrent_activation" in there.config:
                continue
            # Of a linear layer the port has the output, before the activation.
            key, apply = (ref.layer, there.class_name), configured(activation=own)
            if other == "linear":
                key = call.layer, graph.layer(call.layer).class_name
                apply = reading_one(number, partial(activate, own))
            words = f"its activation and that of {printable(ref.layer)} are exchanged"
            applied = {(place_of(path), layer.class_name): configured(activation=other), key: apply}
            yield Change("activation", path, words, applied)


def _earlier_norm(
    graph: Graph, path: str, layer: LayerSpec, sources: list[TensorRef]
) -> Iterator[Change]:
    """Yield the layer behind a merge as if this one, in a branch of the merge, read its output."""
    uses = later_uses(graph, "").get(path, frozenset()) | {path}
    for call in graph.calls if len({*sources}) == 1 else ():
        refs = list(leaves(call.args))
        branches = [ref for ref in refs if isinstance(ref, TensorRef) and ref != sources[0]]
        if len(branches) + 1 != len(refs) or len(refs) < 2:
            continue
        if not all(call_path(ref.layer, ref.call) in uses for ref in branches):
            continue
        merge = call_path(call.layer, call.index)
        for behind_call, behind in _calls_behind(graph, merge):
            words = (
                f"it is applied to the input of {printable(path)}, Keras applies it to what "
                f"{printable(merge)} gives"
            )
            applied = {
                (call_path(path.partition("#")[0], 0), layer.class_name): _reading_after(behind),
                (behind_call.layer, behind.class_name): left_out,
            }
            yield Change("order", call_path(behind_call.layer, behind_call.index), words, applied)


def _states_below(graph: Graph, path: str, layer: LayerSpec, trace: Trace) -> Iterator[Change]:
    """Yield the last states of each earlier Bidirectional in the place of this one's."""
    right = np.shape(next(leaves(trace.layers[path])))
    for call in graph.calls if layer.class_name == "Bidirectional" and len(right) == 2 else ():
        other = call_path(call.layer, call.index)
        if other == path:
            return
        below = graph.layer(call.layer)
        shape = np.shape(next(leaves(trace.layers[other])))
        if below.class_name == "Bidirectional" and (*shape[:1], *shape[2:]) == right:
            words = (
                f"takes the last states of {printable(other)} (h_n has those of all layers, the "
                "first layer's first)"
            )
            key = path.partition("#")[0], layer.class_name
            yield Change("other layer", path, words, {key: partial(_ends_of, other)})


def steps_of_others(graph: Graph, path: str, trace: Trace) -> Iterator[Change]:
    """Yield one step of an earlier sequence (B, T, F), or all in one, in a call's place."""
    right = np.shape(next(leaves(trace.layers[path])))
    place = path.partition("#")[0]
    for call in graph.calls if len(right) == 2 and "/" not in path else ():
        other = call_path(call.layer, call.index)
        if other == path:
            return
        shape = np.shape(next(leaves(trace.layers[other])))
        if len(shape) == 3 and (shape[0], shape[2]) == right:
            key = place, graph.layer(place).class_name
            for words, pick in _PICKS.items():
                told = f"{words} of {printable(other)} is in its place"
                yield Change("other layer", path, told, {key: partial(_step_of, other, pick)})
            if graph.layer(call.layer).class_name == "Bidirectional":
                told = f"the last states (h_n) of {printable(other)} are in its place"
                yield Change("other layer", path, told, {key: partial(_ends_of, other)})


_PICKS: Mapping[str, Callable[[Array], Array]] = {
    "the last step": last_step,
    "the first step": first_step,
    "the mean of all steps": mean_step,
    "the maximum of all steps": largest_step,
    "the sum of all steps": lambda y: y.sum(axis=1),
}


def _step_of(path: str, pick: Callable[[Array], Array], call: LayerCall) -> Result:
    output, out_mask = call.run()
    if isinstance(output, tuple):
        raise ValueError("there are several outputs")
    return pick(next(leaves(call.context.layers[path]))), out_mask


def _states_before(graph: Graph, path: str, refs: list[TensorRef]) -> Iterator[Change]:
    """Yield a recurrent layer's state before each step in the place of its output, as an input."""
    calls = {(one.layer, one.index): one for one in graph.calls}
    for place, ref in enumerate(refs):
        source = calls.get((ref.layer, ref.call)) if isinstance(ref, TensorRef) else None
        if source is None or ref.output or graph.layer(ref.layer).class_name not in CELLS:
            continue
        state = next(tensors(source.kwargs.get("initial_state")), None)
        words = (
            f"its input {place + 1} is the state of {printable(call_path(ref.layer, ref.call))} "
            "before each step, Keras has the one after it"
        )
        layer = path.partition("#")[0]
        key = layer, graph.layer(layer).class_name
        yield Change(
            "other input", path, words, {key: partial(_one_state_earlier, path, place, state)}
        )


def _one_state_earlier(path: str, place: int, state: TensorRef | None, call: LayerCall) -> Result:
    if call.context.path != path:
        return call.run()
    given = list(leaves(call.inputs))
    right = np.asarray(given[place])
    if right.ndim != 3:
        raise ValueError("there are no steps")
    first = np.zeros_like(right[:, 0])
    if state is not None:
        first = _tensor(call, state)
    given[place] = np.concatenate([first[:, np.newaxis], right[:, :-1]], axis=1)
    numbers = count()
    return call._replace(inputs=map_structure(lambda _: given[next(numbers)], call.inputs)).run()


def _states_of_others(graph: Graph, path: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the last states of each earlier call of such a layer, with which this one starts.

    As where one that is called twice keeps its states.
    """
    own = state_form(layer)
    for call in graph.calls if own else ():
        other = call_path(call.layer, call.index)
        if other == path:
            return
        refs = list(leaves(call.args))
        if len(refs) == 1 and not call.kwargs and state_form(graph.layer(call.layer)) == own:
            words = f"it starts with the last states of {printable(other)}, Keras with zeros"
            key = path.partition("#")[0], layer.class_name
            start = partial(_starting_after, path, graph.layer(call.layer), refs[0])
            yield Change("other state", path, words, {key: start})


def _starting_after(path: str, below: LayerSpec, ref: TensorRef, call: LayerCall) -> Result:
    if call.context.path != path:
        return call.run()
    if call.context.initial_state is not None:
        raise ValueError("it is called with initial states")
    source = call_path(ref.layer, ref.call)
    x, valid = (
        list(leaves(some[source]))[ref.output] for some in (call.context.layers, call.context.masks)
    )
    states = last_states(call._replace(layer=below, inputs=x, mask=valid))
    return call.starting(states).run()


def _other_states(graph: Graph, call: Call, layer: LayerSpec, trace: Trace) -> Iterator[Change]:
    """Yield earlier tensors in the place of the initial states of a call: all of them, or one."""
    refs = list(tensors(call.kwargs.get("initial_state")))
    path = call_path(call.layer, call.index)
    earlier = _tensors_before(graph, path, trace) if refs else {}
    by_source: dict[str, list[TensorRef]] = {}
    for ref in earlier:
        by_source.setdefault(call_path(ref.layer, ref.call), []).append(ref)
    for source, some in by_source.items():
        last = some[-len(refs) :]
        pairs = list(zip(refs, last, strict=False))
        if len(last) == len(refs) > 1 and _are_others(pairs, earlier):
            words = f"it starts with the last states of {printable(source)}, Keras with others"
            yield _with_states(path, layer, words, dict(enumerate(last)))
    for place, ref in enumerate(refs):
        own = _describe(ref, earlier)
        for other in earlier:
            if _are_others([(ref, other)], earlier):
                words = (
                    f"its initial state {place + 1} is {_describe(other, earlier)}, Keras has {own}"
                )
                yield _with_states(path, layer, words, {place: other})
            for what, pick in (
                _PICKS.items() if _has_such_steps(earlier[other], earlier[ref]) else ()
            ):
                words = f"its initial state {place + 1} is {what} of {_describe(other, earlier)}"
                yield _with_states(path, layer, f"{words}, Keras has {own}", {place: other}, pick)


def _are_others(
    pairs: Sequence[tuple[TensorRef, TensorRef]], known: Mapping[TensorRef, Array]
) -> bool:
    """Tell whether tensors could be in the place of these, and are not the same."""
    alike = all(known[one].shape == known[other].shape for one, other in pairs)
    return alike and not all(np.array_equal(known[one], known[other]) for one, other in pairs)


def _has_such_steps(steps: Array, state: Array) -> bool:
    return steps.ndim == 3 and (steps.shape[0], steps.shape[2]) == state.shape


def _with_states(
    path: str,
    layer: LayerSpec,
    words: str,
    places: Mapping[int, TensorRef],
    pick: Callable[[Array], Array] = np.asarray,
) -> Change:
    """Return the change that gives a call other initial states in some places."""
    key = path.partition("#")[0], layer.class_name
    return Change("other state", path, words, {key: partial(_starting_from, path, places, pick)})


def _starting_from(
    path: str, places: Mapping[int, TensorRef], pick: Callable[[Array], Array], call: LayerCall
) -> Result:
    if call.context.path != path:
        return call.run()
    states = list(call.context.initial_state or ())
    for place, ref in places.items():
        states[place] = pick(np.asarray(_tensor(call, ref)))
    return call.starting(tuple(states)).run()


def _other_masks(graph: Graph, path: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the mask of each earlier layer that makes one, where no mask arrives in Keras."""
    for call in graph.calls:
        other = call_path(call.layer, call.index)
        if other == path:
            return
        below = graph.layer(call.layer)
        if below.class_name in MASKING:
            words = f"the mask of {printable(other)} is used, in Keras no mask arrives here"
            if below.config.get("mask_zero") is False:
                words = f"id 0 of {printable(other)} is left out as padding, Keras reads it as data"
            key = path.partition("#")[0], layer.class_name
            ids = [call_path(ref.layer, ref.call) for ref in tensors(call.args)]
            yield Change("other mask", path, words, {key: partial(_masked_as, other, ids[0], "")})
            words = f"the mask of {printable(other)} is used, in Keras another one arrives here"
            instead = partial(_masked_as, other, ids[0], path)
            yield Change("other mask", path, words, {key: instead})


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
    own = [one for one in graph.calls if call_path(one.layer, one.index) == path]
    layer = graph.layer(own[0].layer) if own else None
    if layer is None:
        return
    known = {**_BY_LOST_MASKS.get(layer.class_name, {}), **_ZEROED_BY_LOST_MASKS}
    for call in graph.calls:
        other = call_path(call.layer, call.index)
        if other == path:
            return
        if graph.layer(call.layer).class_name in (*MASKING, *JOINING):
            for what, leave_out in known.items():
                words = f"{what}, by the mask of {printable(other)}; Keras does not do that here"
                key = path.partition("#")[0], layer.class_name
                yield Change("other mask", path, words, {key: partial(leave_out, other)})


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


def _reading_after(before: LayerSpec) -> Apply:
    """Let a layer read what another layer makes of its input."""

    def apply(call: LayerCall) -> Result:
        one, aside = next(leaves(call.mask), None), call.context.aside()

        def normalized(x: Structure) -> Structure:
            output, _ = EQUATIONS[before.class_name](before, x, one, aside)
            return output

        read = map_structure(normalized, call.inputs)
        return call._replace(inputs=read).run()

    return apply


def _then(after: LayerSpec) -> Apply:
    """Apply another layer to the output."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = call.run()
        more, _ = EQUATIONS[after.class_name](after, output, call.mask, call.context.aside())
        return more, out_mask

    return apply


def _before(merge: LayerSpec, refs: list[TensorRef], place: int) -> Apply:
    """Apply a layer to one input of the merge before it, then merge."""

    def apply(call: LayerCall) -> Result:
        values = [_tensor(call, ref) for ref in refs]
        values[place], out_mask = call._replace(inputs=values[place]).run()
        no_masks = [None] * len(values)
        output, _ = EQUATIONS[merge.class_name](merge, values, no_masks, call.context.aside())
        return output, out_mask

    return apply


def _describe(ref: TensorRef, known: Mapping[TensorRef, Array]) -> str:
    """Name a tensor by the call that returns it, and by its number if there are several."""
    several = TensorRef(ref.layer, ref.call, 1) in known
    number = f" {ref.output + 1}" if several else ""
    return f"the output{number} of {printable(call_path(ref.layer, ref.call))}"


def _take_tensor(path: str, place: int, other: TensorRef) -> Apply:
    """Give the layer another tensor in this place of its inputs, in this call alone."""

    def apply(call: LayerCall) -> Result:
        if call.context.path != path:
            return call.run()
        value = _tensor(call, other)
        numbers = count()
        changed = map_structure(lambda leaf: value if next(numbers) == place else leaf, call.inputs)
        return call._replace(inputs=changed).run()

    return apply
