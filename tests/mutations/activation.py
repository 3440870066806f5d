"""Mutations of activations."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from keras2torch_birnn.layers import registry
from keras2torch_birnn.rnn import activations
from mutations.patches import K2, K3, TF, Mutation, edit, put, wrap

MUTATIONS = {
    "hard_sigmoid 0.2 becomes 1/6": Mutation(
        put(activations.FUNCTIONS, "hard_sigmoid_0.2", activations.hard_sigmoid_1_6),
        (
            f"{K2}/hard_sigmoid_stack.h5",
            f"{TF}/hard_sigmoid_bi_lstm.h5",
            f"{TF}/hard_sigmoid_bi_gru_after.h5",
        ),
    ),
    "hard_sigmoid 1/6 becomes 0.2": Mutation(
        put(activations.FUNCTIONS, "hard_sigmoid_1/6", activations.hard_sigmoid_0_2),
        (f"{K3}/hard_sigmoid_bi_lstm.h5", f"{K3}/hard_sigmoid_bi_gru_before.h5"),
    ),
    "Softmax over the last axis whatever the axis": Mutation(
        edit("layers.core:softmax", 'layer.config["axis"]', "(-1,)"),
        (f"{K3}/softmax_axis1.keras",),
    ),
    "softmax activation over the last axis whatever the axis": Mutation(
        edit("rnn.activations:softmax", "dim=axis", "dim=-1"), ("softmax over time",)
    ),
    "LeakyReLU with torch's slope": Mutation(
        wrap(
            registry.CONVERTERS,
            "LeakyReLU",
            lambda right: replace(right, build=lambda _: nn.LeakyReLU()),
        ),
        (f"{K2}/activation_layers.h5", f"{K3}/relu_layer_default.keras"),
    ),
    "PReLU with its sign turned": Mutation(
        edit("layers.core:PReLU.forward", "- self.weight", "+ self.weight"),
        (f"{K2}/activation_layers.h5",),
    ),
    "ReLU without its options": Mutation(
        edit(
            "layers.core:relu",
            'return Activation({"name": "relu", **options})',
            "return nn.ReLU()",
        ),
        (f"{K2}/relu_layer.h5",),
    ),
}
