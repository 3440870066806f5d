"""Known mistakes with the states that recurrent layers take and return, as changes to try."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from keras2torch_birnn.porting.changes import Apply
from keras2torch_birnn.reference.context import Context, Equation, Result
from keras2torch_birnn.spec import LayerSpec, Structure

# Which state stands in each place, by its number among Keras'
Places: TypeAlias = tuple[int, ...]


def state_changes(layer: LayerSpec) -> Iterator[tuple[str, str, Apply]]:
    """Yield wrong states of a layer, as kind, words and change: initial ones, then final ones."""
    yield "initial state", "its initial state is not used: it starts with zeros", _starting(None)
    table = _places_of(layer)
    for words, places in table.items():
        yield "initial state", f"its initial states: {words}", _starting(places)
    half = next(iter(layer.parts.values()), layer)
    for words, places in table.items() if half.config.get("return_state") else ():
        yield "final state", f"the states that it returns: {words}", _returning(places)


def _places_of(layer: LayerSpec) -> Mapping[str, Places]:
    both = layer.class_name == "Bidirectional"
    cell = layer.parts["forward_layer"] if both else layer
    return _PLACES.get((both, cell.class_name == "LSTM"), {})


# (Bidirectional, LSTM) -> what is wrong in words, and which state of Keras stands in each place.
# Keras has h, c of an LSTM, and those of the forward half first.
_PLACES: Mapping[tuple[bool, bool], Mapping[str, Places]] = {
    (False, True): {
        "c stands for h, too": (1, 1),
        "h stands for c, too": (0, 0),
        "h and c are exchanged": (1, 0),
    },
    (True, False): {
        "those of both halves are exchanged": (1, 0),
        "that of the forward half is taken for both": (0, 0),
        "that of the backward half is taken for both": (1, 1),
    },
    (True, True): {
        "c stands for h, too": (1, 1, 3, 3),
        "c stands for h in the forward half": (1, 1, 2, 3),
        "c stands for h in the backward half": (0, 1, 3, 3),
        "h stands for c, too": (0, 0, 2, 2),
        "h and c are exchanged": (1, 0, 3, 2),
        "h and c of the forward half are exchanged": (1, 0, 2, 3),
        "h and c of the backward half are exchanged": (0, 1, 3, 2),
        "those of both halves are exchanged": (2, 3, 0, 1),
        "those of the forward half are taken for both": (0, 1, 0, 1),
        "those of the backward half are taken for both": (2, 3, 2, 3),
    },
}


def _starting(places: Places | None) -> Apply:
    """Make a change of the initial states that a layer is called with; None: there are none."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        given = context.initial_state
        if given is None or (places is not None and len(places) != len(given)):
            raise ValueError("it is called without initial states")
        moved = None if places is None else tuple(given[place] for place in places)
        return equation(layer, inputs, mask, context.starting(moved))

    return apply


def _returning(places: Places) -> Apply:
    """Make a change of the states that a layer returns after its outputs."""

    def apply(
        equation: Equation, layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
    ) -> Result:
        output, out_mask = equation(layer, inputs, mask, context)
        heads, states = output[: -len(places)], output[-len(places) :]
        return (*heads, *(states[place] for place in places)), out_mask

    return apply
