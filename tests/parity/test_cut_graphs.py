"""Random models cut at any layer: the part computes what the whole does on what enters it there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from cut_fixtures import fed
from graph_specs import inputs_of, model_json, spec_of
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from sampling import examples

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.cut import take_part
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.weights.slots import replace_layers
from keras2torch_birnn.reference import Trace, compute
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import Cut, LayerSpec, ModelSpec, leaves

EXACT = 1e-9
VERSIONS = {"2.3.1": "keras2", "2.4.0": "tf_keras", "2.15.0": "tf_keras", "3.15.1": "keras"}
EXAMPLES = 120


@st.composite
def cases(draw: Any) -> tuple[str, dict[str, Any], int, float, str]:
    """A version, a graph, a number for weights and inputs, a place in it, and which end is cut."""
    version = draw(st.sampled_from(sorted(VERSIONS)))
    graph = draw(graphs(VERSIONS[version]))
    at = draw(st.floats(0, 1, exclude_max=True))
    return version, graph, draw(st.integers(0, 2**16)), at, draw(st.sampled_from(("from", "to")))


def part_of(graph: dict[str, Any], version: str, whole: ModelSpec, cut: Cut) -> ModelSpec:
    """Parse the graph anew, cut it, and give its layers the weights and rules of the whole."""
    parsing = Parsing(generation_of(version))
    root = parse_architecture(model_json(graph, version), parsing)
    part, left, _ = take_part(root, parsing, cut)
    assert not left.problems
    known = {
        one.path: one
        for one in whole.root.walk()
        if one.path and one.graph is None and not one.class_name.startswith(("ops.", "InputLayer"))
    }
    part = replace_layers(part, known)
    part = infer_model(part, left.problems)
    assert not left.problems
    return ModelSpec(part, parsing.generation, cut=cut)


def places(model: LayerSpec) -> list[str]:
    """The paths of all layers that can be named."""
    found = []
    for one in model.graph.layers if model.graph else ():
        if one.class_name != "InputLayer":
            found.append(one.name)
    return found


def masked_at(trace: Trace) -> bool:
    """Tell whether the whole has any mask."""
    return any(mask is not None for value in trace.masks.values() for mask in leaves(value))


@settings(max_examples=examples(EXAMPLES), deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_part_computes_what_the_whole_computes(
    case: tuple[str, dict[str, Any], int, float, str],
) -> None:
    version, graph, number, at, end = case
    whole, inputs = spec_of(graph, version, number), inputs_of(graph, number)
    trace = compute(whole, inputs)
    named = places(whole.root)
    place = named[int(at * len(named))]
    cut = Cut((place,)) if end == "from" else Cut((), (place,))
    try:
        part = part_of(graph, version, whole, cut)
    except UsageError as error:
        event(f"refused: {error.message.rpartition(':')[2][:30]}")
        if "a mask of" in error.message:
            assert masked_at(trace)
        return
    given_inputs = fed(whole, cut, part, inputs, trace)
    assume(given_inputs is not None)
    wanted = trace.outputs if end == "from" else tuple(leaves(trace.layers[place]))
    event(f"compared: --{end}")
    exact = compute(part, given_inputs).outputs
    with torch.no_grad():
        tensors = [torch.from_numpy(np.asarray(x, order="C")) for x in given_inputs]
        got = flat(build(part, dtype="float64")(*tensors))
    assert len(exact) == len(wanted) == len(got)
    for ours, torchs, theirs in zip(exact, got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=EXACT, rtol=EXACT, equal_nan=True)
        np.testing.assert_allclose(torchs.numpy(), theirs, atol=EXACT, rtol=EXACT, equal_nan=True)
