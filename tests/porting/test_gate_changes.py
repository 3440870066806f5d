"""Changes of single gates' weights do to the reference's step what their words say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from free_ports import MULTIPLIED, TAGGER, PackedLast
from hand_ports import SPEECH

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.gate_changes import gate_changes
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.activations import activate
from keras2torch_birnn.spec import Array, LayerSpec


def half(path: object, name: str = "bidirectional") -> LayerSpec:
    return read_model(path).graph.layer(name).parts["forward_layer"]


def changed(layer: LayerSpec, words: str) -> dict[str, Array]:
    (change,) = [change for _, told, change in gate_changes(layer) if told == words]
    return dict(change({name: np.asarray(w) for name, w in layer.weights.items()}))


@pytest.mark.parametrize(
    ("words", "gate", "value"),
    [
        ("the input gate is left out (it is 1)", 0, 1),
        ("the forget gate is left out (it is 1)", 1, 1),
        ("the cell state c is not carried from step to step", 1, 0),
        ("the output gate is left out (it is 1)", 3, 1),
    ],
)
def test_a_gate_of_an_lstm_is_fixed_and_no_other(words: str, gate: int, value: float) -> None:
    layer = half(TAGGER)
    found = changed(layer, words)
    x = np.random.default_rng(4).normal(size=(5, layer.weights["kernel"].shape[0]))
    for name in ("sigmoid", "hard_sigmoid_0.2"):
        gates = np.split(activate(name, x @ found["kernel"] + found["bias"]), 4, axis=-1)
        right = x @ np.asarray(layer.weights["kernel"]) + np.asarray(layer.weights["bias"])
        wanted = np.split(activate(name, right), 4, axis=-1)
        for number, (one, other) in enumerate(zip(gates, wanted, strict=True)):
            assert np.allclose(one, value if number == gate else other, rtol=0, atol=1e-12)
    assert not np.split(found["recurrent_kernel"], 4, axis=-1)[gate].any()


def test_the_biases_of_a_gru_are_told_apart() -> None:
    layer = half(MULTIPLIED)
    one, other = np.asarray(layer.weights["bias"])
    for words, wanted in (
        ("the input bias is used for the recurrent bias, too", (one, one)),
        ("the recurrent bias is used for the input bias, too", (other, other)),
        ("the input and the recurrent bias are exchanged", (other, one)),
    ):
        assert np.array_equal(changed(layer, words)["bias"], np.stack(wanted))
    units = layer.config["units"]
    twice = changed(layer, "the bias of n is added twice")["bias"]
    assert np.array_equal(twice[:, 2 * units :], 2 * np.stack([one, other])[:, 2 * units :])
    assert np.array_equal(twice[:, : 2 * units], np.stack([one, other])[:, : 2 * units])


def test_square_kernels_may_be_exchanged() -> None:
    layer = half(TAGGER)
    words = "the kernel and the recurrent kernel are exchanged"
    assert words not in [told for _, told, _ in gate_changes(layer)]
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(2, 11, 44))
    square = replace(layer, weights={**layer.weights, "kernel": one, "recurrent_kernel": other})
    found = changed(square, words)
    assert found["kernel"] is not one
    assert np.array_equal(found["kernel"], other)
    assert np.array_equal(found["recurrent_kernel"], one)


def test_the_first_and_the_last_id_are_tried() -> None:
    spec = read_model(SPEECH.parent / "arch_toxic.keras")
    batch, _ = batches(spec, None)
    assert (batch.arrays[0].min(), batch.arrays[0].max()) == (0, 16)


def test_values_that_no_input_shows_are_a_note() -> None:
    """The row of padding: the mask leaves it out."""
    port = PackedLast()
    with torch.no_grad():
        port.table.weight[0] = 0
    report = k2t.compare(PackedLast.source, port)
    assert report.ok
    assert report.findings == ()
    (note,) = report.notes
    assert note.startswith("no input that was tried shows a difference, but table.weight: ")


def test_one_weight_of_a_gate_is_that_of_another() -> None:
    layer = half(TAGGER)
    found = changed(layer, "the recurrent kernel of f is that of o")
    parts = np.split(np.asarray(layer.weights["recurrent_kernel"]), 4, axis=-1)
    wanted = np.concatenate([parts[0], parts[3], parts[2], parts[3]], axis=-1)
    assert np.array_equal(found["recurrent_kernel"], wanted)
    assert np.array_equal(found["kernel"], layer.weights["kernel"])
    assert np.array_equal(found["bias"], layer.weights["bias"])
