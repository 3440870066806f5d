"""``k2t export`` and ``k2t verify`` of an export: results, messages, exit codes."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cut_fixtures
import numpy as np
import onnx
import pytest
import torch
from commands import MASKED, STACK_H5, assert_refused, k2t
from cut_fixtures import CUT
from parsing_here import parsing_here
from sampling import rest_thorough
from specs import fixture
from tensorflow_fixtures import recorded, unpack
from warm_process import exports_in_forks

import keras2torch_birnn
from keras2torch_birnn.exporting import onnx_file
from keras2torch_birnn.exporting.child_process import run_exported
from keras2torch_birnn.spec import Array

FIXTURES = MASKED.parents[1]
STACK = "keras-3.15.1/stack_same_class.h5"
CONV_LSTM = FIXTURES / "tf.keras-2.15.0" / "conv_lstm_2d_first.h5"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """MASKED, converted and exported once."""
    folder = tmp_path_factory.mktemp("exported")
    out, target = folder / "model.pt", folder / "model.onnx"
    with parsing_here(), exports_in_forks():
        assert k2t("convert", MASKED, out).code == 0
        run = k2t("export", MASKED, target)
    assert run.code == 0, run.err
    assert run.out.startswith(
        f"{target}: an ONNX model\nONNX Runtime against golden: max abs error"
    )
    return out, target


def assert_computes(file: Path, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
    """Assert that an export computes what Keras did."""
    (found,) = run_exported(file, [inputs])
    assert not isinstance(found, str), found
    for got, right in zip(found, outputs, strict=True):
        np.testing.assert_allclose(got, right, atol=1e-5, rtol=1e-4)


# A SavedModel, a checkpoint with its architecture, a model of TensorFlow.js.
PACKED = (
    "tf_keras-2.21.0/stack_same_class.savedmodel.tar",
    "tf_keras-2.21.0/stack_same_class.weights.tar",
    "tfjs-4.22.0/bi_stack_same.tfjs.tar",
)


@pytest.mark.parametrize("file", PACKED)
def test_every_container_is_exported_at_once(file: str, tmp_path: Path) -> None:
    found = unpack(file, tmp_path)
    options = [] if found.config is None else ["--config", found.config]
    run = k2t("export", found.model, tmp_path / "m.py", *options, "--json")
    assert run.code == 0, run.err
    facts = json.loads(run.out)
    assert facts["files"] == [str(tmp_path / "m.safetensors"), str(tmp_path / "m.py")]
    assert facts["checked_in"] == "torch"
    assert facts["max_abs_error"] < 1e-5
    assert run.lines("note")
    calls = recorded(file)
    assert_computes(tmp_path / "m.py", calls.inputs[0], calls.outputs[0])


def test_a_part_of_a_model_is_exported_at_once(tmp_path: Path) -> None:
    source, target = CUT / "keras-3.15.1" / "classify.keras", tmp_path / "m.py"
    run = k2t("export", source, target, "--from", "embed")
    assert run.code == 0, run.err
    assert_computes(target, *cut_fixtures.recorded("keras-3.15.1/classify.keras"))
    assert k2t("verify", source, target, "--from", "embed").code == 0
    ends = [one["path"] for one in json.loads(k2t("inspect", STACK_H5, "--json").out)["layers"]]
    run = k2t("export", STACK_H5, target, "--force", "--to", ends[0])
    assert run.code == 0, run.err
    ((given,),) = fixture(STACK).inputs
    part: Any = keras2torch_birnn.convert(STACK_H5, to_layer=ends[0])
    with torch.no_grad():
        assert_computes(target, [given], [part(torch.from_numpy(given)).numpy()])


def test_a_converted_model_in_safetensors_is_a_source(tmp_path: Path) -> None:
    out, target = tmp_path / "m.safetensors", tmp_path / "source.py"
    assert k2t("convert", STACK_H5, out).code == 0
    run = k2t("export", out, target)
    assert run.code == 0, run.err
    ((inputs, outputs),) = fixture(STACK).calls()
    assert_computes(target, inputs, outputs)


@pytest.mark.parametrize("of_keras", rest_thorough([False, True], (False,)))
def test_verify_runs_an_export_on_masks_and_other_lengths(
    *, of_keras: bool, exported: tuple[Path, Path]
) -> None:
    run = k2t("verify", MASKED if of_keras else exported[0], exported[1], "--json")
    assert run.code == 0, run.err
    report = json.loads(run.out)
    named = [one["inputs"] for one in report["comparisons"]]
    steps = [name.rpartition(", ")[2] for name in named[1:]]
    assert steps == ["1 steps", "4 steps", "23 steps"]
    assert {one["device"] for one in report["comparisons"]} == {"ONNX Runtime"}


def test_verify_takes_data_of_the_user(exported: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", np.array([[3, 1, 0, 2, 0]], np.int32))
    run = k2t("verify", MASKED, exported[1], "--inputs", tmp_path / "data.npz")
    assert run.code == 0, run.out + run.err
    assert "the inputs given" in " ".join(run.out.split())


def test_verify_finds_an_export_that_computes_something_else(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    model = onnx.load(exported[1])
    weights = next(w for w in model.graph.initializer if w.name.endswith(".R_0"))
    array = onnx.numpy_helper.to_array(weights).copy()
    array[0, 0, 0] += 0.01
    weights.CopyFrom(onnx.numpy_helper.from_array(array, weights.name))
    onnx.save(model, tmp_path / "other.onnx")
    run = k2t("verify", exported[0], tmp_path / "other.onnx")
    assert run.code == 1
    assert run.out.endswith("NOT EQUAL\n")


def test_verify_of_a_damaged_export_is_not_equal(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.onnx").write_bytes(exported[1].read_bytes()[:1000])
    run = k2t("verify", exported[0], tmp_path / "cut.onnx")
    assert run.code == 1
    assert "InvalidProtobuf" in run.out


def test_verify_names_a_missing_runtime(
    exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "find_spec", lambda name: None)
    run = k2t("verify", *exported)
    assert run.code == 2
    assert "onnxruntime is not installed; pip install 'keras2torch_birnn[export]'" in run.err


def test_openvino_runs_what_onnx_runtime_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_openvino(name: str) -> object:
        return None if name == "onnxruntime" else object()

    monkeypatch.setattr(onnx_file, "find_spec", only_openvino)
    assert onnx_file.choose_runtime() == "OpenVINO"


def test_all_layers_without_an_onnx_form_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    words = "conv_lstm2d: a ConvLSTM has no ONNX form"
    assert_refused(k2t("export", CONV_LSTM, target), 4, target, words, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.py"])
def test_a_folder_that_takes_no_file_is_an_error_of_the_output(
    name: str, exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file system that is mounted for reading, which not even root can write to."""

    def refuse(**options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), options["dir"])

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    target = tmp_path / name
    run = k2t("export", exported[0], target)
    assert_refused(run, 5, target, "cannot be written (Read-only file system)")


def test_an_existing_export_needs_force(exported: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "m.py"
    assert k2t("export", exported[0], target).code == 0
    assert k2t("export", exported[0], target).code == 5
    assert k2t("export", exported[0], target, "--force").code == 0


def test_a_converted_model_is_exported_in_the_chosen_dtype(tmp_path: Path) -> None:
    wide, target = tmp_path / "wide.pt", tmp_path / "m.onnx"
    assert k2t("convert", STACK_H5, wide, "--dtype", "float64").code == 0
    run = k2t("export", wide, target)
    assert_refused(run, 4, target, "ONNX Runtime computes them in float32 only; use --dtype", 3)
    assert k2t("export", wide, target, "--dtype", "float32").code == 0


def test_the_python_api_gives_the_same(exported: tuple[Path, Path], tmp_path: Path) -> None:
    model: Any = keras2torch_birnn.load(exported[0])
    done = keras2torch_birnn.export(model, tmp_path / "m.py")
    assert done.target == "plain PyTorch source"
    assert keras2torch_birnn.verify(exported[0], tmp_path / "m.py").ok
