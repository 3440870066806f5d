"""Files of Keras 1 and 2 that ran on Theano: it mirrors the kernels of convolutions.

Source: Keras 2.2.4 ``engine/saving.py`` ``preprocess_weights_for_loading`` (which turns them when
the file's ``backend`` is another one). Files of Keras 1 do not name their backend.
"""

from __future__ import annotations

from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.spec import LayerSpec


def check_backend(backend: str, root: LayerSpec, parsing: Parsing) -> None:
    """Refuse the convolutions of a file written on Theano; note where that is not known."""
    convolutions = [layer for layer in root.walk() if "Conv" in layer.class_name]
    if backend == "theano":
        for layer in convolutions:
            parsing.refuse(
                "the kernel of a convolution written on Theano is mirrored, which is not supported",
                "load the file with Keras 2 on TensorFlow and save it again",
                layer.place,
            )
    elif convolutions and parsing.generation.name == "keras1":
        parsing.notes.append(
            "files of Keras 1 do not name their backend: convolutions are taken to be "
            "TensorFlow's, Theano's would be mirrored"
        )
