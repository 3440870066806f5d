"""Masked steps: where they reach an output alone, and where a merge leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_specs import spec_of
from test_hidden_mistakes import compare_spec, port_of, told
from torch import Tensor, nn

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.report import PortReport

WORDS, OTHERS = (
    ("Embedding", {"input_dim": size, "output_dim": 5, "mask_zero": True}) for size in (13, 17)
)
SEQUENCE = {"units": 3, "return_sequences": True}
TAGS = {
    "inputs": [("x", "ids", (7,))],
    "steps": [
        ("e", WORDS, "x"),
        ("b", ("LSTM", SEQUENCE), "e"),
        ("y", ("Dense", {"units": 11, "activation": "softmax"}), "b"),
    ],
    "outputs": "y",
}
PAIR = [("x", "ids", (7,)), ("z", "ids", (7,))]


class _Padded(nn.Module):
    """A right port, with something done where the ids are 0."""

    def __init__(self, right: nn.Module, value: float) -> None:
        super().__init__()
        self.right, self.value = right, value

    def forward(self, ids: Tensor) -> Any:
        return self.right(ids).masked_fill((ids == 0)[..., None], self.value)


def _packed(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Give zeros behind each row, as pad_packed_sequence does."""
    y: Tensor = right(x, mask=mask)
    return y * mask[..., None]


def test_zeros_of_packed_rows_are_no_mistake_in_the_layers_behind_either() -> None:
    spec = spec_of(TAGS, "3.15.1")
    report = compare_spec(spec, port_of(spec, layer_1=_packed))
    assert report.ok, report.lines()
    assert [note.partition(",")[0] for note in report.notes] == ["at masked steps"]


@pytest.mark.parametrize(
    ("value", "kind"), [(0.0, "masked steps"), (7.0, "unexplained")], ids=["zeros", "sevens"]
)
def test_other_values_at_masked_steps_of_an_output_are_told(value: float, kind: str) -> None:
    spec = spec_of(TAGS, "3.15.1")
    report = compare_spec(spec, _Padded(build_model(spec), value))
    assert not report.ok
    assert told(report) == [("layer_2", kind)], report.lines()
    assert "(at masked steps of the outputs alone)" in report.findings[0].words
    assert report.findings[0].rows == "rows padded at the end"
    assert any("no mistake if nobody reads them" in note for note in report.notes)


def _without_query_mask(right: Any, tensors: Any, mask: Any = None) -> Any:
    return right(tensors, mask=[None, *mask[1:]])


@pytest.mark.parametrize(
    ("layer", "is_usual"),
    [
        (("AdditiveAttention", {}), False),
        (("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}), True),
    ],
    ids=["additive", "heads"],
)
def test_attention_of_a_masked_query_is_usual_in_torch_for_several_heads_alone(
    layer: Any, is_usual: bool
) -> None:
    heads = layer[0] == "MultiHeadAttention"
    given: Any = ("u", "v") if heads else ["u", "v"]
    steps = [("u", WORDS, "x"), ("v", OTHERS, "z"), ("y", layer, given)]
    spec = spec_of({"inputs": PAIR, "steps": steps, "outputs": "y"}, "3.15.1")
    assert compare_spec(spec, build_model(spec)).ok
    report = compare_spec(spec, port_of(spec, layer_2=_without_query_mask_of(heads)))
    assert report.ok is is_usual, report.lines()
    assert told(report) == ([] if is_usual else [("layer_2", "mask missing")])


def _without_query_mask_of(heads: bool) -> Callable[..., Any]:
    def run(right: Any, *tensors: Any, mask: Any = None, **given: Any) -> Any:
        return right(*tensors, mask=[None, *mask[1:]], **given)

    return run if heads else _without_query_mask


@pytest.mark.parametrize(
    ("name", "merge"),
    [("Multiply", torch.mul), ("Maximum", torch.maximum), ("Minimum", torch.minimum)],
)
def test_masked_steps_that_are_merged_as_they_are_are_named(
    name: str, merge: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Keras 3 takes the other input there."""

    def plainly(right: Any, tensors: Any, mask: Any = None) -> Tensor:
        return merge(*tensors)

    steps = [
        ("u", WORDS, "x"),
        ("v", WORDS, "z"),
        ("m", (name, {}), ["u", "v"]),
        ("y", ("GRU", {"units": 3}), "m"),
    ]
    spec = spec_of({"inputs": PAIR, "steps": steps, "outputs": "y"}, "3.15.1")
    assert told(_compared(spec, {})) == []
    found = _compared(spec, {"layer_2": plainly})
    assert told(found) == [("layer_2", "mask missing")], found.lines()


def _compared(spec: Any, wrong: dict[str, Callable[..., Any]]) -> PortReport:
    return compare_spec(spec, port_of(spec, **wrong))


def test_the_mask_of_the_other_input_is_named() -> None:
    """Where Keras joins no masks, both inputs have lengths of their own in one batch."""
    half = ("GRU", {"units": 3, "reset_after": True})
    steps = [
        ("u", WORDS, "x"),
        ("v", OTHERS, "z"),
        ("a", half, "u"),
        ("b", half, "v"),
        ("y", ("Concatenate", {}), ["a", "b"]),
    ]
    spec = spec_of({"inputs": PAIR, "steps": steps, "outputs": "y"}, "3.15.1")
    assert "inputs of other lengths" in [one.name for one in batches(spec, None)]
    port = port_of(spec)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.port: Any = port

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            first = self.port.layer_2(self.port.layer_0(x), mask=x != 0)
            return torch.cat([first, self.port.layer_3(self.port.layer_1(z), mask=x != 0)], -1)

    report = compare_spec(spec, Port())
    assert told(report) == [("layer_3", "other mask")], report.lines()
    assert report.findings[0].rows == "inputs of other lengths"


def test_inputs_whose_masks_are_joined_are_padded_alike() -> None:
    steps = [("u", WORDS, "x"), ("v", OTHERS, "z"), ("y", ("Add", {}), ["u", "v"])]
    spec = spec_of({"inputs": PAIR, "steps": steps, "outputs": "y"}, "3.15.1")
    assert "inputs of other lengths" not in [one.name for one in batches(spec, None)]


def test_masks_that_are_joined_by_another_rule_are_named() -> None:
    """Keras 3 reads a step where either of two texts has a word."""
    steps = [
        ("u", WORDS, "x"),
        ("v", WORDS, "z"),
        ("m", ("Add", {}), ["u", "v"]),
        ("y", ("GRU", {"units": 3}), "m"),
    ]
    spec = spec_of({"inputs": PAIR, "steps": steps, "outputs": "y"}, "3.15.1")

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.port: Any = build_model(spec)

        def forward(self, x: Tensor, z: Tensor) -> Any:
            read = self.port.layer_0(x) + self.port.layer_1(z)
            return self.port.layer_3(read, mask=(x != 0) & (z != 0))

    (finding,) = compare_spec(spec, Port()).findings
    assert (finding.layer, finding.kind) == ("layer_2", "mask rule")
    assert finding.words.startswith("a step counts where all of its inputs count")
