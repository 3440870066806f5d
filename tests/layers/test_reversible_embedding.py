"""ReversibleEmbedding: ids in one call, features in another, with one table or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import changed_config
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn import functional

import keras2torch_birnn as k2t
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.weights.quantized import parse_quantization

FILES = FIXTURES / "keras-3.15.1"
IDS = torch.tensor([[5, 2, 9, 11, 3, 1, 7], [4, 8, 11, 0, 0, 0, 0]])
NAME = "reversible_embedding"


@pytest.mark.parametrize("end", ["", "_untied"])
def test_a_loss_of_the_scores_trains_rows_that_no_id_reads(end: str) -> None:
    model = k2t.convert(FILES / f"reversible{end}.keras")
    scores, _ = model(IDS)
    functional.cross_entropy(scores.flatten(0, 1), IDS.flatten()).backward()
    last = dict(model.named_parameters())[f"{NAME}.{'reverse_weight' if end else 'weight'}"]
    assert last.grad is not None
    assert (last.grad[12:] != 0).all()


def test_weights_of_both_ways_are_written_back(tmp_path: Path) -> None:
    source, out = FILES / "reversible_untied.keras", tmp_path / "new.keras"
    model = k2t.convert(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    k2t.write_back(model, source, out)
    written, state = k2t.weights(out), model.state_dict()
    table, back = (written[f"layers/{NAME}/vars/{number}"] for number in (0, 1))
    assert np.array_equal(table, state[f"{NAME}.weight"])
    assert np.array_equal(back, state[f"{NAME}.reverse_weight"].T)


class Port(nn.Module):
    """A fixture with caps as somebody writes it by hand."""

    def __init__(self, end: str, cap: float | None, *, later: int = 0, tied: bool = True) -> None:
        super().__init__()
        self.words, self.dense = nn.Embedding(17, 5), nn.Linear(17, 5)
        self.lstm = nn.LSTM(5, 5, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(5, 5, batch_first=True, bidirectional=True)
        state = k2t.convert(FILES / f"reversible_{end}.keras").state_dict()
        names = {"lstm": "bidirectional", "gru": "bidirectional_1", "dense": "dense", "words": NAME}
        self.load_state_dict(
            {
                f"{own}.{key}": state[f"{name}.{key}"]
                for own, name in names.items()
                for key in self.get_submodule(own).state_dict()
            }
        )
        self.back = state[f"{NAME}.weight" if tied else f"{NAME}.reverse_weight"]
        self.cap, self.later = cap, later

    def scores(self, x: Tensor) -> Tensor:
        scores = functional.linear(x, self.back)
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words((ids + self.later) % 17)
        first = self.scores(self.lstm(x)[0].unflatten(-1, (2, 5)).sum(-2))
        y = torch.tanh(self.dense(first))
        return first, self.scores(self.gru(y)[0].unflatten(-1, (2, 5)).mean(-2))


def test_a_port_that_projects_back_with_its_table_is_equal() -> None:
    assert k2t.compare(FILES / "reversible_capped.keras", Port("capped", 0.7)).ok


@pytest.mark.parametrize(
    ("port", "kind"),
    [(Port("capped", 0.7, later=1), "ids"), (Port("capped", None), "cap missing")],
)
def test_a_mistake_in_a_port_is_named(port: Port, kind: str) -> None:
    report = k2t.compare(FILES / "reversible_capped.keras", port)
    assert {one.kind for one in report.findings} == {kind}
    assert {one.layer.partition("#")[0] for one in report.findings} == {NAME}


def test_a_port_that_ties_what_keras_does_not_is_told_so() -> None:
    port = Port("half", None)
    report = k2t.compare(FILES / "reversible_half.keras", port)
    assert {one.kind for one in report.findings} == {"tied weights"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("reverse_dtype", "int8", "reverse_dtype"),
        ("logit_soft_cap", "high", "logit_soft_cap"),
        ("tie_weights", 3, "tie_weights"),
    ],
)
def test_a_value_that_no_option_has_is_refused(
    option: str, value: object, words: str, tmp_path: Path
) -> None:
    def change(model: dict[str, Any]) -> None:
        layers = model["config"]["layers"]
        layers[1]["config"][option] = value

    file = changed_config(FILES / "reversible.h5", tmp_path / "changed.h5", change)
    with pytest.raises(k2t.UnsupportedOptionError, match=words):
        read_model(file)


def test_features_of_another_size_are_refused(tmp_path: Path) -> None:
    def change(model: dict[str, Any]) -> None:
        model["config"]["layers"][2]["config"]["merge_mode"] = "concat"

    file = changed_config(FILES / "reversible.h5", tmp_path / "changed.h5", change)
    with pytest.raises(k2t.WeightMismatchError, match="5 features are expected, found"):
        read_model(file)


def test_integer_weights_are_refused_by_name() -> None:
    policy = {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}
    found = parse_quantization("ReversibleEmbedding", {"dtype": policy})
    assert found == (None, "quantized weights (int8) of ReversibleEmbedding are not supported")
