"""Classes and functions of the user's own that are called as Keras' are not taken for them.

The files are what each Keras wrote, see ``fixtures/generate_custom.py``.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from commands import FIXTURES

import keras2torch_birnn as k2t
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.config.classes import lacks_activation
from keras2torch_birnn.readers.config.generations import generation_of

CUSTOM = FIXTURES / "custom"
ROWS = {row["file"]: row for row in json.loads((CUSTOM / "manifest.json").read_text())["files"]}


def of_case(case: str, kind: str = "keras") -> list[str]:
    return [file for file, row in ROWS.items() if (row["case"], row["kind"]) == (case, kind)]


def problems_of(file: str) -> dict[str, list[k2t.K2TError]]:
    """Read a file, and return its problems by the place of the layer."""
    _, problems = read_with_problems(CUSTOM / file)
    found: dict[str, list[k2t.K2TError]] = {}
    for problem in problems:
        found.setdefault(problem.place, []).append(problem)
    return found


def error_of(model: torch.nn.Module, file: str) -> float:
    with np.load(CUSTOM / ROWS[file]["npz"]) as data:
        outputs = model(torch.from_numpy(data["in_0"]))
        return float(np.abs(outputs.detach().numpy() - data["out_0"]).max())


@pytest.mark.parametrize("file", [*of_case("own_functions"), "keras-3.15.1/own_function.h5"])
def test_a_function_that_the_file_marks_as_the_users_is_refused_in_every_layer(file: str) -> None:
    assert ROWS[file]["reloads"] == "TypeError"  # nor does Keras load it
    found = problems_of(file)
    assert {place.partition("/")[0] for place in found} == set(ROWS[file]["places"])
    name = "swish" if file.startswith("keras-3") else "hard_swish"
    every = [problem for problems in found.values() for problem in problems]
    assert len(every) == 1 if "/own_function." in file else len(every) >= 7  # cells, too
    for problem in every:
        assert isinstance(problem, k2t.UnsupportedOptionError)
        assert f"ctivation={name} is not supported: {name} is a function of the user's" in str(
            problem
        )
        assert f'custom_objects={{"{name}": keras.activations.THAT_ONE}}' in problem.advice
        assert "--plugin" in problem.advice


@pytest.mark.parametrize("file", of_case("keras_functions"))
def test_functions_of_keras_and_tensorflow_are_no_false_alarm(file: str) -> None:
    assert error_of(k2t.convert(CUSTOM / file), file) < 1e-5


@pytest.mark.parametrize("file", of_case("own_objects"))
def test_an_activation_that_is_an_object_is_never_taken_for_linear(file: str) -> None:
    words = {
        "own": "LeakyReLU is a class of the user's own, not that of Keras, from a script",
        "other": "a name, ReLU, LeakyReLU, ELU or Softmax is expected",
        "code": "it holds Python code, which k2t never runs",
    }
    found = problems_of(file)
    assert set(found) == set(ROWS[file]["places"])
    for place, problems in found.items():
        assert words[place] in str(problems[0])


@pytest.mark.parametrize("file", of_case("own_class"))
def test_a_class_that_is_called_as_one_of_keras_is_named_as_the_users(file: str) -> None:
    (problem,) = problems_of(file)["own"]
    assert isinstance(problem, k2t.UnsupportedLayerError)
    wanted = (
        "layer class Dense is not supported: it is a class of the user's own, not that of Keras, "
        "from a script or notebook, registered as Dense"
    )
    assert wanted in str(problem)
    assert "k2t layers" not in str(problem)  # which lists Dense
    assert "k2t plugin new" in problem.advice


@pytest.mark.parametrize("file", of_case("own_training"))
def test_what_acts_in_training_only_does_not_keep_a_model_from_converting(file: str) -> None:
    model = k2t.convert(CUSTOM / file)
    assert error_of(model, file) < 1e-5
    spec, _ = read_with_problems(CUSTOM / file)
    (note,) = (note for note in spec.notes if "training only" in note)
    assert "Custom>l2" in note
    assert "Custom>non_neg" in note


@pytest.mark.parametrize("file", of_case("own_function", "h5"))
def test_a_plain_name_that_its_keras_does_not_have_is_noted(file: str) -> None:
    if file.startswith("keras-3"):  # marked, and refused above
        return
    spec, problems = read_with_problems(CUSTOM / file)
    assert problems == []
    (note,) = (note for note in spec.notes if "hard_swish" in note)
    assert "Keras 2.10.0 has none of this name" in note


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ("1.2.2", "relu elu hard_sigmoid", "selu swish gelu"),
        ("2.2.4", "selu exponential linear", "swish gelu mish leaky_relu"),
        ("2.2.4-tf", "selu exponential", "swish gelu silu"),
        ("2.4.0", "swish gelu LeakyReLU", "silu leaky_relu relu6 mish"),
        ("2.10.0", "silu leaky_relu relu6 log_softmax", "mish hard_swish"),
        ("2.15.0", "mish", "hard_swish"),
        ("3.15.1", "mish hard_swish anything", ""),  # which marks what it lacks
    ],
)
def test_which_activations_a_keras_has(version: str, has: str, lacks: str) -> None:
    generation = generation_of(version)
    assert not [name for name in has.split() if lacks_activation(generation, name)]
    assert [name for name in lacks.split() if lacks_activation(generation, name)] == lacks.split()


@pytest.mark.parametrize("file", of_case("own_loss"))
def test_a_loss_with_the_short_name_of_one_of_keras_is_the_users(file: str) -> None:
    state = k2t.training(CUSTOM / file)
    assert state.loss is None
    assert "the loss function mse of the user is not supported" in state.notes[-1]
