"""List the supported layers from the schema, for ``k2t layers`` and the documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.readers.operations import names_of
from keras2torch_birnn.schema import LAYERS, OPS


@dataclass(frozen=True)
class Row:
    """One layer class: its other names and the options that are refused.

    ``plugin``: the shipped plugin that has to be switched on for it.
    """

    class_name: str
    aliases: tuple[str, ...]
    refused: tuple[str, ...]
    plugin: str = ""


# What a schema cannot say by itself: an option that has one value only says so; these have reasons.
_REFUSED: Mapping[str, tuple[str, ...]] = {
    "InputLayer": ("sparse=True", "ragged=True"),
    "LSTM": ("time_major=True", "constants"),
    "GRU": ("time_major=True", "constants"),
    "SimpleRNN": ("time_major=True", "constants"),
    "RNN": ("cells other than LSTMCell, GRUCell, SimpleRNNCell and StackedRNNCells of these",),
    "Bidirectional": ("layers that are not recurrent",),
    "TimeDistributed": ("a mask into a whole model", "layers with several outputs"),
    "BatchNormalization": ("several axes", "renorm=True"),
    "Softmax": ("a mask into more than two dimensions",),
    "GroupNormalization": ("a mask (tf.keras)",),
    "RMSNormalization": ("axes that are not the last ones",),
    "Normalization": ("mean without variance",),
    "CategoryEncoding": ("sparse=True", "more than two axes (multi_hot, count)"),
    "Discretization": ("adapt() of tf.keras", "sparse=True", "more than two axes (as above)"),
    "Attention": ("a mask into more than three dimensions",),
    "AdditiveAttention": ("a mask into more than three dimensions",),
    "LocallyConnected1D": ("a number of steps that the file does not tell",),
    "LocallyConnected2D": ("a number of steps that the file does not tell",),
    "Hashing": ("text", "sparse=True", "several tensors (tf.keras 2.4)"),
    "IntegerLookup": ("adapt() outside .keras", "invert=True", "tf_idf", "oov_method=farmhash"),
    "Merge": ("functions of the user's own", "mode cos of other than vectors"),
    "UpSampling2D": (
        "bilinear of tf.keras 2.2.4 (TensorFlow 1.13 to 2.0)",
        "bicubic of Keras 3",
    ),
    "Conv1DTranspose": ("output_padding that TensorFlow refuses",),
    "Conv2DTranspose": ("output_padding that TensorFlow refuses",),
    "Conv3DTranspose": ("output_padding that TensorFlow refuses",),
}


def catalogue() -> tuple[Row, ...]:
    """Every class of the schema, in its order."""
    return tuple(
        Row(name, schema.aliases, _REFUSED.get(name, ())) for name, schema in LAYERS.items()
    )


def operation_rows() -> tuple[Row, ...]:
    """The operations (``ops.X``) with the functions, graph nodes and classes that they are."""
    return tuple(Row(name, names_of(name.removeprefix("ops.")), ()) for name in OPS)


def plugin_rows() -> tuple[Row, ...]:
    """The classes of shipped plugins, one row for each plugin and class."""
    return tuple(
        Row(name.rpartition(">")[2], (), (), plugin)
        for plugin, shipped in SHIPPED.items()
        for name in shipped.classes
    )
