"""Mutations of models inside TimeDistributed."""

from __future__ import annotations

from mutations.patches import K2, K3, TF, Mutation, edit

MUTATIONS = {
    "no mask enters a model inside TimeDistributed": Mutation(
        edit("layers.recurrent:mask_enters", 'rule != "passes by" and', "False and"),
        (f"{TF}/td_model_words.h5", f"{K2}/td_model_words.h5", f"{K3}/td_model_words.h5"),
    ),
    "the mask inside TimeDistributed does not come out": Mutation(
        edit("layers.graph:_Emitter.steps", "return node, after", "return node, None"),
        (f"{TF}/td_model_words.h5", f"{K2}/td_model_words.h5"),
    ),
    "a mask enters TimeDistributed where the batch is fixed": Mutation(
        edit("layers.recurrent:_fixed", "isinstance(layer.input_shape[0], int)", "False"),
        ("keras-2.3.1/td_fixed_words.h5", "tf-2.0.4/td_fixed_inside.h5"),
    ),
    "steps of TimeDistributed unfold the other way round": Mutation(
        edit(
            "layers.recurrent:unfold_steps",
            "y.reshape(*like.shape[:2], *y.shape[1:])",
            "y.reshape(*like.shape[1::-1], *y.shape[1:]).transpose(0, 1)",
        ),
        (f"{TF}/td_model_inside.h5", f"{K3}/td_td_model.h5"),
    ),
}
