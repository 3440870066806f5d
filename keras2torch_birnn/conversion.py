"""``convert``: from a Keras file to a torch model, or to a checkpoint of it. Imports torch late."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.containers import opened
from keras2torch_birnn.readers.containers.container import ModelSource
from keras2torch_birnn.readers.steps import PathLike, read
from keras2torch_birnn.spec import NO_CUT, Cut, LayerNames, ModelSpec, cut_at, without_values
from keras2torch_birnn.torch_import import loading_torch

if TYPE_CHECKING:
    from torch import fx


def convert(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
) -> fx.GraphModule:
    """Read a Keras file or a live Keras model and rebuild it in torch: eval mode, CPU.

    Call ``.train()`` on it before training, even if a trainer does so for its own module: some
    trainers keep the mode of inner modules, and then train without dropout. The parameters that
    Keras would train after ``load_model`` have ``requires_grad``.

    Args:
        path: A file, folder or checkpoint in any format of docs/cli.md, recognised by content; or a
            built model of keras, tf.keras or tf_keras in this process, which stays as it is. Its
            Keras writes it to a private temporary folder, which is removed before this returns.
        config: File with the text of ``model.to_json()``, where ``path`` holds only weights.
        dtype: "float32" or "float64"; None for that of the Keras model.
        from_layer: Name or path (``"encoder/embedding"``), or several, of the first layers to
            convert, if not the whole model; see docs/cutting.md.
        to_layer: The same of the last layers.
        plugins: Shipped ones by name, your own by path; see docs/plugins.md.

    Returns:
        The model. It takes the inputs in Keras' order, and returns a tensor, or a tuple in the
        order of Keras' outputs.

    Raises:
        InvalidModelFileError: The file is broken.
        WeightMismatchError: Its weights do not fit its architecture.
        UnsupportedLayerError: Some layers cannot be converted; all of them are listed.
        UnsupportedOptionError: The same, where all of it are options of layers.
        UsageError: No path and no built model, or layers that bound no part of the model.
    """
    load_plugins(plugins)
    cut = cut_at(from_layer, to_layer)
    return convert_with_spec(path, config=config, dtype=dtype, cut=cut).model


class Converted(NamedTuple):
    """A model and its spec."""

    model: fx.GraphModule
    spec: ModelSpec


def convert_with_spec(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    cut: Cut = NO_CUT,
) -> Converted:
    """Convert a model as ``convert`` does, whose arguments these are."""
    torch = _TorchImport()  # meanwhile a child process reads the file's index
    with opened(path) as container:  # the format is recognised
        spec = read(container, config=config, cut=cut).finish()
        torch.wait()
        return Converted(build_model(spec, dtype=dtype), spec)


class Written(NamedTuple):
    """The spec of a model that was written, and the file of vocabularies beside it, if any."""

    spec: ModelSpec
    vocabularies: Path | None


def convert_to_file(
    path: ModelSource,
    out: Path,
    *,
    config: PathLike | None = None,
    dtype: str | None = None,
    cut: Cut = NO_CUT,
    overwrite: bool = False,
) -> Written:
    """Convert a model as ``convert`` does, and write it to a file.

    Raises:
        K2TError: as ``convert``; OutputError: ``out`` cannot be written.
    """
    from keras2torch_birnn.errors import in_file
    from keras2torch_birnn.saving.atomic import check_output, is_stream, os_errors
    from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT
    from keras2torch_birnn.saving.vocabulary_file import remove_vocabularies, vocabulary_file

    torch = _TorchImport()  # meanwhile a child process reads the file's index
    with opened(path) as container:  # the format is recognised
        reading = read(container, config=config, cut=cut)
        spec = reading.finish()
        check_output(out, CHECKPOINT, overwrite=overwrite)
        torch.wait()
        model = build_model(spec, dtype=dtype, watched=False)
    from keras2torch_birnn.saving.checkpoint import write_checkpoint

    texts = [] if is_stream(out) else [one.to_dict() for one in reading.vocabularies]
    beside = vocabulary_file(out, texts) if texts else None
    write_checkpoint(model, out, overwrite=overwrite, beside=beside)
    if beside is None and overwrite:
        with in_file(out), os_errors():
            remove_vocabularies(out)
    return Written(spec, beside and beside.path)


def build_model(
    spec: ModelSpec, *, dtype: str | None = None, watched: bool = True
) -> fx.GraphModule:
    """Build the model of a spec, with golden vectors.

    ``watched``: with the checksum that tells whether its weights were trained since.

    Raises:
        K2TError: as ``convert``.
    """
    from keras2torch_birnn.golden import (
        Origin,
        attach_origin,
        check_golden_memory,
        checksum,
        make_golden,
    )
    from keras2torch_birnn.layers.building import build
    from keras2torch_birnn.plugins.checks import complete_shapes

    spec = complete_shapes(spec)  # shapes that only running a plugin's module shows
    check_golden_memory(spec)
    model = build(spec, dtype=dtype)
    golden = make_golden(spec, model)
    origin = Origin(without_values(spec), golden, checksum(model) if watched else 0)
    return attach_origin(model, origin)


class _TorchImport:
    """Import of torch, and of the modules that need it, in a thread of its own."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        with loading_torch():
            self._thread.start()

    def _run(self) -> object:
        try:
            from keras2torch_birnn import golden
        except BaseException as error:
            self._error = error
            return None
        return golden

    def wait(self) -> None:
        """Wait for the import to end, and raise its error if it failed.

        Raises:
            UsageError: there is too little memory for torch.
        """
        self._thread.join()
        if self._error is not None:
            with loading_torch():
                raise self._error
