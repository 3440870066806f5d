"""Checks that a mutation must break: parity with Keras, and parity of every layer."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from specs import Fixture, fixture
from torch_runs import outputs_of

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Array
from keras2torch_birnn.verification import check_layers, close
from mutations.models import BUILDERS, build_fixture

ATOL, RTOL = 1e-5, 1e-4


def read(file: str) -> Fixture:
    """Read a fixture, or build one of the models that no file holds."""
    return build_fixture(file) if file in BUILDERS else fixture(file)


def agrees_with_keras(case: Fixture) -> bool:
    """Tell whether the float32 model computes what Keras did, call after call."""
    model = build(case.spec, dtype="float32")
    return all(
        are_close(outputs_of(model, *inputs), wanted, ATOL, RTOL) for inputs, wanted in case.calls()
    )


def agrees_layer_by_layer(case: Fixture) -> bool:
    """Tell whether every layer agrees with the reference in float64, as ``verify`` does."""
    inputs = case.inputs[0]
    trace = compute(case.spec, inputs, scans=True)
    found = check_layers(build(case.spec), case.spec, trace, inputs)
    assert found
    return all(layer.ok for layer in found)


def are_close(got: Sequence[Array], wanted: Sequence[Array], atol: float, rtol: float) -> bool:
    return len(got) == len(wanted) and all(
        close(a, b, atol, rtol) for a, b in zip(got, wanted, strict=True)
    )


@functools.cache
def assert_right(file: str) -> None:
    """Assert that a file passes both checks without any mutation."""
    assert agrees_with_keras(read(file))
    assert agrees_layer_by_layer(read(file))
