"""The tables of masks that decide at a cut agree with what the converters do with masks."""

from __future__ import annotations

import pytest
from specs import layer, variants

from keras2torch_birnn.layers.registry import mask_flow
from keras2torch_birnn.readers.config.cut import PASSES, STOPS, may_use
from keras2torch_birnn.schema import LAYERS, RECURRENT, SCHEMA, WITH_GRAPH


def test_a_layer_of_the_tables_reads_and_makes_no_mask_and_one_of_the_first_ends_it() -> None:
    for name in STOPS | PASSES - {"InputLayer"}:
        for flow in map(mask_flow, variants(name)):
            assert (flow.takes, flow.makes, flow.refused) == (False, False, None), name
            assert flow.after == "none" or name not in STOPS, name


def test_the_tables_lack_no_layer_that_reads_and_makes_no_mask() -> None:
    """Wrappers, loops and models have the mask flow of what is inside them."""
    around = {*RECURRENT, *WITH_GRAPH, "Bidirectional", "TimeDistributed"}
    others = LAYERS.keys() - STOPS - PASSES - around - {"Embedding"}
    lacking = [
        name
        for name in sorted(others)
        if not any(
            flow.takes or flow.makes or flow.refused for flow in map(mask_flow, variants(name))
        )
    ]
    assert lacking == []


def test_the_tables_hold_classes_that_can_be_converted() -> None:
    assert STOPS | PASSES <= SCHEMA.keys()
    assert not STOPS & PASSES


@pytest.mark.parametrize("class_name", ["LSTM", "Softmax", "Attention", "GlobalAveragePooling1D"])
def test_a_layer_that_reads_masks_is_in_no_table(class_name: str) -> None:
    assert may_use(layer(class_name))
