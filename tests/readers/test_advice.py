"""Every refusal of something that is justified in Keras says what its owner can do."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import (
    FIXTURES,
    MASKED,
    STACK_H5,
    STACK_KERAS,
    changed_config,
    k2t,
    layer,
)
from package_source import nodes
from plugin_files import unregister_all
from tensorflow_fixtures import unpack

import keras2torch_birnn
from keras2torch_birnn.errors import UnsupportedLayerError, UnsupportedOptionError

PACKAGE = Path(keras2torch_birnn.__file__).parent
NAMES = ("UnsupportedLayerError", "UnsupportedOptionError")


@pytest.fixture(autouse=True)
def no_plugins() -> None:
    """Forget plugins of other tests: advice depends on them."""
    unregister_all()


def refusals() -> Iterator[tuple[str, ast.Call]]:
    for part in ("readers", "schema", "layers"):
        for path in sorted((PACKAGE / part).rglob("*.py")):
            for node in nodes(path):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in NAMES:
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def test_every_refusal_has_advice() -> None:
    """Those of Keras 1 and of integer inputs say it in the finding."""
    found = dict(refusals())
    assert len(found) > 30
    without = [place for place, call in found.items() if len(call.args) < 2]
    known = ("readers/config/architecture.py", "readers/config/integer_inputs.py")
    assert [place for place in without if not place.startswith(known)] == []
    assert len(without) <= 2, without


WRAP = (
    r"wrap it and save again: x = keras.Input\(shape=..., dtype=...\); keras.Model\(x, model.call"
)


def test_a_subclassed_model_of_tensorflow_is_to_be_wrapped(tmp_path: Path) -> None:
    found = unpack("tf.keras-2.15.0/subclassed.weights.tar", tmp_path)
    with pytest.raises(UnsupportedLayerError, match=WRAP):
        keras2torch_birnn.convert(found.model)


Change = Callable[[dict[str, Any]], object]


def option(name: str, key: str, value: object) -> Change:
    return lambda model: layer(model, name)["config"].update({key: value})


def one_half_twice(model: dict[str, Any]) -> None:
    config = layer(model, "bidirectional")["config"]
    config["backward_layer"] = config["layer"]


ADVICE: tuple[tuple[Path, Change, str], ...] = (
    (
        STACK_KERAS,
        lambda model: model.update(class_name="Tagger"),
        f"class Tagger, which its own.*{WRAP}",
    ),
    (MASKED, option("dense", "dtype", "int8"), "build the model with that dtype and save it again"),
    (
        MASKED,
        option("dense", "news", 3),
        "is unknown; save without it, or supply the layer by another class name",
    ),
    (
        MASKED,
        option("dense", "units", -1),
        "save the model with such a value, or replace the layer by one of your",
    ),
    *(
        (
            MASKED,
            option("dense", "activation", name),
            f"k2t does not have {name} of Keras 3; apply it in a layer",
        )
        for name in (
            "celu glu hard_shrink hard_tanh soft_shrink sparse_plus sparse_sigmoid sparsemax "
            "squareplus tanh_shrink"
        ).split()
    ),
    (
        STACK_H5,
        option("input_layer", "ragged", True),
        "ragged=True is not supported; build the model on a dense Input with mask_zero",
    ),
    (
        STACK_H5,
        option("input_layer", "sparse", True),
        "sparse=True is not supported; build the model on a dense Input, give it the",
    ),
    (STACK_H5, one_half_twice, "give backward_layer the other go_backwards"),
)


@pytest.mark.parametrize(("source", "change", "match"), ADVICE)
def test_what_keras_could_save_otherwise_is_refused_with_advice(
    source: Path, change: Change, match: str, tmp_path: Path
) -> None:
    wrong = changed_config(source, tmp_path / f"wrong{source.suffix}", change)
    with pytest.raises((UnsupportedOptionError, UnsupportedLayerError), match=match):
        keras2torch_birnn.convert(wrong)


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (
            "keras-2.2.4/average.h5",
            "OUT --plugin examples/plugins/attention_weighted_average.py of k2t's source",
        ),
        ("keras-2.2.4/contrib_viterbi.h5", "layer of keras-contrib 2.0: k2t convert"),
        ("tf.keras-2.15.0/addons_tags.h5", "tensorflow-addons 0.11 to 0.23: k2t convert /"),
        (
            "self-attention-0.51/self_attention_additive.h5",
            "OUT --plugin examples/plugins/keras_self_attention.py of k2t's source",
        ),
    ],
)
def test_a_class_whose_plugin_ships_is_named_with_the_command_that_uses_it(
    file: str, match: str, tmp_path: Path
) -> None:
    done = k2t("convert", FIXTURES / "plugins" / file, tmp_path / "out.pt")
    assert done.code == 4
    assert match in done.err
