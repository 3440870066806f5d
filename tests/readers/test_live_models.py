"""Live models: recognised without Keras, written by their own Keras, and read as that file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from commands import STACK_KERAS, environment
from live import label
from specs import FIXTURES, describe

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import (
    ArgumentTypeError,
    InvalidModelFileError,
    UnsupportedLayerError,
    UsageError,
)
from keras2torch_birnn.golden import origin
from keras2torch_birnn.readers.containers import open_container

WORKER = Path(__file__).parents[1] / "support" / "live_model_worker.py"
OLD = FIXTURES / "tf.keras-2.10.0" / "mask_stack_bi_dense.h5"
OLD_JSON = FIXTURES / "tf.keras-2.10.0" / "weights_mask.json"


# ---- stand-ins: classes with the modules of Keras' classes, which write a fixture ----------------


def stand_in(name: str, module: str, *bases: type, **members: Any) -> type:
    """Make a class of this name in this module."""
    return type(name, bases, {"__module__": module, **members})


class Writes:
    """Stand-in for a model, which writes a fixture in place of itself."""

    name, built = "stack_3", True
    archive: Path = STACK_KERAS

    def save(self, path: str, **options: bool) -> None:
        old = path.endswith(".h5")
        assert options == ({"include_optimizer": False} if old else {})
        shutil.copyfile(OLD if old else self.archive, path)


KERAS3_LAYER = stand_in("Layer", "keras.src.layers.layer")
KERAS3_MODEL = stand_in("Model", "keras.src.models.model", KERAS3_LAYER, Writes)


def functional(**members: Any) -> type:
    return stand_in("Functional", "keras.src.models.functional", KERAS3_MODEL, **members)


KERAS3 = functional()
TF_KERAS_LAYER = stand_in("Layer", "tf_keras.src.engine.base_layer")
TF_KERAS_MODEL = stand_in("Model", "tf_keras.src.engine.training", TF_KERAS_LAYER, Writes)
TF_KERAS = stand_in("Sequential", "tf_keras.src.engine.sequential", TF_KERAS_MODEL)


@pytest.fixture(autouse=True)
def versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages whose models are stood in for, as if they had been imported."""
    give_version(monkeypatch, "keras", "3.15.1")
    give_version(monkeypatch, "tf_keras", "2.21.0")


def give_version(monkeypatch: pytest.MonkeyPatch, package: str, version: str) -> None:
    module = ModuleType(package)
    module.__dict__["__version__"] = version
    monkeypatch.setitem(sys.modules, package, module)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert describe(origin(one).spec) == describe(origin(other).spec)


@pytest.mark.parametrize("kind", [KERAS3, TF_KERAS])
def test_a_live_model_is_what_its_file_is_and_no_file_stays(kind: type, private: Path) -> None:
    assert_same(k2t.convert(kind()), k2t.convert(STACK_KERAS))
    assert list(private.iterdir()) == []


def test_a_model_of_an_old_keras_is_its_hdf5_file(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_version(monkeypatch, "keras", "2.10.0")
    assert_same(k2t.convert(KERAS3()), k2t.convert(OLD))
    assert list(private.iterdir()) == []


def test_no_file_is_there_while_the_model_is_read(private: Path) -> None:
    """So a process that is killed leaves none, either."""
    with open_container(KERAS3()) as container:
        assert sys.platform == "win32" or list(private.iterdir()) == []
        assert container.architecture(None).version == "3.15.1"
    assert list(private.iterdir()) == []


def test_inspect_and_verify_take_a_live_model(private: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    k2t.save(k2t.convert(KERAS3()), out)
    assert k2t.inspect(KERAS3()).rows == k2t.inspect(STACK_KERAS).rows
    assert k2t.verify(KERAS3(), out, against="reference").ok
    assert list(private.iterdir()) == []


def test_a_refusal_names_the_model_and_leaves_no_file(private: Path) -> None:
    broken = functional(archive=OLD_JSON)
    with pytest.raises(InvalidModelFileError, match=r'^model "stack_3": '):
        k2t.convert(broken())
    assert list(private.iterdir()) == []


def test_a_model_that_its_keras_cannot_write_is_refused(private: Path) -> None:
    def save(self: Any, path: str) -> None:
        Path(path).write_bytes(b"half")
        raise NotImplementedError("Layer Mine\nhas no get_config")

    words = (
        r'^model "stack_3": its Keras cannot write it \(NotImplementedError: Layer Mine\); its '
        r"layers need get_config, and TMPDIR must have room for its weights; without its optimizer "
        r"and loss it is keras.Model\(model.inputs, model.outputs\)$"
    )
    with pytest.raises(InvalidModelFileError, match=words):
        k2t.convert(functional(save=save)())
    assert list(private.iterdir()) == []


def test_a_model_that_is_not_built_is_refused() -> None:
    kind = stand_in("Sequential", "keras.src.models.sequential", KERAS3_MODEL, built=False)
    for reads in (k2t.convert, k2t.inspect, k2t.weights):
        with pytest.raises(
            UsageError,
            match=r'^model "stack_3": is not built, so it has no weights yet; begin it with '
            r"keras.Input\(shape\), or call it once on data$",
        ):
            reads(kind())


@pytest.mark.parametrize("base", [KERAS3_MODEL, KERAS3])
def test_a_model_of_the_users_own_class_is_refused(base: type) -> None:
    words = r"the model is of class Tagger, .*; give keras.Model\(model.inputs, model.outputs\), .*"
    with pytest.raises(UnsupportedLayerError, match=rf'^model "stack_3": {words} with k2t.weights'):
        k2t.convert(stand_in("Tagger", "__main__", base)())


# A class that is another package's, for all that its name begins alike.
FOREIGN = stand_in("Model", "keras_contrib.models")
EXPECTED = r", a path \(str or os.PathLike\) or a built Keras model \(Sequential or functional\) is"
WRONG: tuple[tuple[Any, str], ...] = (
    (KERAS3_LAYER(), r"an object of type keras.src.layers.layer.Layer"),
    (torch.nn.Linear(2, 3), r"an object of type torch.nn.modules.linear.Linear"),
    ({"class_name": "Sequential", "config": {}}, "an object of type dict"),
    (OLD_JSON.read_text("utf-8"), "an object of type str"),
    (FOREIGN(), r"an object of type keras_contrib.models.Model"),
    (b"model.h5", r"an object of type bytes"),
    (None, r"an object of type NoneType"),
    (["model.h5"], r"an object of type list"),
    (7, r"an object of type int"),
)


@pytest.mark.parametrize(("thing", "words"), WRONG, ids=[words[:30] for _, words in WRONG])
def test_another_object_is_refused_with_what_is_expected(thing: Any, words: str) -> None:
    for reads in (k2t.convert, k2t.inspect, k2t.weights):
        with pytest.raises(ArgumentTypeError, match=f"^{words}") as caught:
            reads(thing)
        assert caught.match(EXPECTED)
        assert caught.match("an architecture alone has no weights")
        assert len(str(caught.value)) < 400


def test_a_live_model_alone_is_nothing_to_verify() -> None:
    with pytest.raises(
        ArgumentTypeError,
        match=r'^model "stack_3": without a converted file .*; name it: k2t.verify\(model, ',
    ):
        k2t.verify(KERAS3())


# ---- weights by name ---------------------------------------------------------------------------


class Variable:
    """A variable: Keras 3 has paths, older ones have names."""

    def __init__(self, value: Any, **names: str) -> None:
        self.value = value
        self.__dict__.update(names)

    def numpy(self) -> Any:
        return self.value


def with_weights(*variables: Any) -> Any:
    """Make a model of the user's own class with these variables."""
    return stand_in("Tagger", "__main__", KERAS3_MODEL, weights=variables)()


def test_weights_of_a_live_model_have_the_names_of_keras_and_are_copies() -> None:
    kernel, bias = np.full((2, 3), 0.5, "f4"), np.arange(3)
    table = object()  # of a lookup in tf.keras
    model = with_weights(
        Variable(kernel, path="tagger/dense/kernel", name="kernel"),
        table,
        Variable(bias, name="dense/bias:0"),
    )
    found = k2t.weights(model)
    assert list(found) == ["tagger/dense/kernel", "dense/bias"]
    kernel += 1
    np.testing.assert_array_equal(found["tagger/dense/kernel"], np.full((2, 3), 0.5, "f4"))
    np.testing.assert_array_equal(found["dense/bias"], bias)


def test_names_that_several_variables_have_are_numbered() -> None:
    names = ("dense/kernel:0", "rnn/kernel:0", "dense/kernel:0")
    variables = [Variable(np.full(2, float(n)), name=name) for n, name in enumerate(names)]
    found = k2t.weights(with_weights(*variables))
    assert list(found) == ["dense/kernel#0", "rnn/kernel", "dense/kernel#2"]
    assert [float(value[0]) for value in found.values()] == [0.0, 1.0, 2.0]


def test_a_live_model_without_weights_is_refused_as_a_file_is() -> None:
    with pytest.raises(InvalidModelFileError, match=r'^model "stack_3": holds no weights'):
        k2t.weights(with_weights())


def test_text_among_the_weights_is_refused() -> None:
    model = with_weights(Variable(np.array(["a", "b"]), name="vocabulary"))
    with pytest.raises(InvalidModelFileError, match=r'^model "stack_3": vocabulary: holds str'):
        k2t.weights(model)


# ---- the Keras of this environment -------------------------------------------------------------

# Label of the worker, and the environment that it needs.
KERASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "keras on tensorflow": ("keras", {"KERAS_BACKEND": "tensorflow"}),
    "keras on torch": ("keras", {"KERAS_BACKEND": "torch"}),
    "tf_keras": ("tf_keras", {}),
    "tf.keras": ("tf_keras", {"TF_USE_LEGACY_KERAS": "1"}),
}
CASES = (
    "bi_lstm_concat_seq",
    "bi_gru_after_sum_seq",
    "bi_lstm_mul_seq",
    "bi_gru_before_ave_seq",
    "bi_lstm_none_seq",
    "mask_stack_bi_dense",
    "nested",
    "nested_frozen",
    "frozen_backward",
    "graph_siamese",
    "graph_inputs_outputs",
    "graph_seq2seq_bi",
    "td_model_inside",
    "stateful_bi_gru",
    "batchnorm",
    "compiled",
    "dropouts",
    "lazy",
    "stacked_mask",
    "cells_bi_halves",
    "policy_mixed_float16",
)


@pytest.fixture(scope="module", params=tuple(KERASES))
def reports(request: pytest.FixtureRequest) -> Iterator[Mapping[str, Mapping[str, Any]]]:
    """Return the worker's result for every case, from one process for each Keras."""
    package, settings = KERASES[request.param]
    name = label(package)
    if name is None:
        pytest.skip(f"{package} is not installed")
    name = name.replace("tf_keras", "tf.keras") if request.param == "tf.keras" else name
    done = subprocess.run(
        [sys.executable, str(WORKER), name, *CASES],
        capture_output=True,
        text=True,
        check=False,
        env=environment(**{"TF_USE_LEGACY_KERAS": "0", **settings}),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    yield {line["case"]: line for line in lines}


@pytest.mark.live_keras
@pytest.mark.parametrize("case", CASES)
def test_a_live_model_converts_as_its_file_and_stays_as_it_is(
    reports: Mapping[str, Mapping[str, Any]], case: str
) -> None:
    if case not in reports or "skipped" in reports[case]:
        pytest.skip(f"this Keras has no {case}")
    report = reports[case]
    assert report["live"] == ""
    assert report["left"] == []
    assert report["changed"] == []
    assert report["keras"] == ""
    assert report.get("weights", "") == ""
    assert report["error"] <= (1e3 if case.startswith("policy") else 1)
