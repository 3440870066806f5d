"""Convert a spec that a test has at hand, by the steps of ``api.convert_with_spec``."""

from __future__ import annotations

from torch import fx

from keras2torch_birnn.conversion import add_origin, build, make_golden
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.spec import ModelSpec


def convert_spec(spec: ModelSpec, *, filled: bool = True) -> fx.GraphModule:
    """Build a spec's model and give it its origin; ``filled``: as ``add_origin`` takes it."""
    spec = complete_shapes(spec)
    model = build(spec)
    return add_origin(model, spec, make_golden(spec, model), filled=filled)
