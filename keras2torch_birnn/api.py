"""``convert``: from a Keras file to a torch model, or to a file of it. torch is imported late."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from keras2torch_birnn.errors import gather, in_file
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_arrays
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.steps import PathLike, infer_shapes, parse, read_weights
from keras2torch_birnn.saving.atomic import check_replacing
from keras2torch_birnn.saving.out_files import OUT
from keras2torch_birnn.spec import Array, ModelSpec
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from torch import nn


def convert(
    path: PathLike,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
    plugins: Iterable[PluginName] = (),
) -> nn.Module:
    """Read a Keras file and rebuild its model in torch: eval mode, CPU.

    Call ``.train()`` on it before it is trained, also where a trainer does that for its own module:
    some keep the mode of the modules inside, and then train without dropout. The parameters that
    ``load_model`` of Keras would train have ``requires_grad``.

    path: a file, folder or checkpoint of any format in docs/cli.md; the content tells which.
    config: the text of ``model.to_json()``, for a file that holds only weights. dtype: "float32"
    or "float64".
    masked_steps: "zeros" or "previous", where a note says that the file's version leaves it open.
    plugins: shipped ones by name, your own by path, see ``plugins.load_plugins``.

    Raises:
        InvalidModelFileError, WeightMismatchError: the file is broken; UnsupportedLayerError,
        UnsupportedOptionError: with everything that cannot be converted in one list.
    """
    load_plugins(plugins)
    model, _ = convert_with_spec(path, config=config, dtype=dtype, masked_steps=masked_steps)
    return model


def weights(source: PathLike) -> dict[str, Array]:
    """Read the weights of a model by name, for a torch model of your own.

    No architecture is needed, so this reads subclassed models and files of weights alone, too.
    Bounds, dtypes and checksums are checked as in ``convert``. The names are those that Keras gave
    the variables (``bidirectional/forward_lstm/lstm_cell/kernel``, without ``:0``); where they are
    not unique, or the format does not store them, the path of the weight in the file. Weights of
    optimizers are left out.

    source: any format that ``convert`` reads, and checkpoints of TensorFlow 1.

    Raises:
        InvalidModelFileError: broken, hostile, or no weights.
    """
    return read_arrays(source)


def convert_with_spec(
    path: PathLike,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[nn.Module, ModelSpec]:
    """Convert a Keras file, from the container to the model, or to the file ``out``.

    Returns the model and what was read. With ``out``, large weights pass from file to file, and
    the model that is returned does not have them.

    Raises:
        K2TError: as ``convert``; OutputError: ``out`` cannot be written.
    """
    torch = _TorchImport()  # meanwhile a child process makes the file's index
    with ExitStack() as opening, in_file(path):
        container = opening.enter_context(open_container(path))  # recognise the format
        reading = parse(container, path, config=config, masked_steps=masked_steps)
        reading = infer_shapes(reading)
        reading = read_weights(reading, "lazy")  # locate, check; large ones when needed
        if reading.problems:
            raise gather(reading.problems)
        if out is not None:
            check_replacing(out, OUT, overwrite=overwrite)
        torch.wait()
        from keras2torch_birnn.conversion import add_origin, build, make_golden
        from keras2torch_birnn.plugins.checks import completed

        spec = completed(reading.spec)  # shapes that only a plugin's module tells
        model = build(spec, dtype=dtype)
        golden = make_golden(spec, model)
        model = add_origin(model, spec, golden, filled=out is None)
        if out is not None:
            from keras2torch_birnn.saving.checkpoint import write_out

            write_out(model, out, overwrite=overwrite, source=path, finish=opening.close)
    return model, reading.spec


class _TorchImport:
    """The import of torch, and of what needs it, by a thread of its own."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        with loading_torch():
            self._thread.start()

    def _run(self) -> object:
        try:
            from keras2torch_birnn import conversion
        except BaseException as error:
            self._error = error
            return None
        return conversion

    def wait(self) -> None:
        """Wait until it is there, or raise what went wrong.

        Raises:
            UsageError: there is too little memory for torch.
        """
        self._thread.join()
        if self._error is not None:
            with loading_torch():
                raise self._error
