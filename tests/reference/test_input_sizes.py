"""Sizes of inputs that a file leaves open, in models that do not take every size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from specs import ENTRIES, FIXTURES, fixture

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import InvalidModelFileError
from keras2torch_birnn.exporting.onnx_file import Onnx
from keras2torch_birnn.exporting.torch_program import draw_example, settle_sizes
from keras2torch_birnn.golden import origin
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.reference import compute, input_sizes
from keras2torch_birnn.reference.input_sizes import declare_shapes, fill_shapes
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.spec import ModelSpec, Shape

K3 = "keras-3.15.1/divisible_"
FILES = [file for file, entry in ENTRIES.items() if "divisible" in entry["tags"]]


def shapes_of(spec: ModelSpec) -> list[Shape]:
    return [layer.config["shape"] for layer in spec.input_layers()]


@pytest.mark.parametrize(
    ("case", "asked", "sizes"),
    [
        ("by_2", 7, [(8,)]),
        ("by_2", 8, [(8,)]),
        ("by_8", 1, [(8,)]),
        ("by_8", 2, [(16,)]),
        ("by_8", 7, [(24,)]),  # three steps at the bottom
        ("by_64", 7, [(192,)]),
        ("by_3_strided", 7, [(9,)]),
        ("by_4_and_2", 11, [(14,)]),
        ("image", 7, [(12, 12)]),
        ("two", 7, [(12,), (27,)]),
        ("half", 11, [(12,), (6,)]),
    ],
)
def test_an_input_is_as_long_as_asked_or_as_the_next_length_that_fits(
    case: str, asked: int, sizes: list[tuple[int, ...]]
) -> None:
    drawn = draw_inputs(fixture(f"{K3}{case}.keras").spec, steps=asked, seed=0)
    assert [x.shape[1:-1] for x in drawn] == sizes


@pytest.mark.parametrize("file", FILES)
def test_the_reference_and_the_model_agree_on_such_inputs(file: str) -> None:
    spec = fixture(file).spec
    drawn = draw_inputs(spec, steps=7, seed=0)
    (wanted,) = compute(spec, drawn).outputs
    with torch.no_grad():
        found = k2t.convert(FIXTURES / file)(*map(torch.from_numpy, drawn))
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), atol=1e-5, rtol=1e-4)


def test_such_a_model_is_converted_verified_and_compared(tmp_path: Path) -> None:
    """Conversion said that it cannot be computed on inputs of its own shapes."""
    source, out = FIXTURES / f"{K3}by_8.keras", tmp_path / "out.pt"
    model = k2t.convert(source)
    assert [x.shape for x in origin(model).golden.inputs] == [(3, 24, 3)]
    k2t.save(model, out)
    assert k2t.verify(source, out).ok
    assert k2t.verify(out).ok
    tried = batches(fixture(f"{K3}by_8.keras").spec, None)
    assert {x.shape for batch in tried for x in batch.arrays} == {(3, 24, 3)}


@pytest.mark.parametrize("case", ["by_8", "by_4_and_2", "two"])
def test_an_export_leaves_the_sizes_open(case: str) -> None:
    model, spec = k2t.convert(FIXTURES / f"{K3}{case}.keras"), fixture(f"{K3}{case}.keras").spec
    settled, notes = settle_sizes(model, spec, draw_example(model, spec, 7, 0))
    assert shapes_of(settled) == shapes_of(spec)
    assert not notes


@pytest.mark.thorough
def test_an_exported_model_is_verified_at_several_lengths(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    if reason := Onnx().why_cannot_write():
        pytest.skip(reason)
    source, target = FIXTURES / f"{K3}by_2.keras", tmp_path / "model.onnx"
    assert not k2t.export(k2t.convert(source), target).notes
    report = k2t.verify(source, target)
    assert report.ok
    assert len(report.comparisons) > 2


def test_where_no_size_fits_the_error_of_the_run_tells_it() -> None:
    """One input is half as long as the other: no fixed ten of the one fit seven of the other."""
    spec = fixture(f"{K3}half.keras").spec
    wrong = declare_shapes(spec, [(None, 11, 3), (None, None, 2)])
    assert fill_shapes(wrong, shapes_of(wrong), 7) == [(None, 11, 3), (None, 7, 2)]
    with pytest.raises(ValueError, match=r"shape|dimension"):
        compute(wrong, draw_inputs(wrong, steps=7, seed=0))


def test_the_search_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_sizes, "MAX_TRIED_SHAPES", 3)
    spec = fixture(f"{K3}by_64.keras").spec
    search = replace(input_sizes._Search(spec, 7), left=3)
    assert not list(search.sizes(shapes_of(spec), (0, 1), range(7, 99)))
    assert search.left < 0


def test_lengths_far_apart_are_found() -> None:
    """Twelve poolings in a row take 4096 steps; they are no more than a few tries away."""
    assert [n for n in input_sizes._rising(11) if n > 75][:4] == [80, 81, 90, 96]
    assert 4096 in set(input_sizes._rising(11))


def test_a_model_whose_shapes_contradict_each_other_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message of a model that cannot be computed at any size stays."""
    monkeypatch.setattr(
        "keras2torch_birnn.reference.sample_inputs.fill_shapes",
        lambda _model, shapes, size: [input_sizes.fill_shape(one, size) for one in shapes],
    )
    with pytest.raises(InvalidModelFileError, match="cannot be computed on inputs of its own"):
        k2t.convert(FIXTURES / f"{K3}by_8.keras")
