"""Random models: torch, the reference and, where one is installed, the live Keras agree."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from graph_specs import inputs_of, spec_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from live import DISTRIBUTIONS, KINDS, LiveKeras, compared, label
from random_graphs import classes, graphs
from random_layers import RECIPES
from sampling import examples

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import CLASS_NAMES, LAYERS

EXACT = 1e-9
VERSIONS = ("2.2.4", "2.3.1", "2.4.0", "2.15.0", "3.0.5", "3.15.1")
PACKAGE_OF = {"2.2.4": "keras2", "2.3.1": "keras2", "3.0.5": "keras", "3.15.1": "keras"}
LIVE_GRAPHS, LIVE_SEED = (
    int(os.environ.get(name, usual))
    for name, usual in (("K2T_RANDOM_GRAPHS", "25"), ("K2T_RANDOM_SEED", "20"))
)
WITHOUT_KERAS = 100


@st.composite
def cases(draw: Any) -> tuple[str, dict[str, Any], int]:
    """A version, a graph that it could have written, and a number for weights and inputs."""
    version = draw(st.sampled_from(VERSIONS))
    package = PACKAGE_OF.get(version, "tf_keras")
    return version, draw(graphs(package)), draw(st.integers(0, 2**16))


@settings(
    max_examples=examples(WITHOUT_KERAS),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(cases())
def test_torch_and_the_reference_agree_on_any_graph(case: tuple[str, dict[str, Any], int]) -> None:
    version, graph, number = case
    spec, inputs = spec_of(graph, version, number), inputs_of(graph, number)
    try:
        exact = compute(spec, inputs).outputs
    except UnsupportedOptionError:  # most versions of Keras fail to build such a graph
        return
    with torch.no_grad():
        got = flat(build(spec, dtype="float64")(*map(torch.from_numpy, inputs)))
    assert len(got) == len(exact)
    for a, b in zip(got, exact, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=EXACT, rtol=EXACT, equal_nan=True)


# ---- the live Keras ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=tuple(DISTRIBUTIONS))
def live_keras(request: pytest.FixtureRequest) -> Iterator[tuple[str, LiveKeras]]:
    """Each Keras that is installed, in a process of its own."""
    if label(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with LiveKeras(request.param) as keras:
        yield request.param, keras


@pytest.mark.live_keras
def test_what_the_live_keras_writes_converts_and_agrees(
    live_keras: tuple[str, LiveKeras],
) -> None:
    """A few graphs; thousands with ``K2T_RANDOM_GRAPHS=2000 K2T_RANDOM_SEED=1`` in the environment.

    Of so many, Keras itself fails on some: one of a hundred may.
    """
    package, keras = live_keras
    failures = []

    @seed(LIVE_SEED)
    @settings(
        max_examples=LIVE_GRAPHS,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(package, operations=True), st.sampled_from(KINDS[package]))
    def one(graph: dict[str, Any], kind: str) -> None:
        file = keras.write(graph, kind)
        if isinstance(file, str):
            failures.append(f"{package} fails: {file}: {graph}")
            return
        outcome = compared(file)
        assert outcome.ok, f"{outcome}: {graph}"

    one()
    assert len(failures) <= LIVE_GRAPHS // 100, failures


# ---- what is drawn -------------------------------------------------------------------------------


@pytest.mark.thorough
def test_almost_every_layer_is_drawn() -> None:
    """Count layers of the table and those with several inputs; pytest -s prints the counts."""
    seen: Counter[str] = Counter()
    for package in DISTRIBUTIONS:

        @seed(1)
        @settings(
            max_examples=200,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(graphs(package))
        def one(graph: dict[str, Any]) -> None:
            seen.update(CLASS_NAMES[name] for name in classes(graph))

        one()
    print({name: seen[name] for name in LAYERS})
    several = {
        name for name, schema in LAYERS.items() if schema.listed or len(schema.arguments) > 1
    }
    assert set(RECIPES) <= set(LAYERS)
    drawn = set(RECIPES) | several
    assert len([name for name in drawn if seen[name]]) > 0.85 * len(drawn)
