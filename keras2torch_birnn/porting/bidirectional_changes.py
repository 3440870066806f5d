"""Known mistakes in ports of Bidirectional, as changes to try. B batch, T time, H units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.merge_modes import MERGE_MODES
from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.porting.cell_changes import inner_changes
from keras2torch_birnn.porting.changes import AROUND, Apply, Change, LayerCall, Maker, configured
from keras2torch_birnn.porting.general_changes import MOVES
from keras2torch_birnn.porting.recurrent_changes import (
    BATCH_FIRST,
    CELLS,
    Pick,
    as_cell,
    as_sequences,
    cell_changes,
    first_step,
    kept_state_changes,
    largest_step,
    last_step,
    mean_of_valid,
    mean_step,
    of_all,
    one_way_changes,
    order_changes,
    step_before_last,
    sum_of_steps,
    valid_steps,
)
from keras2torch_birnn.porting.state_changes import state_changes
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.reference.recurrent import MERGES
from keras2torch_birnn.spec import Array, LayerSpec, Structure

Merge: TypeAlias = Callable[[Array, Array], Structure]
# The layer's merge and both halves' outputs -> the output
Both: TypeAlias = Callable[[Merge, Array, Array], Structure]


def recurrent_changes(maker: Maker) -> Iterator[Change]:
    """Yield the known mistakes of a recurrent layer, the likeliest first."""
    if maker.layer.class_name != "Bidirectional":
        yield from one_way_changes(maker)
        return
    halves = {name: half for name, half in maker.layer.parts.items() if half.class_name in CELLS}
    if len(halves) < len(maker.layer.parts):
        return
    place = place_of(maker.path)
    keys = {name: (f"{place}/{name}", half.class_name) for name, half in halves.items()}
    both = Maker(maker.path, as_cell(next(iter(halves.values()))), keys.values())
    yield from cell_changes(both)
    yield from _bidirectional_changes(maker, both.layer)
    yield from kept_state_changes(both)
    yield from inner_changes(both)
    for name, half in halves.items():
        alone = Maker(maker.path, as_cell(half), [keys[name]])
        for change in (
            *cell_changes(alone),
            *kept_state_changes(alone),
            *inner_changes(alone),
            *order_changes(alone, each=False),
        ):
            yield replace(change, words=f"{name.removesuffix('_layer')} half: {change.words}")
    yield from order_changes(both)


def _bidirectional_changes(maker: Maker, half: LayerSpec) -> Iterator[Change]:
    """Yield known mistakes of a ``Bidirectional``: merge, directions, states, halves mixed up."""
    here = maker.change
    yield from state_changes(maker)
    mode = maker.config["merge_mode"]
    for name in MERGE_MODES if mode is not None else ():
        if name != mode:
            words = f"merges the halves by {name}, Keras by {mode}"
            yield here("merge mode", words, configured(merge_mode=name), AROUND)
    some = [((), "weights"), *(((name,), name.replace("_", " ")) for name in half.weights)]
    for names, shown in some:
        words = f"the {shown} of the forward and the backward half are exchanged"
        yield here("directions exchanged", words, partial(_exchange_halves, names))
    if half.config["return_state"]:
        for words, steps in _STEPS_AS_STATES.items():
            for merged in (True, False) if mode not in ("concat", None) else (False,):
                whose = "the merged outputs" if merged else "the halves' outputs"
                told = f"the states that it returns: h is taken from {whose} at {words}"
                yield here("final state", told, partial(_outputs_as_states, steps, merged=merged))
    if mode == "concat":
        yield here(
            "merge order",
            "the backward half comes first in the concatenation",
            _merged(lambda _, f, b: np.concatenate([b, f], axis=-1)),
            AROUND,
        )
        yield here(
            "merge order",
            "units of both halves take turns, Keras has all of the forward half first",
            _merged(lambda _, f, b: np.stack([f, b], axis=-1).reshape(*f.shape[:-1], -1)),
            AROUND,
        )
    else:
        for words, merge in _OTHER_MERGES.items():
            yield here("merge mode", f"{words}, Keras merges by {mode}", _merged(merge), AROUND)
    yield from _sequence_changes(maker) if half.config["return_sequences"] else _end_changes(maker)
    if half.class_name == "LSTM" and not half.config["return_sequences"]:
        for words, which in _CELL_STATES.items():
            yield here("last state", words, partial(_cell_states, which))
    for words, merge in _ONE_HALF.items() if mode != "concat" else ():
        yield here("half left out", f"{words}, Keras merges by {mode}", _merged(merge), AROUND)
    for words, merge in _ONE_HALF_TWICE.items() if mode != "ave" else ():
        yield here("half taken twice", words, _merged(merge), AROUND)
    for part, other in (("forward", "backward"), ("backward", "forward")):
        for names, shown in some:
            words = f"the {other} half uses the {shown} of the {part} half"
            yield here("halves alike", words, partial(_share_half, f"{part}_layer", names))


def _sequence_changes(maker: Maker) -> Iterator[Change]:
    """Yield wrong directions of halves that return all steps."""
    words = "the backward half's output is not turned round in time"
    yield maker.change("direction", words, _merged(lambda merge, f, b: merge(f, b[:, ::-1])))
    turned = partial(_forward_both, lambda merge, f, b: merge(f, b[:, ::-1]))
    yield maker.change("direction", _READS_FORWARD, turned)
    words = "the backward half's output is turned round with the padding, so that it comes too late"
    yield maker.change("reversed padding", words, _turned_with_padding)
    yield maker.change(
        "batch_first", BATCH_FIRST, partial(_swapped, lambda merge, f, b: merge(f, b))
    )
    for half, moved in (("forward", _with_forward), ("backward", _with_backward)):
        for late in ("late", "early"):
            words = f"the {half} half's output comes one step too {late}"
            yield maker.change("steps", words, _merged(moved(MOVES[late])))


def _end_changes(maker: Maker) -> Iterator[Change]:
    """Yield other steps of halves that return their last one."""
    forward = partial(_forward_both, lambda merge, f, b: merge(f, b))
    yield maker.change("direction", _READS_FORWARD, forward)
    for words, picks in _LAST_STATES.items():
        yield maker.change("last state", words, partial(_picked, *picks))
    words = "h_n (2, B, H) is viewed as (B, 2 H), which mixes rows of the batch"
    viewed = _merged(lambda _, f, b: np.stack([f, b]).reshape(len(f), -1))
    yield maker.change("last state", words, viewed)
    swapped = partial(_swapped, lambda merge, f, b: merge(f[:, -1], b[:, -1]))
    yield maker.change("batch_first", BATCH_FIRST, swapped)


_READS_FORWARD = "the backward half reads the steps forward"


# ---- ways to change what becomes of both halves --------------------------------------------------


def _merge_of(layer: LayerSpec) -> Merge:
    """Return the merge of the layer as it is here: another change may have chosen it."""
    return MERGES[layer.config["merge_mode"]]


def _merged(merge: Both) -> Apply:
    """Make a change of what becomes of both halves' outputs, as Keras has them before merging."""

    def apply(call: LayerCall) -> Result:
        output, out_mask = call.configured(merge_mode=None).run()
        forward, backward, *states = output
        return _result(merge(_merge_of(call.layer), forward, backward), states, out_mask[0])

    return apply


def _result(merged: Structure, states: Sequence[Array], mask: Structure) -> Result:
    """Return outputs and masks as Bidirectional does; ``merged`` is a pair where both are kept."""
    heads = merged if isinstance(merged, tuple) else (merged,)
    masks = (*[mask] * len(heads), *[None] * len(states))
    output = (*heads, *states)
    return (output, masks) if len(output) > 1 else (output[0], mask)


def _swapped(merge: Both, call: LayerCall) -> Result:
    """Let both halves run over the batch; ``merge`` gets their sequences (B, T, H)."""
    parts = {name: as_sequences(half) for name, half in call.layer.parts.items()}
    apart = call.with_parts(parts).configured(merge_mode=None)
    (f, b), _ = apart._replace(inputs=np.swapaxes(call.inputs, 0, 1), mask=None).run()
    sequences = next(iter(call.layer.parts.values())).config["return_sequences"]
    merged = merge(_merge_of(call.layer), np.swapaxes(f, 0, 1), np.swapaxes(b, 0, 1))
    return _result(merged, (), call.mask if sequences else None)


def _picked(first: Pick | None, second: Pick | None, call: LayerCall) -> Result:
    """Make a change of which step of each half is taken; None: the one that Keras takes."""
    apart = call.configured(merge_mode=None)
    last, _ = apart.run()
    parts = {name: as_sequences(half) for name, half in call.layer.parts.items()}
    steps, _ = apart.with_parts(parts).run()
    valid = valid_steps(call.mask, steps[0])
    forward, backward = (
        own if pick is None else pick(sequence, valid)
        for pick, own, sequence in zip((first, second), last[:2], steps[:2], strict=True)
    )
    return _result(_merge_of(call.layer)(forward, backward), last[2:], None)


def _turned_with_padding(call: LayerCall) -> Result:
    """Flip whole rows of the backward half's output, whose steps were put where they count."""
    (forward, backward, *states), masks = call.configured(merge_mode=None).run()
    valid = valid_steps(call.mask, backward)
    turned = np.zeros_like(backward)
    for row, steps in enumerate(valid):
        turned[row, steps[::-1]] = backward[row, steps]
    return _result(_merge_of(call.layer)(forward, turned), states, masks[0])


def _forward_both(merge: Both, call: LayerCall) -> Result:
    """Let the backward half read forward; ``merge`` gets its output turned round by Keras."""
    half = call.layer.parts["backward_layer"]
    half = replace(half, config={**half.config, "go_backwards": False})
    parts = {**call.layer.parts, "backward_layer": half}
    return _merged(merge)(call.with_parts(parts))


def _cell_states(which: tuple[int, int], call: LayerCall) -> Result:
    """Merge two of: the last outputs of both halves, then h and c of the forward half, and h, c."""
    parts = {
        name: replace(half, config={**half.config, "return_state": True})
        for name, half in call.layer.parts.items()
    }
    output, _ = call.with_parts(parts).configured(merge_mode=None).run()
    states = output[2:] if call.layer.parts["forward_layer"].config["return_state"] else ()
    return _result(_merge_of(call.layer)(output[which[0]], output[which[1]]), states, None)


def _outputs_as_states(steps: tuple[int, int], call: LayerCall, *, merged: bool) -> Result:
    """Return outputs at these steps in the place of the last h of both halves; c stays."""
    output, out_mask = call.run()
    parts = {name: as_sequences(half) for name, half in call.layer.parts.items()}
    sequences, _ = call.aside().with_parts(parts).configured(merge_mode=None).run()
    if merged:
        sequences = [_merge_of(call.layer)(*sequences)] * 2
    count = 2 if call.layer.parts["forward_layer"].class_name == "LSTM" else 1
    forward, backward = (y[:, step] for y, step in zip(sequences, steps, strict=True))
    heads, states = output[: -2 * count], output[-2 * count :]
    return (*heads, forward, *states[1:count], backward, *states[count + 1 :]), out_mask


def _exchange_halves(names: Sequence[str], call: LayerCall) -> Result:
    """Exchange weights of both halves: those of these names, or all."""
    halves = list(call.layer.parts.values())
    parts = {
        part: replace(own, weights={**own.weights, **_some(other.weights, names)})
        for part, own, other in zip(call.layer.parts, halves, halves[::-1], strict=True)
    }
    return call.with_parts(parts).run()


def _some(weights: Mapping[str, Array], names: Sequence[str]) -> Mapping[str, Array]:
    """Return the weights of these names, or all."""
    return {name: weights[name] for name in names or weights}


def _share_half(name: str, names: Sequence[str], call: LayerCall) -> Result:
    """Let both halves use weights of one of them: those of these names, or all."""
    shared = _some(call.layer.parts[name].weights, names)
    parts = {
        part: replace(half, weights={**half.weights, **shared})
        for part, half in call.layer.parts.items()
    }
    return call.with_parts(parts).run()


def _last_valid(y: Array, valid: Array) -> Array:
    """Return the last valid step of each row."""
    last = valid.shape[1] - 1 - valid[:, ::-1].argmax(axis=1)
    found: Array = y[np.arange(len(y)), last]
    return found


# Steps at which outputs stand for the last states of the forward and of the backward half
_STEPS_AS_STATES: Mapping[str, tuple[int, int]] = {
    "the last and the first step": (-1, 0),
    "the last step": (-1, -1),
    "the first step": (0, 0),
    "the first and the last step": (0, -1),
}
_OTHER_MERGES: Mapping[str, Both] = {
    "subtracts the backward half from the forward half": lambda _, f, b: f - b,
    "subtracts the forward half from the backward half": lambda _, f, b: b - f,
    "takes the larger of both halves": lambda _, f, b: np.maximum(f, b),
}
_CELL_STATES: Mapping[str, tuple[int, int]] = {
    "takes the cell states c where Keras takes h": (3, 5),
    "takes the cell state c of the forward half where Keras takes its h": (3, 1),
    "takes the cell state c of the backward half where Keras takes its h": (0, 5),
}
_ONE_HALF: Mapping[str, Both] = {
    "leaves out the backward half": lambda _, f, b: f,
    "leaves out the forward half": lambda _, f, b: b,
}
_ONE_HALF_TWICE: Mapping[str, Both] = {
    "takes the forward half twice, the backward half never": lambda merge, f, b: merge(f, f),
    "takes the backward half twice, the forward half never": lambda merge, f, b: merge(b, b),
}


def _with_forward(move: Callable[[Array], Array]) -> Both:
    return lambda merge, f, b: merge(move(f), b)


def _with_backward(move: Callable[[Array], Array]) -> Both:
    return lambda merge, f, b: merge(f, move(b))


_FIRST, _LAST = of_all(first_step), of_all(last_step)
# Which steps of the forward and of the backward half are taken; None: the one that Keras takes
_LAST_STATES: Mapping[str, tuple[Pick | None, Pick | None]] = {
    "takes the last step of both halves (out[:, -1]); the backward half ends at the first": (
        _LAST,
        _LAST,
    ),
    "takes the first step of both halves (out[:, 0]); the forward half ends at the last": (
        _FIRST,
        _FIRST,
    ),
    "takes the first step of the forward half and the last one of the backward half": (
        _FIRST,
        _LAST,
    ),
    "takes the last step that counts of both halves; the backward half ends at the first": (
        None,
        _last_valid,
    ),
    "takes the step before the last that counts of the forward half": (step_before_last, None),
    "takes the last step of the backward half (out[:, -1]), which ends at the first": (None, _LAST),
    "takes the last step of the array for the forward half, also where it is padding": (
        _LAST,
        None,
    ),
    "takes the first step of the array for the backward half, also where it is padding": (
        None,
        _FIRST,
    ),
    "takes the ends of the array for both halves, also where they are padding": (_LAST, _FIRST),
    "takes the mean over the steps where Keras takes the last": (
        of_all(mean_step),
        of_all(mean_step),
    ),
    "takes the mean over the steps that count where Keras takes the last": (
        mean_of_valid,
        mean_of_valid,
    ),
    "adds up the steps where Keras takes the last": (of_all(sum_of_steps), of_all(sum_of_steps)),
    "takes the maximum over the steps where Keras takes the last": (
        of_all(largest_step),
        of_all(largest_step),
    ),
}
