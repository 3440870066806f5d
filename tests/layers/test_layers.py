"""Whole models inside TimeDistributed, layers of Keras 1, attention over any axes: what is refused,
how it is built, and options that no file of Keras could hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from model_configs import parse_config
from spec_parity import KERAS_1, KERAS_3, TF_215, agree, assert_gives, model_of
from specs import B, T, chain, dense, fixture, layer, rnn, values

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, UnsupportedOptionError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.registry import convert_layer
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.readers.config.generations import generation_of, options_of
from keras2torch_birnn.readers.config.keras1 import replace_merges
from keras2torch_birnn.schema.shape_inference import infer_model
from keras2torch_birnn.spec import LayerSpec, ModelSpec

TF_21 = "2.3.0-tf"


def modernize(entry: Any) -> Any:
    """Bring an entry of Keras 1 to the words of today."""
    return reduce(lambda found, change: change(found), keras1.PASSES["keras1"], entry)


def problems_of(model: Mapping[str, Any], version: str) -> list[K2TError]:
    return parse_config(model, version)[1].problems


# ---- TimeDistributed ---------------------------------------------------------------------------


def distributed(inner: LayerSpec, masking: str, batch: int | None = None) -> ModelSpec:
    """Masking, and the inner layer at every one of its steps."""
    td = layer("TimeDistributed", "td", layer=inner, masking=masking)
    return model_of(chain(layer("Masking", "masking"), td, shape=(batch, T, 2)), TF_215)


def test_a_model_inside_is_written_out_under_the_names_of_keras() -> None:
    model = build(distributed(chain(dense(5, 2), name="inner"), "inner"))
    assert "td.layer.dense_0.weight" in model.state_dict()
    for name in ("fold_steps", "unfold_steps", "td_layer_dense_0"):
        assert name in model.code
    assert model.meta["masks"]["td"] == "uses it"
    assert model.meta["masks"]["td/inner/dense_0"] == "passes it on"
    assert set(model.meta["paths"].values()) == {"masking", "td", "td/inner/dense_0"}
    assert list(model.meta["folded"].values()) == [1]  # those of one step, for every step


def test_what_is_inside_and_around_folds_twice() -> None:
    inner = layer("TimeDistributed", "in", layer=chain(dense(5, 2), name="m"), masking="inner")
    td = layer("TimeDistributed", "td", layer=inner, masking="inner")
    (found,) = agree(model_of(chain(td, shape=(None, 3, T, 2)), TF_215), values(B, 3, T, 2))
    assert found.shape == (B, 3, T, 5)


@pytest.mark.parametrize("batch", [None, B])
def test_a_mask_that_one_version_hands_on_otherwise_is_refused(batch: int | None) -> None:
    """TensorFlow 2.1 and 2.2 write the same version and differ where the batch is fixed."""
    for inner in (chain(dense(5, 2), name="inner"), layer("RepeatVector", "repeat", n=3)):
        spec = distributed(inner, "inner, unknown if fixed", batch)
        if batch is None:
            build(spec)
            continue
        with pytest.raises(UnsupportedOptionError, match=r"TensorFlow 2\.1 and 2\.2"):
            build(spec)
    build(distributed(dense(5, 2), "inner, unknown if fixed", batch))  # the same in both


def test_versions_know_what_time_distributed_does_with_a_mask() -> None:
    for version, rule in {
        KERAS_1: "passes by",
        "2.1.6": "passes by",
        "2.2.4": "inner unless fixed",
        "2.2.4-tf": "inner, input if fixed",
        TF_21: "inner, unknown if fixed",
        "2.4.0": "inner",
        TF_215: "inner",
        "3.0.5": "input",
    }.items():
        assert options_of("TimeDistributed", generation_of(version))["masking"] == rule


def test_several_outputs_at_every_step_are_refused() -> None:
    state = rnn("GRU", return_state=True, name="state")
    td = layer("TimeDistributed", "td", layer=state, masking="inner")
    spec = model_of(chain(td, shape=(None, 3, T, 2)), TF_215)
    with pytest.raises(UnsupportedOptionError, match="several outputs, which no Keras computes"):
        build(spec)


def test_a_stateful_layer_in_a_model_inside_is_refused() -> None:
    td = layer(
        "TimeDistributed", "td", masking="inner",
        layer=chain(rnn("GRU", stateful=True, name="state"), name="inner"),
    )  # fmt: skip
    spec = model_of(chain(td, shape=(3, 3, T, 2)), TF_215)
    with pytest.raises(UnsupportedOptionError, match="TimeDistributed over a stateful layer"):
        build(spec)


def test_a_model_that_flattens_its_steps_needs_their_number() -> None:
    """Shapes inside are those of one step."""
    td = layer("TimeDistributed", "td", layer=chain(layer("Flatten", "flat")), masking="inner")
    root = infer_model(chain(td, shape=(None, 3, 5, 2)), [])
    assert root.output_shape == (None, 3, 10)
    two = infer_model(chain(td, shape=(None, 5)), problems := [])
    assert two.graph is not None
    assert "at least 3 dimensions are expected" in str(problems[0])


# ---- Keras 1: merging --------------------------------------------------------------------------


def keras1_layer(class_name: str, name: str, **config: Any) -> dict[str, Any]:
    return {"class_name": class_name, "config": {"name": name, **config}}


def keras1_branch(name: str) -> dict[str, Any]:
    own = keras1_layer("Dense", name, output_dim=5, batch_input_shape=[None, 3])
    return {"class_name": "Sequential", "config": [own]}


def merged(*branches: Any, **config: Any) -> dict[str, Any]:
    merge = keras1_layer("Merge", "merge_1", mode="sum", layers=list(branches), **config)
    return {"class_name": "Sequential", "config": [merge]}


def test_branches_become_inputs_of_a_graph() -> None:
    model = modernize(merged(keras1_branch("left"), merged(keras1_branch("a"),
                                                               keras1_branch("b"))))  # fmt: skip
    config = model["config"]
    assert model["class_name"] == "Model"
    assert [entry["name"] for entry in config["layers"]] == [
        "left_input", "left", "a_input", "a", "b_input", "b", "merge_1", "merge_1",
    ]  # fmt: skip
    assert config["input_layers"] == [["left_input", 0, 0], ["a_input", 0, 0], ["b_input", 0, 0]]
    assert config["output_layers"] == [["merge_1", 0, 0]]


def test_a_branch_may_be_a_model_or_a_layer() -> None:
    inside = {
        "layers": [
            {"class_name": "InputLayer", "name": "x", "config": {"batch_input_shape": [None, 3]},
             "inbound_nodes": []},
            {**keras1_layer("Dense", "d", output_dim=5), "name": "d",
             "inbound_nodes": [[["x", 0, 0]]]},
        ],
        "input_layers": [["x", 0, 0]],
        "output_layers": [["d", 0, 0]],
    }  # fmt: skip
    model = {"class_name": "Model", "config": inside}
    plain = keras1_layer("Dense", "e", output_dim=5, batch_input_shape=[None, 3])
    assert not problems_of(merged(model, plain), KERAS_1)


def test_a_mask_does_not_leave_a_branch() -> None:
    """``Sequential.add`` of Keras 1.2.2 notes no mask for the node that Merge looks at."""
    branch = keras1_branch("d")
    branch["config"].insert(0, keras1_layer("Masking", "m", batch_input_shape=[None, 7, 3]))
    names = [entry["name"] for entry in modernize(merged(branch, branch))["config"]["layers"]]
    assert "d_without_mask" in names


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"mode": "cos"}, "Merge option axes=None is not supported"),
        ({"mode": "cos", "dot_axes": 0}, "axis 0 of a tensor of 2 dimensions cannot be merged"),
        ({"mode": "new"}, "Merge of Keras 1 with mode 'new' is not supported"),
        ({"mode": 5}, "Merge of Keras 1 with mode 5 is not supported"),
        ({"mode": "f", "mode_type": "lambda"}, "Lambda layer holds Python code"),
        ({"mode": "f", "mode_type": "function"}, "Lambda layer holds Python code"),
    ],
)
def test_a_merge_that_is_not_known_is_refused(config: Mapping[str, Any], match: str) -> None:
    model = merged(keras1_branch("a"), keras1_branch("b"))
    model["config"][0]["config"].update(config)
    (problem,) = problems_of(model, KERAS_1)
    assert match in str(problem)


@pytest.mark.parametrize(
    "branch",
    [
        5,
        {"class_name": "Sequential", "config": []},
        {"class_name": "Sequential", "config": [5]},
        {"class_name": "Dense", "config": {"name": "d"}},
        {"class_name": "Model", "config": {}},
        {"class_name": "Model", "config": {"layers": [], "input_layers": [], "output_layers": [5]}},
        {"class_name": "Model", "config": []},
    ],
)
def test_a_broken_branch_is_refused(branch: Any) -> None:
    with pytest.raises(InvalidModelFileError):
        problems_of(merged(keras1_branch("a"), branch), KERAS_1)


def test_the_cosine_of_matrices_is_refused() -> None:
    """There Keras 1 takes roots of products that may be below 0."""
    left, right = (keras1_branch(name) for name in ("a", "b"))
    for branch in (left, right):
        branch["config"][0]["config"]["batch_input_shape"] = [None, 7, 3]
    model = merged(left, right)
    model["config"][0]["config"].update({"mode": "cos", "dot_axes": [2, 2]})
    (problem,) = problems_of(model, KERAS_1)
    assert "mode 'cos' of other than vectors divides matrices of products" in str(problem)


def test_vectors_of_length_0_have_the_cosine_0() -> None:
    cosine = convert_layer(layer("Merge", "m", mode="cos", axes=[1, 1]))
    x = torch.tensor([[0.0, 0.0, 0.0], [3e-4, 0.0, 0.0]])
    assert cosine((x, x)).flatten().tolist() == [0.0, pytest.approx(0.9)]


def test_a_merge_at_the_start_hands_masks_on_since_keras_2() -> None:
    branch = keras1_branch("d")
    branch["config"].insert(0, keras1_layer("Masking", "m", batch_input_shape=[None, 7, 3]))
    for stay, names in ((True, {"d_without_mask"}), (False, set())):
        model = replace_merges(merged(branch), masks_stay=stay)
        found = {entry["name"] for entry in model["config"]["layers"]}
        assert {name for name in found if "without" in name} == names


def test_merges_of_merges_have_an_end() -> None:
    model = merged(keras1_branch("a"))
    for _ in range(30):
        model = merged(model)
    with pytest.raises(InvalidModelFileError, match="branches of a Merge nested deeper than 20"):
        problems_of(model, KERAS_1)


def test_merges_of_keras_1_are_the_later_layers() -> None:
    for mode, class_name in {
        "sum": "Add", "mul": "Multiply", "ave": "Average", "max": "Maximum",
    }.items():  # fmt: skip
        assert modernize(keras1_layer("Merge", "m", mode=mode)) == {
            "class_name": class_name, "config": {"name": "m"},
        }  # fmt: skip
    concat = modernize(keras1_layer("Merge", "m", mode="concat", concat_axis=1))
    assert concat == {"class_name": "Concatenate", "config": {"name": "m", "axis": 1}}
    dot = modernize(keras1_layer("Merge", "m", mode="dot", dot_axes=[2, 2]))
    assert dot == {"class_name": "Dot", "config": {"name": "m", "axes": [2, 2]}}


# ---- Keras 1: planes ----------------------------------------------------------------------------

PLANE = {"batch_input_shape": [None, 5, 7, 3]}


def planes(*others: str, name: str = "ZeroPadding2D") -> dict[str, Any]:
    """A plane that does not say its order of axes, and pools that say theirs."""
    pools = [
        keras1_layer("MaxPooling2D", f"pool_{i}", dim_ordering=order, strides=[1, 1])
        for i, order in enumerate(others)
    ]
    return {"class_name": "Sequential", "config": [keras1_layer(name, "own", **PLANE), *pools]}


@pytest.mark.parametrize("name", ["ZeroPadding2D", "Cropping2D", "UpSampling2D"])
@pytest.mark.parametrize("others", [()])
def test_planes_that_keras_1_leaves_open_are_refused(name: str, others: tuple[str, ...]) -> None:
    (problem,) = problems_of(planes(*others, name=name), KERAS_1)
    assert isinstance(problem, UnsupportedOptionError)
    assert f"{name} does not say where the channels are: Keras 1 does not save" in str(problem)


def test_a_plane_of_keras_1_has_the_order_of_all_others() -> None:
    root, parsing = parse_config(planes("tf", "tf"), KERAS_1)
    assert not parsing.problems
    assert root.graph is not None
    assert root.graph.layer("own").config["data_format"] == "channels_last"
    (note,) = parsing.notes
    assert note == (
        "Keras 1 does not save dim_ordering of 'ZeroPadding2D': taken to be 'tf', as all other "
        "layers say"
    )


def test_planes_of_keras_1_with_channels_first_are_refused() -> None:
    found = [str(problem) for problem in problems_of(planes("tf", "th"), KERAS_1)]
    assert any("MaxPooling2D option dim_ordering='th' (channels first)" in one for one in found)
    assert any("ZeroPadding2D does not say where the channels are" in one for one in found)


@pytest.mark.parametrize("name", ["Deconvolution2D", "ConvLSTM2D"])
def test_classes_of_keras_1_that_are_not_read_are_refused(name: str) -> None:
    model = {"class_name": "Sequential", "config": [keras1_layer(name, "own", **PLANE)]}
    (problem,) = problems_of(model, KERAS_1)
    assert f"layer class {name} of Keras 1 is not supported" in str(problem)


@pytest.mark.parametrize(
    ("name", "padding", "pairs"),
    [
        ("ZeroPadding2D", [1, 2], [1, 2]),
        ("ZeroPadding2D", [1, 2, 3, 5], [[1, 2], [3, 5]]),
        ("ZeroPadding2D", {"top_pad": 2, "right_pad": 1}, [[2, 0], [0, 1]]),
        ("ZeroPadding2D", {"left_pad": 2}, [[0, 0], [2, 0]]),
        ("ZeroPadding1D", {"left_pad": 2}, [2, 0]),
        ("ZeroPadding1D", [1, 2], [1, 2]),
    ],
)
def test_every_way_to_say_a_padding(name: str, padding: Any, pairs: Any) -> None:
    entry = modernize(keras1_layer(name, "own", padding=padding))
    assert entry["config"]["padding"] == pairs


# ---- attention over other axes -----------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [{"attention_axes": axes} for axes in (-1, [], [0], "1", [2], [1, 2])]
    + [{"use_gate": True}, {"sliding_window": 3}],
)
def test_other_heads_than_over_all_steps_are_refused(option: Mapping[str, Any]) -> None:
    config = {"num_heads": 2, "key_dim": 3, **option}
    (problem,) = problems_of(
        {"class_name": "Sequential",
         "config": {"name": "m", "layers": [keras1_layer("MultiHeadAttention", "own", **config)]}},
        KERAS_3,
    )  # fmt: skip
    assert f"option {next(iter(option))}=" in str(problem)


# ---- layers of Keras 3 that look like operations -----------------------------------------------


def test_a_layer_without_trainable_is_no_operation() -> None:
    classes = {one.class_name for one in fixture("keras-3.15.1/dropout_cubes.h5").spec.root.walk()}
    assert "SpatialDropout3D" in classes


# ---- Flatten -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_a_flatten_makes_rows_of_single_numbers(data_format: str) -> None:
    root = chain(layer("Flatten", "flatten", data_format=data_format), shape=(None,))
    assert_gives(model_of(root), [np.array([3.0, 5.0, 7.0])], [[3.0], [5.0], [7.0]])
