"""Models with plugin layers: verify, load, ids, several arguments, dtypes."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import MASKED, STACK_H5, changed_config, k2t, layer
from cut_fixtures import functional, parsed
from cut_fixtures import layer as describe
from plugin_files import (
    ATOL,
    AVERAGE,
    AVERAGE_PLUGIN,
    CENTER,
    FIXTURES,
    PASSIVE,
    RTOL,
    convert_and_verify,
    gives_what_keras_gave,
    unregister_all,
    write_plugin,
)
from same_models import assert_same_outputs
from specs import chain

import keras2torch_birnn
from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.reference.sample_inputs import input_facts
from keras2torch_birnn.spec import LayerSpec, ModelSpec
from keras2torch_birnn.verification import verify

# ---- verify, load, layers ----------------------------------------------------------------------


def test_verify_judges_a_layer_by_its_plugins_equation(tmp_path: Path) -> None:
    out = tmp_path / "out.pt"
    assert k2t("convert", AVERAGE, out, "--plugin", AVERAGE_PLUGIN).code == 0
    report = verify(AVERAGE, out, against="reference")
    assert report.ok
    assert "attention_1" in {parity.path for parity in report.layers}
    assert not report.notes
    assert k2t("verify", out).code == 0
    unregister_all()
    done = k2t("verify", out)
    assert done.code == 4
    assert "load the plugin that supplies it (--plugin, or plugins=)" in done.err


def test_an_equation_and_a_module_that_disagree_are_not_equal(tmp_path: Path) -> None:
    text = PASSIVE.format(mask=', mask="passes"')
    text += '@k2t.equation("CenterSteps")\ndef e(layer, x, mask):\n    return x, mask\n'
    done = convert_and_verify(CENTER, tmp_path / "out.pt", write_plugin(tmp_path, text))
    assert done.code == 1
    assert "first divergence: center_steps" in done.out


def test_without_an_equation_all_other_layers_are_judged(tmp_path: Path) -> None:
    out, file = tmp_path / "out.pt", write_plugin(tmp_path, PASSIVE.format(mask=', mask="passes"'))
    assert k2t("convert", CENTER, out, "--plugin", file).code == 0
    report = verify(CENTER, out, plugins=[file], against="reference")
    assert report.ok
    assert len(report.layers) == 4
    assert (
        "plugin for CenterSteps: no NumPy equation, so its module is not verified"
        in report.notes[0]
    )
    model = keras2torch_birnn.load(out)
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "bidirectional" in n).mul_(1.1)
    keras2torch_birnn.save(model, out)
    assert not verify(CENTER, out, against="reference").ok


def test_a_model_of_plugins_exports_and_copies() -> None:
    file = FIXTURES / "tf.keras-2.15.0" / "average_unmasked.h5"
    model = keras2torch_birnn.convert(file, plugins=[AVERAGE_PLUGIN])
    x = torch.randn(2, 7, 3)
    exported = torch.export.export(model, (x,)).module()
    for other in (exported, deepcopy(model)):
        assert torch.allclose(other(x), model(x), atol=1e-6)


def test_layers_lists_shipped_plugins_apart() -> None:
    done = k2t("layers")
    first, _, second = done.out.partition("\n\n")
    assert "AttentionWeightedAverage" not in first
    assert all(name in second for name in SHIPPED)
    rows = json.loads(k2t("layers", "--json").out)["layers"]
    assert {"LSTM", "CRF"} <= {row["class_name"] for row in rows}
    assert {row["plugin"] for row in rows} == {"", *SHIPPED}


@pytest.mark.parametrize("version", ["1.2.2", "2.0.8"])
def test_a_merge_that_a_plugin_supplies_is_not_made_another_layer(version: str) -> None:
    sources = [describe("InputLayer", one, batch_input_shape=[None, 3]) for one in ("a", "b")]
    merge = describe("Merge", "m", [["a", "b"]], mode="sum")
    model = {**functional(["a", "b"], ["m"], *sources, merge), "class_name": "Model"}

    def class_of_m() -> str:
        root, _ = parsed(model, version)
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
    file = write_plugin(tmp_path, ONE_HOT.format(said=said, to=FOLLOWS))
    run = convert_and_verify(path, out, file)
    assert run.code == 0, run.err
    assert k2t("verify", out, "--plugin", file).code == 0
    ids = torch.tensor([[0, 1, 2, 1, 0, 2, 2]])
    rows = torch.nn.functional.one_hot(ids, 3).float()
    wanted = keras2torch_birnn.convert(STACK_H5)(rows)
    model = keras2torch_birnn.load(out)
    assert_same_outputs(model(ids), wanted)
    assert torch.equal(model(ids.int()), model(ids))


def test_golden_vectors_use_every_row_of_the_vocabulary(tmp_path: Path) -> None:
    path, out = one_hot_model(tmp_path), tmp_path / "out.pt"
    file = write_plugin(tmp_path, ONE_HOT.format(said=SAID, to=FOLLOWS))
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
    file = write_plugin(tmp_path, text)
    run = convert_and_verify(path, out, file)
    assert run.code == 0, run.err
    with np.load(MASKED.with_suffix(".npz")) as data:
        got = keras2torch_birnn.load(out)(torch.from_numpy(data["in_0"]))
        assert np.allclose(got.detach().numpy(), data["out_0"], atol=ATOL, rtol=RTOL)


@pytest.mark.parametrize(
    ("said", "found"), [("'width'", "None"), ("'name'", "'one_hot'"), ("0", "0"), ("2.5", "2.5")]
)
def test_a_vocabulary_is_a_number_of_ids(said: str, found: str, tmp_path: Path) -> None:
    file = write_plugin(tmp_path, ONE_HOT.format(said=f", vocabulary={said}", to=FOLLOWS))
    run = k2t("convert", one_hot_model(tmp_path), tmp_path / "out.pt", "--plugin", file)
    assert run.code == 2
    assert f"one_hot: plugin for OneHot: vocabulary={said} gives {found}; the number" in run.err


def test_declared_whole_numbers_are_drawn_below_every_vocabulary() -> None:
    more = LayerSpec("Flatten", "flat", {"data_format": "channels_last"}, path=("flat",))
    keras2torch_birnn.converts("Ids", vocabulary=5)(lambda _: torch.nn.Identity())
    keras2torch_birnn.converts("Silent")(lambda _: torch.nn.Identity())
    own = {name: LayerSpec(name, name, {}, path=(name,)) for name in ("Ids", "Silent")}
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
    file = write_plugin(tmp_path, APART)
    run = convert_and_verify(path, out, file)
    assert run.code == 0, run.err
    model = keras2torch_birnn.load(out)
    assert gives_what_keras_gave(model, "keras-3.15.1/two_and_two.keras")


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
    file = write_plugin(tmp_path, text)
    run = k2t("convert", path, out, "--plugin", file, *dtype)
    if run.code == 0:  # it is right in float32, and nothing has asked for more
        run = k2t("verify", path, out, "--plugin", file, "--against", "reference")
    words = "plugin for OneHot: its module returns torch.float32 in a model of torch.float64; use"
    assert run.code == 2, run.err
    assert words in run.err
    assert len(run.lines("error")) == 1


@pytest.mark.parametrize(
    ("suffix", "what"), [("h5", "a class or function"), ("keras", "a function")]
)
def test_a_file_with_layers_of_the_users_is_said_to_be_silent_on_names(
    suffix: str, what: str, tmp_path: Path
) -> None:
    file = FIXTURES / "keras-3.15.1" / f"average.{suffix}"
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", AVERAGE_PLUGIN)
    (note,) = (note for note in done.lines("note") if "of the user's own" in note)
    assert note.startswith(f"AttentionWeightedAverage: of the user's own. If {what} of yours has a")
