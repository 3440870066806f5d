"""Inputs of exported files have the dtypes that the Keras file declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from sampling import rest_thorough
from specs import TF_KERAS, F, H, bi, chain, dense, layer, rnn, values

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.exporting.onnx_runtimes import DTYPES
from keras2torch_birnn.rnn.engines.exported_loop import SCAN
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec

needs_scan = pytest.mark.skipif(SCAN is None, reason="torch before 2.10 fixes the number of steps")
WORDS, BATCH, TIME = 17, 3, 7
# The dtype that a file declares -> the one that an export takes.
DECLARED = {
    **{name: name for name in ("int64", "int32", "int16", "int8", "uint8", "float32")},
    "uint16": "int32",
    "uint32": "int32",
    "uint64": "int64",
    "float16": "float32",
    "float64": "float32",  # the dtype of the weights
}


def reader_of_ids(dtype: str, *, recurrent: bool = False) -> ModelSpec:
    """Ids of a dtype into an Embedding; with a mask and into a Bidirectional, if recurrent."""
    table = {"embeddings": values(WORDS, F).astype("f4")}
    words = layer("Embedding", "words", table, input_dim=WORDS, output_dim=F, mask_zero=recurrent)
    options: Any = {"return_sequences": True}
    cells = [in_float32(rnn("GRU", H, F, seed, **options)) for seed in (1, 2)]
    behind = bi(*cells) if recurrent else in_float32(dense(H, F))
    return declaring(dtype, words, behind, shape=(None, None))


def in_float32(one: LayerSpec) -> LayerSpec:
    return replace(one, weights={name: w.astype("f4") for name, w in one.weights.items()})


def declaring(dtype: str, *layers: LayerSpec, shape: tuple[int | None, ...]) -> ModelSpec:
    """A chain whose input is declared in a dtype."""
    root = chain(*layers, shape=shape)
    assert root.graph is not None
    config: Any = root.graph.layers[0].config
    config["dtype"] = dtype
    return ModelSpec(root, TF_KERAS)


def draw_ids(dtype: str) -> Array:
    ids = np.random.default_rng(3).integers(1, WORDS, (BATCH, TIME))
    ids[1, 4:] = 0
    return ids.astype(dtype)


def run_onnx(file: Path, x: Array) -> Array:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert DTYPES[given.type] is x.dtype.type
    (found,) = session.run(None, {given.name: x})
    return np.asarray(found)


def run_pt2(file: Path, x: Array) -> Array:
    program = torch.export.load(file)
    (name,) = program.graph_signature.user_inputs
    (node,) = (node for node in program.graph.nodes if node.name == name)
    given = torch.from_numpy(x)
    assert node.meta["val"].dtype is given.dtype
    with torch.no_grad():
        found: Array = program.module()(given).numpy()
    return found


@pytest.mark.parametrize("declared", rest_thorough(DECLARED, ("int64",)))
def test_an_onnx_file_takes_ids_as_the_keras_file_declares_them(
    declared: str, tmp_path: Path
) -> None:
    model, file = build_model(reader_of_ids(declared)), tmp_path / "m.onnx"
    assert k2t.export(model, file).checked
    x = draw_ids(DECLARED[declared])
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_onnx(file, x), wanted, atol=1e-6)


@needs_scan
@pytest.mark.parametrize(
    "declared", rest_thorough(["int64", "int32", "float32", "uint8"], ("float32",))
)
def test_an_archive_takes_ids_as_the_keras_file_declares_them(
    declared: str, tmp_path: Path
) -> None:
    model, file = build_model(reader_of_ids(declared)), tmp_path / "m.pt2"
    assert k2t.export(model, file).checked
    x = draw_ids(declared)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_pt2(file, x), wanted, atol=1e-6)


@pytest.mark.thorough
@needs_scan
@pytest.mark.parametrize(
    ("name", "run", "declared"), [("m.onnx", run_onnx, "float32"), ("m.pt2", run_pt2, "int64")]
)
def test_masked_bidirectional_layers_read_them_too_and_verify_agrees(
    name: str, run: Any, declared: str, tmp_path: Path
) -> None:
    model = build_model(reader_of_ids(declared, recurrent=True))
    k2t.save(model, tmp_path / "m.pt")
    k2t.export(model, tmp_path / name)
    x = draw_ids(declared)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(tmp_path / name, x), wanted, atol=2e-6)
    assert k2t.verify(tmp_path / "m.pt", tmp_path / name).ok


def test_a_declared_bool_is_a_bool(tmp_path: Path) -> None:
    spec = declaring("bool", in_float32(dense(H, F)), shape=(None, F))
    model, file = build_model(spec), tmp_path / "m.onnx"
    k2t.export(model, file)
    x = values(BATCH, F) > 0
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run_onnx(file, x), wanted, atol=1e-6)
