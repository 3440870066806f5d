"""No row of the tables of known mistakes is dead: on a small model each makes a difference.

A port with one mistake computes what the reference computes with its row, so no port is written.
``compare`` takes the first row that gives the port's outputs: a row that gives none of its own, on
any page, could never be told.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from graph_specs import spec_of

from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.kept_results import KeptResults
from keras2torch_birnn.porting.observing import PortRun
from keras2torch_birnn.porting.trials import Search
from keras2torch_birnn.reference import Trace

SEQUENCE = {"return_sequences": True}
Layers = tuple[Any, ...]
# A page: the layers after the input, of which the last but one is looked at in the first of them.
WORDS = ("Embedding", {"input_dim": 11, "output_dim": 3, "mask_zero": True})
END = ("Dense", {"units": 2})


def _recurrent(name: str, options: dict[str, Any]) -> list[Layers]:
    more = {"units": 3, **options}
    backwards = {**more, "go_backwards": True}
    return [
        (WORDS, (name, {**one, **end}), END) for one in (more, backwards) for end in (SEQUENCE, {})
    ]


def _both(name: str, options: dict[str, Any]) -> list[Layers]:
    halves = [(name, {"units": 3, **options, **more}) for more in (SEQUENCE, {})]
    return [
        (WORDS, ("Bidirectional", {"layer": half, "merge_mode": mode}), END)
        for half in halves
        for mode in ("concat", "ave")
    ]


def _plain(*layers: tuple[str, dict[str, Any]]) -> list[Layers]:
    return [(layer,) for layer in layers]


PAGES: dict[str, list[Layers]] = {
    "LSTM": _recurrent("LSTM", {}),
    "GRU": [*_recurrent("GRU", {"reset_after": True}), *_recurrent("GRU", {"reset_after": False})],
    "SimpleRNN": _recurrent("SimpleRNN", {}),
    "both LSTM": _both("LSTM", {}),
    "both GRU": [*_both("GRU", {"reset_after": True}), *_both("GRU", {"reset_after": False})],
    "Dense": _plain(
        *(("Dense", {"units": 5, "activation": name}) for name in ("relu", "tanh", "softmax"))
    ),
    "norms": _plain(
        ("LayerNormalization", {"epsilon": 2e-3}),
        ("BatchNormalization", {"epsilon": 2e-3}),
        ("UnitNormalization", {}),
    ),
    "windows": _plain(
        ("Conv1D", {"filters": 3, "kernel_size": 4, "padding": "same", "activation": "relu"}),
        ("Conv1D", {"filters": 3, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
        ("MaxPooling1D", {"pool_size": 3, "strides": 2, "padding": "same"}),
        ("AveragePooling1D", {"pool_size": 3, "strides": 3, "padding": "valid"}),
        ("AveragePooling1D", {"pool_size": 2, "strides": 1}),
        ("SeparableConv1D", {"filters": 3, "kernel_size": 2}),
        ("ZeroPadding1D", {"padding": (2, 1)}),
    ),
}
# Rows that need what these pages do not have: states that are given or kept, values at padded steps
# that count, a width that does not matter, an output of the input's shape.
ELSEWHERE = re.compile(
    "its initial state|((for|back)ward half: )?its states are kept|its (in|out)put is zero at"
    "|the mask is not used: padding|merges the halves by (concat|ave)|its input is truncated"
    "|its output is replaced|it is left out|it is applied twice|its input is added to its output"
    "|the length is taken over the last axis"
)


def _shown(words: str) -> str:
    """Leave out what differs from page to page: numbers, and what Keras has."""
    return re.sub(r",? ?Keras.*|[-\d.,e ]*\d", "", words)


@pytest.mark.parametrize(
    "page", [pytest.param(one, marks=[pytest.mark.thorough] * ("both" in one)) for one in PAGES]
)
def test_each_row_makes_a_difference(page: str) -> None:
    alive: dict[str, bool] = {}
    for layers in PAGES[page]:
        number = min(1, len(layers) - 1)
        kind = ("x", "ids", (7,)) if layers[0] is WORDS else ("x", "float", (7, 5))
        names = ["x", *(f"t{place}" for place in range(len(layers)))]
        steps = [(names[place + 1], layer, names[place]) for place, layer in enumerate(layers)]
        spec = spec_of({"inputs": [kind], "steps": steps, "outputs": names[-1]}, "3.15.1")
        path = f"layer_{number}"
        for batch in batches(spec, None):
            run = PortRun((), (), 1e-9)
            search = Search(
                spec, batch.arrays, run, (), (), [], calls=1, kept=KeptResults(spec.root)
            )
            search.compute([], keep=True)
            for change in search._changes_of(path):
                words = _shown(change.words)
                if not alive.setdefault(words, False):
                    alive[words] = _differs(search.compute([change]), search)
    dead = [words for words, is_alive in alive.items() if not is_alive]
    assert [one for one in dead if not ELSEWHERE.match(one)] == []


def _differs(found: Trace | None, search: Search) -> bool:
    """Tell whether outputs are numbers, and not Keras' own at steps that count."""
    if found is None or not all(np.isfinite(y).any() for y in found.outputs):
        return False
    pairs = zip(found.outputs, search.exact.outputs, strict=True)
    return any(a.shape != b.shape or not np.allclose(a, b) for a, b in pairs)
