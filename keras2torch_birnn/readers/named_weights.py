"""``weights``: the arrays of a model by name, whatever its architecture is."""

from __future__ import annotations

from keras2torch_birnn.errors import InvalidModelFileError, in_file
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.live_model import read_live_arrays
from keras2torch_birnn.readers.source import ModelSource, source_of
from keras2torch_birnn.spec import Array


def weights(source: ModelSource) -> dict[str, Array]:
    """Read the weights of a model by name, for a torch model of your own.

    No architecture is needed, so this reads subclassed models and files of weights alone, too.
    Bounds, dtypes and checksums are checked as in ``convert``. The names are those that Keras gave
    the variables (``bidirectional/forward_lstm/lstm_cell/kernel``, without ``:0``); where they are
    not unique, or the format does not store them, the path of the weight in the file. Weights of
    optimizers are left out.

    source: any format that ``convert`` reads, and checkpoints of TensorFlow 1; or a live model of
    any class, whose arrays are copied. A name that several of its variables have is followed by
    ``#`` and the variable's number in ``model.weights``.

    Raises:
        InvalidModelFileError: broken, hostile, or no weights.
        UsageError: no path and no built model.
    """
    found = source_of(source)
    if found.path is None:
        with in_file(found.name):
            return _not_empty(read_live_arrays(found.model))
    with opened(found) as container:
        names = container.weight_names()
        arrays = container.store.arrays(list(names.values()))
        return _not_empty({name: array.read() for name, array in zip(names, arrays, strict=True)})


def _not_empty(arrays: dict[str, Array]) -> dict[str, Array]:
    if not arrays:
        raise InvalidModelFileError("holds no weights", "give a file with weights")
    return arrays
