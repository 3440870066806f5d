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
from graph_specs import chain_graph, spec_of

from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.kept_results import KeptResults
from keras2torch_birnn.porting.layer_changes import mask_changes
from keras2torch_birnn.porting.observing import PortRun
from keras2torch_birnn.porting.trials import Search
from keras2torch_birnn.reference import Trace

SEQUENCE = {"return_sequences": True}
Layers = tuple[Any, ...]
Graph = dict[str, Any]
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


# Layers after an input, of which the last but one is looked at, or the only one.
CHAINS: dict[str, list[Layers]] = {
    "LSTM": _recurrent("LSTM", {}),
    "GRU": [*_recurrent("GRU", {"reset_after": True}), *_recurrent("GRU", {"reset_after": False})],
    "SimpleRNN": _recurrent("SimpleRNN", {}),
    "both LSTM": _both("LSTM", {}),
    "both GRU": [*_both("GRU", {"reset_after": True}), *_both("GRU", {"reset_after": False})],
    "Dense": _plain(
        *(("Dense", {"units": 5, "activation": name}) for name in ("relu", "tanh", "softmax")),
        *(("Dense", {"units": units}) for units in (3, 7)),
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


def _chain(layers: Layers) -> tuple[Graph, str]:
    """Return a page's graph, and the call that is looked at."""
    kind = ("x", "ids", (7,)) if layers[0] is WORDS else ("x", "float", (7, 5))
    return chain_graph(*layers, inputs=[kind]), f"layer_{min(1, len(layers) - 1)}"


def _merged(name: str, options: dict[str, Any], *kinds: Any, end: Any = None) -> tuple[Graph, str]:
    """Merge several inputs; words have a mask."""
    inputs = [(f"x{number}", *kind) for number, kind in enumerate(kinds)]
    words = [(f"e{one}", WORDS, one) for one, kind, _ in inputs if kind == "ids"]
    given = [made for made, *_ in words] or [one for one, *_ in inputs]
    steps = [*words, ("y", (name, options), given if name in LISTED else tuple(given))]
    steps += [("z", end, "y")] if end else []
    return {"inputs": inputs, "steps": steps, "outputs": steps[-1][0]}, f"layer_{len(words)}"


def _operation(name: str, options: Graph, *kinds: Any, key: Any = ()) -> tuple[Graph, str]:
    """Apply one operation of Keras 3 to inputs; key: of a slice."""
    inputs = [(f"x{number}", *kind) for number, kind in enumerate(kinds)]
    names = [one for one, *_ in inputs]
    given = names if name == "ops.Concatenate" else (*names, *([_key(*key)] if key else []))
    steps = [("y", (name, options), given)]
    return {"inputs": inputs, "steps": steps, "outputs": "y"}, "layer_0"


def _key(*parts: Any) -> Graph:
    """Write the key of x[key] as Keras 3 does; a part of two numbers is a slice."""
    slices = [
        part
        if isinstance(part, int)
        else {"class_name": "__slice__", "config": dict(zip(("start", "stop"), part, strict=True))}
        for part in parts
    ]
    return {"class_name": "__tuple__", "items": slices}


def _squared(name: str) -> tuple[Graph, str]:
    given: Any = ["x", "x"] if name in LISTED else ("x", "x")
    step = ("y", (name, {}), given)
    return {"inputs": [("x", *LONG)], "steps": [step], "outputs": "y"}, "layer_0"


def _image(*layers: Any) -> tuple[Graph, str]:
    return chain_graph(*layers, inputs=[("x", "float", (7, 6, 4))]), "layer_0"


TEXT, LONG, SHORT = ("ids", (7,)), ("float", (7, 3)), ("float", (5, 3))
SQUARE, VECTOR = ("float", (7, 7)), ("float", (3,))
# Two of one width among others
STATES = [(VECTOR,) * 2 + (("float", (2,)),), (("float", (2,)),) + (VECTOR,) * 2]
MERGES = ("Add", "Multiply", "Average", "Maximum", "Subtract", "Minimum")
LISTED = (*MERGES, "Concatenate", "Dot", "Attention", "AdditiveAttention")
HEADS = {"num_heads": 2, "key_dim": 4, "value_dim": 5}
MASK_GIVEN = {"attention_mask": "@m"}
HALF = {"strides": 2, "padding": "same"}
LAST = ("GRU", {"units": 2})
GRAPHS: dict[str, list[tuple[Graph, str]]] = {
    "attention": [
        *(
            _merged(name, options, *kinds)
            for name, options in (
                ("Attention", {"use_scale": True}),
                ("AdditiveAttention", {"use_scale": True}),
                ("MultiHeadAttention", HEADS),
            )
            for kinds in ((TEXT, TEXT), (LONG, SHORT), (LONG, LONG, LONG), (LONG, LONG))
        ),
        _merged("Attention", {}, LONG, SHORT),
        _merged("Attention", {"use_scale": True, "score_mode": "concat"}, LONG, SHORT),
        (
            {
                "inputs": [("x", *LONG), ("m", "bool", (7, 7))],
                "steps": [("y", ("MultiHeadAttention", HEADS), ("x", "x"), MASK_GIVEN)],
                "outputs": "y",
            },
            "layer_0",
        ),
    ],
    "merges": [
        *(_merged(name, {}, LONG, LONG) for name in MERGES),
        *(_merged(name, {}, TEXT, TEXT, end=LAST) for name in ("Add", "Concatenate")),
        *(_merged("Concatenate", {}, *[LONG] * count) for count in (3, 4, 5)),
        _merged("Add", {}, LONG, LONG, LONG),
        _merged("Concatenate", {}, VECTOR, VECTOR),
        *(_merged("Concatenate", {}, *some) for some in STATES),
        *(_merged(name, {}, TEXT, TEXT, end=LAST) for name in ("Multiply", "Maximum")),
        *(_merged("Dot", {"axes": (1, 1), "normalize": norm}, VECTOR, VECTOR) for norm in (0, 1)),
        _merged("Dot", {"axes": (2, 1)}, SQUARE, SQUARE),
        _squared("Multiply"),
    ],
    "operations": [
        *(
            _operation(f"ops.{name}", {"axis": 1, "keepdims": False}, LONG)
            for name in ("Sum", "Mean", "Max")
        ),
        *(
            _operation(f"ops.{name}", {}, LONG, LONG)
            for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum")
        ),
        _operation("ops.Matmul", {}, SQUARE, SQUARE),
        *(_operation("ops.Concatenate", {"axis": -1}, *[LONG] * count) for count in range(2, 6)),
        _operation("ops.Concatenate", {"axis": -1}, VECTOR, VECTOR),
        *(_operation("ops.Concatenate", {"axis": -1}, *some) for some in STATES),
        _operation("ops.Relu", {}, LONG),
        _operation("ops.Softmax", {"axis": -1}, SQUARE),
        _merged("ops.Softmax", {"axis": 1}, TEXT),
        _squared("ops.Multiply"),
        _operation("ops.Flip", {"axis": 1}, SQUARE),
        _operation("ops.Roll", {"axis": 1, "shift": 2}, SQUARE),
        _operation("ops.GetItem", {}, LONG, key=((None, None), -1)),
        _operation("ops.GetItem", {}, LONG, key=((None, None), (1, 5))),
    ],
    "embedding": [
        (chain_graph(one, LAST, inputs=[("x", *TEXT)]), "layer_0")
        for one in (WORDS, ("Embedding", {"input_dim": 11, "output_dim": 3}))
    ],
    "images": [
        _image(("Conv2D", {"filters": 4, "kernel_size": (3, 2), "padding": "same"})),
        _image(("Conv2D", {"filters": 4, "kernel_size": 3, "strides": 2, "groups": 2})),
        _image(("DepthwiseConv2D", {"kernel_size": 2, "depth_multiplier": 2})),
        _image(("SeparableConv2D", {"filters": 3, "kernel_size": 2, "depth_multiplier": 2})),
        *(
            _image(("Conv2DTranspose", {"filters": 3, "kernel_size": size, **HALF}))
            for size in (3, 5)
        ),
        _image(("MaxPooling2D", {"pool_size": (3, 2), "padding": "same"})),
        _image(("AveragePooling2D", {"pool_size": 2})),
        _image(("GlobalAveragePooling2D", {})),
        _image(("UpSampling2D", {"size": (2, 3)})),
        _image(("ZeroPadding2D", {"padding": ((1, 2), (0, 1))})),
        _image(("Cropping2D", {"cropping": ((1, 2), (0, 1))})),
        _image(("BatchNormalization", {})),
        _image(("GroupNormalization", {"groups": 2})),
        _image(("Permute", {"dims": (2, 1, 3)})),
        _image(("Flatten", {}), END),
        _image(("Reshape", {"target_shape": (7, 24)}), END),
    ],
}
PAGES = {**{name: [_chain(one) for one in chains] for name, chains in CHAINS.items()}, **GRAPHS}
# Rows that need what these pages do not have: states that are given or kept, masks that differ,
# values at padded steps that count, a width that does not matter, an output of the input's shape.
ELSEWHERE = re.compile(
    "its initial state|(tanh|relu) is applied to its initial|("
    "(for|back)ward half: )?its states are kept|its (in|out)put is zero at"
    "|the mask is not used: padding|merges the halves by (concat|ave)|its input is truncated"
    "|its output is replaced|it is left out|it is applied twice|its input is added to its output"
    "|the length is taken over the last axis|its (in|out)put is reversed along the second axis of"
    "|(the (first|last) features of )?its input (is|are) added to "
    "|the mask of its (first|second|third) input alone|the mask of the query is not used"
    "|each step attends to all steps|a step counts where one of its inputs counts"
)


def _shown(words: str) -> str:
    """Leave out what differs from page to page: numbers, and what Keras has."""
    return re.sub(r",? ?Keras.*|[-\d.,e ]*\d", "", words)


@pytest.mark.parametrize(
    "page", [pytest.param(one, marks=[pytest.mark.thorough] * ("both" in one)) for one in PAGES]
)
def test_each_row_makes_a_difference(page: str) -> None:
    alive: dict[str, bool] = {}
    for graph, path in PAGES[page]:
        spec = spec_of(graph)
        for batch in batches(spec, None):
            run, kept = PortRun((), (), 1e-9), KeptResults(spec.root)
            search = Search(spec, batch.arrays, run, (), (), [], calls=1, kept=kept)
            search.compute([], note=True)
            of_masks = mask_changes(path, search.layers[path], path)
            for change in (*search.changes_of(path), *of_masks):
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
