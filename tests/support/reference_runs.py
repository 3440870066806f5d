"""Run specs by the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from specs import KERAS3, recurrent_call

from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.spec import Array, Generation, LayerSpec, ModelSpec


def run(root: LayerSpec, *inputs: Array, generation: Generation = KERAS3, **more: Any) -> Trace:
    return compute(ModelSpec(root, generation), inputs, **more)


def outputs_of(spec: LayerSpec, x: Array, mask: Array | None = None, **more: Any) -> Any:
    """Compute outputs 0, 1, ... of one recurrent layer, with an optional mask and initial state."""
    state = more.pop("state", ())
    root = recurrent_call(spec, len(state), masked=mask is not None)
    m = np.ones(x.shape[:2], bool) if mask is None else mask
    return run(root, x, m, *state, **more).outputs
