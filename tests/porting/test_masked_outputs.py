"""Masked steps: where they reach an output alone, and where a merge leaves them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from wrong_ports import IDS, chain_of, compare_spec, compare_with, model_of, only_finding, told

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches

WORDS, OTHERS = (
    ("Embedding", {"input_dim": size, "output_dim": 5, "mask_zero": True}) for size in (13, 17)
)
TAGS = (
    WORDS,
    ("LSTM", {"units": 3, "return_sequences": True}),
    ("Dense", {"units": 11, "activation": "softmax"}),
)
PAIR = [*IDS, ("z", "ids", (7,))]
FIRST = ("u", WORDS, "x")


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
    report = compare_with(chain_of(*TAGS, inputs=IDS), layer_1=_packed)
    assert report.ok, report.lines()
    assert [note.partition(",")[0] for note in report.notes] == ["at masked steps"]


@pytest.mark.parametrize(
    ("value", "kind"), [(0.0, "masked steps"), (7.0, "unexplained")], ids=["zeros", "sevens"]
)
def test_other_values_at_masked_steps_of_an_output_are_told(value: float, kind: str) -> None:
    spec = chain_of(*TAGS, inputs=IDS)
    report = compare_spec(spec, _Padded(build_model(spec), value))
    assert not report.ok
    finding = only_finding(report, "layer_2", kind)
    assert "(at masked steps of the outputs alone)" in finding.words
    assert finding.rows == "rows padded at the end"
    assert any("no mistake if nobody reads them" in note for note in report.notes)


def _without_query_mask(right: Any, *tensors: Any, mask: Any = None, **given: Any) -> Any:
    return right(*tensors, mask=[None, *mask[1:]], **given)


@pytest.mark.parametrize(
    ("layer", "given", "found"),
    [
        (("AdditiveAttention", {}), ["u", "v"], [("layer_2", "mask missing")]),
        (("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}), ("u", "v"), []),
    ],
    ids=["additive", "heads"],
)
def test_attention_of_a_masked_query_is_usual_in_torch_for_several_heads_alone(
    layer: Any, given: Any, found: list[tuple[str, str]]
) -> None:
    spec = model_of(FIRST, ("v", OTHERS, "z"), ("y", layer, given), inputs=PAIR)
    assert compare_with(spec).ok
    report = compare_with(spec, layer_2=_without_query_mask)
    assert told(report) == found, report.lines()
    assert report.ok is (not found)


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

    merged = ("m", (name, {}), ["u", "v"]), ("y", ("GRU", {"units": 3}), "m")
    spec = model_of(FIRST, ("v", WORDS, "z"), *merged, inputs=PAIR)
    assert told(compare_with(spec)) == []
    only_finding(compare_with(spec, layer_2=plainly), "layer_2", "mask missing")


def test_the_mask_of_the_other_input_is_named() -> None:
    """Where Keras joins no masks, both inputs have lengths of their own in one batch."""
    half = ("GRU", {"units": 3, "reset_after": True})
    spec = model_of(
        FIRST,
        ("v", OTHERS, "z"),
        ("a", half, "u"),
        ("b", half, "v"),
        ("y", ("Concatenate", {}), ["a", "b"]),
        inputs=PAIR,
    )
    assert "inputs of other lengths" in [one.name for one in batches(spec, None)]

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.port: Any = build_model(spec)

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            first = self.port.layer_2(self.port.layer_0(x), mask=x != 0)
            return torch.cat([first, self.port.layer_3(self.port.layer_1(z), mask=x != 0)], -1)

    finding = only_finding(compare_spec(spec, Port()), "layer_3", "other mask")
    assert finding.rows == "inputs of other lengths"


def test_inputs_whose_masks_are_joined_are_padded_alike() -> None:
    spec = model_of(FIRST, ("v", OTHERS, "z"), ("y", ("Add", {}), ["u", "v"]), inputs=PAIR)
    assert "inputs of other lengths" not in [one.name for one in batches(spec, None)]


def test_masks_that_are_joined_by_another_rule_are_named() -> None:
    """Keras 3 reads a step where either of two texts has a word."""
    merged = ("m", ("Add", {}), ["u", "v"]), ("y", ("GRU", {"units": 3}), "m")
    spec = model_of(FIRST, ("v", WORDS, "z"), *merged, inputs=PAIR)

    class Port(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.port: Any = build_model(spec)

        def forward(self, x: Tensor, z: Tensor) -> Any:
            read = self.port.layer_0(x) + self.port.layer_1(z)
            return self.port.layer_3(read, mask=(x != 0) & (z != 0))

    finding = only_finding(compare_spec(spec, Port()), "layer_2", "mask rule")
    assert finding.words.startswith("a step counts where all of its inputs count")
