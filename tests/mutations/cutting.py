"""Mutations of the cut: the weights and masks of a part, the order of what enters and leaves."""

from __future__ import annotations

from dataclasses import dataclass

from keras2torch_birnn.spec import Cut
from mutations.patches import Patch, edit

CUTTING = "readers.config.cut:_Cutting"


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
        edit("readers.config.parts:_notes", "if found is not None", "if False"),
        (
            ("keras-2.2.4/mask_bi_lstm_seq.h5", Cut(("bidirectional_1",))),
            ("keras-3.15.1/mask_bi_gru_before_seq.h5", Cut(("bidirectional",))),
        ),
    ),
    CutMutation(
        "inputs in another order",
        edit(f"{CUTTING}._assemble", "item: item[:2]", "item: (-item[0], item[1])"),
        (
            ("cut/keras-3.15.1/two_inputs.keras", Cut(("embed",))),
            ("cut/tf.keras-2.15.0/two_texts.keras", Cut(("title_embed", "body_embed"))),
            ("keras-2.2.4/graph_inputs_outputs.h5", Cut((), ("dense_1",))),
        ),
    ),
    CutMutation(
        "inputs in the order of --from",
        edit(f"{CUTTING}._order_of", "self.order.get((ref.layer, ref.call), _NO_INPUT)", "0"),
        (("cut/tf.keras-2.15.0/two_texts.keras", Cut(("body_embed", "title_embed"))),),
    ),
    CutMutation(
        "outputs in another order",
        edit(f"{CUTTING}._outputs", "path[0] for path in last", "path[0] for path in last[::-1]"),
        (
            ("keras-2.2.4/graph_inputs_outputs.h5", Cut((), ("dense_2", "bidirectional_1"))),
            ("keras-3.15.1/graph_inputs_outputs.keras", Cut((), ("bidirectional", "dense"))),
        ),
    ),
    CutMutation(
        "the last layer gives its first output alone",
        edit(f"{CUTTING}._outputs", "range(count)", "range(1)"),
        (("keras-3.15.1/state_lstm_seq.h5", Cut((), ("lstm",))),),
    ),
    CutMutation(
        "a tensor that enters twice is the first one",
        edit(
            f"{CUTTING}._swap",
            "self.swaps.get(leaf, leaf)",
            "(next(iter(self.swaps.values())) if leaf in self.swaps else leaf)",
        ),
        (("cut/keras-3.15.1/twins.keras", Cut(("embed",))),),
    ),
)
