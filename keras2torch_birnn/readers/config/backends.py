"""Files of Keras 1 and 2 that ran on Theano: it mirrors the kernels of convolutions.

Source: Keras 2.2.4 ``engine/saving.py`` ``preprocess_weights_for_loading`` (which turns them when
the file's ``backend`` is another one). Files of Keras 1 do not name their backend.
"""

from __future__ import annotations

from keras2torch_birnn.errors import UnsupportedOptionError
from keras2torch_birnn.spec import Generation, LayerSpec


def check_backend(
    backend: str, generation: Generation, root: LayerSpec
) -> tuple[list[UnsupportedOptionError], list[str]]:
    """Return problems and notes about the convolutions of a file written on ``backend``."""
    convolutions = [layer for layer in root.walk() if "Conv" in layer.class_name]
    if not convolutions:
        return [], []
    if backend == "theano":
        return [
            UnsupportedOptionError(
                "the kernel of a convolution written on Theano is mirrored, which is not supported",
                "load the file with Keras 2 on TensorFlow and save it again",
                place=layer.place,
            )
            for layer in convolutions
        ], []
    if generation.name == "keras1":
        return [], [
            "files of Keras 1 do not name their backend: convolutions are taken to be "
            "TensorFlow's, Theano's would be mirrored"
        ]
    return [], []
