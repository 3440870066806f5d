"""Files that are no model, broken or hostile: exit code, one line with the reason, no output."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from commands import (
    STACK_H5,
    STACK_KERAS,
    WEIGHTS,
    assert_refused,
    changed_config,
    changed_h5,
    changed_text,
    contents,
    k2t,
    layer,
)
from hdf5_files import datasets
from specs import FIXTURES

from keras2torch_birnn import inspect
from keras2torch_birnn.errors import WeightMismatchError
from keras2torch_birnn.readers import read_model

Model = dict[str, Any]
BOTH = pytest.mark.parametrize("model", [STACK_H5, STACK_KERAS], ids=lambda p: p.suffix)


def refused(file: Path, code: int, words: str, lines: int = 1, **options: Path) -> None:
    """``convert`` and ``inspect`` refuse the file; the folder stays as it was."""
    more = [text for key, path in options.items() for text in (f"--{key}", path)]
    before = contents(file.parent)
    run = k2t("convert", file, file.parent / "out.pt", *more)
    assert_refused(run, code, file, lines=lines)
    assert re.search(words, run.err), run.err
    assert run.out == ""
    assert k2t("inspect", file, *more).code == code
    assert contents(file.parent) == before


# ---- not a whole model (what is none at all: test_containers.py) ---------------------------------


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
@BOTH
def test_a_truncated_file_is_refused(model: Path, part: float, tmp_path: Path) -> None:
    data = model.read_bytes()
    file = tmp_path / model.name
    file.write_bytes(data[: int(len(data) * part)])
    refused(file, 3, "truncated|damaged|incomplete|zip")


# ---- weights and architecture ------------------------------------------------------------------


def test_the_architecture_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.h5"
    file.write_bytes(WEIGHTS.read_bytes())
    with h5py.File(STACK_H5) as other:
        (tmp_path / "other.json").write_text(other.attrs["model_config"])
    run = k2t("convert", file, tmp_path / "out.pt", "--config", tmp_path / "other.json")
    assert (run.code, run.out) == (3, "")
    assert all(line.startswith(f"{file}: ") for line in run.lines("error"))
    assert sorted(contents(tmp_path)) == ["other.json", "weights.h5"]


def test_an_architecture_in_yaml_is_named_with_what_to_do(tmp_path: Path) -> None:
    """The file is what ``to_yaml()`` of Keras 2.2.4 wrote; docs/cli.md turns it into JSON."""
    written = FIXTURES / "yaml" / "arch_siamese.yaml"
    run = k2t("convert", WEIGHTS, tmp_path / "out.pt", "--config", written)
    assert run.code == 3
    assert f"{written}: YAML, which k2t does not read; write it as JSON, as docs/cli.md" in run.err
    run = k2t("convert", written, tmp_path / "out.pt")
    assert run.code == 3
    assert "YAML text without weights; an architecture goes with --config, next to" in run.err
    yaml = pytest.importorskip("yaml")
    tag, loader = "tag:yaml.org,2002:python/tuple", yaml.SafeLoader
    loader.add_constructor(tag, loader.construct_sequence)
    found = json.loads(json.dumps(yaml.safe_load(written.read_text("utf-8"))))
    assert found == json.loads((FIXTURES / "keras-2.2.4" / "arch_siamese.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "a JSON list where an object"), ("{}", "without class_name")],
)
def test_a_broken_architecture_is_refused_by_its_own_name(
    text: str, words: str, tmp_path: Path
) -> None:
    config = tmp_path / "arch.json"
    config.write_text(text)
    run = k2t("convert", WEIGHTS, tmp_path / "out.pt", "--config", config)
    assert_refused(run, 3, config, words)
    assert list(contents(tmp_path)) == ["arch.json"]


def first(file: h5py.File, words: str) -> str:
    return next(name for name in datasets(file) if words in name)


def put(file: h5py.File, name: str, change: Callable[[Any], Any]) -> None:
    values = change(file[name][()])
    del file[name]
    file[name] = values


def kernel(change: Callable[[Any], Any]) -> Callable[[h5py.File], None]:
    return lambda file: put(file, first(file, "forward_lstm/lstm_cell/kernel"), change)


def without_recurrent(file: h5py.File) -> None:
    del file[first(file, "forward_lstm/lstm_cell/recurrent_kernel")]


def without_weights(file: h5py.File) -> None:
    del file["model_weights"]


def one_more(file: h5py.File) -> None:
    group = file["model_weights/dense"]
    group["surplus"] = np.zeros(3, "f4")
    names = [n.decode() if isinstance(n, bytes) else n for n in group.attrs["weight_names"]]
    group.attrs["weight_names"] = [*names, "surplus"]


WEIGHT_CHANGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "narrow": (
        kernel(lambda w: w[:, :-1]),
        r"kernel \(3, 19\), the configuration implies \(.*20\)",
    ),
    "one missing": (without_recurrent, "recurrent_kernel"),
    "none at all": (without_weights, "no weights in the file"),
    "one too many": (one_more, "dense"),
}


@pytest.mark.parametrize("name", WEIGHT_CHANGES)
def test_weights_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    change, words = WEIGHT_CHANGES[name]
    refused(changed_h5(STACK_H5, tmp_path / "model.h5", change), 3, words)


def test_weights_that_are_not_finite_convert_with_a_note(tmp_path: Path) -> None:
    def poisoned(values: Any) -> Any:
        values[0, 0] = np.nan
        return values

    file, out = tmp_path / "model.h5", tmp_path / "out.pt"
    run = k2t("convert", changed_h5(STACK_H5, file, kernel(poisoned)), out)
    assert run.code == 0
    assert any("kernel holds values that are not finite" in note for note in run.lines("note"))
    assert k2t("verify", out).code == 0
    assert k2t("verify", file, out, "--against", "reference").code == 0


# ---- graphs ------------------------------------------------------------------------------------


def functional(nodes: dict[str, list[Any]]) -> Callable[[Model], None]:
    """Make the Sequential STACK_H5 a Functional model of Keras 2's form with these calls."""

    def change(parsed: Model) -> None:
        entries = parsed["config"]["layers"]
        names = [entry["config"]["name"] for entry in entries]
        row = {name: [[[before, 0, 0, {}]]] for before, name in itertools.pairwise(names)} | nodes
        for entry, name in zip(entries, names, strict=True):
            entry["name"], entry["inbound_nodes"] = name, row.get(name, [])
        parsed["class_name"] = "Functional"
        parsed["config"] = {
            "name": "model",
            "layers": entries,
            "input_layers": [[names[0], 0, 0]],
            "output_layers": [[names[-1], 0, 0]],
        }

    return change


def test_the_functional_form_of_the_stack_converts(tmp_path: Path) -> None:
    file = changed_config(STACK_H5, tmp_path / "model.h5", functional({}))
    assert k2t("convert", file, tmp_path / "out.pt").code == 0


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ({"dense": [[["dense", 0, 0, {}]]]}, "layers .*dense.* form a cycle"),
        ({"bidirectional": [[["dense", 0, 0, {}]]]}, "layers .*bidirectional, .* form a cycle"),
        ({"dense": [[["nowhere", 0, 0, {}]]]}, r"nowhere.*which is no layer of the model"),
        ({"dense": [[["bidirectional_1", 7, 0, {}]]]}, "call 7 of layer bidirectional_1 is used"),
        ({"dense": [[["bidirectional_1", -1, 0, {}]]]}, "call -1 of layer bidirectional_1 is used"),
        ({"dense": [[["bidirectional_1", 0, 9, {}]]]}, "output 9 of layer bidirectional_1 is used"),
        ({"dense": [[["bidirectional_1", 0, -1, {}]]]}, "output -1 of layer bidirectional_1 is"),
        ({"dense": []}, "call 0 of layer dense is used but not there"),
        ({"dense": "yes"}, "a call of unknown form"),
        ({"dense": [[[["deep"]]]]}, "which is no layer of the model"),
    ],
)
def test_a_broken_graph_is_refused(nodes: dict[str, Any], words: str, tmp_path: Path) -> None:
    file = changed_config(STACK_H5, tmp_path / "model.h5", functional(nodes))
    refused(file, 3, words)


# ---- hostile numbers and names -----------------------------------------------------------------

UNITS = '"units": 5,'


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        ("-4", 4, "option units=-4 is not supported: a whole number from 1"),
        ("0", 4, "option units=0 is not supported"),
        ("1000000000000", 4, "option units=1000000000000 is not supported"),
        ("2.5", 4, "option units=2.5 is not supported"),
        ("true", 4, "option units=True is not supported"),
        ('"5"', 4, "option units='5' is not supported"),
        ("null", 4, "option units=None is not supported"),
        ("[5]", 4, "option units=[5] is not supported"),
        ("NaN", 4, "option units=nan is not supported"),
        ("-Infinity", 4, "option units=-inf is not supported"),
        ("1e400", 3, "the number 1e400 is too large"),
        ("2147483647", 3, "an output of 30064771058 numbers, more than 536870912"),
        ("1000003", 3, "the configuration implies"),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("container", ["h5", "keras"])
def test_a_hostile_number_is_refused(
    container: str, number: str, code: int, words: str, tmp_path: Path
) -> None:
    def change(text: str) -> str:
        assert UNITS in text
        return text.replace(UNITS, f'"units": {number},')

    file = tmp_path / f"model.{container}"
    changed_text(STACK_H5 if container == "h5" else STACK_KERAS, file, change)
    run = k2t("convert", file, tmp_path / "out.pt")
    assert_refused(run, code, file, words, lines=len(run.lines("error")))
    assert list(contents(tmp_path)) == [file.name]
    assert max(map(len, run.err.splitlines())) < 700


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '{"class_name": "Sequential", "config": []}',
            "a model without layers",
        ),
        ('{"class_name": "Sequential", "config": {"layers": "dense"}}', "no layer's configuration"),
        ('{"class_name": "Sequential", "config": {"layers": [7]}}', "no layer's configuration"),
        ('{"class_name": "Sequential"}', "without config"),
    ],
)
@BOTH
def test_a_broken_architecture_is_refused(
    model: Path, text: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / f"model{model.suffix}"
    refused(changed_text(model, file, lambda _: text), 3, words)


@pytest.mark.parametrize("option", ["units", "activation", "recurrent_activation"])
def test_inspect_shows_no_engine_for_what_is_refused(option: str, tmp_path: Path) -> None:
    """The options of such a layer are not all there to choose by."""

    def spoil(model: dict[str, Any]) -> None:
        layer(model, "bidirectional")["config"]["layer"]["config"][option] = ["odd"]

    changed = changed_config(STACK_KERAS, tmp_path / "m.keras", spoil)
    found = inspect(changed)
    rows = {row.path: row for row in found.rows}
    assert {problem.place for problem in found.problems} >= {"bidirectional/forward_layer"}
    for place in ("bidirectional", "bidirectional/forward_layer", "bidirectional/backward_layer"):
        assert (rows[place].engine, rows[place].reason) == ("", "see below")
    assert rows["bidirectional_1"].engine
    assert k2t("inspect", changed).code == 4


@pytest.mark.parametrize(
    "file",
    [
        "keras-2.2.4/stacked_states.h5",
        "tf.keras-2.15.0/mask_stack_bi_dense.h5",
        "keras-3.15.1/stack_same_class.h5",
    ],
)
def test_a_weight_that_a_group_lists_twice_is_refused(file: str, tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        groups = [
            one for one in file["model_weights"].values() if len(one.attrs["weight_names"]) > 1
        ]
        names = list(groups[-1].attrs["weight_names"])
        groups[-1].attrs["weight_names"] = [names[-1], *names[1:]]

    path = changed_h5(FIXTURES / file, tmp_path / "m.h5", change)
    with pytest.raises(
        WeightMismatchError, match=r"the weight .+ is listed twice; the file is damaged"
    ):
        read_model(path)


def test_a_model_in_a_model_without_the_units_of_a_layer_is_inspected(tmp_path: Path) -> None:
    """The parameters of the inner model are unknown then."""

    def change(text: str) -> str:
        return re.sub(r'"units": \d+', '"units": null', text)

    source = FIXTURES / "keras-3.15.1" / "graph_nested_sequential_mask.keras"
    found = inspect(changed_text(source, tmp_path / "m.keras", change))
    assert any("units" in str(problem) for problem in found.problems)
    (inner,) = (row for row in found.rows if row.class_name == "Sequential")
    assert inner.parameters is None
