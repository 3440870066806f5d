"""Recurrent layers by torch and by the reference in float64, with any mask and rule of masks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from hypothesis import strategies as st
from kernel_layers import assert_close
from specs import KERAS3, recurrent_call, with_options
from torch import nn

from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

EXACT = 1e-12
assert_same = partial(assert_close, tolerance=EXACT)


def by_reference(
    spec: LayerSpec, x: Array, mask: Array | None = None, state: tuple[Array, ...] = ()
) -> tuple[Array, ...]:
    root = recurrent_call(spec, len(state), masked=mask is not None)
    m = np.ones(x.shape[:2], bool) if mask is None else mask
    made = compute(ModelSpec(root, KERAS3), (x, m, *state)).layers[spec.name]
    return tuple(made) if isinstance(made, tuple) else (made,)


def by_torch(
    module: nn.Module, x: Array, mask: Array | None = None, state: tuple[Array, ...] = ()
) -> tuple[Array, ...]:
    with torch.no_grad():
        given = None if mask is None else torch.from_numpy(mask)
        start = tuple(map(torch.from_numpy, state)) or None
        out = module(torch.from_numpy(x), mask=given, initial_state=start)
    return tuple(y.numpy() for y in flat(out))


@st.composite
def masks(draw: st.DrawFn, batch: int, steps: int) -> Array | None:
    """No mask, or one of any shape, rows with nothing valid included."""
    if not draw(st.booleans()):
        return None
    bits = st.lists(st.booleans(), min_size=steps, max_size=steps)
    return np.array(draw(st.lists(bits, min_size=batch, max_size=batch)), dtype=bool)


def ruled(spec: LayerSpec) -> LayerSpec:
    """The layer with a mask rule that its options can have (``readers.config.generations``)."""
    halves = {key: ruled(half) for key, half in spec.parts.items() if key.endswith("_layer")}
    if halves:
        return replace(spec, parts=halves)
    unreversed = spec.config["go_backwards"] and spec.config["return_sequences"]
    if spec.semantics["masked_output"] == "zeros_unreversed" and not unreversed:
        return with_options(spec, masked_output="zeros")
    return spec
