"""Layers of users and Lambdas by plugin: protocol, errors, and the plugins that are shipped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import MASKED, STACK_H5, changed_config, k2t, k2t_process, layer
from specs import chain
from tensorflow_fixtures import files as tensorflow_files
from tensorflow_fixtures import recorded, unpack

import keras2torch_birnn
from keras2torch_birnn.conversion import build, covered, flat
from keras2torch_birnn.errors import (
    K2TError,
    PluginError,
    UnsupportedLayerError,
    WeightMismatchError,
)
from keras2torch_birnn.plugins import SHIPPED, load_plugins
from keras2torch_birnn.plugins.checks import completed
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.architecture import Parsing, parse_architecture
from keras2torch_birnn.readers.config.custom_layers import check_names
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import input_facts
from keras2torch_birnn.schema.custom_layers import REGISTERED, supplies
from keras2torch_birnn.spec import Array, LayerSpec, ModelSpec
from keras2torch_birnn.verification import verify

FIXTURES = Path(__file__).parents[2] / "fixtures" / "plugins"
ENTRIES: Mapping[str, Any] = {
    entry["file"]: entry
    for entry in json.loads((FIXTURES / "manifest.json").read_text("utf-8"))["files"]
}
USERS = Path(__file__).parent / "layers_of_users.py"
CENTER = FIXTURES / "tf.keras-2.15.0" / "center.h5"
LAMBDAS = FIXTURES / "keras-2.2.4" / "lambdas.h5"
AVERAGE = FIXTURES / "keras-2.2.4" / "average.h5"
AVERAGE_NAME = "attention-weighted-average"
ATOL, RTOL, EXACT = 1e-5, 1e-4, 1e-12
# A row of masked steps alone: its scores lie around -10000, where float32 has steps of 0.001.
FAR = 5e-4


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    """Every test begins without plugins and leaves none behind."""
    tables: tuple[dict[str, Any], ...] = (
        REGISTERED.layers,
        REGISTERED.lambdas,
        REGISTERED.equations,
    )
    kept = [dict(table) for table in tables]
    forget()
    yield
    forget()
    for table, old in zip(tables, kept, strict=True):
        table.update(old)


def forget() -> None:
    for table in (REGISTERED.layers, REGISTERED.lambdas, REGISTERED.equations):
        table.clear()
    for name in [n for n in sys.modules if n.startswith("keras2torch_birnn.plugins.")]:
        del sys.modules[name]


def plugin_of(file: str) -> str:
    """What has to be switched on for a fixture."""
    folder, _, case = file.partition("/")
    by_case = {
        "average": AVERAGE_NAME,
        "contrib": "keras-contrib-crf",
        "addons": "tensorflow-addons-crf",
    }
    if folder.startswith("self-attention"):
        return f"keras-{folder}"
    start = case.partition("_")[0].partition(".")[0]
    return by_case.get(start, str(USERS))


def arrays(file: str) -> tuple[Array, list[Array]]:
    with np.load(FIXTURES / ENTRIES[file]["npz"]) as data:
        count = sum(name.startswith("out_") for name in data.files)
        return data["in_0"], [data[f"out_{i}"] for i in range(count)]


def read(file: str) -> ModelSpec:
    config = ENTRIES[file]["config"]
    return completed(read_model(FIXTURES / file, config=config and FIXTURES / config))


def run(spec: ModelSpec, x: Array, dtype: str | None = None) -> list[Array]:
    model = build(spec, dtype=dtype)
    tensor = torch.from_numpy(x)
    tensor = tensor.double() if dtype and tensor.is_floating_point() else tensor
    with torch.no_grad():
        return [y.numpy() for y in flat(model(tensor))]


def differ(a: list[Array], b: list[Array], atol: float, rtol: float) -> bool:
    return len(a) != len(b) or not all(
        x.shape == y.shape and np.allclose(x, y, atol=atol, rtol=rtol)
        for x, y in zip(a, b, strict=True)
    )


def plugin(folder: Path, text: str) -> Path:
    file = folder / "mine.py"
    start = "import torch\nfrom torch import nn\nimport keras2torch_birnn as k2t\n"
    file.write_text(start + text, encoding="utf-8")
    return file


# ---- against real Keras ------------------------------------------------------------------------


@pytest.mark.parametrize("file", ENTRIES)
def test_a_plugin_gives_what_the_original_gave(file: str) -> None:
    """Keras against float32 torch and the reference; float64 torch against the reference."""
    load_plugins([plugin_of(file)])
    spec, (x, wanted) = read(file), arrays(file)
    assert not differ(run(spec, x), wanted, ATOL, RTOL)
    for output in (y for y in wanted if "viterbi" in file or y.dtype.kind == "i"):
        got = next(g for g in run(spec, x) if g.shape == output.shape and g.dtype == output.dtype)
        assert np.array_equal(got, output)
    if not covered(spec):
        return
    exact = list(compute(spec, (x,)).outputs)
    atol = FAR if file.startswith(("self-attention-0.46", "self-attention-0.51")) else ATOL
    assert not differ(exact, wanted, atol, RTOL)
    assert not differ(run(spec, x, "float64"), exact, EXACT, EXACT)


@pytest.mark.parametrize("file", ENTRIES)
def test_the_files_are_those_of_the_manifest(file: str) -> None:
    entry = ENTRIES[file]
    for key in ("file", "npz", "config"):
        if entry[key]:
            found = hashlib.sha256((FIXTURES / entry[key]).read_bytes()).hexdigest()
            assert found == entry[f"{key}_sha256"]


def test_every_shipped_plugin_is_compared_and_takes_what_it_says() -> None:
    compared = {plugin_of(file) for file in ENTRIES}
    assert compared == {*SHIPPED, str(USERS)}
    for name, shipped in SHIPPED.items():
        forget()
        load_plugins([name])
        assert set(REGISTERED.layers) == set(REGISTERED.equations) == set(shipped.classes)


# ---- mutations: a wrong version fails ----------------------------------------------------------


def turned(layer: LayerSpec, name: str) -> LayerSpec:
    return replace(layer, weights={**layer.weights, name: layer.weights[name].T.copy()})


def swapped(layer: LayerSpec, first: str, second: str) -> LayerSpec:
    weights = dict(layer.weights)
    weights[first], weights[second] = weights[second], weights[first]
    return replace(layer, weights=weights)


MUTANTS: Mapping[str, tuple[str, Any]] = {
    "chain turned": ("keras-2.2.4/contrib_viterbi.h5", lambda one: turned(one, "chain_kernel")),
    "chain turned, marginal": (
        "keras-2.2.4/contrib_marginal.h5",
        lambda one: turned(one, "chain_kernel"),
    ),
    "boundaries swapped": (
        "keras-2.2.4/contrib_viterbi_unmasked.h5",
        lambda one: swapped(one, "left_boundary", "right_boundary"),
    ),
    "chain turned, addons": (
        "tf.keras-2.15.0/addons_plain.h5",
        lambda one: turned(one, "chain_kernel"),
    ),
    "boundaries swapped, addons": (
        "tf.keras-2.15.0/addons_plain.h5",
        lambda one: swapped(one, "left_boundary", "right_boundary"),
    ),
    "who asks is asked": (
        "self-attention-0.51/self_attention_additive.h5",
        lambda one: swapped(one, "Add_Wt", "Add_Wx"),
    ),
    "product turned": (
        "self-attention-0.45/self_attention_multiplicative.h5",
        lambda one: turned(one, "Mul_Wa"),
    ),
    "window to one side": (
        "self-attention-0.51/self_attention_additive_local.h5",
        lambda one: replace(one, config={**one.config, "history_only": True}),
    ),
    "window off by one": (
        "self-attention-0.45/self_attention_multiplicative_local.h5",
        lambda one: replace(one, config={**one.config, "attention_width": 5}),
    ),
    "scale and shift swapped": (
        "tf.keras-2.15.0/center.h5",
        lambda one: swapped(one, "scale", "shift"),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_version_is_seen(name: str) -> None:
    file, change = MUTANTS[name]
    load_plugins([plugin_of(file)])
    spec, (x, wanted) = read(file), arrays(file)
    graph = spec.graph
    layers = tuple(
        change(one) if one.class_name in REGISTERED.layers else one for one in graph.layers
    )
    assert any(new is not old for new, old in zip(layers, graph.layers, strict=True))
    wrong = replace(spec, root=replace(spec.root, graph=replace(graph, layers=layers)))
    assert differ(run(wrong, x), wanted, 1e-3, 1e-3)
    assert differ(list(compute(wrong, (x,)).outputs), wanted, 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("self-attention-0.45/self_attention_additive.h5", "keras-self-attention-0.46"),
        ("self-attention-0.46/self_attention_additive_local.h5", "keras-self-attention-0.51"),
        ("self-attention-0.51/self_attention_history_local.h5", "keras-self-attention-0.46"),
    ],
)
def test_another_edition_gives_other_numbers(file: str, other: str) -> None:
    load_plugins([other])
    x, wanted = arrays(file)
    assert differ(run(read(file), x), wanted, 1e-3, 1e-3)


@pytest.mark.parametrize(
    "file",
    [
        "keras-2.2.4/average.h5",
        "keras-2.2.4/contrib_viterbi.h5",
        "tf.keras-2.15.0/addons_tags.h5",
        "self-attention-0.45/weighted_attention.h5",
        "tf.keras-2.15.0/center.h5",
    ],
)
def test_the_mask_matters(file: str) -> None:
    load_plugins([plugin_of(file)])
    for name, own in list(REGISTERED.layers.items()):
        REGISTERED.layers[name] = replace(own, mask="drops")
    x, wanted = arrays(file)
    assert differ(run(read(file), x), wanted, 1e-3, 1e-3)


# ---- the mask protocol -------------------------------------------------------------------------

PASSIVE = """
class Mine(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(layer.weights["scale"]))
        self.shift = nn.Parameter(torch.tensor(layer.weights["shift"]))

    def forward(self, x, mask=None):
        self.seen = mask
        return x * self.scale + self.shift

@k2t.converts("CenterSteps", weights=("scale", "shift"){mask})
def center(layer):
    return Mine(layer)
"""


@pytest.mark.parametrize(
    ("rule", "shown", "later"),
    [
        ('"uses"', "uses it", ""),
        ('"uses and passes"', "uses it", "uses it"),
        ('"passes"', "passes it on", "uses it"),
        ('"drops"', "drops it", ""),
        ("lambda layer: 'drops'", "drops it", ""),
        ('k2t.MaskFlow(takes=True, after="first")', "uses it", "uses it"),
    ],
)
def test_a_plugin_says_what_goes_on_with_a_mask(
    rule: str, shown: str, later: str, tmp_path: Path
) -> None:
    file = plugin(tmp_path, PASSIVE.format(mask=f", mask={rule}"))
    rows = keras2torch_birnn.inspect(CENTER, plugins=[file]).rows
    masks = [row.mask for row in rows if row.class_name in ("CenterSteps", "Bidirectional")]
    assert masks == ["uses it", shown, later]
    model = keras2torch_birnn.convert(CENTER, plugins=[file])
    model(torch.tensor([[3, 4, 0, 0, 0, 0, 0]]))
    own = next(m for m in model.modules() if type(m).__name__ == "Mine")
    assert (own.seen is not None) == (shown == "uses it")


def test_a_mask_into_a_layer_that_says_nothing_is_refused(tmp_path: Path) -> None:
    file = plugin(tmp_path, PASSIVE.format(mask=""))
    done = k2t("convert", CENTER, tmp_path / "out.pt", "--plugin", file)
    assert done.code == 4
    assert "plugin for CenterSteps does not say what it does with one; say mask=" in done.err
    assert '"uses and passes"' in done.err


def test_an_unknown_word_for_a_mask_is_refused(tmp_path: Path) -> None:
    file = plugin(tmp_path, PASSIVE.format(mask=", mask='ignores'"))
    with pytest.raises(PluginError, match="mask='ignores'; one of uses, uses and passes, passes"):
        keras2torch_birnn.convert(CENTER, plugins=[file])


# ---- errors of plugins -------------------------------------------------------------------------

FAILING: Mapping[str, tuple[str, str]] = {
    "the converter": (
        '@k2t.converts("CenterSteps", mask="uses")\ndef mine(layer):\n'
        '    return layer.weights["missing"]\n',
        "plugin for CenterSteps: its converter fails: KeyError: 'missing' (mine.py:6)",
    ),
    "no module": (
        '@k2t.converts("CenterSteps", mask="uses")\ndef mine(layer):\n    pass\n',
        "its converter returns NoneType; a torch.nn.Module is expected",
    ),
    "the module": (
        "class Mine(nn.Module):\n    def forward(self, x, mask=None):\n        return x @ x\n"
        '@k2t.converts("CenterSteps", mask="uses")\ndef mine(layer):\n    return Mine()\n',
        "plugin for CenterSteps: its module fails: RuntimeError",
    ),
    "a mask rule": (
        '@k2t.converts("CenterSteps", mask=lambda layer: 1 / 0)\ndef mine(layer):\n'
        "    return nn.Identity()\n",
        "its mask= function fails: ZeroDivisionError: division by zero (mine.py:4)",
    ),
    "the mask made": (
        "def made(x, mask):\n    raise ValueError('no mask')\n"
        '@k2t.converts("CenterSteps", mask=k2t.MaskFlow(after=made))\ndef mine(layer):\n'
        "    return nn.Identity()\n",
        "its mask function fails: ValueError: no mask (mine.py:5)",
    ),
    "names of weights": (
        '@k2t.converts("CenterSteps", mask="uses", weights=lambda config, shape: config["x"])\n'
        "def mine(layer):\n    return nn.Identity()\n",
        "its weights= function fails: KeyError: 'x' (mine.py:4)",
    ),
    "a shape": (
        '@k2t.converts("CenterSteps", mask="uses", output=lambda config, shape: shape.none)\n'
        "def mine(layer):\n    return nn.Identity()\n",
        "its output= function fails: AttributeError",
    ),
    "a count": (
        '@k2t.converts("CenterSteps", mask="uses", outputs=lambda layer: int("x"))\n'
        "def mine(layer):\n    return nn.Identity()\n",
        "its outputs= function fails: ValueError",
    ),
    "several outputs": (
        "class Mine(nn.Module):\n    def forward(self, x):\n        return x, x\n"
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n    return Mine()\n',
        "its module gives 2 outputs, 1 are expected; say outputs=",
    ),
    "another shape": (
        "class Mine(nn.Module):\n    def forward(self, x):\n        return x[:, :, 1:]\n"
        '@k2t.converts("CenterSteps", mask="passes", output=lambda config, shape: shape)\n'
        "def mine(layer):\n    return Mine()\n",
        "its module gives (5, 7, 9), (any, 7, 10) is expected",
    ),
    "no tensor": (
        "class Mine(nn.Module):\n    def forward(self, x):\n        return [3]\n"
        '@k2t.converts("CenterSteps", mask="passes", outputs=1)\ndef mine(layer):\n'
        "    return Mine()\n",
        "plugin for CenterSteps: its module gives 1 outputs",
    ),
    "numbers that do not last": (
        "class Mine(nn.Module):\n    def __init__(self, scale):\n        super().__init__()\n"
        "        self.scale = torch.tensor(scale)\n"
        "    def forward(self, x):\n        return x * self.scale\n"
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n'
        '    return Mine(layer.weights["scale"])\n',
        "keeps numbers outside of its parameters and buffers; use torch.nn.Parameter",
    ),
    "another width": (
        "class Mine(nn.Module):\n    def forward(self, x):\n        return x[:, :, 1:]\n"
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n    return Mine()\n',
        "the layers before it imply (9, 28)",
    ),
    "an equation": (
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n'
        "    return nn.Identity()\n"
        '@k2t.equation("CenterSteps")\ndef equation(layer, x, mask):\n    return x\n',
        "its equation returns ndarray; a pair is expected: (output, mask of the output)",
    ),
    "an equation that fails": (
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n'
        "    return nn.Identity()\n"
        '@k2t.equation("CenterSteps")\ndef equation(layer, x, mask):\n    return 1 / 0\n',
        "its equation fails: ZeroDivisionError: division by zero (mine.py:9)",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_a_plugin_does_wrong_is_its_own_error(name: str, tmp_path: Path) -> None:
    text, words = FAILING[name]
    out = tmp_path / "out.pt"
    done = k2t("convert", CENTER, out, "--plugin", plugin(tmp_path, text))
    assert done.code == (3 if name == "another width" else 2), done.err
    assert done.err.startswith(f"k2t: error: {CENTER}: "), done.err
    assert words in done.err
    assert len(done.err.splitlines()) == (2 if name == "another width" else 1)  # two halves
    assert not out.exists()


def test_debug_shows_the_line_of_the_plugin(tmp_path: Path) -> None:
    file = plugin(tmp_path, FAILING["the converter"][0])
    done = k2t_process("convert", CENTER, tmp_path / "out.pt", "--plugin", file, "--debug")
    assert 'return layer.weights["missing"]' in done.err
    assert "PluginError" in done.err


def test_two_converters_of_one_class_are_an_error(tmp_path: Path) -> None:
    text = PASSIVE.format(mask="")
    second = text.replace("def center", "def other")
    done = k2t("inspect", CENTER, "--plugin", plugin(tmp_path, text + second))
    assert done.code == 2
    assert "a converter of CenterSteps is registered already" in done.err


def test_a_file_may_be_loaded_again(tmp_path: Path) -> None:
    for _ in range(2):
        keras2torch_birnn.convert(CENTER, plugins=[USERS])
    assert not list(USERS.parent.glob("__pycache__"))


def test_an_unknown_plugin_is_refused_with_those_there_are() -> None:
    done = k2t("inspect", CENTER, "--plugin", "keras-crf")
    assert done.code == 2
    assert "plugin keras-crf is no file; name a Python file, or one of attention-weig" in done.err


# ---- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tf.keras-2.15.0/gated.keras", "keras-3.15.1/gated.keras"])
def test_weights_of_layers_inside_have_to_be_named(file: str, tmp_path: Path) -> None:
    text = '@k2t.converts("fixtures>GatedSteps", mask="drops")\ndef mine(layer): ...\n'
    with pytest.raises(WeightMismatchError, match="weights of layers inside a plugin's layer"):
        keras2torch_birnn.convert(FIXTURES / file, plugins=[plugin(tmp_path, text)])


def test_weights_that_a_plugin_does_not_name_come_as_they_are(tmp_path: Path) -> None:
    text = (
        '@k2t.converts("CenterSteps", mask="passes")\ndef mine(layer):\n'
        "    raise ValueError(sorted(layer.weights))\n"
    )
    file = plugin(tmp_path, text)
    for model, names in (
        (CENTER, "['scale', 'shift']"),
        (CENTER.with_suffix(".keras"), "['0', '1']"),
    ):
        with pytest.raises(PluginError) as caught:
            keras2torch_birnn.convert(model, plugins=[file])
        assert names in str(caught.value)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_plugin_that_names_other_weights_is_refused(suffix: str, tmp_path: Path) -> None:
    text = PASSIVE.format(mask=', mask="passes"').replace('("scale", "shift")', '("scale",)')
    with pytest.raises(WeightMismatchError, match="2 weights"):
        keras2torch_birnn.convert(CENTER.with_suffix(suffix), plugins=[plugin(tmp_path, text)])


# ---- options -----------------------------------------------------------------------------------


def changed(source: Path, target: Path, name: str, **options: Any) -> Path:
    def change(model: dict[str, Any]) -> None:
        layer(model, name)["config"].update(options)

    return changed_config(source, target, change)


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
    file = changed(CONTRIB, tmp_path / "model.h5", "crf_1", **options)
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", "keras-contrib-crf")
    assert done.code == 4
    assert words in done.err


def test_only_one_edition_can_be_on() -> None:
    load_plugins(["keras-self-attention-0.45"])
    with pytest.raises(PluginError, match="SeqSelfAttention is registered already"):
        load_plugins(["keras-self-attention-0.51"])


# ---- which class is meant ----------------------------------------------------------------------


def test_without_its_plugin_a_layer_is_refused() -> None:
    done = k2t("inspect", AVERAGE)
    assert done.code == 4
    assert "layer class AttentionWeightedAverage is not supported" in done.err


def test_a_class_called_as_one_of_keras_is_the_plugins_own(tmp_path: Path) -> None:
    def rename(model: dict[str, Any]) -> None:
        layer(model, "center_steps")["class_name"] = "Attention"

    file = changed_config(CENTER, tmp_path / "model.h5", rename)
    text = PASSIVE.format(mask=', mask="passes"').replace("CenterSteps", "Attention")
    with pytest.raises(keras2torch_birnn.K2TError, match=r"Attention option power=0\.5 is unknown"):
        keras2torch_birnn.convert(file)
    mine = plugin(tmp_path, text)
    model, out = keras2torch_birnn.convert(file, plugins=[mine]), tmp_path / "out.pt"
    keras2torch_birnn.save(model, out)
    x = torch.tensor([[3, 4, 5, 0, 0, 0, 0]])
    assert torch.equal(keras2torch_birnn.load(out, plugins=[mine])(x), model(x))


def test_a_class_from_a_notebook_is_not_keras_own(tmp_path: Path) -> None:
    """Keras 3 writes null for its module."""

    def rename(model: dict[str, Any]) -> None:
        entry = layer(model, "center_steps")
        entry |= {"class_name": "Identity", "module": None, "registered_name": "Custom>Identity"}

    file = changed_config(CENTER.with_suffix(".keras"), tmp_path / "model.keras", rename)
    with pytest.raises(UnsupportedLayerError, match="layer class Identity is not supported"):
        keras2torch_birnn.convert(file)


def test_bidirectional_over_a_plugins_layer_is_refused(tmp_path: Path) -> None:
    def wrap(model: dict[str, Any]) -> None:
        entry = layer(model, "bidirectional")
        entry["config"]["layer"] = {"class_name": "CenterSteps", "config": {"name": "c"}}

    file = changed_config(CENTER, tmp_path / "model.h5", wrap)
    done = k2t("inspect", file, "--plugin", USERS)
    assert done.code == 4
    assert "Bidirectional over CenterSteps is not supported" in done.err


def test_time_distributed_over_several_outputs_is_refused(tmp_path: Path) -> None:
    def wrap(model: dict[str, Any]) -> None:
        entry = layer(model, "center_steps")
        entry["config"] = {
            "name": "center_steps",
            "layer": {"class_name": "SumAndDifference", "config": {"name": "s"}},
        }
        entry["class_name"] = "TimeDistributed"

    file = changed_config(CENTER, tmp_path / "model.h5", wrap)
    done = k2t("inspect", file, "--plugin", USERS)
    assert done.code == 4
    assert "TimeDistributed over SumAndDifference, which gives several tensors" in done.err


def test_an_output_that_a_plugin_does_not_tell_of_is_refused(tmp_path: Path) -> None:
    text = (
        '@k2t.converts("SumAndDifference", mask="drops")\ndef mine(layer):\n'
        "    return nn.Identity()\n"
    )
    file = FIXTURES / "tf.keras-2.15.0" / "two_and_two.h5"
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", plugin(tmp_path, text))
    assert done.code in (2, 4)
    assert "say outputs=" in done.err


# ---- Lambda ------------------------------------------------------------------------------------


def test_a_refused_lambda_tells_how_to_supply_it() -> None:
    done = k2t("inspect", LAMBDAS)
    assert done.code == 4
    lines = [line for line in done.err.splitlines() if "error" in line]
    assert len(lines) == 3
    assert all("Lambda layer holds Python code, which k2t never runs" in line for line in lines)
    assert all("@k2t.supplies(its name)" in line for line in lines)


LAMBDA_PLUGIN = """
k2t.supplies("stretch")(lambda x, by, plus: x * by + plus)
k2t.supplies("kept")(lambda x, mask=None: x * mask.unsqueeze(-1) + 0.25)

class Last(nn.Module):
    def forward(self, x):
        return x[:, {step}]

k2t.supplies("last"{mask})(Last())
"""


def test_a_lambda_may_be_a_function_or_a_module(tmp_path: Path) -> None:
    x, wanted = arrays("keras-2.2.4/lambdas.h5")
    for step, right in ((-1, True), (-2, False)):
        forget()
        load_plugins([plugin(tmp_path, LAMBDA_PLUGIN.format(step=step, mask=""))])
        assert differ(run(read("keras-2.2.4/lambdas.h5"), x), wanted, ATOL, RTOL) != right


@pytest.mark.parametrize("word", ["passes", "drops"])
def test_a_lambda_may_say_what_goes_on_with_a_mask(word: str, tmp_path: Path) -> None:
    file = plugin(tmp_path, LAMBDA_PLUGIN.format(step=-1, mask=f', mask="{word}"'))
    found = keras2torch_birnn.inspect(LAMBDAS, plugins=[file])
    assert not found.problems
    masks = {row.path: row.mask for row in found.rows}
    assert (masks["kept"], masks["stretch"]) == ("uses it", "")


def test_a_shape_that_the_file_tells_is_checked(tmp_path: Path) -> None:
    file = changed(LAMBDAS, tmp_path / "model.h5", "last", output_shape=[11])
    with pytest.raises(keras2torch_birnn.K2TError):
        keras2torch_birnn.convert(file, plugins=[USERS])


def test_a_lambda_that_makes_a_mask_has_to_say_so(tmp_path: Path) -> None:
    file = changed(LAMBDAS, tmp_path / "model.h5", "kept", mask=["code", None, None])
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", USERS)
    assert done.code == 4
    assert "plugin for Lambda does not say what it does with one" in done.err


def test_a_name_of_two_lambdas_is_refused_until_each_has_its_path() -> None:
    inner = chain(LayerSpec("Lambda", "cut", {}, place="inner/cut"), name="inner")
    root = chain(LayerSpec("Lambda", "cut", {}, place="cut"), inner)
    supplies("cut")(torch.tanh)
    problems: list[K2TError] = []
    check_names(root, problems)
    assert str(problems[0]) == (
        "cut: 2 Lambda layers are called cut; supply each by its path: cut, inner/cut"
    )
    supplies("inner/cut")(torch.relu)
    check_names(root, again := [])
    assert not again


def test_the_code_of_a_supplied_lambda_stays_out_of_the_result(tmp_path: Path) -> None:
    spec_text = read_with_users("keras-2.2.4/lambdas.h5").to_json()
    assert "function" not in spec_text
    assert '"by": 1.5' in spec_text


def read_with_users(file: str) -> ModelSpec:
    load_plugins([USERS])
    return read(file)


# ---- verify, load, layers ----------------------------------------------------------------------


def test_verify_judges_a_layer_by_its_plugins_equation(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    assert k2t("convert", AVERAGE, out, "--plugin", AVERAGE_NAME).code == 0
    report = verify(AVERAGE, out, against="reference")
    assert report.ok
    assert "attention_1" in {parity.path for parity in report.layers}
    assert not report.notes
    assert k2t("verify", out).code == 0
    forget()
    done = k2t("verify", out)
    assert done.code == 4
    assert "load the plugin that supplies it (--plugin, or plugins=)" in done.err


def test_an_equation_and_a_module_that_disagree_are_not_equal(tmp_path: Path) -> None:
    text = PASSIVE.format(mask=', mask="passes"')
    text += '@k2t.equation("CenterSteps")\ndef e(layer, x, mask):\n    return x, mask\n'
    out, file = tmp_path / "out.pt", plugin(tmp_path, text)
    assert k2t("convert", CENTER, out, "--plugin", file).code == 0
    done = k2t("verify", CENTER, out, "--plugin", file, "--against", "reference")
    assert done.code == 1
    assert "first divergence: center_steps" in done.out


def test_without_an_equation_all_other_layers_are_judged(tmp_path: Path) -> None:
    out, file = tmp_path / "out.pt", plugin(tmp_path, PASSIVE.format(mask=', mask="passes"'))
    assert k2t("convert", CENTER, out, "--plugin", file).code == 0
    report = verify(CENTER, out, plugins=[file], against="reference")
    assert report.ok
    assert len(report.layers) == 4
    assert "plugin for CenterSteps: no NumPy equation, so what its module gives" in report.notes[0]
    model = keras2torch_birnn.load(out)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "bidirectional" in n).mul_(1.1)
    keras2torch_birnn.save(model, out)
    assert not verify(CENTER, out, against="reference").ok


def test_a_model_of_plugins_exports_and_copies() -> None:
    file = FIXTURES / "tf.keras-2.15.0" / "average_unmasked.h5"
    model = keras2torch_birnn.convert(file, plugins=[AVERAGE_NAME])
    x = torch.randn(2, 7, 3)
    exported = torch.export.export(model, (x,)).module()
    for other in (exported, deepcopy(model)):
        assert torch.allclose(other(x), model(x), atol=1e-6)


def test_layers_lists_shipped_plugins_apart() -> None:
    done = k2t("layers")
    first, _, second = done.out.partition("\n\n")
    assert "AttentionWeightedAverage" not in first
    assert all(name in second for name in SHIPPED)
    rows = json.loads(k2t("layers", "--json").out)
    assert {"LSTM", "CRF"} <= {row["class_name"] for row in rows}
    assert {row["plugin"] for row in rows} == {"", *SHIPPED}


@pytest.mark.parametrize("version", ["1.2.2", "2.0.8"])
def test_a_merge_that_a_plugin_supplies_is_not_made_another_layer(version: str) -> None:
    sources = [
        {"class_name": "InputLayer", "name": name, "inbound_nodes": [],
         "config": {"name": name, "batch_input_shape": [None, 3]}}
        for name in ("a", "b")
    ]  # fmt: skip
    merge = {"class_name": "Merge", "name": "m", "inbound_nodes": [[["a", 0, 0], ["b", 0, 0]]],
             "config": {"name": "m", "mode": "sum"}}  # fmt: skip
    config = {"layers": [*sources, merge], "input_layers": [["a", 0, 0], ["b", 0, 0]],
              "output_layers": [["m", 0, 0]]}  # fmt: skip

    def class_of_m() -> str:
        parsing = Parsing(generation_of(version))
        root = parse_architecture({"class_name": "Model", "config": config}, parsing)
        assert root.graph is not None
        return root.graph.layer("m").class_name

    assert class_of_m() == "Add"
    keras2torch_birnn.converts("Merge", mask="drops")(lambda layer: torch.nn.Identity())
    assert class_of_m().endswith("Merge")


# ---- ids ---------------------------------------------------------------------------------------

ONE_HOT = """
class OneHot(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.depth = depth
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, ids):
        return torch.nn.functional.one_hot(ids, self.depth){to}

@k2t.converts("OneHot"{said})
def one_hot(layer):
    return OneHot(layer.config["depth"])
"""
FOLLOWS, FIXED = ".to(self.like.dtype)", ".float()"
SAID = ', vocabulary="depth"'


def one_hot_model(folder: Path, dtype: str = "int32") -> Path:
    """STACK_H5 with a layer of the user's own before it, which makes rows of its ids."""
    path = folder / "ids.h5"

    def change(model: dict[str, Any]) -> None:
        first = model["config"]["layers"][0]["config"]
        steps, features = first["batch_shape"][1:]
        first |= {"batch_shape": [None, steps], "dtype": dtype}
        own = {"class_name": "OneHot", "config": {"name": "one_hot", "depth": features}}
        model["config"]["layers"].insert(1, own)

    changed_config(STACK_H5, path, change)
    with h5py.File(path, "r+") as file:
        group = file["model_weights"]
        group.create_group("one_hot").attrs["weight_names"] = []
        group.attrs["layer_names"] = ["one_hot", *group.attrs["layer_names"]]
    return path


@pytest.mark.parametrize(("dtype", "said"), [("int32", SAID), ("int64", SAID), ("int32", "")])
def test_a_plugin_takes_ids(dtype: str, said: str, tmp_path: Path) -> None:
    path, out = one_hot_model(tmp_path, dtype), tmp_path / "out.pt"
    file = plugin(tmp_path, ONE_HOT.format(said=said, to=FOLLOWS))
    run = k2t("convert", path, out, "--plugin", file)
    assert run.code == 0, run.err
    run = k2t("verify", path, out, "--plugin", file, "--against", "reference")
    assert run.code == 0, run.err
    assert k2t("verify", out, "--plugin", file).code == 0
    ids = torch.tensor([[0, 1, 2, 1, 0, 2, 2]])
    rows = torch.nn.functional.one_hot(ids, 3).float()
    wanted = keras2torch_birnn.convert(STACK_H5)(rows)
    model = keras2torch_birnn.load(out)
    assert torch.equal(model(ids), wanted)
    assert torch.equal(model(ids.int()), wanted)


def test_golden_vectors_use_every_row_of_the_vocabulary(tmp_path: Path) -> None:
    path, out = one_hot_model(tmp_path), tmp_path / "out.pt"
    file = plugin(tmp_path, ONE_HOT.format(said=SAID, to=FOLLOWS))
    assert k2t("convert", path, out, "--plugin", file).code == 0
    (ids,) = torch.load(out, weights_only=True)["golden"]["inputs"]
    assert (ids.dtype, ids.unique().tolist()) == (torch.int32, [0, 1, 2])


def test_a_plugins_embedding_gives_what_keras_gave(tmp_path: Path) -> None:
    """In the place of Keras' own Embedding, of a model whose input is declared as floats."""
    text = """
@k2t.converts("Mine", mask=k2t.MaskFlow(after=lambda x, mask: x != 0, makes=True),
              weights=("embeddings",), vocabulary="input_dim")
def mine(layer):
    table = torch.tensor(layer.weights["embeddings"])
    return nn.Embedding.from_pretrained(table, freeze=False)
"""
    path, out = tmp_path / "m.h5", tmp_path / "out.pt"

    def change(model: dict[str, Any]) -> None:
        model["config"]["layers"][0]["config"]["dtype"] = "int32"
        layer(model, "embedding")["class_name"] = "Mine"

    changed_config(MASKED, path, change)
    file = plugin(tmp_path, text)
    assert k2t("convert", path, out, "--plugin", file).code == 0
    run = k2t("verify", path, out, "--plugin", file, "--against", "reference")
    assert run.code == 0, run.err
    with np.load(MASKED.with_suffix(".npz")) as data:
        got = keras2torch_birnn.load(out)(torch.from_numpy(data["in_0"]))
        assert np.allclose(got.detach().numpy(), data["out_0"], atol=ATOL, rtol=RTOL)


@pytest.mark.parametrize(
    ("said", "found"), [("'width'", "None"), ("'name'", "'one_hot'"), ("0", "0"), ("2.5", "2.5")]
)
def test_a_vocabulary_is_a_number_of_ids(said: str, found: str, tmp_path: Path) -> None:
    file = plugin(tmp_path, ONE_HOT.format(said=f", vocabulary={said}", to=FOLLOWS))
    run = k2t("convert", one_hot_model(tmp_path), tmp_path / "out.pt", "--plugin", file)
    assert run.code == 2
    assert f"one_hot: plugin for OneHot: vocabulary={said} gives {found}; the number" in run.err


def test_declared_whole_numbers_are_drawn_below_every_vocabulary() -> None:
    more = LayerSpec("Flatten", "flat", {"data_format": "channels_last"}, place="flat")
    keras2torch_birnn.converts("Ids", vocabulary=5)(lambda _: torch.nn.Identity())
    keras2torch_birnn.converts("Silent")(lambda _: torch.nn.Identity())
    own = {name: LayerSpec(name, name, {}, place=name) for name in ("Ids", "Silent")}
    for layers, size in (((more,), 10), ((more, own["Ids"]), 5), ((own["Silent"],), 2)):
        graph = chain(*layers, shape=(None, 7)).graph
        assert graph is not None
        first = replace(graph.layers[0], config={**graph.layers[0].config, "dtype": "int32"})
        root = LayerSpec(
            "Sequential", "m", {}, graph=replace(graph, layers=(first, *graph.layers[1:]))
        )
        facts = input_facts(ModelSpec(root, generation_of("2.15.0"), ()))
        assert facts[0].vocabulary == size


# ---- several arguments, and dtypes -------------------------------------------------------------

TWO = FIXTURES / "keras-3.15.1" / "two_and_two.keras"
APART = """
class Apart(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, a, b, factor=1.0):
        return (a * self.weight + b) * factor, a - b

@k2t.converts("SumAndDifference", mask="drops", weights=("weight",), outputs=2)
def apart(layer):
    return Apart(layer.weights["weight"])
"""


@pytest.mark.parametrize("kwargs", [{}, {"factor": 1.0}], ids=str)
def test_a_layer_called_with_two_tensors_is_verified(
    kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """``Layer()(a, b)``; and, as any call may, with an option."""

    def change(model: dict[str, Any]) -> None:
        (node,) = layer(model, "sum_and_difference")["inbound_nodes"]
        (node["args"],) = node["args"]
        node["kwargs"] = kwargs

    path, out = changed_config(TWO, tmp_path / "m.keras", change), tmp_path / "out.pt"
    file = plugin(tmp_path, APART)
    assert k2t("convert", path, out, "--plugin", file).code == 0
    run = k2t("verify", path, out, "--plugin", file, "--against", "reference")
    assert run.code == 0, run.err
    x, wanted = arrays("keras-3.15.1/two_and_two.keras")
    with torch.no_grad():
        got = [y.numpy() for y in flat(keras2torch_birnn.load(out)(torch.from_numpy(x)))]
    assert not differ(got, wanted, ATOL, RTOL)


EQUATION = """
@k2t.equation("OneHot")
def equation(layer, x, mask):
    import numpy as np
    return np.eye(layer.config["depth"])[x], None
"""


@pytest.mark.parametrize("with_equation", [False, True])
@pytest.mark.parametrize("dtype", [(), ("--dtype", "float64")], ids=["float32", "float64"])
def test_a_module_of_another_float_type_is_named_with_its_dtype(
    dtype: tuple[str, ...], with_equation: bool, tmp_path: Path
) -> None:
    path, out = one_hot_model(tmp_path), tmp_path / "out.pt"
    text = ONE_HOT.format(said=SAID, to=FIXED) + EQUATION * with_equation
    file = plugin(tmp_path, text)
    run = k2t("convert", path, out, "--plugin", file, *dtype)
    if run.code == 0:  # it is right in float32, and nothing has asked for more
        run = k2t("verify", path, out, "--plugin", file, "--against", "reference")
    words = "plugin for OneHot: its module gives torch.float32 in a model of torch.float64; use"
    assert run.code == 2, run.err
    assert words in run.err
    assert len(run.lines("error")) == 1


@pytest.mark.parametrize("file", [f for f in tensorflow_files("plugin") if "of_users" in f])
def test_layers_of_users_in_tensorflows_containers(file: str, tmp_path: Path) -> None:
    found, case = unpack(file, tmp_path), recorded(file)
    model = keras2torch_birnn.convert(found.model, config=found.config, plugins=[USERS])
    for inputs, wanted in zip(case.inputs, case.outputs, strict=True):
        got = flat(model(*map(torch.from_numpy, inputs)))
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b, atol=1e-5, rtol=1e-4)
