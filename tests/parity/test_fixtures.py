"""Every fixture: the converted model and the reference give what real Keras gave."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mutations.judge import CASES
from specs import ENTRIES, FEATURES, FIXTURES, MERGE_MODES, RULES, Fixture, fixture
from torch import Tensor, nn

from keras2torch_birnn.comparison.outputs import float32_precision
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat, reset_states
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import CELL_GATES, CELLS, LAYERS, OPS
from keras2torch_birnn.spec import Array, ModelSpec, leaves

# Real Keras computes in float32.
ATOL, RTOL = 1e-5, 1e-4
# Both sides compute in float64.
EXACT = 1e-12
# On a GPU a part of the files is enough: what differs there is the kernel, not the mapping.
GPU_STRIDE = 7


def outputs(
    model: nn.Module,
    inputs: Sequence[Array],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Array]:
    """One call, as the caller of a converted model makes it; states are carried."""
    dtype = next((p.dtype for p in model.parameters()), dtype)  # a file may be of float64
    given = [torch.from_numpy(x) for x in inputs]
    given = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in given]
    with torch.no_grad():
        return [y.cpu().numpy() for y in flat(model(*given))]


def assert_agree(
    got: Sequence[Array], wanted: Sequence[Array], what: str, *, atol: float, rtol: float
) -> None:
    assert len(got) == len(wanted), what
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=rtol, equal_nan=True, err_msg=what)


# Models that were compared in this process, with their calls: other files of them hold nothing new.
COMPARED: set[bytes] = set()


def check_model(
    spec: ModelSpec,
    calls: Sequence[tuple[Sequence[Array], Sequence[Array]]],
    entry: Mapping[str, Any],
) -> None:
    """Compare Keras with float32 torch and with the reference; float64 torch with the latter."""
    atol = entry.get("tolerance", {}).get("atol", ATOL)
    content = hashlib.sha256(pickle.dumps((replace(spec, notes=()), calls, atol))).digest()
    if content in COMPARED:
        return
    single, double = build(spec), build(spec, dtype="float64")
    states: dict[str, tuple[Array, ...]] = {}
    weights = [w for layer in spec.root.walk() for w in layer.weights.values()]
    kind = np.float64 if any(w.dtype == np.float64 for w in weights) else np.float32
    for inputs, wanted in calls:
        exact = compute(spec, inputs, states=states).outputs
        got = outputs(single, inputs, torch.from_numpy(np.zeros(0, kind)).dtype)
        assert all(y.dtype == kind for y in got if y.dtype.kind == "f")
        assert_agree(got, wanted, "torch against Keras", atol=atol, rtol=RTOL)
        assert_agree(exact, wanted, "reference against Keras", atol=atol, rtol=RTOL)
        precise = outputs(double, inputs, torch.float64)
        assert_agree(precise, exact, "torch against the reference", atol=EXACT, rtol=EXACT)
    COMPARED.add(content)


def sha256(file: str) -> str:
    path = FIXTURES / file
    parts = sorted(path.iterdir()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()


def family(label: str) -> str:
    """Return the writer of a label with its first number, as ``tf.keras-2``."""
    return re.sub(r"-(\d+).*", r"-\1", label)


# What ``make test`` must meet: each writer, each tag by its family of writers, and the files that
# together run each line of the mapping.
SHOWN = {
    file: [
        ENTRIES[file]["label"],
        *((family(label), tag) for label, tag in tags),
        *[file] * (file in CASES),
    ]
    for file, (_, *tags) in FEATURES.items()
}
# Folders with a manifest of their own, and what is no fixture.
OTHERS = (
    "cases/",
    "compiled/",
    "custom/",
    "cut/",
    "pins/",
    "plugins/",
    "tensorflow/",
    "training/",
    "yaml/",
    "__pycache__/",
)


def test_no_file_is_left_out_of_the_manifest() -> None:
    known = {name for entry in ENTRIES.values() for name in (entry["file"], entry["npz"])}
    known |= {entry["config"] for entry in ENTRIES.values() if entry["config"]}
    for path in FIXTURES.glob("*/*"):
        name = path.relative_to(FIXTURES).as_posix()
        shard = "shards_0" in name  # beside the index that names it
        assert name in known or shard or name.startswith(OTHERS), name


@pytest.mark.thorough
def test_the_files_are_those_of_the_manifest() -> None:
    keys = {"file": "sha256", "npz": "npz_sha256", "config": "config_sha256"}
    rows = [(e[key], e.get(digest)) for e in ENTRIES.values() for key, digest in keys.items()]
    assert not [file for file, digest in rows if file is not None and sha256(file) != digest]


def test_a_model_that_is_trained_changes_no_fixture_of_other_tests() -> None:
    file = "keras-3.15.1/arch_residual_batch_norm.h5"
    model = build(fixture(file).spec)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(3)
    for layer in fixture(file).spec.root.walk():
        assert not any(np.all(array == 3) for array in layer.weights.values())


@pytest.mark.sampled(SHOWN)
@pytest.mark.parametrize("file", ENTRIES)
def test_torch_and_the_reference_agree_with_real_keras(file: str) -> None:
    case = fixture(file)
    check_model(case.spec, [*case.calls()], ENTRIES[file])
    if "operations" in ENTRIES[file]["tags"]:
        check_shapes(case)


def check_shapes(case: Fixture) -> None:
    """Compare shapes that were inferred with those of the outputs."""
    graph = case.spec.graph
    for ref, wanted in zip(leaves(graph.outputs), case.outputs[0], strict=True):
        shape = graph.layer(ref.layer).output_shape
        if shape is None:
            continue
        shape = shape[ref.output] if any(isinstance(size, tuple) for size in shape) else shape
        assert len(shape) == wanted.ndim, ref
        assert all(a in (None, b) for a, b in zip(shape, wanted.shape, strict=True)), ref


@pytest.mark.parametrize("file", [f for f in ENTRIES if "stateful" in ENTRIES[f]["tags"]])
def test_a_stateful_model_starts_anew_after_reset_states(file: str) -> None:
    case = fixture(file)
    model = build(case.spec)
    for _ in range(2):
        for inputs, wanted in case.calls():
            assert_agree(outputs(model, inputs), wanted, file, atol=ATOL, rtol=RTOL)
        reset_states(model)


# ---- completeness: what converts was compared with real Keras ----------------------------------


@pytest.mark.thorough
def test_every_class_was_compared() -> None:
    classes = {layer.class_name for f in ENTRIES for layer in fixture(f).spec.root.walk()}
    assert classes == set(LAYERS) | set(OPS) | set(CELLS)


@pytest.mark.thorough
def test_every_merge_mode_was_compared_with_every_cell() -> None:
    found = set()
    for file in ENTRIES:
        for layer in fixture(file).spec.root.walk():
            if layer.class_name == "Bidirectional":
                forward = layer.parts["forward_layer"]
                after = forward.config.get("reset_after")
                found.add((forward.class_name, after, layer.config["merge_mode"]))
    cells = (("LSTM", None), ("GRU", True), ("GRU", False), ("SimpleRNN", None))
    assert {name for name, _ in cells} == set(CELL_GATES)
    assert found >= {(*cell, mode) for cell in cells for mode in MERGE_MODES}


@pytest.mark.thorough
def test_every_mask_rule_was_compared_in_both_directions() -> None:
    found = set()
    for file in ENTRIES:
        if "mask" not in ENTRIES[file]["tags"]:
            continue
        for layer in fixture(file).spec.root.walk():
            if "masked_output" in layer.semantics and layer.config["return_sequences"]:
                found.add((layer.semantics["masked_output"], layer.config["go_backwards"]))
    # zeros_unreversed differs from zeros only where the reading is backwards
    rules = (*RULES, "previous_first_state")  # the last one of stacks of cells alone
    expected = {(rule, back) for rule in rules for back in (False, True)}
    assert found == expected - {("zeros_unreversed", False)}


def test_masks_of_every_shape_were_compared() -> None:
    """Full, right-padded, left-padded and gappy rows, and one with nothing valid."""
    ids = fixture("keras-3.15.1/mask_bi_lstm_seq.h5").inputs[0][0]
    rows = ids != 0
    edges = [(row.all(), row.any(), row[0], row[-1]) for row in rows]
    assert edges == [
        (True, True, True, True),
        (False, True, True, False),
        (False, True, False, True),
        (False, True, edges[3][2], edges[3][3]),
        (False, False, False, False),
    ]
    changes = np.abs(np.diff(rows[3].astype(int))).sum()
    assert changes >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("file", list(ENTRIES)[::GPU_STRIDE])
def test_a_gpu_agrees_with_real_keras(file: str) -> None:
    case = fixture(file)
    model = build(case.spec).to("cuda")
    tensors: list[Tensor] = list(model.parameters())
    assert all(t.is_cuda for t in tensors)
    with float32_precision("ieee"):
        for inputs, wanted in case.calls():
            assert_agree(outputs(model, inputs, device="cuda"), wanted, file, atol=ATOL, rtol=RTOL)
