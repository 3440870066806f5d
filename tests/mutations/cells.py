"""Mutations of cells and their stacks."""

from __future__ import annotations

from keras2torch_birnn.readers.config import generations
from mutations.patches import K2, Mutation, edit, put

MUTATIONS = {
    "states of a stack from the last cell on": Mutation(
        edit(
            "schema.custom_cells:states_of",
            "reversed(pairs) if last_first else pairs",
            "reversed(pairs)",
        ),
        (f"{K2}/stacked_states.h5",),
    ),
    "states of a stack of Keras 2.1 from the first cell on": Mutation(
        put(generations._OPTIONS["StackedRNNCells"]["states"], "keras2", "first cell first"),
        ("keras-2.1.6/stacked_bi_states.h5",),
        rereads=True,
    ),
    "masked steps of a stack of Keras 2.2.4 show its last state": Mutation(
        edit(
            "readers.config.cells:_first_state_rule",
            '"previous_state" if same',
            '"previous_state" if True',
        ),
        (f"{K2}/stacked_mask_last.h5",),
        rereads=True,
    ),
    "cells of a frozen half by position": Mutation(
        edit("readers.weights.paths:_group_by_half", "if once and", "if False and"),
        (f"{K2}/stacked_frozen.h5",),
        rereads=True,
    ),
    "cells of a stack by position": Mutation(
        edit("readers.weights.paths:_pair_by_number", "if not all(", "if True or not all("),
        (f"{K2}/stacked_frozen_cell.h5",),
        rereads=True,
    ),
}
