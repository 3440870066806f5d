"""``k2t.training``: compiled files, and their optimizer's state."""

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
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn.trainers import embedding_rows

COMPILED = FIXTURES / "tf.keras-2.15.0/compiled.h5"
NEVER_COMPILED = FIXTURES / "keras-3.15.1/stack_same_class.keras"


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


def test_the_state_inside_of_a_scaled_optimizer_is_read(tmp_path: Path) -> None:
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


def test_iterations_must_be_a_count(tmp_path: Path) -> None:
    def turn(config: Any, file: Any) -> None:
        group = file["optimizer_weights"]
        group[group.attrs["weight_names"][0]][()] = -3

    with pytest.raises(k2t.InvalidModelFileError, match=r"-3\.0 iterations"):
        k2t.training(changed(tmp_path / "negative.h5", turn))


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
    with pytest.warns(UserWarning, match="functional calls do not show the rows that this"):
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
