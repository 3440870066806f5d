"""Note on layers that change images at random in Keras' training."""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn.schema import CLASSES
from keras2torch_birnn.spec import LayerSpec


def describe_augmentation(root: LayerSpec) -> Iterator[str]:
    """Yield a note if training in Keras changes images that the converted model leaves alone."""
    found = {
        layer.class_name: None
        for layer in root.walk()
        if layer.class_name in CLASSES["augmentation"]
    }
    if found:
        yield (
            f"in training Keras changes images at random ({', '.join(found)}): the converted model "
            "never does; change the images of your training data instead"
        )
