"""Facts, golden vectors and gradients in an OUT: those that k2t writes, and no others."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import FIXTURES, MASKED
from out_files import change_text
from plugin_files import USERS, forgetting_plugins

import keras2torch_birnn as birnn
from keras2torch_birnn import InvalidModelFileError, K2TError, WeightMismatchError
from keras2torch_birnn.golden import origin
from keras2torch_birnn.plugins import load_plugins

LIVE = FIXTURES / "keras-3.15.1"
CENTER = FIXTURES / "plugins" / "tf.keras-2.15.0" / "center.h5"
MODELS = [
    MASKED,
    FIXTURES / "keras-1.2.2" / "less_mem_gru_before.h5",
    FIXTURES / "tf.keras-2.15.0" / "ops_tf_masks.keras",
    LIVE / "graph_seq2seq_bi.keras",
    LIVE / "graph_nested_sequential.keras",
    LIVE / "cells_states.h5",
]

Change = Callable[[Any], object]
Contents = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """The plain dict of the OUT of a model, made once."""
    folder, made = tmp_path_factory.mktemp("outs"), dict[Path, dict[str, Any]]()

    def content(model: Path) -> dict[str, Any]:
        if model not in made:
            birnn.save(birnn.convert(model), folder / "out.pt")
            made[model] = torch.load(folder / "out.pt", weights_only=True)
        return dict(made[model])

    return content


def changed(content: dict[str, Any], key: str, change: Change) -> dict[str, Any]:
    """The content with a change in one of its JSON texts."""
    content = dict(content)
    change_text(content, key, change)
    return content


def saved(content: dict[str, Any], folder: Path) -> Path:
    torch.save(content, folder / "hostile.pt")
    return folder / "hostile.pt"


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
def test_what_is_saved_is_the_text_that_was_loaded(
    model: Path, contents: Contents, tmp_path: Path
) -> None:
    content = contents(model)
    kept = origin(birnn.load(saved(content, tmp_path))).spec.kept
    assert kept == (content["architecture"], content["facts"])


def kernel(key: str, value: Any) -> Change:
    """A change of the Dense's kernel, the last row of MASKED."""
    return lambda facts: facts["weights"][-1]["arrays"]["kernel"].update({key: value})


FACTS: dict[str, tuple[Change, str]] = {
    "no facts of the weights": (lambda facts: facts.pop("weights"), "facts: without weights"),
    "a version that is a number": (lambda f: f.update(keras_version=2), "keras_version is not as"),
    "notes that are a text": (lambda facts: facts.update(notes="x"), "notes is not as k2t writes"),
    "a note that is a number": (lambda facts: facts.update(notes=[1]), "notes is not as k2t"),
    "a cut of numbers": (lambda facts: facts.update({"from": [1]}), "from is not as k2t writes"),
    "a cut at no layer": (lambda facts: facts.update(to=["nobody"]), "facts: its cut: "),
    "another family": (lambda facts: facts.update(family="keras1"), "facts: family keras1"),
    "a row that is a number": (lambda f: f["weights"].append(7), "weights are not as k2t"),
    "a row with more": (lambda f: f["weights"][0].update(x=1), "weights are not as k2t"),
    "the path of a number": (lambda f: f["weights"][0].update(layer=[7]), "the path of a layer"),
    "a weight of infinite size": (kernel("shape", [1e999, 3]), "kernel is not as k2t writes it"),
    "a weight of negative size": (kernel("shape", [-1, 3]), "kernel is not as k2t writes it"),
    "a weight of a truth": (kernel("shape", [True, 3]), "kernel is not as k2t writes it"),
    "a weight of a huge size": (kernel("shape", [1 << 62, 3]), "kernel is not as k2t writes it"),
    "a weight of many axes": (kernel("shape", [1] * 99), "kernel is not as k2t writes it"),
    "a weight of text": (kernel("dtype", "U9"), "kernel is not as k2t writes it"),
    "a weight of objects": (kernel("dtype", "O"), "kernel is not as k2t writes it"),
    "a weight with more": (kernel("x", 1), "kernel is not as k2t writes it"),
    "a weight without a name": (kernel("name", None), "kernel is not as k2t writes it"),
    "a weight of terabytes": (kernel("shape", [1 << 20, 1 << 20]), "values declared"),
    "a weight of another size": (kernel("shape", [2, 3]), "the configuration implies"),
    "a weight of integers": (kernel("dtype", "<i4"), "float weights are expected"),
    "a weight of nobody": (
        lambda f: f["weights"][-1]["arrays"].update(x=f["weights"][-1]["arrays"]["bias"]),
        "weight x is not that of the layer",
    ),
    "a weight that is not there": (
        lambda facts: facts["weights"][-1]["arrays"].pop("bias"),
        "dense: the weight bias is missing",
    ),
    "no weights of a layer": (lambda facts: facts["weights"].pop(), "weight kernel is not that"),
    "a layer that is not there": (
        lambda facts: facts["weights"].append({"layer": ["nobody"], "arrays": {}}),
        "",
    ),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_no_model_has_are_refused(name: str, contents: Contents, tmp_path: Path) -> None:
    change, words = FACTS[name]
    out = saved(changed(contents(MASKED), "facts", change), tmp_path)
    if not words:
        assert birnn.load(out)
        return
    with pytest.raises(K2TError, match=re.escape(words)) as caught:
        birnn.load(out)
    assert "\n" not in str(caught.value)


def test_a_gate_that_is_missing_is_refused(contents: Contents, tmp_path: Path) -> None:
    def without(facts: Any) -> None:
        arrays = next(row["arrays"] for row in facts["weights"] if "kernel@z" in row["arrays"])
        del arrays["kernel@z"]

    out = saved(changed(contents(MODELS[1]), "facts", without), tmp_path)
    with pytest.raises(WeightMismatchError, match="the weight kernel@z is missing"):
        birnn.load(out)


def test_copies_and_pickles_of_a_model_hold_no_zeros(contents: Contents, tmp_path: Path) -> None:
    model = birnn.load(saved(contents(MASKED), tmp_path))
    assert origin(copy.deepcopy(model)).spec is origin(model).spec
    numbers = sum(tensor.nbytes for tensor in model.state_dict().values())
    data = pickle.dumps(origin(model))
    assert len(data) < numbers
    again = pickle.loads(data).spec
    for one, other in zip(origin(model).spec.root.walk(), again.root.walk(), strict=True):
        shapes, others = ({n: w.shape for n, w in w.weights.items()} for w in (one, other))
        assert shapes == others


OTHER_TYPES = "golden: not a file that k2t wrote"
GOLDEN: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "a text as the maker": (lambda golden: {"made_by": "x"}, OTHER_TYPES),
    "a truth as a rounding": (lambda golden: {"rounding": True}, OTHER_TYPES),
    "a list as a rounding": (lambda golden: {"rounding": [1.0]}, OTHER_TYPES),
    "roundings of integers": (lambda golden: {"roundings": [1]}, OTHER_TYPES),
    "a text as roundings": (lambda golden: {"roundings": "x"}, OTHER_TYPES),
    "inputs by name": (lambda golden: {"inputs": {}}, OTHER_TYPES),
    "a number as an output": (lambda golden: {"outputs": [7]}, OTHER_TYPES),
    "an unknown key": (lambda golden: {"x": 1}, OTHER_TYPES),
    "outputs that NumPy does not have": (
        lambda golden: {"outputs": [y.to(torch.bfloat16) for y in golden["outputs"]]},
        r"golden: .* is not a dense tensor",
    ),
    "inputs without a number": (
        lambda golden: {"inputs": [x[:, :0].clone() for x in golden["inputs"]]},
        r"golden: .*an input without a number",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_other_golden_vectors_are_refused(name: str, contents: Contents, tmp_path: Path) -> None:
    change, words = GOLDEN[name]
    content = contents(MASKED)
    content["golden"] = {**content["golden"], **change(content["golden"])}
    with pytest.raises(InvalidModelFileError, match=words):
        birnn.load(saved(content, tmp_path))


@pytest.mark.parametrize("value", [1, None, "x"])
def test_gradients_are_wanted_or_not(value: Any, contents: Contents, tmp_path: Path) -> None:
    content = contents(MASKED)
    name = next(name for name in content["state_dict"] if name.endswith("weight"))
    content["requires_grad"] = {name: value}
    with pytest.raises(InvalidModelFileError, match="requires_grad: not a file that k2t wrote"):
        birnn.load(saved(content, tmp_path))


def test_an_export_does_not_blame_itself_for_golden_vectors_that_are_wrong(
    contents: Contents, tmp_path: Path
) -> None:
    content = contents(MASKED)
    outputs = [y + 1 for y in content["golden"]["outputs"]]
    content["golden"] = {**content["golden"], "outputs": outputs}
    model = birnn.load(saved(content, tmp_path))
    text = "golden: the converted model does not compute its own golden vectors .*nothing was"
    with pytest.raises(InvalidModelFileError, match=text):
        birnn.export(model, tmp_path / "model.py")
    assert not (tmp_path / "model.py").exists()


# ---- a plugin's layer ---------------------------------------------------------------------------


def test_a_layer_that_fails_on_its_golden_inputs_is_not_exported(
    contents: Contents, tmp_path: Path
) -> None:
    def twice(model: Any) -> None:
        entry = next(e for e in model["config"]["layers"] if e["class_name"] == "CenterSteps")
        entry["inbound_nodes"] = [entry["inbound_nodes"][0] * 3]

    with forgetting_plugins():
        load_plugins([USERS])
        content = changed(contents(CENTER), "architecture", twice)
        model = birnn.load(saved(content, tmp_path))
        with pytest.raises(InvalidModelFileError, match=r"its own golden vectors \(AttributeError"):
            birnn.export(model, tmp_path / "model.py")
