"""Mutations of normalization."""

from __future__ import annotations

from mutations.patches import K2, K3, TF, Mutation, edit

MUTATIONS = {
    "BatchNormalization with torch's epsilon": Mutation(
        edit("layers.normalization:batch_normalization", 'config["epsilon"]', "1e-5"),
        (f"{K2}/batchnorm.h5", f"{K3}/batchnorm.keras"),
    ),
    "BatchNormalization with mean and variance exchanged": Mutation(
        edit(
            "layers.normalization:batch_normalization",
            'weights["moving_mean"]).data',
            'weights["moving_variance"]).data',
        ),
        (f"{TF}/batchnorm.keras",),
    ),
    "BatchNormalization normalises the batch": Mutation(
        edit(
            "layers.normalization:BatchNorm.forward",
            "self.training and not self.frozen",
            "True",
        ),
        (f"{K2}/batchnorm.h5",),
    ),
    "BatchNormalization on the last axis whatever the axis": Mutation(
        edit("layers.normalization:_channels", "return int(axes[0])", "return -1"),
        ("square BatchNormalization",),
    ),
    "LayerNormalization with torch's epsilon": Mutation(
        edit("layers.normalization:layer_normalization", 'eps=config["epsilon"]', "eps=1e-5"),
        (f"{TF}/layernorm.keras",),
    ),
    "LayerNormalization without both parameters with torch's epsilon": Mutation(
        edit(
            "layers.normalization:layer_normalization",
            'gamma, beta, config["epsilon"], centers',
            "gamma, beta, 1e-5, centers",
        ),
        (f"{TF}/layernorm.keras", f"{K3}/layernorm_axes.h5", f"{K3}/layernorm_rms.keras"),
    ),
    "rms_scaling takes the mean away": Mutation(
        edit("layers.normalization:layer_normalization", 'not config["rms_scaling"]', "True"),
        (f"{K3}/layernorm_rms.keras",),
    ),
}
