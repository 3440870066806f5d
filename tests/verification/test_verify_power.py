"""``verify`` sees every mutation of OUT."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from out_mutations import mutations, read
from specs import ENTRIES, FIXTURES

import keras2torch_birnn as k2t
from keras2torch_birnn import verification
from keras2torch_birnn.errors import InvalidModelFileError

KINDS = (
    "gates swapped",
    "transposed",
    "halves exchanged",
    "bias row moved",
    "merge mode changed",
    "activation changed",
)
FILES = (
    "keras-1.2.2/bi_of_go_backwards.h5",
    "keras-2.0.8/arch_crnn_by_hand_weights.h5",
    "keras-2.2.4/cudnngru_bi.h5",
    "keras-2.2.4/mask_bi_lstm_seq.h5",
    "tf.keras-2.15.0/bi_gru_after_mul_seq.h5",
    "tf.keras-2.15.0/backward_class.h5",
    "keras-3.15.1/bi_simplernn_ave_last.keras",
    "keras-3.15.1/graph_nested_twice.keras",
    "keras-3.15.1/graph_bi_gru_initial.keras",
    "keras-3.15.1/hard_sigmoid_bi_lstm.h5",
    "keras-3.15.1/cells_nested.keras",
    "keras-3.15.1/conv_lstm_1d_mask_bi.h5",
)


@pytest.mark.every(4)
@pytest.mark.parametrize("file", FILES)
def test_every_mutation_of_out_is_not_equal(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, config = FIXTURES / file, ENTRIES[file]["config"]
    config = config and FIXTURES / config
    spec = verification.read_model(source, config=config)
    monkeypatch.setattr(verification, "read_model", lambda *_, **__: spec)  # read once
    right, wrong = tmp_path / "right.pt", tmp_path / "wrong.pt"
    k2t.save(k2t.convert(source, config=config), right)
    assert verification.verify(source, right, against="reference").ok
    tried: Counter[str] = Counter()
    for mutation in mutations(read(right)):
        torch.save(dict(mutation.content), wrong)
        if mutation.same:
            continue
        try:
            report = verification.verify(source, wrong, against="reference")
        except InvalidModelFileError:  # its weights do not follow from its options any more
            assert mutation.kind == "merge mode changed"
            continue
        assert not report.ok, f"{mutation.kind}: {mutation.name}"
        assert report.first_divergence is not None
        tried[mutation.kind] += 1
    assert sum(tried.values()) > 5
    assert set(tried) <= set(KINDS)


def test_a_change_that_keeps_the_function_is_no_mutation() -> None:
    """An LSTM adds both of its biases up; a GRU keeps them apart."""
    zeros: dict[str, Any] = {
        "lstm.weight_hh_l0": torch.rand(20, 5),
        "lstm.bias_ih_l0": torch.rand(20),
        "lstm.bias_hh_l0": torch.rand(20),
        "gru.weight_hh_l0": torch.rand(15, 5),
        "gru.bias_ih_l0": torch.rand(15),
        "gru.bias_hh_l0": torch.rand(15),
    }
    text = '{"root": {"class_name": "Sequential", "name": "m", "config": {}}}'
    made = {m.name: m.same for m in mutations({"state_dict": zeros, "spec": text})}
    assert made["lstm.bias_ih_l0 and lstm.bias_hh_l0"]
    assert made["gru.bias_ih_l0 and gru.bias_hh_l0"] == ""
    assert made["lstm.bias_ih_l0"] == ""
