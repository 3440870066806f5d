"""``weights``: the arrays of a model by name, whatever its architecture is."""

from __future__ import annotations

from keras2torch_birnn.errors import InvalidModelFileError, in_file
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource, source_of
from keras2torch_birnn.readers.containers.live_model import read_live_arrays
from keras2torch_birnn.spec import Array


def weights(source: ModelSource) -> dict[str, Array]:
    """Read the weights of a model by name, for a torch model of your own.

    No architecture is needed, so this reads subclassed models and files of weights alone, too.
    Bounds, dtypes and checksums are checked as in ``convert``.

    Args:
        source: Any format that ``convert`` reads, and checkpoints of TensorFlow 1; or a live model
            of any class, whose arrays are copied.

    Returns:
        The arrays by the names that Keras gave the variables
        (``bidirectional/forward_lstm/lstm_cell/kernel``, without ``:0``); where names are not
        unique, or the format does not store them, by the path of the weight in the file. In a live
        model a name that several variables have is followed by ``#`` and the variable's number in
        ``model.weights``. Weights of optimizers are left out.

    Raises:
        InvalidModelFileError: The file is broken, hostile, or has no weights.
        UsageError: No path and no built model.
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
