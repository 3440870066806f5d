"""Mutations of cropping, padding, upsampling and resizing."""

from __future__ import annotations

from mutations.patches import K2, K3, TF, Mutation, edit

MUTATIONS = {
    "the nearest step is the one at the corner": Mutation(
        edit("layers.reshaping:resize_to_nearest", "+ 0.5) * step", "+ 0.0) * step"),
        (f"{TF}/resizing_nearest.keras", f"{K3}/resizing_nearest.keras"),
    ),
    "Resizing keeps the whole image": Mutation(
        edit("layers.reshaping:Resizing.forward", "if self.crops:", "if False:"),
        (f"{TF}/resizing_ratio.keras", f"{K3}/resizing_ratio.keras"),
    ),
    "an odd rest is cropped before the middle": Mutation(
        edit("layers.reshaping:cut_middle", "- steps) // 2", "- steps + 1) // 2"),
        (f"{TF}/resizing_ratio.keras", f"{K3}/resizing_ratio.keras"),
    ),
    "Cropping behind and in front exchanged": Mutation(
        edit("layers.reshaping:cropping", "(-before, -after)", "(-after, -before)"),
        (f"{K2}/around_margins2.h5",),
    ),
    "pixels of TensorFlow 1 a little further on": Mutation(
        edit("layers.reshaping:_stretch_from_corners", "* rounded", "* rounded + 0.1"),
        ("keras-2.2.4/around_bilinear_corners.h5", "keras-2.3.1/around_bilinear_corners.h5"),
    ),
    "bilinear from corner to corner": Mutation(
        edit("layers.reshaping:_resize_bilinearly", "align_corners=False", "align_corners=True"),
        (f"{TF}/around_bilinear.h5",),
    ),
}
