"""Layers that change images at random, in training only."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema import CLASSES
from keras2torch_birnn.schema.options import flag
from keras2torch_birnn.schema.row import Config, Schema, only_images
from keras2torch_birnn.spec import Structure

# What they draw, and from where; at inference nothing is drawn.
_IN_TRAINING = tuple(
    "factor height_factor width_factor x_factor y_factor brightness_factor contrast_factor "
    "saturation_factor hue_factor addition_factor threshold_factor mode fill_mode fill_value "
    "interpolation value_range data_format bounding_box_format scale kernel_size sigma alpha "
    "num_ops num_chains chain_depth all_ops max_number".split()
)


def _same(config: Config, shape: Structure) -> Structure:
    return only_images(shape)


LAYERS: Mapping[str, Schema] = {
    name: Schema(
        output=_same,
        ignored=_IN_TRAINING,
        semantics={"keeps_integers": flag(False)},
        refused=("labels or boxes beside the images",),
    )
    for name in CLASSES["augmentation"]
}
