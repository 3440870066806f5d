"""``k2t map``: the table of weights says what the builders do, in words that follow them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from commands import assert_refused, k2t
from specs import FIXTURES

import keras2torch_birnn as package
from keras2torch_birnn.layers.origins import Copies
from keras2torch_birnn.porting.weight_map import MapRow, describe_copies, map_weights
from keras2torch_birnn.schema.recurrent import GATES, Gates

STACK = FIXTURES / "tf.keras-2.15.0/mask_stack_bi_dense.h5"
GRU = FIXTURES / "keras-2.3.1/mask_bi_gru_after_seq.h5"


def table(source: Path) -> dict[str, MapRow]:
    return {row.torch: row for row in map_weights(source)}


def test_the_table_of_a_stack_says_what_is_done_to_each_weight() -> None:
    rows = table(STACK)
    done = {name: row.done for name, row in rows.items()}
    assert done["embedding.weight"] == "as it is"
    assert done["bidirectional.weight_ih_l0_reverse"] == "transposed"
    assert done["bidirectional.bias_hh_l0"] == "zero"
    assert done["bidirectional_1.weight_hh_l0"] == "transposed, gates zrh -> rzn"
    assert done["bidirectional_1.bias_ih_l0"] == "gates zrh -> rzn"
    assert done["dense.weight"] == "transposed"
    backward = rows["bidirectional.weight_hh_l0_reverse"]
    assert backward.keras == "bidirectional/backward_layer/recurrent_kernel"
    assert backward.path.endswith("recurrent_kernel:0")
    assert (backward.keras_shape, backward.torch_shape) == ((11, 44), (44, 11))


def test_every_tensor_of_the_model_is_in_the_table_with_its_shape() -> None:
    state = package.convert(STACK).state_dict()
    assert {name: row.torch_shape for name, row in table(STACK).items()} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }


def test_the_rows_of_a_bias_of_two_go_apart() -> None:
    rows = table(GRU)
    assert rows["bidirectional_1.bias_ih_l0"].done == "row 0, gates zrh -> rzn"
    assert rows["bidirectional_1.bias_hh_l0"].done == "row 1, gates zrh -> rzn"


def test_the_words_follow_the_builders(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another order of gates in the builder, the table tells that order."""
    h_first = GATES["GRU"]._replace(order=(2, 0, 1))
    monkeypatch.setitem(cast(dict[str, Gates], GATES), "GRU", h_first)
    assert table(GRU)["bidirectional_1.weight_ih_l0"].done == "transposed, gates zrh -> nzr"


@pytest.mark.parametrize(
    ("fixture", "words"),
    [
        ("keras-2.2.4/cudnnlstm_plain.h5", "sum of the input and the recurrent bias"),
        ("keras-2.2.4/cudnngru_plain.h5", "each gate's columns reshaped to rows, gates zrh -> rzn"),
        ("keras-3.15.1/around_depthwise1.h5", "axes in the order 1, 2, 0, reshaped"),
    ],
)
def test_other_layouts_are_told(fixture: str, words: str) -> None:
    done = [row.done for row in map_weights(FIXTURES / fixture)]
    assert any(words in one for one in done), done


def copies(wanted: list[int], size: int) -> Copies:
    return Copies("t", np.arange(size), np.array(wanted))


def test_what_no_rule_explains_is_said() -> None:
    mixed = copies([0, 2, 1, 3, 5, 4], 6)
    assert describe_copies((2, 3), (3, 2), mixed, "Dense") == "elements rearranged"


def test_a_part_of_an_array_and_of_a_tensor_is_told() -> None:
    some = Copies("t", np.array([3, 4, 5]), np.array([1, 4, 7]))
    assert describe_copies((3, 3), (2, 3), some, "Dense") == "column 1, into row 1"


def test_the_command_prints_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = k2t("map", STACK, "-v")
    head, *lines = run.out.splitlines()
    assert run.code == 0
    assert head.split() == "Keras weight shape torch name shape what is done in k2t.weights".split()
    assert len(lines) == len(package.convert(STACK).state_dict())
    (line,) = (line for line in lines if " bidirectional_1.weight_ih_l0 " in line)
    assert " ".join(line.split()) == (
        "bidirectional_1/forward_layer/kernel (22,39) bidirectional_1.weight_ih_l0 (39,22) "
        "transposed, gates zrh -> rzn bidirectional_1/forward_gru/gru_cell/kernel"
    )


@pytest.mark.parametrize(
    ("shape", "there", "words"),
    [
        ((8, 1), (1, 8), "transposed"),
        ((1, 8), (8, 1), "transposed"),
        ((3, 3, 1, 4), (4, 1, 3, 3), "axes in the order 3, 2, 0, 1"),
        ((1, 1, 1, 4), (4, 1, 1, 1), "axes in the order 3, 2, 0, 1"),
        ((1, 1, 4), (4, 1, 1), "axes in the order 2, 1, 0"),
        ((5, 1), (5, 1), ""),
        ((5, 1), (5,), ""),
    ],
)
def test_axes_of_size_1_are_told_as_they_move(
    shape: tuple[int, ...], there: tuple[int, ...], words: str
) -> None:
    every = np.arange(np.prod(shape)).reshape(shape)
    turned = every.transpose(3, 2, 0, 1) if len(shape) == 4 else every
    moved = Copies("t", np.arange(every.size), turned.reshape(-1))
    assert describe_copies(shape, there, moved, "Dense") == words


@pytest.mark.parametrize("source", [STACK, GRU, FIXTURES / "keras-3.15.1/around_depthwise1.h5"])
def test_a_row_has_the_key_of_its_weight(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints it where it differs from the name by layers."""
    found = package.weights(source)
    rows = [row for row in map_weights(source) if row.keras]
    assert all(found[row.key].shape == row.keras_shape for row in rows)
    monkeypatch.setenv("COLUMNS", "300")
    printed = k2t("map", source, "-v").out
    assert all(row.key in printed for row in rows if row.key != row.keras)


def test_the_command_prints_json() -> None:
    run = k2t("map", GRU, "--json")
    data = json.loads(run.out)
    assert data["schema"] == 1
    first = data["weights"][0]
    assert first == {
        "keras": "embedding_1/embeddings",
        "path": first["path"],
        "keras_shape": [17, 3],
        "torch": "embedding_1.weight",
        "torch_shape": [17, 3],
        "done": "as it is",
        "key": "embedding_1/embeddings",
    }


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none.h5"
    assert_refused(k2t("map", missing), 3, missing)
