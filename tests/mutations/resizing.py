"""Mutations of cropping, padding, upsampling and resizing."""

from __future__ import annotations

import torch

from keras2torch_birnn.layers import interpolation
from mutations.patches import K2, K3, TF, Mutation, edit, put

MUTATIONS = {
    "the nearest step is the one at the corner": Mutation(
        edit("layers.interpolation:resize_to_nearest", "+ 0.5) * step", "+ 0.0) * step"),
        (f"{TF}/resizing_nearest.keras", f"{K3}/resizing_nearest.keras"),
    ),
    "Resizing keeps the whole image": Mutation(
        edit("layers.resizing:Resizing.forward", "if self.crops:", "if False:"),
        (f"{TF}/resizing_ratio.keras", f"{K3}/resizing_ratio.keras", f"{TF}/random_crop.keras"),
    ),
    "an odd rest is cropped before the middle": Mutation(
        edit("layers.resizing:cut_middle", "- steps) // 2", "- steps + 1) // 2"),
        (f"{TF}/center_crop.h5", f"{K3}/center_crop.keras"),
    ),
    "RandomCrop resizes in every Keras": Mutation(
        edit("layers.resizing:random_crop", "if not resizes:", "if False:"),
        (f"{K3}/random_crop.keras",),
    ),
    "Cropping behind and in front exchanged": Mutation(
        edit("layers.resizing:cropping", "(-before, -after)", "(-after, -before)"),
        (f"{K2}/around_margins2.h5",),
    ),
    "bilinear from corner to corner": Mutation(
        edit("layers.resizing:_resize_bilinearly", "align_corners=False", "align_corners=True"),
        (f"{TF}/around_bilinear.h5",),
    ),
    "the middles of pixels on each other in TensorFlow 1": Mutation(
        edit("layers.interpolation:weights", "0.0 if corners else 0.5", "0.5"),
        ("keras-2.2.4/around_bilinear_corners.h5", "keras-2.3.1/around_bilinear_corners.h5"),
    ),
    "a cubic that is not read from a table": Mutation(
        edit("layers.interpolation:_bicubic", "(d * _TABLE).round() / _TABLE", "d"),
        (f"{TF}/around_resized_bicubic.h5",),
    ),
    "every kernel Mitchell's": Mutation(
        put(interpolation.KERNELS, "lanczos3", interpolation.KERNELS["mitchellcubic"]),
        (f"{TF}/around_resized_lanczos3.h5", f"{K3}/around_resized_lanczos3.h5"),
    ),
    "areas as they would be without rounding": Mutation(
        put(
            interpolation,
            "_areas",
            lambda like, size, target, step: torch.eye(size, dtype=like.dtype).repeat_interleave(
                target // size, dim=0
            ),
        ),
        (f"{TF}/around_resized_far.h5",),
    ),
    "no weight outside is made up for": Mutation(
        edit("layers.interpolation:weights", "rows / rows.sum(dim=1, keepdim=True)", "rows"),
        (f"{TF}/around_resized_gaussian.h5", f"{TF}/around_resized_mitchellcubic.h5"),
    ),
}
