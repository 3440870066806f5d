"""Mutations of the cut: the weights and masks of a part, the order of what enters and leaves."""

from __future__ import annotations

from dataclasses import dataclass

from keras2torch_birnn.spec import Cut
from mutations.patches import Patch, edit


@dataclass(frozen=True)
class CutMutation:
    """A deliberate bug, and parts of models that must notice it, each of ``fixtures/``."""

    name: str
    patch: Patch
    parts: tuple[tuple[str, Cut], ...]


MUTATIONS = (
    CutMutation(
        "layers before the cut do not count where weights are numbered",
        edit("readers.weights.load_weights:_locate", "whole.model, gen", "root, gen"),
        (
            ("keras-3.0.5/stack_same_class.keras", Cut(("bidirectional_1",))),
            ("tf.keras-2.15.0/stack_same_class.keras", Cut(("dense",))),
        ),
    ),
    CutMutation(
        "a layer with numbered weights that is left out does not count",
        edit("readers.weights.v3:number_groups", "layer.name not in without", '"_" in layer.name'),
        (("keras-3.0.5/stack_same_class.keras", Cut(("bidirectional_1",))),),
    ),
    CutMutation(
        "a mask that crosses the cut is dropped",
        edit("readers.config.cut:_check_masks", "for source in sources if", "for source in () if"),
        (
            ("keras-2.2.4/mask_bi_lstm_seq.h5", Cut(("bidirectional_1",))),
            ("keras-3.15.1/mask_bi_gru_before_seq.h5", Cut(("bidirectional",))),
        ),
    ),
    CutMutation(
        "inputs in another order",
        edit("readers.config.cut:_in_order", "name: ranks[name]", "name: -ranks[name]"),
        (
            ("cut/keras-3.15.1/two_inputs.keras", Cut(("embed",))),
            ("cut/tf.keras-2.15.0/two_texts.keras", Cut(("title_embed", "body_embed"))),
            ("keras-2.2.4/graph_inputs_outputs.h5", Cut((), ("dense_1",))),
        ),
    ),
    CutMutation(
        "inputs in the order of --from",
        edit("readers.config.cut:_in_order", "first[ref.layer, ref.call] for name", "0 for name"),
        (("cut/tf.keras-2.15.0/two_texts.keras", Cut(("body_embed", "title_embed"))),),
    ),
    CutMutation(
        "outputs in another order",
        edit("readers.config.cut:_outputs_of", "for name in names", "for name in names[::-1]"),
        (
            ("keras-2.2.4/graph_inputs_outputs.h5", Cut((), ("dense_2", "bidirectional_1"))),
            ("keras-3.15.1/graph_inputs_outputs.keras", Cut((), ("bidirectional", "dense"))),
        ),
    ),
    CutMutation(
        "the last layer gives its first output alone",
        edit("readers.config.cut:_outputs_of", "range(count)", "range(1)"),
        (("keras-3.15.1/state_lstm_seq.h5", Cut((), ("lstm",))),),
    ),
    CutMutation(
        "a tensor that enters twice is the first one",
        edit(
            "readers.config.cut:_cut",
            "swaps.get(leaf, leaf)",
            "(next(iter(swaps.values())) if leaf in swaps else leaf)",
        ),
        (("cut/keras-3.15.1/twins.keras", Cut(("embed",))),),
    ),
)
