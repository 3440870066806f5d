"""Models that are cut: parts of real models, and what is refused.

Any graph of any generation, cut at any layer: ``parity/test_cut_graphs.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cut_fixtures import (
    CUTS,
    ROWS,
    cut_of,
    functional,
    layer,
    parsed,
    recorded,
    unpacked,
)
from plugin_files import unregister_all
from specs import FIXTURES, describe
from tensorflow_fixtures import ENTRIES, files, unpack
from tensorflow_fixtures import recorded as recorded_calls

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UnsupportedLayerError,
    UsageError,
)
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.config.cut import take_part
from keras2torch_birnn.reference import compute
from keras2torch_birnn.spec import Cut, ModelSpec

ATOL, RTOL = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def no_plugins() -> None:
    """Forget plugins of other tests: advice depends on them."""
    unregister_all()


def assert_computes(spec: ModelSpec, inputs: Any, wanted: Any) -> None:
    """The reference and torch compute what Keras did."""
    exact = compute(spec, inputs).outputs
    with torch.no_grad():
        got = [y.numpy() for y in flat(build(spec)(*map(torch.from_numpy, inputs)))]
    assert len(exact) == len(got) == len(wanted)
    for ours, reference, theirs in zip(got, exact, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=ATOL, rtol=RTOL)
        np.testing.assert_allclose(reference, theirs, atol=ATOL, rtol=RTOL)


# ---- parts of real models -----------------------------------------------------------------------


@pytest.mark.every(4)
@pytest.mark.parametrize(("file", "number"), CUTS)
def test_a_part_computes_what_keras_computes(file: str, number: int, tmp_path: Path) -> None:
    model, config = unpacked(file, tmp_path)
    cut = cut_of(file, number)
    spec = read_model(model, config=config, cut=cut)
    assert_computes(spec, *recorded(file))
    assert spec.cut == cut
    places = {one.place for one in spec.root.walk()}
    assert places.isdisjoint(ROWS[file]["dropped"])


@pytest.mark.parametrize(("file", "option"), [("classify", "--from"), ("captcha", "--to")])
def test_a_refusal_names_the_option_and_the_page(file: str, option: str) -> None:
    words = rf"(vectorize|ctc_loss): .* {option} .*\(docs/cutting\.md\)$"
    with pytest.raises(UnsupportedLayerError, match=words):
        read_model(FIXTURES / "cut" / "keras-3.15.1" / f"{file}.keras")


@pytest.mark.parametrize("file", files("cut"))
def test_a_saved_model_with_text_in_front_is_cut(file: str, tmp_path: Path) -> None:
    found = unpack(file, tmp_path)
    with pytest.raises(UnsupportedLayerError, match="turns text into ids"):
        read_model(found.model)
    spec = read_model(found.model, cut=Cut((cut_at_of(file),)))
    case = recorded_calls(file)
    for inputs, wanted in zip(case.inputs, case.outputs, strict=True):
        assert_computes(spec, inputs, wanted)


def cut_at_of(file: str) -> str:
    return str(ENTRIES[file]["from_layer"])


def test_a_note_says_what_enters_at_a_cut() -> None:
    spec = read_model(FIXTURES / "cut" / "keras-3.15.1" / "classify.keras", cut=Cut(("embed",)))
    assert "cut: the input embed_input (any, 7) int64 is what vectorize gives" in spec.notes[-1]


# ---- names --------------------------------------------------------------------------------------


def input_layer(name: str, *shape: int | None, dtype: str = "float32") -> dict[str, Any]:
    return layer("InputLayer", name, batch_input_shape=[None, *shape], dtype=dtype)


def dense(name: str, *calls: list[str], units: int = 5) -> dict[str, Any]:
    return layer("Dense", name, calls, units=units)


def embedding(name: str, *calls: list[str], mask: bool = False) -> dict[str, Any]:
    return layer("Embedding", name, calls, input_dim=17, output_dim=5, mask_zero=mask)


def lstm(name: str, *calls: list[str], **options: Any) -> dict[str, Any]:
    return layer("LSTM", name, calls, units=5, **options)


def inside(name: str, *calls: list[str]) -> dict[str, Any]:
    """A model in the model."""
    model = functional(
        ["in"], ["last"], input_layer("in", 5), dense("first", ["in"]), dense("last", ["first"])
    )
    model["config"]["name"] = name
    return {**model, "name": name, "inbound_nodes": [[[r, 0, 0, {}] for r in c] for c in calls]}


def linked(*layers: dict[str, Any], name: str = "model") -> dict[str, Any]:
    """A functional model of layers each of which reads the one before."""
    names = [one["config"]["name"] for one in layers]
    calls = [[], *([[[before, 0, 0, {}]]] for before in names[:-1])]
    entries = [{**one, "inbound_nodes": call} for one, call in zip(layers, calls, strict=True)]
    return functional(names[:1], names[-1:], *entries, name=name)


def from_text(end: str, name: str = "model", **options: Any) -> dict[str, Any]:
    text = input_layer("line", 1, dtype="string")
    return linked(text, layer("TextVectorization", "ids", **options), embedding(end), name=name)


def two_models() -> dict[str, Any]:
    """A model in a model, a layer that is called on what it gave itself, and a wrapper."""
    return functional(
        ["x"],
        ["end"],
        input_layer("x", 5),
        inside("one", ["x"]),
        dense("twice", ["one"], ["twice"]),
        layer("Reshape", "steps", [["twice#1"]], target_shape=[1, 5]),
        layer(
            "TimeDistributed",
            "each",
            [["steps"]],
            layer={"class_name": "Dense", "config": {"name": "inner", "units": 3}},
        ),
        dense("end", ["each"]),
        dense("unused"),
    )


def chain() -> dict[str, Any]:
    return functional(
        ["x", "y"],
        ["joined", "beside"],
        input_layer("x", 5),
        input_layer("y", 5),
        dense("a", ["x"]),
        dense("b", ["a"]),
        dense("beside", ["y"]),
        layer("Add", "joined", [["b", "beside"]]),
    )


WRONG: dict[str, tuple[Callable[[], dict[str, Any]], Cut, str]] = {
    "unknown": (
        two_models,
        Cut(("stesp",)),
        r"--from stesp: no layer of the model is called so; did you mean steps\?",
    ),
    "nothing like it": (
        chain,
        Cut((), ("zzz",)),
        r"--to zzz: no layer of the model is called so; its layers are: a, b, beside, joined",
    ),
    "in a model": (
        two_models,
        Cut(("first",)),
        r"--from first: is inside the Functional one, which cannot be cut; name one itself",
    ),
    "a path in a model": (two_models, Cut((), ("one/first",)), r"--to one/first: is inside the"),
    "an input": (chain, Cut(("x",)), r"--from x: is an input, not a layer that computes"),
    "an input at the end": (chain, Cut((), ("x",)), r"--to x: is an input.*nothing ends there"),
    "in a wrapper": (
        two_models,
        Cut(("inner",)),
        r"--from inner: is inside the TimeDistributed each, which cannot be cut; name each itself",
    ),
    "named twice": (chain, Cut(("a", "a")), r"--from a: is named twice"),
    "never called": (two_models, Cut(("unused",)), r"unused: the model never calls this layer"),
    "called on itself": (
        two_models,
        Cut(("twice",)),
        r"twice is called 2 times, also on what it gave itself",
    ),
    "called twice at the end": (
        two_models,
        Cut((), ("twice",)),
        r"--to twice: is called 2 times; name a layer that is called once",
    ),
    "the wrong way round": (
        chain,
        Cut(("b",), ("a",)),
        r"the output of a is before --from; name the outputs of the part with --to",
    ),
    "beside each other": (
        chain,
        Cut(("b",), ("beside",)),
        r"--from b: nothing of it reaches the layer of --to",
    ),
    "one behind the other": (
        chain,
        Cut(("a", "b")),
        r"--from a: nothing of it reaches the model's output",
    ),
    "an output before the cut": (
        lambda: functional(
            ["x"], ["a", "b"], input_layer("x", 5), dense("a", ["x"]), dense("b", ["a"])
        ),
        Cut(("b",)),
        r"the output of a is before --from; name the outputs of the part with --to",
    ),
    "a mask": (
        lambda: linked(
            input_layer("x", 7, dtype="int32"), embedding("embed", mask=True), lstm("read")
        ),
        Cut(("read",)),
        r"a mask of embed reaches read, and the part from there on has no input for it; "
        r"let the part start with --from embed",
    ),
    "a mask that meets another": (
        lambda: functional(
            ["x", "y"],
            ["read"],
            input_layer("x", 7, dtype="int32"),
            input_layer("y", 7, dtype="int32"),
            embedding("embed", ["x"], mask=True),
            embedding("other", ["y"], mask=True),
            layer("Dense", "wide", [["embed"]], units=5),
            layer("Add", "sum", [["other", "wide"]]),
            lstm("read", ["sum"]),
        ),
        Cut(("wide",)),
        r"a mask of embed reaches read",
    ),
    "ragged ids": (
        lambda: from_text("embed", ragged=True),
        Cut(("embed",)),
        r"ids gives ragged ids, rows without padding",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_bounds_no_part_is_refused(name: str) -> None:
    model, cut, text = WRONG[name]
    root, parsing = parsed(model())
    with pytest.raises(UsageError, match=text):
        take_part(root, parsing, cut)


def test_all_outputs_of_the_last_layer_are_those_of_the_part() -> None:
    model = linked(input_layer("x", 7, 5), layer("Mine", "own"), lstm("read", return_state=True))
    root, parsing = parsed(model)
    part, _, _ = take_part(root, parsing, Cut(("read",), ("read",)))
    assert part.graph is not None
    assert [ref.output for ref in part.graph.outputs] == [0, 1, 2]


def test_a_model_that_is_called_with_too_few_tensors_is_refused() -> None:
    adder = functional(
        ["p", "q"],
        ["sum"],
        input_layer("p", 5),
        input_layer("q", 5),
        layer("Add", "sum", [["p", "q"]]),
        name="adder",
    )
    model = linked(input_layer("x", 5), adder)
    text = "adder: a model of 2 inputs that is called with 1 tensors"
    with pytest.raises(InvalidModelFileError, match=text):
        parsed(model)


def test_a_mask_that_nobody_uses_is_no_reason_to_refuse() -> None:
    model = linked(
        input_layer("x", 7, dtype="int32"),
        embedding("embed", mask=True),
        dense("wide"),
        layer("Flatten", "flat"),
    )
    root, parsing = parsed(model)
    part, _, _ = take_part(root, parsing, Cut(("wide",)))
    assert part.graph is not None
    assert part.graph.layer("wide_input").config["shape"] == (None, 7, 5)


def test_a_note_tells_of_a_mask_that_a_users_layer_may_hand_on() -> None:
    model = linked(input_layer("x", 7, 5), layer("Mine", "own"), lstm("read"))
    root, parsing = parsed(model)
    _, left, _ = take_part(root, parsing, Cut(("read",)))
    assert any("own is of a class that k2t does not know: a mask" in note for note in left.notes)
    assert left.problems == []


def test_inputs_keep_their_order_and_share_a_tensor() -> None:
    root, parsing = parsed(chain())
    part, _, _ = take_part(root, parsing, Cut(("b",)))
    assert part.graph is not None
    assert [ref.layer for ref in part.graph.inputs] == ["b_input", "y"]


def test_a_problem_in_the_part_stays() -> None:
    model = linked(
        input_layer("x", 7, 5),
        layer("Mine", "own"),
        dense("middle"),
        layer("Mine", "other"),
        dense("end"),
    )
    root, parsing = parsed(model)
    _, left, _ = take_part(root, parsing, Cut(("middle",)))
    assert [problem.place for problem in left.problems] == ["other"]


def test_a_cut_survives_in_out(tmp_path: Path) -> None:
    file = FIXTURES / "cut" / "keras-3.15.1" / "captcha.keras"
    k2t.save(k2t.convert(file, to_layer="dense2"), tmp_path / "out.pt")
    loaded = origin(k2t.load(tmp_path / "out.pt")).spec
    assert describe(loaded) == describe(read_model(file, cut=Cut((), ("dense2",))))
