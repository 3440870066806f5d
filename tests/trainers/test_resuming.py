"""``k2t.training``: compiled files, their optimizer's state, and its way back into the file."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import compiled_fixtures
import h5py
import numpy as np
import pytest
import torch
from commands import FIXTURES, changed_keras
from commands import k2t as run
from tensorflow_fixtures import unpack
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.trainers import embedding_rows

COMPILED = FIXTURES / "tf.keras-2.15.0/compiled.h5"
NEVER_COMPILED = FIXTURES / "keras-3.15.1/stack_same_class.keras"


def go_on(state: k2t.Training, steps: int = 2) -> None:
    """Train by the sum of squares of the outputs."""
    x = inputs(state)
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.model(*x).square().sum().backward()
        state.optimizer.step()


def inputs(state: k2t.Training) -> tuple[Tensor, ...]:
    from keras2torch_birnn.golden import origin

    return origin(state.model).golden.inputs


def slots_of(state: k2t.Training) -> dict[str, dict[str, Tensor]]:
    return {
        name: dict(state.optimizer.state[param])
        for name, param in state.model.named_parameters()
        if param.requires_grad
    }


def changed(path: Path, edit: Any) -> Path:
    """Change the compiled training of a copy of the file."""
    shutil.copyfile(COMPILED, path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["training_config"])
        edit(config, file)
        file.attrs["training_config"] = json.dumps(config)
    return path


def test_the_state_of_the_file_is_that_of_the_optimizer() -> None:
    state = k2t.training(COMPILED)
    with h5py.File(COMPILED) as file:
        group = file["optimizer_weights"]
        stored = {name: np.asarray(group[name]) for name in group.attrs["weight_names"]}
    assert state.model.training
    counts = [value for value in stored.values() if not value.shape]
    assert state.optimizer.iterations == int(counts[0]) > 0
    held = [slot for slots in slots_of(state).values() for slot in slots.values()]
    arrays = [value for value in stored.values() if value.shape]
    total = sum(float(slot.double().sum()) for slot in held)
    assert total == pytest.approx(sum(float(one.astype("f8").sum()) for one in arrays), rel=1e-6)
    assert sum(slot.numel() for slot in held) == sum(one.size for one in arrays)


def test_an_untrained_state_is_written_back_byte_by_byte(tmp_path: Path) -> None:
    state = k2t.training(COMPILED)
    k2t.write_back(state.model, COMPILED, tmp_path / "new.h5", optimizer=state.optimizer)
    assert (tmp_path / "new.h5").read_bytes() == COMPILED.read_bytes()


def test_the_command_writes_a_saved_state(tmp_path: Path) -> None:
    state = k2t.training(COMPILED)
    go_on(state)
    k2t.save(state.model.eval(), tmp_path / "out.pt")
    torch.save(state.optimizer.state_dict(), tmp_path / "state.pt")
    order = ("write-back", tmp_path / "out.pt", COMPILED, tmp_path / "new.h5")
    given = ("--optimizer", "write", "--optimizer-state", tmp_path / "state.pt")
    assert run(*order, *given).code == 0
    assert k2t.training(tmp_path / "new.h5").optimizer.iterations == state.optimizer.iterations
    for half in (given[:2], given[2:]):
        done = run(*order[:3], tmp_path / "other.h5", *half)
        assert done.code == 2
        assert "--optimizer write and --optimizer-state STATE.pt go together" in done.err
    torch.save({"state": {}}, tmp_path / "state.pt")
    done = run(*order[:3], tmp_path / "other.h5", *given)
    assert done.code == 3
    assert "not the state of this model's optimizer" in done.err
    (tmp_path / "state.pt").write_bytes(b"no state")
    done = run(*order[:3], tmp_path / "other.h5", *given)
    assert done.code == 3
    assert "cannot be read as tensors (" in done.err
    assert "write it with torch.save(state.optimizer.state_dict(), FILE)" in done.err


@pytest.mark.parametrize("with_state", [False, True])
def test_the_state_in_a_model_of_tensorflow_js_is_neither_read_nor_written(
    with_state: bool, tmp_path: Path
) -> None:
    path = unpack("tensorflowjs-4.22.0/batchnorm.tfjs.tar", tmp_path).model
    described = json.loads(path.read_text())
    sgd = {"class_name": "SGD", "config": {"learning_rate": 0.5, "is_legacy_optimizer": False}}
    described["modelTopology"]["training_config"] = {"optimizer_config": sgd, "loss": "mse"}
    if with_state:
        one = {"name": "iter", "shape": [1], "dtype": "int32", "group": "optimizer"}
        described["weightsManifest"].append({"paths": ["state.bin"], "weights": [one]})
        (path.parent / "state.bin").write_bytes(bytes(4))
    path.write_text(json.dumps(described))
    state = k2t.training(path)
    words = "in a model of TensorFlow.js is not read" if with_state else "the file holds no state"
    assert words in state.notes[-1]
    words = "neither read from nor written" if with_state else "so there is no place for one"
    with pytest.raises(k2t.UsageError, match=words):
        k2t.write_back(state.model, path, tmp_path / "new", optimizer=state.optimizer)
    assert not (tmp_path / "new").exists()


# ---- `.keras` files ----------------------------------------------------------------------------


def same_state(found: k2t.Training, wanted: k2t.Training) -> bool:
    pairs = zip(slots_of(found).values(), slots_of(wanted).values(), strict=True)
    equal = all(torch.equal(one[k], other[k]) for one, other in pairs for k in other)
    return equal and found.optimizer.iterations == wanted.optimizer.iterations > 0


def test_a_name_stands_for_the_optimizer_of_that_keras(tmp_path: Path) -> None:
    """``compile("adam")`` of tf.keras 2.15 is kept as the name alone."""
    source = FIXTURES / "compiled/tf.keras-2.15.0/adam.keras"

    def name(config: Any, file: Any) -> None:
        config["compile_config"]["optimizer"] = "adam"

    state = k2t.training(changed_keras(source, tmp_path / "named.keras", name))
    assert same_state(state, k2t.training(source))
    assert state.optimizer.settings.rate == 0.001


def test_the_state_inside_of_a_scaled_optimizer_is_read_and_written_twice(tmp_path: Path) -> None:
    """As Keras 3 lists it under mixed_float16: counts and the scale first, then all again."""
    source = FIXTURES / "compiled/keras-3.15.1/adam.keras"

    def scale(config: Any, file: Any) -> None:
        own = [file[f"optimizer/vars/{n}"][()] for n in range(len(file["optimizer/vars"]))]
        del file["optimizer/vars"]
        for folder, arrays in (("inner_optimizer/", own), ("", [0, 0.0, 5, 32768.0, *own])):
            for number, array in enumerate(arrays):
                file[f"optimizer/{folder}vars/{number}"] = array

    path = changed_keras(source, tmp_path / "scaled.keras", scale)
    state = k2t.training(path)
    assert same_state(state, k2t.training(source))
    assert "scales its loss (LossScaleOptimizer)" in state.notes[-1]
    go_on(state)
    k2t.write_back(state.model, path, tmp_path / "new.keras", optimizer=state.optimizer)
    assert same_state(k2t.training(tmp_path / "new.keras"), state)

    def take_the_second(config: Any, file: Any) -> None:
        own = [file[f"optimizer/vars/{n}"][()] for n in range(len(file["optimizer/vars"]))]
        assert [float(one) for one in own[:4]] == [0, 0.0, 5, 32768.0]
        del file["optimizer/inner_optimizer"], file["optimizer/vars"]
        for number, array in enumerate(own[4:]):
            file[f"optimizer/vars/{number}"] = array

    second = changed_keras(tmp_path / "new.keras", tmp_path / "second.keras", take_the_second)
    assert same_state(k2t.training(second), state)


# ---- refusals ----------------------------------------------------------------------------------


def test_a_model_that_was_never_compiled_is_refused() -> None:
    with pytest.raises(k2t.UnsupportedOptionError, match="holds no compiled training; compile"):
        k2t.training(NEVER_COMPILED)


def test_a_model_whose_weights_are_all_frozen_is_refused(tmp_path: Path) -> None:
    def freeze(config: Any, file: Any) -> None:
        text = file.attrs["model_config"].replace('"trainable": true', '"trainable": false')
        file.attrs["model_config"] = text

    with pytest.raises(k2t.UnsupportedOptionError, match="all weights of the model are frozen"):
        k2t.training(changed(tmp_path / "frozen.h5", freeze))


def test_a_state_of_other_weights_is_refused_or_left(tmp_path: Path) -> None:
    def drop_last(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        group.attrs["weight_names"] = group.attrs["weight_names"][:-1]

    path = changed(tmp_path / "less.h5", drop_last)
    with pytest.raises(k2t.WeightMismatchError, match=r"the optimizer's state has \d+ arrays"):
        k2t.training(path)
    state = k2t.training(path, state="new")
    assert state.optimizer.iterations == 0
    with pytest.raises(k2t.UsageError, match='state \'old\': "file" or "new" is expected'):
        k2t.training(path, state="old")


def test_slots_of_other_shapes_are_refused(tmp_path: Path) -> None:
    def reverse(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        names = group.attrs["weight_names"]
        group.attrs["weight_names"] = np.concatenate([names[:1], names[:0:-1]])

    with pytest.raises(k2t.WeightMismatchError, match=r"a slot \(.*\) of float32 where one of"):
        k2t.training(changed(tmp_path / "other.h5", reverse))


def test_a_file_without_a_state_begins_anew_with_a_note(tmp_path: Path) -> None:
    path = changed(tmp_path / "none.h5", lambda _, file: file.pop("optimizer_weights"))
    state = k2t.training(path)
    assert "begins anew, as in Keras" in state.notes[-1]
    with pytest.raises(k2t.UsageError, match="the file has no place for an optimizer's state"):
        k2t.write_back(state.model, path, tmp_path / "new.h5", optimizer=state.optimizer)


def test_iterations_must_be_a_count(tmp_path: Path) -> None:
    def turn(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        group[group.attrs["weight_names"][0]][()] = -3

    with pytest.raises(k2t.InvalidModelFileError, match=r"-3\.0 iterations"):
        k2t.training(changed(tmp_path / "negative.h5", turn))


def test_the_optimizer_of_another_file_is_not_written(tmp_path: Path) -> None:
    state, other = k2t.training(COMPILED), k2t.training(COMPILED)
    with pytest.raises(k2t.UsageError, match="the optimizer has other parameters than those"):
        k2t.write_back(state.model, COMPILED, tmp_path / "x.h5", optimizer=other.optimizer)

    def rename(config: Any, file: Any) -> None:
        config["optimizer_config"]["class_name"] = "Adadelta"

    path = changed(tmp_path / "adadelta.h5", rename)
    with pytest.raises(k2t.UsageError, match="compiled with Adadelta, which is another optimizer"):
        k2t.write_back(state.model, path, tmp_path / "x.h5", optimizer=state.optimizer)
    assert not (tmp_path / "x.h5").exists()


# ---- notes -------------------------------------------------------------------------------------


def test_half_precision_of_the_file_is_said(tmp_path: Path) -> None:
    source = FIXTURES / "compiled/keras-3.15.1/adam.keras"
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_bfloat16"}}

    def edit(config: Any, file: Any) -> None:
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "Dense":
                layer["config"]["dtype"] = policy

    state = k2t.training(changed_keras(source, tmp_path / "half.keras", edit))
    assert any("the file asks for mixed_bfloat16: computed in float32" in n for n in state.notes)


def test_weights_that_are_not_finite_are_said_when_they_are_written(tmp_path: Path) -> None:
    model = k2t.convert(COMPILED)
    first = next(name for name, _ in model.named_parameters())
    with torch.no_grad():
        model.get_parameter(first).view(-1)[1] = float("nan")
    written = k2t.write_back(model, COMPILED, tmp_path / "new.h5", optimizer="drop")
    assert f"1 tensors have values that are NaN or infinite: {first}" in written.notes


def test_a_parameter_that_was_frozen_later_is_named(tmp_path: Path) -> None:
    state = k2t.training(COMPILED)
    name = next(name for name, _ in state.model.named_parameters())
    state.model.get_parameter(name).requires_grad_(False)
    with pytest.raises(k2t.UsageError, match=f"{name} was frozen after the optimizer was made.*th"):
        k2t.write_back(state.model, COMPILED, tmp_path / "new.h5", optimizer=state.optimizer)


@pytest.mark.parametrize("choice", ["keep", "write"])
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("keras-3.15.1/adam.h5", "load_model of Keras 3 builds the optimizer of an .h5 without"),
        ("keras-3.15.1/adam.keras", ""),
        ("tf.keras-2.15.0/saved_adam.savedmodel", "leaves the optimizer's state in a SavedModel"),
    ],
)
def test_what_keras_does_with_the_state_that_was_written_is_said(
    row: str, words: str, choice: str, tmp_path: Path
) -> None:
    source = compiled_fixtures.unpack(compiled_fixtures.ROWS[row]["file"], tmp_path)
    state = k2t.training(source)
    with torch.no_grad():
        next(state.model.parameters()).mul_(0.75)
    written = k2t.write_back(
        state.model,
        source,
        tmp_path / f"new{source.suffix}",
        optimizer=state.optimizer if choice == "write" else choice,
    )
    found = [note for note in written.notes if note.startswith("load_model of Keras")]
    assert len(found) == bool(words) and all(words in note for note in found)


def test_an_embedding_is_trained_by_the_backend_of_the_file(tmp_path: Path) -> None:
    """Keras on torch or jax has dense gradients; a ``.keras`` file does not say it."""
    words = "the file does not say on which backend it was trained: an Embedding is"
    state = k2t.training(FIXTURES / "compiled/keras-3.15.1/adam_tagger.keras")
    assert any(note.startswith(words) for note in state.notes)
    packed = compiled_fixtures.ROWS["keras-3.15.1-torch/adam_tagger.h5"]["file"]
    path = compiled_fixtures.unpack(packed, tmp_path)
    for backend, rows in (("torch", 0), ("jax", 0), ("tensorflow", 1)):
        with h5py.File(path, "r+") as file:
            file.attrs["backend"] = backend
        state = k2t.training(path)
        assert not any(note.startswith(words) for note in state.notes)
        assert len(state.optimizer._recorded) == rows


def train_tagger(state: k2t.Training, call: Any) -> None:
    """Take a step on ids that are repeated."""
    ids = torch.tensor([[1, 2, 2, 3, 0]] * 2)
    call(ids).square().sum().backward()
    state.optimizer.step()


@pytest.mark.thorough
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10),
    reason="torch before 2.10 takes torch.compile for an export, and the gradients are dense",
)
@pytest.mark.filterwarnings("error")
def test_a_compiled_model_trains_the_rows_of_its_embedding_as_it_does_by_itself() -> None:
    """Ids are repeated, and others are not used; copies have rows of their own."""
    source = FIXTURES / "compiled/keras-3.15.1/adam_tagger.keras"
    plain, compiled = k2t.training(source), k2t.training(source)
    dense = k2t.training(source)
    dense.optimizer.record([])
    copied = copy.deepcopy(compiled)
    with torch._dynamo.config.patch(allow_rnn=True):
        graph = torch.compile(compiled.model, backend="aot_eager", fullgraph=True)
        for _ in range(3):
            train_tagger(compiled, graph)
    for state in (plain, dense, copied):
        for _ in range(3):
            train_tagger(state, state.model)
    wanted, found, other, again = (
        one.model.state_dict()["words.weight"] for one in (plain, compiled, dense, copied)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(again, wanted)
    assert (other - wanted).abs().max() > 1e-3


def test_a_compiled_model_is_exported_without_what_records_its_rows() -> None:
    state = k2t.training(FIXTURES / "compiled/keras-3.15.1/adam_tagger.keras")
    ids = torch.tensor([[1, 2, 2, 3, 0]] * 2)
    program = torch.export.export(state.model.eval(), (ids,))
    assert "k2t.looked_up" not in str(program.graph)


def test_a_functional_call_warns_that_the_embedding_has_dense_gradients() -> None:
    source = FIXTURES / "compiled/keras-3.15.1/adam_tagger.keras"
    state = k2t.training(source)

    def give_gradients() -> None:
        for parameter in state.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)

    # (a warning is an error)
    train_tagger(state, state.model)
    give_gradients()
    with pytest.warns(UserWarning, match="functional calls, .* do not show the rows that this"):
        state.optimizer.step()
    give_gradients()
    state.optimizer.step()  # once is enough
    frozen = k2t.training(source, state="new")
    frozen.optimizer.zero_grad()  # rows that are not used, and no gradient
    frozen.optimizer.step()


def test_a_mean_over_processes_warns_that_the_gradients_are_dense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = k2t.training(FIXTURES / "compiled/keras-3.15.1/adam_tagger.keras")
    monkeypatch.setattr(embedding_rows, "is_distributed", lambda: True)
    ids = torch.tensor([[1, 2, 2, 3, 0]] * 2)
    state.model(ids).square().sum().backward()
    for parameter in state.model.parameters():
        if parameter.grad is not None:
            parameter.grad *= 0.75  # as the mean of several processes' gradients
    match = r"the mean over processes \(DistributedDataParallel\) .*; call synchronize_rows\(\) of"
    with pytest.warns(UserWarning, match=match):
        state.optimizer.step()
