"""Cells of plugins that do not begin with zeros: resets, commands, refusals, notes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import k2t
from plugin_files import (
    FIXTURES,
    USERS,
    changed_users,
    convert_and_verify,
    gives_what_keras_gave,
    read,
    read_arrays,
)

import keras2torch_birnn
from keras2torch_birnn.errors import PluginError
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema.custom_layers import REGISTERED, equation

K2, TF, K3 = "keras-2.2.4", "tf.keras-2.15.0", "keras-3.15.1"
START = FIXTURES / K3 / "cell_start.keras"


def test_a_reset_leaves_other_layers_alone() -> None:
    """Nothing is stateful here, so nothing is reset."""
    model = keras2torch_birnn.convert(START, plugins=[USERS])
    keras2torch_birnn.reset_states(model)
    assert gives_what_keras_gave(model, f"{K3}/cell_start.keras")


def test_the_learned_state_learns() -> None:
    model = keras2torch_birnn.convert(START, plugins=[USERS])
    x, _ = read_arrays(f"{K3}/cell_start.keras")
    sum(y.sum() for y in flat(model(torch.from_numpy(x)))).backward()
    starts = [p for name, p in model.named_parameters() if name.endswith(".start")]
    assert len(starts) == 2
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in starts)


# ---- commands ----------------------------------------------------------------------------------

FULL = "torch.full((rows, self.memory), self.level)"


def test_convert_verify_and_load_keep_them(tmp_path: Path) -> None:
    out, plugin = tmp_path / "out.safetensors", ("--plugin", USERS)
    done = k2t("convert", START, out, *plugin)
    (_, own) = done.lines("note")
    assert done.code == 0
    assert own.startswith("StartCell: of the user's own")
    assert k2t("verify", START, out, *plugin, "--against", "reference").code == 0
    assert k2t("verify", out, *plugin).code == 0
    model = keras2torch_birnn.load(out, plugins=[USERS])
    assert gives_what_keras_gave(model, f"{K3}/cell_start.keras")


def test_without_a_numpy_function_the_module_gives_them(tmp_path: Path) -> None:
    file = changed_users(tmp_path, (", initial_state=start_states", ""))
    done = convert_and_verify(START, tmp_path / "out.pt", file)
    assert done.code == 0
    note = "no NumPy function of its initial states, so those of its module are not verified"
    assert f"plugin for StartCell: {note}" in done.err


def test_a_note_asks_where_a_plugin_does_not_say_how_its_cell_begins(tmp_path: Path) -> None:
    source, out = FIXTURES / TF / "cell_masks_leaky.h5", tmp_path / "out.pt"
    note = (
        "plugin for LeakyCell: its states begin with zeros; if the Keras class has a "
        'get_initial_state of its own, say initial_state="own" in the plugin, else "zeros"'
    )
    assert note in k2t("convert", source, out, "--plugin", USERS).err
    old = 'state_size=lambda cell: cell.config["units"]'
    said = changed_users(tmp_path, (old, f'{old}, initial_state="zeros"'))
    assert "begin with zeros" not in k2t("convert", source, out, "--force", "--plugin", said).err


def test_a_note_says_that_keras_2_begins_with_zeros(tmp_path: Path) -> None:
    done = k2t("convert", FIXTURES / K2 / "cell_start.h5", tmp_path / "out.pt", "--plugin", USERS)
    assert (
        'plugin for StartCell: initial_state="own" has no effect: Keras 2.2.4 begins with zeros, '
        "whatever the cell's get_initial_state says"
    ) in done.err


# ---- refusals ----------------------------------------------------------------------------------

DECLARED = ', initial_state="own"'
REFUSED: Mapping[str, tuple[str, str, str]] = {
    "no method": (
        "get_initial_state",
        "begin",
        'it says initial_state="own", and its module has no get_initial_state; write that method',
    ),
    "a method that is not called": (
        DECLARED,
        "",
        "its module has get_initial_state, which is not called; say initial_state=",
    ),
    "another word": (DECLARED, ', initial_state="mine"', '\'mine\': "zeros" or "own" is expected'),
    "another size": (
        FULL,
        "torch.zeros(rows, 2)",
        "its get_initial_state returns (3, 5), (3, 2); state_size= says (3, 5), (3, 7)",
    ),
    "too few": (f", {FULL}", ",", "its get_initial_state returns (3, 5); state_size= says"),
    "its code": (FULL, "1 / 0", "plugin for StartCell: its module fails: ZeroDivisionError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_plugin_with_wrong_initial_states_is_refused(name: str, tmp_path: Path) -> None:
    old, new, text = REFUSED[name]
    file = changed_users(tmp_path, (old, new))
    done = k2t("convert", START, tmp_path / "out.pt", "--plugin", file)
    assert done.code == 2
    assert text in done.err
    assert not (tmp_path / "out.pt").exists()


def test_initial_states_are_a_cells() -> None:
    with pytest.raises(ValueError, match="initial_state= are those of a cell, which needs state_"):
        keras2torch_birnn.converts("Mine", initial_state="zeros")


def test_a_numpy_function_of_another_size_is_refused() -> None:
    load_plugins([USERS])
    spec, (x, _) = read(f"{K3}/cell_start.keras"), read_arrays(f"{K3}/cell_start.keras")
    REGISTERED.initial_states["StartCell"] = lambda cell, rows: np.zeros((rows, 5))
    with pytest.raises(
        PluginError, match=r"initial_state= function returns arrays of shapes \[\(5, 5\)\]"
    ):
        compute(spec, (x,))
    del REGISTERED.initial_states["StartCell"]
    with pytest.raises(PluginError, match="its equation has no initial states; say initial_state="):
        compute(spec, (x,))


def test_two_functions_of_one_cell_are_refused() -> None:
    load_plugins([USERS])
    with pytest.raises(ValueError, match="initial states of StartCell is registered already"):
        REGISTERED.equations.clear()
        equation("StartCell", initial_state=lambda cell, rows: ())(lambda cell, x, states: (x, ()))
