"""Errors of plugins: their code, weights, options, and which class is meant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import changed_config, changed_layer, k2t, layer
from plugin_files import (
    CENTER,
    FIXTURES,
    PASSIVE,
    USERS,
    converter,
    module_converter,
    write_plugin,
)
from same_models import assert_same_outputs
from warm_process import run_command

import keras2torch_birnn
from keras2torch_birnn.errors import UnsupportedLayerError, WeightMismatchError

# ---- errors of plugins -------------------------------------------------------------------------

USES = 'mask="uses"'
FAILING: Mapping[str, tuple[str, str]] = {
    "the converter": (
        converter('return layer.weights["missing"]', USES),
        "plugin for CenterSteps: its converter fails: KeyError: 'missing' (mine.py:6)",
    ),
    "no module": (
        converter("pass", USES),
        "its converter returns NoneType; a torch.nn.Module is expected",
    ),
    "the module": (
        module_converter("x, mask=None", "return x @ x", USES),
        "plugin for CenterSteps: its module fails: RuntimeError",
    ),
    "a mask rule": (
        converter(options="mask=lambda layer: 1 / 0"),
        "its mask= function fails: ZeroDivisionError: division by zero (mine.py:4)",
    ),
    "the mask made": (
        "def made(x, mask):\n    raise ValueError('no mask')\n"
        + converter(options="mask=k2t.MaskFlow(after=made)"),
        "its mask function fails: ValueError: no mask (mine.py:5)",
    ),
    "names of weights": (
        converter(options=f'{USES}, weights=lambda config, shape: config["x"]'),
        "its weights= function fails: KeyError: 'x' (mine.py:4)",
    ),
    "a shape": (
        converter(options=f"{USES}, output=lambda config, shape: shape.none"),
        "its output= function fails: AttributeError",
    ),
    "a count": (
        converter(options=f'{USES}, outputs=lambda layer: int("x")'),
        "its outputs= function fails: ValueError",
    ),
    "several outputs": (
        module_converter("x", "return x, x"),
        "its module returns 2 outputs, expected 1; declare outputs=",
    ),
    "another shape": (
        module_converter(
            "x", "return x[:, :, 1:]", 'mask="passes", output=lambda config, shape: shape'
        ),
        "its module returns (5, 7, 9), (any, 7, 10) is expected",
    ),
    "no tensor": (
        module_converter("x", "return [3]", 'mask="passes", outputs=1'),
        "plugin for CenterSteps: its module returns 1 outputs",
    ),
    "numbers that do not last": (
        "class Mine(nn.Module):\n    def __init__(self, scale):\n        super().__init__()\n"
        "        self.scale = torch.tensor(scale)\n"
        "    def forward(self, x):\n        return x * self.scale\n"
        + converter('return Mine(layer.weights["scale"])'),
        "keeps numbers outside of its parameters and buffers; use torch.nn.Parameter",
    ),
    "another width": (
        module_converter("x", "return x[:, :, 1:]"),
        "the layers before it imply (9, 28)",
    ),
    "an equation": (
        converter() + '@k2t.equation("CenterSteps")\ndef equation(layer, x, mask):\n    return x\n',
        "its equation returns ndarray; a pair is expected: (output, mask of the output)",
    ),
    "an equation that fails": (
        converter()
        + '@k2t.equation("CenterSteps")\ndef equation(layer, x, mask):\n    return 1 / 0\n',
        "its equation fails: ZeroDivisionError: division by zero (mine.py:9)",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_a_plugin_does_wrong_is_its_own_error(name: str, tmp_path: Path) -> None:
    text, words = FAILING[name]
    out = tmp_path / "out.pt"
    done = k2t("convert", CENTER, out, "--plugin", write_plugin(tmp_path, text))
    assert done.code == (3 if name == "another width" else 2), done.err
    assert done.err.startswith(f"k2t: error: {CENTER}: "), done.err
    assert words in done.err
    assert len(done.err.splitlines()) == (2 if name == "another width" else 1)  # two halves
    assert not out.exists()


def test_debug_shows_the_line_of_the_plugin(tmp_path: Path) -> None:
    file = write_plugin(tmp_path, FAILING["the converter"][0])
    done = run_command("convert", CENTER, tmp_path / "out.pt", "--plugin", file, "--debug")
    assert 'return layer.weights["missing"]' in done.err
    assert "PluginError" in done.err


def test_two_converters_of_one_class_are_an_error(tmp_path: Path) -> None:
    text = PASSIVE.format(mask="")
    second = text.replace("def center", "def other")
    done = k2t("inspect", CENTER, "--plugin", write_plugin(tmp_path, text + second))
    assert done.code == 2
    assert "a converter of CenterSteps is registered already" in done.err


def test_a_file_may_be_loaded_again(tmp_path: Path) -> None:
    for _ in range(2):
        keras2torch_birnn.convert(CENTER, plugins=[USERS])
    assert not list(USERS.parent.glob(f"__pycache__/{USERS.stem}.*"))


def test_an_unknown_plugin_is_refused_with_those_there_are() -> None:
    done = k2t("inspect", CENTER, "--plugin", "keras-crf")
    assert done.code == 3
    assert (
        "plugin keras-crf is not a file; name a Python file, or keras-contrib-crf; did you"
        in done.err
    )


# ---- weights -----------------------------------------------------------------------------------


UNNAMED = {
    "tf.keras-2.15.0/center.h5": "2 weights where the layer's plugin names 0 .none.; name all that "
    "the file has, with weights=: center_steps/scale:0, center_steps/shift:0",
    "keras-3.15.1/gated.keras": "weights that its plugin does not name: .*; name all of them in "
    "weights=",
}


@pytest.mark.parametrize("file", UNNAMED)
def test_a_plugin_that_names_no_weights_is_refused_where_the_file_has_some(
    file: str, tmp_path: Path
) -> None:
    name = "CenterSteps" if "center" in file else "fixtures>GatedSteps"
    text = converter("...", 'mask="drops", weights=()', name)
    with pytest.raises(WeightMismatchError, match=UNNAMED[file]):
        keras2torch_birnn.convert(FIXTURES / file, plugins=[write_plugin(tmp_path, text)])


@pytest.mark.parametrize(
    ("suffix", "found"), [(".h5", "2 weights"), (".keras", "its plugin does not name: 1;")]
)
def test_a_plugin_that_names_other_weights_is_refused(
    suffix: str, found: str, tmp_path: Path
) -> None:
    text = PASSIVE.format(mask=', mask="passes"').replace('("scale", "shift")', '("scale",)')
    file = write_plugin(tmp_path, text)
    with pytest.raises(WeightMismatchError, match=found):
        keras2torch_birnn.convert(CENTER.with_suffix(suffix), plugins=[file])


CONTRIB = FIXTURES / "keras-2.2.4" / "contrib_viterbi.h5"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 3}, "crf_1: CRF option beam=3 is unknown; its plugin must name it"),
        ({"learn_mode": "joint"}, "option learn_mode='joint' is not supported: one of 'join'"),
        ({"activation": "swoosh"}, "CRF option activation='swoosh' is not supported"),
    ],
)
def test_an_option_that_a_shipped_plugin_does_not_know_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = changed_layer(CONTRIB, tmp_path / "model.h5", "crf_1", **options)
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", "keras-contrib-crf")
    assert done.code == 4
    assert words in done.err


# ---- which class is meant ----------------------------------------------------------------------


def test_a_class_called_as_one_of_keras_is_the_plugins_own(tmp_path: Path) -> None:
    def rename(model: dict[str, Any]) -> None:
        layer(model, "center_steps")["class_name"] = "Attention"

    file = changed_config(CENTER, tmp_path / "model.h5", rename)
    text = PASSIVE.format(mask=', mask="passes"').replace("CenterSteps", "Attention")
    with pytest.raises(keras2torch_birnn.K2TError, match=r"Attention option power=0\.5 is unknown"):
        keras2torch_birnn.convert(file)
    mine = write_plugin(tmp_path, text)
    model, out = keras2torch_birnn.convert(file, plugins=[mine]), tmp_path / "out.pt"
    keras2torch_birnn.save(model, out)
    x = torch.tensor([[3, 4, 5, 0, 0, 0, 0]])
    assert_same_outputs(keras2torch_birnn.load(out, plugins=[mine])(x), model(x))


def test_a_class_from_a_notebook_is_not_keras_own(tmp_path: Path) -> None:
    """Keras 3 writes null for its module."""

    def rename(model: dict[str, Any]) -> None:
        entry = layer(model, "center_steps")
        entry |= {"class_name": "Identity", "module": None, "registered_name": "Custom>Identity"}

    file = changed_config(CENTER.with_suffix(".keras"), tmp_path / "model.keras", rename)
    with pytest.raises(UnsupportedLayerError, match="layer class Identity is not supported"):
        keras2torch_birnn.convert(file)


def test_bidirectional_over_a_plugins_layer_is_refused(tmp_path: Path) -> None:
    inner = {"class_name": "CenterSteps", "config": {"name": "c"}}
    file = changed_layer(CENTER, tmp_path / "model.h5", "bidirectional", layer=inner)
    done = k2t("inspect", file, "--plugin", USERS)
    assert done.code == 4
    assert "Bidirectional over CenterSteps is not supported" in done.err


def test_time_distributed_over_several_outputs_is_refused(tmp_path: Path) -> None:
    def wrap(model: dict[str, Any]) -> None:
        inner = {"class_name": "SumAndDifference", "config": {"name": "s"}}
        config = {"name": "center_steps", "layer": inner}
        layer(model, "center_steps").update(class_name="TimeDistributed", config=config)

    file = changed_config(CENTER, tmp_path / "model.h5", wrap)
    done = k2t("inspect", file, "--plugin", USERS)
    assert done.code == 4
    assert "TimeDistributed over SumAndDifference, which gives several tensors" in done.err


def test_an_output_that_a_plugin_does_not_tell_of_is_refused(tmp_path: Path) -> None:
    text = converter(options='mask="drops", weights=("weight",)', name="SumAndDifference")
    file = FIXTURES / "tf.keras-2.15.0" / "two_and_two.h5"
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", write_plugin(tmp_path, text))
    assert done.code in (2, 4)
    assert "declare outputs=" in done.err
