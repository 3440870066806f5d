"""``convert``: the steps from a Keras file to a torch model or checkpoint. Imports torch late."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from keras2torch_birnn.errors import gather, in_file
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_arrays
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.live_model import ModelSource, name_source
from keras2torch_birnn.readers.steps import (
    PathLike,
    Reading,
    infer_shapes,
    parse,
    read_vocabularies,
    read_weights,
)
from keras2torch_birnn.saving.atomic import check_replacing
from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT
from keras2torch_birnn.saving.vocabulary_file import writing_vocabularies
from keras2torch_birnn.spec import NO_CUT, Array, Cut, LayerNames, ModelSpec, cut_at
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from torch import nn


def convert(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
) -> nn.Module:
    """Read a Keras file or a live Keras model and rebuild it in torch: eval mode, CPU.

    Call ``.train()`` on it before training, even if a trainer does so for its own module: some
    trainers keep the mode of inner modules, and then train without dropout. The parameters that
    Keras would train after ``load_model`` have ``requires_grad``.

    path: a file, folder or checkpoint in any format of docs/cli.md, recognised by content; or a
    built model of keras, tf.keras or tf_keras in this process, which stays as it is. Its Keras
    writes it to a private temporary folder, which is removed before this returns.
    config: the text of ``model.to_json()``, for a file that holds only weights. dtype: "float32"
    or "float64". masked_steps: "zeros" or "previous", if a note says that the file does not
    determine it.
    from_layer, to_layer: name or path (``"encoder/embedding"``), or several, of the first and of
    the last layers to convert, if not the whole model: see docs/cutting.md.
    plugins: shipped ones by name, your own by path, see ``plugins.load_plugins``.

    Raises:
        InvalidModelFileError: the file is broken.
        WeightMismatchError: its weights do not fit its architecture.
        UnsupportedLayerError: lists everything that cannot be converted.
        UnsupportedOptionError: lists everything that cannot be converted, all of it options.
        UsageError: no path and no built model, or layers that bound no part of the model.
    """
    load_plugins(plugins)
    cut = cut_at(from_layer, to_layer)
    return convert_with_spec(
        path, config=config, dtype=dtype, masked_steps=masked_steps, cut=cut
    ).model


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
    return read_arrays(source)


class Converted(NamedTuple):
    """A model, its spec, and the file of vocabularies that was written beside OUT, if any."""

    model: nn.Module
    spec: ModelSpec
    vocabularies: Path | None


def convert_with_spec(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
    cut: Cut = NO_CUT,
    out: Path | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert a Keras file to a model and, with ``out``, write it to that file.

    With ``out``, large weights are copied from file to file, and the returned model does not hold
    them.

    Raises:
        K2TError: as ``convert``; OutputError: ``out`` cannot be written.
    """
    torch = _TorchImport()  # meanwhile a child process reads the file's index
    with ExitStack() as opening, in_file(name_source(path)):
        container = opening.enter_context(open_container(path))  # recognise the format
        reading = _read(container, path, config=config, masked_steps=masked_steps, cut=cut)
        if out is not None:
            check_replacing(out, CHECKPOINT, overwrite=overwrite)
        torch.wait()
        model = _build(reading, dtype=dtype, filled=out is None)
        beside = None
        if out is not None:
            from keras2torch_birnn.saving.checkpoint import write_checkpoint

            texts = [one.to_dict() for one in reading.vocabularies]
            with writing_vocabularies(out, texts, overwrite=overwrite) as beside:
                write_checkpoint(
                    model, out, overwrite=overwrite, source=name_source(path), finish=opening.close
                )
    return Converted(model, reading.spec, beside)


def convert_opened(
    container: Container,
    path: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    masked_steps: str | None = None,
) -> nn.Module:
    """Convert the model in an open container; the other arguments are those of ``convert``.

    Raises:
        K2TError: as ``convert``.
    """
    reading = _read(container, path, config=config, masked_steps=masked_steps)
    return _build(reading, dtype=dtype, filled=True)


def _read(
    container: Container,
    path: ModelSource,
    *,
    config: PathLike | None,
    masked_steps: str | None,
    cut: Cut = NO_CUT,
) -> Reading:
    """Read a model, or raise everything that is not supported."""
    reading = parse(container, path, config=config, masked_steps=masked_steps, cut=cut)
    reading = infer_shapes(reading)
    reading = read_weights(reading, "lazy")  # locate, check; large ones stay in the file
    reading = read_vocabularies(reading)  # of text layers that were cut off
    if reading.problems:
        raise gather(reading.problems)
    return reading


def _build(reading: Reading, *, dtype: str | None, filled: bool) -> nn.Module:
    """Build what was read; ``filled``: with its large weights, too."""
    from keras2torch_birnn.conversion import add_origin, build, check_golden_memory, make_golden
    from keras2torch_birnn.plugins.checks import complete_shapes

    spec = complete_shapes(reading.spec)  # shapes that only running a plugin's module shows
    check_golden_memory(spec)
    model = build(spec, dtype=dtype)
    return add_origin(model, spec, make_golden(spec, model), filled=filled)


class _TorchImport:
    """Import of torch, and of the modules that need it, in a thread of its own."""

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
        """Wait for the import to end, and raise its error if it failed.

        Raises:
            UsageError: there is too little memory for torch.
        """
        self._thread.join()
        if self._error is not None:
            with loading_torch():
                raise self._error
