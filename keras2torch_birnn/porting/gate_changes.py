"""Known mistakes with single gates of LSTM, GRU and SimpleRNN, as changes of their weights.

Kernels are (inputs, gates * units), biases (gates * units) or, of a GRU that resets after,
(2, gates * units): the input's and the recurrent one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations, permutations
from typing import TypeAlias

import numpy as np

from keras2torch_birnn.porting.changes import Weights
from keras2torch_birnn.porting.gates import gate_count, torch_letters
from keras2torch_birnn.spec import LayerSpec

# kind, words, what becomes of the weights
Row: TypeAlias = tuple[str, str, Callable[[Weights], Weights]]

# A gate is 1 or 0 to the last bit, whatever it reads, with this or the opposite as its bias.
_FAR = 100.0
_BOUNDED = ("sigmoid", "hard_sigmoid_0.2", "hard_sigmoid_1/6")
_FACTORS: Mapping[float, str] = {
    2.0: "doubled",
    0.5: "halved",
    -1.0: "negated",
}
# Cell and the letter of a gate -> what is said if it is always 1, and if it is always 0
_FIXED: Mapping[tuple[str, str], tuple[str, str]] = {
    ("LSTM", "i"): ("the input gate is left out (it is 1)", ""),
    ("LSTM", "f"): (
        "the forget gate is left out (it is 1)",
        "the cell state c is not carried from step to step",
    ),
    ("LSTM", "o"): ("the output gate is left out (it is 1)", ""),
    ("GRU", "z"): ("", "the update gate is left out: h is n"),
    ("GRU", "r"): (
        "the reset gate is left out (it is 1)",
        "n does not read the last state (the reset gate is 0)",
    ),
}


def gate_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield mistakes with a gate, with the biases of one, and with states that are not carried."""
    count = gate_count(layer.class_name)
    yield (
        "state not carried",
        "h is not carried from step to step",
        partial(_times, name="recurrent_kernel", gate=slice(None), factor=0),
    )
    if layer.weights and np.shape(layer.weights["kernel"]) == np.shape(
        layer.weights["recurrent_kernel"]
    ):
        yield (
            "exchanged",
            "the kernel and the recurrent kernel are exchanged",
            lambda w: {"kernel": w["recurrent_kernel"], "recurrent_kernel": w["kernel"]},
        )
    rest = 1 - layer.config.get("recurrent_dropout", 0)
    kept = {rest: f"multiplied by {rest:g} (1 - recurrent_dropout)"} if rest < 1 else {}
    for factor, words in {**kept, **_FACTORS}.items():
        scale = partial(_times, name="recurrent_kernel", gate=slice(None), factor=factor)
        yield "scale", f"the recurrent kernel is {words}", scale
    if not layer.config["use_bias"] or count < 2:
        return
    units = layer.config["units"]
    for number in range(count):
        letter = torch_letters(layer.class_name, (number,))
        gate = _block(number, units)
        for factor, words in ((0, "is not added"), (2, "is added twice")):
            yield (
                "gate's bias",
                f"the bias of {letter} {words}",
                partial(_times, name="bias", gate=gate, factor=factor),
            )
        names = ("input", "recurrent") if np.ndim(layer.weights["bias"]) == 2 else ()
        for row, name in enumerate(names):
            words = f"the {name} bias of {letter} is not added"
            some = partial(_without, row=slice(row, row + 1), gates=(number,), units=units)
            yield "gate's bias", words, some
        told = _FIXED.get((layer.class_name, letter), ())
        for bias, words in zip((_FAR, -_FAR), told, strict=False):
            if words and layer.config["recurrent_activation"] in _BOUNDED:
                yield "gate left out", words, partial(_fixed, gate=gate, bias=bias)
    yield from _without_biases(layer, count)
    yield from _taken_for_another(layer)
    if layer.class_name == "GRU" and layer.config["reset_after"]:
        for rows, words in _ROWS.items():
            yield "biases", words, partial(_with_rows, rows=rows)


def _block(number: int, units: int) -> slice:
    """Return where a gate is among those of a weight."""
    return slice(number * units, (number + 1) * units)


def _without_biases(layer: LayerSpec, count: int) -> Iterator[Row]:
    """Yield biases that are left out of several gates, but not of all: one row of them or both."""
    units = layer.config["units"]
    rows = {"bias": slice(None)}
    if np.ndim(layer.weights["bias"]) == 2:
        rows |= {"input bias": slice(0, 1), "recurrent bias": slice(1, 2)}
    for size in range(2, count):
        for gates in combinations(range(count), size):
            letters = " and ".join(torch_letters(layer.class_name, (gate,)) for gate in gates)
            for name, row in rows.items():
                words = f"the {name} of {letters} is not added, that of the other gates is"
                yield "gate's bias", words, partial(_without, row=row, gates=gates, units=units)


def _taken_for_another(layer: LayerSpec) -> Iterator[Row]:
    """Yield a gate in another one's place, or 1 minus it: 1 - sigmoid(a) is sigmoid(-a)."""
    units = layer.config["units"]
    letters = torch_letters(layer.class_name, tuple(range(gate_count(layer.class_name))))
    gates = [letter for letter in letters if letter in "ifozr"]
    for one, other in permutations(gates, 2):
        to, source = (_block(letters.index(letter), units) for letter in (one, other))
        for sign, shown in ((1, other), (-1, f"1 - {other}")):
            words = f"{shown} is in the place of {one}"
            yield "other gate", words, partial(_copied, to=to, source=source, sign=sign)
    for one, other in permutations(letters, 2):
        to, source = (_block(letters.index(letter), units) for letter in (one, other))
        for name in layer.weights:
            words = f"the {name.replace('_', ' ')} of {one} is that of {other}"
            only = partial(_copied, to=to, source=source, sign=1, names=(name,))
            yield "other gate", words, only


def _copied(
    weights: Weights, *, to: slice, source: slice, sign: int, names: tuple[str, ...] = ()
) -> Weights:
    """Give a gate another one's values, in the weights of these names or in all."""
    changed = {name: np.array(array, np.float64) for name, array in weights.items()}
    for name in names or changed:
        changed[name][..., to] = sign * changed[name][..., source]
    return changed


_ROWS: Mapping[tuple[int, int], str] = {
    (0, 0): "the input bias is used for the recurrent bias, too",
    (1, 1): "the recurrent bias is used for the input bias, too",
    (1, 0): "the input and the recurrent bias are exchanged",
}


def _times(weights: Weights, *, name: str, gate: slice, factor: float) -> Weights:
    changed = np.array(weights[name], np.float64)
    changed[..., gate] *= factor
    return {name: changed}


def _without(weights: Weights, *, row: slice, gates: tuple[int, ...], units: int) -> Weights:
    bias = np.array(weights["bias"], np.float64)
    for gate in gates:
        bias[row if bias.ndim == 2 else ..., _block(gate, units)] = 0
    return {"bias": bias}


def _fixed(weights: Weights, *, gate: slice, bias: float) -> Weights:
    changed = {name: np.array(array, np.float64) for name, array in weights.items()}
    for name, array in changed.items():
        array[..., gate] = bias if name == "bias" else 0
    return changed


def _with_rows(weights: Weights, *, rows: tuple[int, int]) -> Weights:
    return {"bias": weights["bias"][list(rows)]}


def transposed_gate_changes(layer: LayerSpec) -> Iterator[Row]:
    """Yield the recurrent matrix of a single gate that is not transposed, which is square."""
    units = layer.config["units"]
    count = gate_count(layer.class_name)
    for number in range(count) if count > 1 else ():
        letter = torch_letters(layer.class_name, (number,))
        words = f"the recurrent kernel of {letter} is not transposed (it is square)"
        turned = partial(_gate_transposed, gate=_block(number, units))
        yield "not transposed", words, turned


def _gate_transposed(weights: Weights, *, gate: slice) -> Weights:
    changed = np.array(weights["recurrent_kernel"], np.float64)
    changed[:, gate] = changed[:, gate].T.copy()
    return {"recurrent_kernel": changed}
