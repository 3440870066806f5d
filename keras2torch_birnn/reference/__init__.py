"""Keras' equations in plain NumPy: slow, obviously right, the standard of ``verify``.

Takes the ModelSpec that the readers make. Imports neither torch nor h5py and shares no line with
the torch side. Inference only: what Keras does in training alone is the identity here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from keras2torch_birnn.reference import custom_layers
from keras2torch_birnn.reference.context import Context, Equation, OwnEquations, Scan
from keras2torch_birnn.reference.model import run
from keras2torch_birnn.schema import OPS, PAGES
from keras2torch_birnn.schema.row import Pages
from keras2torch_birnn.spec import Array, Generation, LayerSpec, ModelSpec, Structure, leaves

EQUATIONS: Mapping[str, Equation] = Pages(
    __name__, "EQUATIONS", {**PAGES, **dict.fromkeys(OPS, "operations")}
)


@dataclass(frozen=True)
class Trace:
    """Results of one run.

    ``outputs``: the model's outputs, flat and in order. ``layers``: the outputs of every call, by
    the layer's name; ``name#1`` is its second call, ``outer/inner`` a layer inside a model,
    ``wrapper/model/inner`` one inside a TimeDistributed model (with the time axis of the wrapper).
    ``masks``: the same for masks. ``scans``: every direction of the recurrent layers
    (``bi/forward_layer``), if ``scans=True``.
    """

    outputs: tuple[Array, ...]
    layers: Mapping[str, Structure]
    masks: Mapping[str, Structure]
    scans: Mapping[str, Scan] = field(default_factory=dict)


def compute(
    model: ModelSpec,
    inputs: Sequence[Array],
    *,
    states: dict[str, tuple[Array, ...]] | None = None,
    dtype: npt.DTypeLike = np.float64,
    own: OwnEquations = custom_layers.BY_PLUGIN,
    scans: bool = False,
    nudge: Callable[[Array], Array] | None = None,
    equations: Mapping[str, Equation] = EQUATIONS,
    keep: bool = True,
) -> Trace:
    """Run the model on inputs of shape (B, ...), in the order of ``model.input_layers()``.

    ``states`` holds what stateful layers carry from call to call, by place (``bi/forward_layer``),
    and is updated; an empty dict is the state after loading. None: nothing is carried. ``own``
    computes the layers of plugins. ``scans``: whether to keep those. ``nudge``:
    see ``Context``. ``equations``: others by class, to see what a change would do. ``keep``: the
    outputs and masks of all layers; without, each goes as soon as nothing reads it any more.

    Raises:
        ValueError: the inputs do not fit the model.
        IndexError: an id is not in its Embedding.
    """
    context = Context(
        generation=model.generation,
        dtype=dtype,
        equations=equations,
        states=states,
        own=own,
        scans={} if scans else None,
        nudge=nudge,
        keep=keep,
    )
    with np.errstate(all="ignore"):
        outputs, _ = run(model.graph, inputs, [None] * len(inputs), context)
    return Trace(tuple(leaves(outputs)), context.layers, context.masks, context.scans or {})


def compute_recurrent(
    layer: LayerSpec,
    x: Array,
    mask: Array | None,
    start: tuple[Array, ...],
    generation: Generation,
    *,
    own: OwnEquations = custom_layers.BY_PLUGIN,
    nudge: Callable[[Array], Array] | None = None,
) -> Trace:
    """Run one recurrent layer, or a Bidirectional, in float64.

    x: (B, T, ...), mask: (B, T) or None, start: the states of all directions, forward first.
    ``own``, ``nudge``: as in ``compute``. Scans are named ``""``, or ``forward_layer`` and
    ``backward_layer``.
    """
    context = Context(
        generation=generation,
        dtype=np.float64,
        equations=EQUATIONS,
        own=own,
        scans={},
        nudge=nudge,
    )
    with np.errstate(all="ignore"):
        output, _ = context.starting(start).apply(layer, x, mask)
    return Trace(tuple(leaves(output)), {}, {}, context.scans or {})
