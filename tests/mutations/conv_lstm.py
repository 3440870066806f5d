"""Mutations of ConvLSTM1D, 2D and 3D."""

from __future__ import annotations

from keras2torch_birnn.readers.config import generations
from mutations.patches import K2, K3, TF, Mutation, edit, put

MUTATIONS = {
    "gates of a ConvLSTM in another order": Mutation(
        edit("layers.convolution:ConvLSTM._step", "i, f, g, o = ", "i, g, f, o = "),
        (f"{K2}/conv_lstm_2d.h5", f"{K3}/conv_lstm_2d_bi.h5"),
    ),
    "state of a ConvLSTM dilated like its input": Mutation(
        edit(
            "layers.convolution:ConvLSTM._step",
            '"dilation": ones',
            '"dilation": self.inner["dilation"]',
        ),
        (f"{K2}/conv_lstm_2d_windows.h5",),
    ),
    "ConvLSTM without its bias": Mutation(
        edit(
            "layers.convolution:ConvLSTM._input_product", "if self.bias is not None:", "if False:"
        ),
        (f"{TF}/conv_lstm_2d.h5",),
    ),
    "ConvLSTM that gives its cell's state": Mutation(
        edit("layers.convolution:ConvLSTM._step", "return gate(o) * act(c), c", "return c, c"),
        (f"{TF}/conv_lstm_2d_mask.h5",),
    ),
    "masked steps of a ConvLSTM of tf.keras give zeros": Mutation(
        put(generations._RULES["conv_lstm"], "tf.keras", "zeros"),
        (f"{TF}/conv_lstm_2d_mask_bi.h5",),
        rereads=True,
    ),
}
