"""Inputs of exported files have the dtypes that the Keras file declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from specs import TF_KERAS, F, H, bi, dense, functional, layer, rnn, values

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.exporting.onnx_file import DTYPES, Onnx
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.spec import Array, Call, LayerSpec, ModelSpec, TensorRef

WHY_NO_ONNX = Onnx().why_cannot_write()
needs_onnx = pytest.mark.skipif(bool(WHY_NO_ONNX), reason=WHY_NO_ONNX or "it is there")
WORDS, BATCH, TIME = 17, 3, 7
# The dtype that a file declares -> the one that an export takes.
DECLARED: Mapping[str, str] = {
    **{name: name for name in ("int64", "int32", "int16", "int8", "uint8", "float32", "bool")},
    "uint16": "int32",
    "uint32": "int32",
    "uint64": "int64",
    "float16": "float32",
    "float64": "float32",  # the dtype of the weights
}


def readers_of_ids(dtypes: Iterable[str], *, recurrent: bool = False) -> ModelSpec:
    """Ids of each dtype into an Embedding; with a mask and into a Bidirectional, if recurrent.

    What is bool goes into a Dense alone.
    """
    table = {"embeddings": values(WORDS, F).astype("f4")}
    words = layer("Embedding", "words", table, input_dim=WORDS, output_dim=F, mask_zero=recurrent)
    options: Any = {"return_sequences": True}
    cells = [in_float32(rnn("GRU", H, F, seed, **options)) for seed in (1, 2)]
    behind = bi(*cells) if recurrent else in_float32(dense(H, F))
    layers: list[LayerSpec] = []
    calls: list[Call] = []
    for dtype in dtypes:
        ids = dtype != "bool"
        given = layer("InputLayer", f"x_{dtype}", shape=(None, None if ids else F))
        layers.append(replace(given, config={**given.config, "dtype": dtype}))
        for one in [words, behind] if ids else [behind]:
            calls.append(Call(f"{one.name}_{dtype}", 0, (TensorRef(layers[-1].name),)))
            layers.append(replace(one, name=calls[-1].layer))
    inputs = tuple(TensorRef(f"x_{dtype}") for dtype in dtypes)
    outputs = tuple(TensorRef(f"{behind.name}_{dtype}") for dtype in dtypes)
    return ModelSpec(functional(layers, calls, inputs, outputs), TF_KERAS)


def in_float32(one: LayerSpec) -> LayerSpec:
    return replace(one, weights={name: w.astype("f4") for name, w in one.weights.items()})


def draw(dtype: str) -> Array:
    if dtype == "bool":
        return values(BATCH, F) > 0
    ids = np.random.default_rng(3).integers(1, WORDS, (BATCH, TIME))
    ids[1, 4:] = 0
    return ids.astype(dtype)


def run_onnx(file: Path, inputs: Sequence[Array]) -> Sequence[Array]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    given = session.get_inputs()
    assert [DTYPES[one.type] for one in given] == [x.dtype.type for x in inputs]
    found: Sequence[Array] = session.run(
        None, {one.name: x for one, x in zip(given, inputs, strict=True)}
    )
    return found


def run_pt2(file: Path, inputs: Sequence[Array]) -> Sequence[Array]:
    program = torch.export.load(file)
    nodes = {node.name: node for node in program.graph.nodes}
    given = [*map(torch.from_numpy, inputs)]
    for name, x in zip(program.graph_signature.user_inputs, given, strict=True):
        assert nodes[name].meta["val"].dtype is x.dtype
    with torch.no_grad():
        return [y.numpy() for y in flat(program.module()(*given))]


# Of .pt2 the dtypes that torch takes itself.
@pytest.mark.parametrize(
    ("name", "run", "dtypes"),
    [
        pytest.param("m.onnx", run_onnx, ("uint16", "bool"), marks=needs_onnx),
        pytest.param("m.onnx", run_onnx, [*DECLARED], marks=[needs_onnx, pytest.mark.thorough]),
        pytest.param(
            "m.pt2",
            run_pt2,
            ("int64", "int32", "float32", "uint8"),
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_an_export_takes_ids_as_the_keras_file_declares_them(
    name: str, run: Any, dtypes: Sequence[str], tmp_path: Path
) -> None:
    model, file = build_model(readers_of_ids(dtypes)), tmp_path / name
    assert k2t.export(model, file).checked
    inputs = [draw(DECLARED[dtype]) for dtype in dtypes]
    with torch.no_grad():
        wanted = flat(model(*map(torch.from_numpy, inputs)))
    for found, right in zip(run(file, inputs), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-6)


@pytest.mark.thorough
def test_masked_bidirectional_layers_read_them_too(tmp_path: Path) -> None:
    model = build_model(readers_of_ids(["int64"], recurrent=True))
    k2t.export(model, tmp_path / "m.pt2")
    x = draw("int64")
    with torch.no_grad():
        (wanted,) = flat(model(torch.from_numpy(x)))
    np.testing.assert_allclose(run_pt2(tmp_path / "m.pt2", [x])[0], wanted, atol=2e-6)
