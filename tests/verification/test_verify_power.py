"""``verify`` sees every small change of OUT that changes what the model computes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from specs import ENTRIES, FIXTURES
from torch import Tensor

import keras2torch_birnn as k2t
from keras2torch_birnn import verification
from keras2torch_birnn.errors import InvalidModelFileError, WeightMismatchError

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
# An option in the text of OUT -> another value that is as plausible
OTHERS = {
    "tanh": "sigmoid",
    "sigmoid": "relu",
    "hard_sigmoid": "sigmoid",
    "softmax": "sigmoid",
    "concat": "sum",
    "sum": "ave",
    "ave": "mul",
    "mul": "sum",
}
OPTION = re.compile(r'"(merge_mode|activation|recurrent_activation|inner_activation)":"([^"]+)"')


def changed_states(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Gates in another order, rows in another place, a square transposed, halves exchanged."""
    for name, tensor in state.items():
        # (What is added to all scores of a query falls out of their softmax.)
        if tensor.is_floating_point() and tensor.dim() and not name.endswith("key.bias"):
            hidden = len(tensor) // 4 or 1
            found = {f"{name} by {rows}": tensor.roll(rows, 0) for rows in {1, hidden}}
            if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
                found[f"{name} transposed"] = tensor.T.contiguous()
            for how, changed in found.items():
                if not torch.equal(changed, tensor):
                    yield how, state | {name: changed}
    back = [name for name in state if name.endswith("_reverse") or "backward_layer." in name]
    pairs = {
        name: name.removesuffix("_reverse").replace("backward_layer.", "forward_layer.")
        for name in back
    }
    if pairs and all(state[a].shape == state[b].shape for a, b in pairs.items()):
        there = {a: state[b] for a, b in pairs.items()}
        exchanged = there | {b: state[a] for a, b in pairs.items()}
        yield "halves exchanged", state | exchanged


def mutants(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Change one thing of OUT at a time."""
    for name, state in changed_states(content["state_dict"]):
        yield name, content | {"state_dict": state}
    text = content["architecture"]
    for key, value in sorted(set(OPTION.findall(text))):
        if value in OTHERS:
            option = f'"{key}":"{value}"'
            changed = text.replace(option, f'"{key}":"{OTHERS[value]}"')
            yield option, content | {"architecture": changed}


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
    tried = 0
    for name, content in mutants(torch.load(right, weights_only=True)):
        torch.save(content, wrong)
        try:
            report = verification.verify(source, wrong, against="reference")
        except (InvalidModelFileError, WeightMismatchError):  # weights that do not follow
            assert '":"' in name
            continue
        assert not report.ok, name
        assert report.first_divergence is not None
        tried += 1
    assert tried > 5
