"""Mutations of convolutions."""

from __future__ import annotations

from mutations.patches import K2, K3, TF, Mutation, edit

MUTATIONS = {
    "Conv1D channels exchanged": Mutation(
        edit("layers.convolution:channels_ahead", "(-1, -2,", "(-2, -1,"), ("square Conv1D",)
    ),
    "Conv1D kernel turned round in time": Mutation(
        edit("layers.convolution:channels_ahead", "kernel.transpose", "kernel[::-1].transpose"),
        (f"{TF}/conv.keras", "square Conv1D"),
    ),
    "padding same with the odd zero in front": Mutation(
        edit(
            "layers.convolution:same_padding",
            "return total // 2, total - total // 2",
            "return total - total // 2, total // 2",
        ),
        (f"{K2}/conv_same.h5", f"{K3}/pool.keras"),
    ),
    "padding causal behind": Mutation(
        edit("layers.convolution:convolve", "(extent - 1, 0)", "(0, extent - 1)"),
        (f"{K2}/conv_causal_dilated.h5", f"{TF}/conv.keras"),
    ),
    "padding causal dropped": Mutation(
        edit("layers.convolution:convolve", '== "causal"', '== "never"'),
        (f"{K2}/conv_causal_dilated.h5", f"{TF}/conv.keras"),
    ),
    "padding causal without dilation": Mutation(
        edit("layers.convolution:extents", "(size - 1) * d + 1", "size"),
        (f"{K2}/conv_causal_dilated.h5",),
    ),
    "depthwise kernels by multiplier, then channel": Mutation(
        edit("layers.convolution:_depthwise", "(-2, -1,", "(-1, -2,"),
        (f"{TF}/around_depthwise1.h5", f"{K2}/around_separable2.h5"),
    ),
    "transposed convolution cut in front as much as behind": Mutation(
        edit(
            "layers.convolution:TransposedConvolution.convolve",
            "same_padding(length, extent, stride)[0]",
            "same_padding(length, extent, stride)[1]",
        ),
        (f"{TF}/around_transposed1.keras", f"{K2}/around_transposed2.h5"),
    ),
}
