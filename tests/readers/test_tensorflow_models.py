"""SavedModels, TensorFlow checkpoints and TF.js models, written by ``tensorflow_files``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import k2t as command
from specs import FIXTURES
from tensorflow_files import (
    GRAPH_KEY,
    Node,
    bundle_files,
    checkpoint_tensors,
    model_tree,
    write_checkpoint,
    write_files,
    write_saved_model,
    write_tfjs,
)
from tensorflow_fixtures import unpack

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    MissingArchitectureError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    WeightMismatchError,
)
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.tensorflow.layer_weights import edges_by_name
from keras2torch_birnn.readers.tensorflow.object_graph import SavedObjects, TrackedObject
from keras2torch_birnn.spec import Graph, LayerSpec
from keras2torch_birnn.verification.live_keras import files_for_keras

TF_KERAS = FIXTURES / "tf.keras-2.15.0"
STACK = TF_KERAS / "mask_stack_bi_dense.h5"
# Two Bidirectional layers that could be in each other's place, cells, a nested model used twice.
MODELS = [
    STACK,
    TF_KERAS / "graph_nested_twice.h5",
    FIXTURES / "tf.keras-2.4.0" / "stack_same_class.h5",
]


def weights(model: torch.nn.Module) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same(model: torch.nn.Module, source: Path) -> None:
    wanted, found = weights(k2t.convert(source)), weights(model)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def refuse(words: str, kind: type[K2TError] = InvalidModelFileError) -> Any:
    return pytest.raises(kind, match=words)


def saved_model(folder: Path, change: Callable[[Node], None] = lambda root: None) -> Path:
    """A SavedModel of STACK, whose objects ``change`` has edited."""
    root, _ = model_tree(STACK)
    change(root)
    return write_saved_model(folder, root)


def checkpoint(prefix: Path) -> Path:
    return write_checkpoint(prefix, model_tree(STACK)[0])


def architecture(folder: Path, source: Path = STACK) -> Path:
    path = folder / "arch.json"
    path.write_text(json.dumps(model_tree(source)[1]), encoding="utf-8")
    return path


# ---- SavedModel --------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("in_metadata", [True, False])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_saved_model_is_the_same_model(
    source: Path, in_metadata: bool, shards: int, tmp_path: Path
) -> None:
    root, _ = model_tree(source)
    folder = write_saved_model(tmp_path / "m", root, in_metadata=in_metadata, shards=shards)
    assert_same(k2t.convert(folder), source)
    assert k2t.inspect(folder).problems == ()


def _reverse(root: Node) -> None:
    edges = [name for name in root.children if name.startswith("layer-")]
    nodes = [root.children.pop(name) for name in edges]
    root.children |= dict(zip(edges, reversed(nodes), strict=True))


def test_layers_of_a_saved_model_are_found_by_their_names(tmp_path: Path) -> None:
    assert_same(k2t.convert(saved_model(tmp_path / "m", _reverse)), STACK)


Change = Callable[[Node], None]


def _rename(root: Node) -> None:
    root.children["layer-1"].metadata = {"name": "other"}


def _drop(name: str) -> Change:
    def change(root: Node) -> None:
        for node in root.walk():
            node.children.pop(name, None)

    return change


def _add(root: Node) -> None:
    extra = Node(value=np.zeros(3, "f4"), full_name="bi/extra")
    root.children["layer-1"].children["extra"] = extra


def _metadata(**changes: Any) -> Change:
    def change(root: Node) -> None:
        assert root.metadata is not None
        root.metadata = {**root.metadata, **changes}

    return change


def _bare(root: Node) -> None:
    for node in root.walk():
        node.metadata, node.identifier = None, ""


def _twins(root: Node) -> None:
    root.children["layer-2"].metadata = root.children["layer-1"].metadata


def _nameless(root: Node) -> None:
    root.children["layer-1"].metadata = None


WRONG_SAVED_MODELS: dict[str, tuple[Change, type[K2TError], str]] = {
    "another name": (_rename, WeightMismatchError, "no layer .*the file is incomplete or belongs"),
    "no kernel": (_drop("kernel"), WeightMismatchError, "no weight kernel|without cell"),
    "no half": (_drop("forward_layer"), WeightMismatchError, "without forward_layer"),
    "no cell": (_drop("cell"), WeightMismatchError, "without cell"),
    "one too many": (_add, WeightMismatchError, "the weight bi/extra has no place in the config"),
    "export": (_bare, InvalidModelFileError, r"without Keras' layers, as model\.export\(\)"),
    "subclassed": (
        _metadata(class_name="MyModel", config={}, is_graph_network=False),
        UnsupportedLayerError,
        "of class MyModel, which its own Python code defines; wrap it and save again: x =",
    ),
    "subclassed with layers": (
        _metadata(class_name="MyModel", is_graph_network=False),
        UnsupportedLayerError,
        "of class MyModel, which its own Python code",
    ),
    "no version": (_metadata(keras_version=None), InvalidModelFileError, "without keras_version"),
    "two of one name": (_twins, InvalidModelFileError, "two layers are called"),
    "a layer without metadata": (_nameless, InvalidModelFileError, "a layer without metadata"),
}


@pytest.mark.parametrize("name", WRONG_SAVED_MODELS)
def test_wrong_saved_models_are_refused(name: str, tmp_path: Path) -> None:
    change, kind, words = WRONG_SAVED_MODELS[name]
    folder = saved_model(tmp_path / "m", change)
    with refuse(words, kind):
        k2t.convert(folder)


def test_files_of_a_saved_model_must_be_there(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    (folder / "variables" / "variables.index").rename(tmp_path / "index")
    with refuse(r"m: variables/variables\.index: cannot be opened"):
        k2t.convert(folder)
    (folder / "saved_model.pb").write_bytes(b"")
    with refuse(r"saved_model\.pb: a SavedModel without objects, of TensorFlow 1; load it"):
        k2t.convert(folder)


def test_variables_without_objects_are_refused(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    tensors = checkpoint_tensors(model_tree(STACK)[0])
    del tensors[GRAPH_KEY]
    write_files(folder / "variables" / "variables", bundle_files(tensors))
    with refuse("variables/variables: variables without the objects that have them"):
        k2t.convert(folder)


def test_metadata_about_objects_that_are_not_there_are_refused(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    texts = (folder / "keras_metadata.pb").read_bytes()
    (folder / "keras_metadata.pb").write_bytes(texts + texts)
    with refuse("keras_metadata.pb: object 0 is not in the graph, or twice"):
        k2t.convert(folder)


def test_a_configuration_of_ones_own_goes_with_a_saved_model(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    assert_same(k2t.convert(folder, config=architecture(tmp_path)), STACK)


# ---- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("given", ["ckpt", "ckpt.index", ""])
def test_a_checkpoint_is_the_same_model(source: Path, given: str, tmp_path: Path) -> None:
    config = architecture(tmp_path, source)
    root, _ = model_tree(source)
    write_checkpoint(tmp_path / "run" / "ckpt", root, shards=3)
    assert_same(k2t.convert(tmp_path / "run" / given, config=config), source)
    with refuse("holds weights but no architecture; give the text of", MissingArchitectureError):
        k2t.convert(tmp_path / "run" / given)


@pytest.mark.parametrize("attribute", ["model", "net"])
def test_a_model_that_is_an_attribute_is_found(attribute: str, tmp_path: Path) -> None:
    model, _ = model_tree(STACK)
    counter = Node(value=np.array(7, "i8"), full_name="save_counter")
    rate = Node(value=np.array(0.1, "f4"), full_name="learning_rate")
    optimizer = Node(children={"learning_rate": rate, "iter": counter})
    root = Node(children={attribute: model, "save_counter": counter, "opt": optimizer})
    prefix = write_checkpoint(tmp_path / "ckpt", root)
    assert_same(k2t.convert(prefix, config=architecture(tmp_path)), STACK)


def test_the_input_layer_of_a_sequential_may_count(tmp_path: Path) -> None:
    """TensorFlow 2.1 alone gives it a number; elsewhere the configuration lacks a layer."""
    assert read_model(STACK).root.class_name == "Sequential"
    root, _ = model_tree(STACK, numbered_input=True)
    prefix = write_checkpoint(tmp_path / "ckpt", root)
    assert_same(k2t.convert(prefix, config=of_tensorflow_21(architecture(tmp_path))), STACK)
    with refuse(r"layers where the configuration has \d; the configuration belongs to another"):
        k2t.convert(prefix, config=architecture(tmp_path))


def of_tensorflow_21(config: Path) -> Path:
    """Change the version in an architecture."""
    text = config.read_text("utf-8")
    assert '"2.15.0"' in text
    config.write_text(text.replace('"2.15.0"', '"2.3.0-tf"'), encoding="utf-8")
    return config


def test_one_layer_too_many_must_be_the_input_layer(tmp_path: Path) -> None:
    root, _ = model_tree(STACK, numbered_input=True)
    root.children["layer-0"].children["w"] = Node(value=np.zeros(3, "f4"), full_name="w")
    prefix = write_checkpoint(tmp_path / "ckpt", root)
    with refuse(r"layers where the configuration has \d; the configuration belongs to another"):
        k2t.convert(prefix, config=of_tensorflow_21(architecture(tmp_path)))


@pytest.mark.parametrize(
    ("checkpoint", "config", "words"),
    [
        (MODELS[0], MODELS[1], r"\d layers where the configuration has \d"),
        (MODELS[2], MODELS[0], "layers where the configuration has|no weight|without"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    checkpoint: Path, config: Path, words: str, tmp_path: Path
) -> None:
    prefix = write_checkpoint(tmp_path / "ckpt", model_tree(checkpoint)[0])
    with refuse(words, WeightMismatchError):
        k2t.convert(prefix, config=architecture(tmp_path, config))


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path / "ckpt")
    path = architecture(tmp_path)
    path.write_text(path.read_text().replace('"units": ', '"units": 1'), encoding="utf-8")
    with refuse("the configuration implies", WeightMismatchError):
        k2t.convert(prefix, config=path)


def test_a_configuration_must_name_its_version(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path / "ckpt")
    path = tmp_path / "arch.json"
    config = {"layers": [{"class_name": "Dense", "config": {"units": 3}}]}
    path.write_text(json.dumps({"class_name": "Sequential", "config": config}), encoding="utf-8")
    with refuse("does not say which keras_version wrote it; give the text of model.to_json"):
        k2t.convert(prefix, config=path)


def subclassed() -> Node:
    kernel = Node(value=np.ones((2, 3), "f4"), full_name="my_model/emb/embeddings")
    inner, _ = model_tree(STACK)
    return Node(children={"emb": Node(children={"embeddings": kernel}), "encoder": inner})


def test_a_subclassed_model_is_refused_with_its_names(tmp_path: Path) -> None:
    prefix = write_checkpoint(tmp_path / "ckpt", subclassed())
    names = r"that its own Python code defines \(my_model/emb/embeddings, .*more\); "
    words = names + "wrap it and save again: .*or take its arrays"
    with refuse(words, UnsupportedLayerError):
        k2t.convert(prefix, config=architecture(tmp_path))


def test_several_models_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    root = Node(children={"a": model_tree(STACK)[0], "b": model_tree(STACK)[0]})
    prefix = write_checkpoint(tmp_path / "ckpt", root)
    with refuse("a checkpoint of 2 models; save the weights of one", UnsupportedLayerError):
        k2t.convert(prefix, config=architecture(tmp_path))


def test_a_checkpoint_of_tensorflow_1_is_refused(tmp_path: Path) -> None:
    prefix = write_files(tmp_path / "old", bundle_files({"lstm/kernel": np.ones(3, "f4")}))
    with refuse("a checkpoint of TensorFlow 1: names of variables, but no layers; save"):
        k2t.convert(prefix)


NOTES: dict[str, tuple[str, str]] = {
    "nothing": ("", "checkpoint: names no model_checkpoint_path; give the prefix"),
    "gone": ('model_checkpoint_path: "ckpt-9"', r"checkpoint: there is no ckpt-9\.index; give the"),
}


@pytest.mark.parametrize("name", NOTES)
def test_the_note_of_the_latest_checkpoint_is_a_hint_only(name: str, tmp_path: Path) -> None:
    text, words = NOTES[name]
    write_checkpoint(tmp_path / "run" / "ckpt", model_tree(STACK)[0])
    (tmp_path / "run" / "checkpoint").write_text(text, encoding="utf-8")
    with refuse(words):
        k2t.convert(tmp_path / "run")


# ---- TF.js -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("shard_bytes", [37, 1 << 20])
def test_a_tfjs_model_is_the_same_model(source: Path, shard_bytes: int, tmp_path: Path) -> None:
    file = write_tfjs(tmp_path / "m", source, shard_bytes=shard_bytes)
    assert_same(k2t.convert(file), source)


@pytest.mark.parametrize(("kind", "far"), [("uint8", 1e-2), ("uint16", 1e-4), ("float16", 1e-2)])
def test_quantized_weights_are_widened(kind: str, far: float, tmp_path: Path) -> None:
    file = write_tfjs(tmp_path / "m", STACK, quantized=kind)
    wanted, found = weights(k2t.convert(STACK)), weights(k2t.convert(file))
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=far)


def _javascript(model: dict[str, Any]) -> None:
    topology = model["modelTopology"]
    model["modelTopology"] = {
        **topology["model_config"],
        "keras_version": "tfjs-layers 4.22.0",
        "backend": "tensor_flow.js",
    }


def test_javascript_computes_as_keras_2(tmp_path: Path) -> None:
    def unmasked(model: dict[str, Any]) -> None:
        _javascript(model)
        for each in model["modelTopology"]["config"]["layers"]:
            each["config"].pop("mask_zero", None)

    spec = read_model(write_tfjs(tmp_path / "m", STACK, change=unmasked))
    assert spec.generation.version == "2.2.4"
    assert spec.notes[0] == "written by tfjs-layers 4.22.0, which computes as Keras 2.2.4"


@pytest.mark.parametrize("written", ["by TF.js itself", "as TF.js writes it"])
def test_a_mask_that_javascript_drops_is_refused(written: str, tmp_path: Path) -> None:
    if written == "by TF.js itself":
        file = unpack("tfjs-4.22.0/masked_bidirectional.tfjs.tar", tmp_path).model
    else:
        file = write_tfjs(tmp_path / "m", STACK, change=_javascript)
    done = command("convert", file, tmp_path / "out.pt")
    assert done.code == 4
    assert (
        "modelTopology: a mask in a TF.js model with a Bidirectional: TF.js ignores it" in done.err
    )
    assert not (tmp_path / "out.pt").exists()


Text = dict[str, Any]


def _weight(**changes: Any) -> Callable[[Text], None]:
    def change(model: Text) -> None:
        model["weightsManifest"][0]["weights"][0].update(changes)

    return change


def _quantized(**changes: Any) -> Callable[[Text], None]:
    return _weight(quantization={"dtype": "uint8", "scale": 1, "min": 0, **changes})


UNKNOWN = "quantization .* is not known"


def _group(**changes: Any) -> Callable[[Text], None]:
    def change(model: Text) -> None:
        model["weightsManifest"][0].update(changes)

    return change


def _set(**changes: Any) -> Callable[[Text], None]:
    return lambda model: model.update(changes)


def _again(model: Text) -> None:
    (group,) = model["weightsManifest"]
    model["weightsManifest"] = [group, group]


def _without_one(model: Text) -> None:
    (group,) = model["weightsManifest"]
    (other,) = group["weights"][:1]
    other["group"] = "optimizer"


WRONG_TFJS: dict[str, tuple[Callable[[Text], None], str]] = {
    "graph model": (_set(format="graph-model"), "a TF.js graph model: operations, without the"),
    "graph topology": (_set(modelTopology={"node": []}), "a TF.js graph model"),
    "no topology": (_set(modelTopology=None), "without modelTopology; refused"),
    "empty topology": (_set(modelTopology={}), "modelTopology: without class_name, config"),
    "no manifest": (_set(weightsManifest={}), "weightsManifest: a list is expected"),
    "no group": (_set(weightsManifest=[3]), "weightsManifest group 0: an object is expected"),
    "no paths": (_group(paths=None), "weightsManifest group 0: a list is expected"),
    "a number as path": (_group(paths=[3]), "a path that is no text"),
    "a backslash": (_group(paths=["a\\b"]), "is no name of a file"),
    "a missing file": (_group(paths=["gone.bin"]), r"gone\.bin: cannot be opened"),
    "too many files": (_group(paths=["a"] * 1001), "1001 files"),
    "too short": (_weight(shape=[1]), r"weights of \d+ bytes in files of \d+; was the download"),
    "no name": (_weight(name=None), "a weight without a name"),
    "a long name": (_weight(name="x" * 70_000), "a name that is too long"),
    "a name of many groups": (_weight(name="vars/" * 70 + "0"), "a name that is too long"),
    "no shape": (_weight(shape=None), "a weight without a shape"),
    "a boolean size": (_weight(shape=[True]), "a weight without a shape"),
    "a negative size": (_weight(shape=[-1]), "a weight without a shape"),
    "a size that is no integer": (_weight(shape=[1.0]), "a weight without a shape"),
    "texts": (_weight(dtype="string"), "a weight of dtype 'string'; numbers are expected"),
    "complex": (_weight(dtype="complex64"), "a weight of dtype 'complex64'"),
    "no dtype": (_weight(dtype=[]), r"a weight of dtype \[\]"),
    "quantized otherwise": (_quantized(dtype="int4"), UNKNOWN),
    "no number": (_quantized(scale="1"), UNKNOWN),
    "not finite": (_quantized(scale=float("nan")), UNKNOWN),
    "no original dtype": (_quantized(original_dtype={}), UNKNOWN),
    "twice": (_again, "two weights of this name"),
    "missing": (_without_one, "weights where the configuration implies|no weights"),
    "nobody's": (_weight(name="else/kernel"), "else/kernel: a weight of no layer of the config"),
}


@pytest.mark.parametrize("name", WRONG_TFJS)
def test_wrong_tfjs_models_are_refused(name: str, tmp_path: Path) -> None:
    change, words = WRONG_TFJS[name]
    file = write_tfjs(tmp_path / "m", STACK, change=change)
    with refuse(words):
        k2t.convert(file)


def test_names_of_layers_that_occur_twice_are_refused(tmp_path: Path) -> None:
    """In a model and in one inside it: the weights do not say which one is meant."""
    source = TF_KERAS / "graph_nested_twice.h5"

    def rename(model: Text) -> None:
        text = json.dumps(model).replace('"simple_rnn"', '"gru"')
        model.update(json.loads(text.replace("simple_rnn/", "gru/")))

    file = write_tfjs(tmp_path / "m", source, change=rename)
    with refuse("two weights of this name|a weight of several layers"):
        k2t.convert(file)


def _number(model: Text) -> None:
    """Rename the weights of a Dense as in a ``.keras`` file; the other layers have none."""
    layers = model["modelTopology"]["model_config"]["config"]["layers"]
    del layers[1:-1]
    weights = model["weightsManifest"][0]["weights"]
    for number, name in enumerate(("kernel", "bias")):
        (found,) = (one for one in weights if one["name"] == f"dense/{name}")
        found["name"] = f"layers/dense/vars/{number}"
    for one in weights:
        if "vars" not in one["name"]:
            one["group"] = "optimizer"


def _number_one_more(model: Text) -> None:
    _number(model)
    extra = model["weightsManifest"][0]["weights"][0]
    del extra["group"]


def _number_one_less(model: Text) -> None:
    _number(model)
    for one in model["weightsManifest"][0]["weights"]:
        if one["name"] == "layers/dense/vars/1":
            one["group"] = "optimizer"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_number_one_more, "a weight of no layer of the configuration"),
        (_number_one_less, "layers/dense/vars/1: no such weight; the files belong to another"),
    ],
)
def test_numbered_weights_must_be_all_there(
    change: Callable[[Text], None], words: str, tmp_path: Path
) -> None:
    with refuse(words):
        k2t.convert(write_tfjs(tmp_path / "m", STACK, change=change))


# ---- commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["saved", "checkpoint", "tfjs"])
def test_every_command_reads_them(kind: str, tmp_path: Path) -> None:
    root, _ = model_tree(STACK)
    source = {
        "saved": lambda: write_saved_model(tmp_path / "model", root),
        "checkpoint": lambda: write_checkpoint(tmp_path / "ckpt", root),
        "tfjs": lambda: write_tfjs(tmp_path / "web", STACK, shard_bytes=999),
    }[kind]()
    given = ("--config", architecture(tmp_path)) if kind == "checkpoint" else ()
    out = tmp_path / "out.pt"
    converted = command("convert", source, out, *given)
    assert (converted.code, converted.err.count("k2t: error")) == (0, 0), converted.err
    assert command("inspect", source, *given).code == 0
    verified = command("verify", source, out, *given, "--against", "reference")
    assert (verified.code, "OK" in verified.out.split()) == (0, True), verified.out


# ---- folders that are no model -----------------------------------------------------------------


def test_an_index_of_another_name_is_explained(tmp_path: Path) -> None:
    prefix = checkpoint(tmp_path / "ckpt")
    shutil.copy(f"{prefix}.index", tmp_path / "other")
    with refuse("in the old format of TensorFlow 1, or a renamed .index file; save the Keras"):
        k2t.convert(tmp_path / "other")


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="needs rights that can be taken")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    with refuse("a folder that cannot be read"):
        k2t.convert(tmp_path)
    tmp_path.chmod(0o700)


# ---- what is read -------------------------------------------------------------------------------


def test_inspect_reads_no_weights(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "m")
    data = folder / "variables" / "variables.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[99] ^= 1
    data.write_bytes(content)
    with refuse("the checksum is wrong; the file is damaged; copy it again"):
        k2t.convert(folder)
    assert k2t.inspect(folder).problems == ()


# ---- what a live Keras is given ----------------------------------------------------------------


def test_keras_is_given_the_json_and_the_checkpoint_alone(tmp_path: Path) -> None:
    root, model = model_tree(STACK)
    config = architecture(tmp_path)
    folder = write_saved_model(tmp_path / "m", root)
    prefix = write_checkpoint(tmp_path / "ckpt", root)
    held = write_checkpoint(tmp_path / "held", Node(children={"model": root}))
    web = write_tfjs(tmp_path / "web", STACK)
    found = files_for_keras(tmp_path, folder, None)
    assert found == (folder / "variables" / "variables", tmp_path / "arch.json")
    told = json.loads((tmp_path / "arch.json").read_text(encoding="utf-8"))
    assert (told["class_name"], told["config"]) == (model["class_name"], model["config"])
    assert files_for_keras(tmp_path, prefix, config) == (prefix, config)
    reason = "Keras cannot load this kind of file"
    assert files_for_keras(tmp_path, held, config) == f"{reason} (tf_checkpoint)"
    assert files_for_keras(tmp_path, web, None) == f"{reason} (tfjs)"


# ---- checkpoints of Keras 3 ---------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["_operations", "_functional"])
def test_a_checkpoint_of_keras_3_is_refused(edge: str, tmp_path: Path) -> None:
    inner = Node(children={"0": Node()})
    for name, root in (("root", Node(children={edge: inner})), ("held", Node())):
        root.children.setdefault("model", Node(children={edge: inner}))
        write_checkpoint(tmp_path / name, root)
        with refuse(
            "a TensorFlow checkpoint of Keras 3; write the weights with model.save_weights",
            UnsupportedOptionError,
        ):
            k2t.convert(tmp_path / name, config=architecture(tmp_path))


def test_a_layer_of_the_file_stands_for_one_nameless_layer_of_its_class_alone() -> None:
    # A KeyError before: the second layer took the same edge once more.
    graph = (TrackedObject(children={"layer-0": 1}), TrackedObject())
    objects = SavedObjects(graph, {1: '{"name": "mix_7", "class_name": "Mix"}'})
    layers = (LayerSpec("Mix", "mix", {}), LayerSpec("Mix", "mix_1", {}))
    model = LayerSpec("Sequential", "m", {}, graph=Graph(layers, (), (), ()))
    assert edges_by_name(graph, objects)(model, 0) == {"mix": "layer-0"}
