"""Steps of reading a model from an open container: parse it, infer its shapes, read its weights."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    MissingArchitectureError,
    gather,
    in_file,
)
from keras2torch_birnn.readers.config.architecture import parse_architecture
from keras2torch_birnn.readers.config.cells import list_first_states
from keras2torch_birnn.readers.config.checks import (
    check_backend,
    check_call_count,
    check_input_dtypes,
)
from keras2torch_birnn.readers.config.custom_layers import check_names, note_custom_layers
from keras2torch_birnn.readers.config.generations import describe_rules, generation_of
from keras2torch_birnn.readers.config.options import describe_augmentation, describe_penalties
from keras2torch_birnn.readers.config.parsing import Parsing, Whole
from keras2torch_birnn.readers.containers import open_container, opened
from keras2torch_birnn.readers.containers.container import (
    Architecture,
    Container,
    ModelSource,
    Source,
    source_of,
)
from keras2torch_birnn.readers.input_files import file_window, is_folder, parse_object, read_text
from keras2torch_birnn.readers.kept import keep
from keras2torch_birnn.readers.weights.load_weights import LocatedWeights, load_weights
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.schema.shape_inference import check_layer_sizes, infer_model
from keras2torch_birnn.spec import NO_CUT, Array, Cut, LayerSpec, ModelSpec

if TYPE_CHECKING:
    from keras2torch_birnn.readers.weights.vocabularies import Vocabulary


PathLike = str | os.PathLike[str]
"""A path: a text, or a ``pathlib.Path``."""


@dataclass(frozen=True)
class Reading:
    """A model on its way from the container to a ``ModelSpec``; each step returns a new one.

    ``whole``: the model before it was cut, None if it was not. ``vocabularies``: of the layers that
    were cut off. ``located``: where its weights are, None before they are read.
    """

    container: Container
    parsing: Parsing
    root: LayerSpec
    notes: tuple[str, ...]
    architecture: Architecture
    whole: Whole | None = None
    vocabularies: tuple[Vocabulary, ...] = ()
    located: LocatedWeights | None = None

    @property
    def problems(self) -> list[K2TError]:
        """Everything that is not supported, of all steps so far."""
        return self.parsing.problems

    def check(self) -> None:
        """Raise everything that is not supported, together."""
        if self.problems:
            raise gather(self.problems)

    @property
    def spec(self) -> ModelSpec:
        """The model as read so far, without the texts that an OUT keeps."""
        cut = NO_CUT if self.whole is None else self.whole.cut
        return ModelSpec(self.root, self.parsing.generation, self.notes, cut)

    def finish(self) -> ModelSpec:
        """Return the model with the texts that an OUT keeps of it, once its weights are read."""
        self.check()
        if self.located is None:
            raise RuntimeError("the weights were not read")
        return replace(self.spec, kept=keep(self.spec, self.architecture, self.located))


def read(
    container: Container,
    *,
    config: PathLike | None = None,
    cut: Cut = NO_CUT,
    values: bool = True,
) -> Reading:
    """Read the model in a container; weights only if nothing is unsupported.

    cut: see ``config/cut.py``. values: see ``load_weights``.
    """
    reading = parse(container, config=config, cut=cut)
    reading = infer_shapes(reading)
    reading = read_weights(reading, values=values)
    return read_vocabularies(reading)


def parse(
    container: Container,
    *,
    config: PathLike | None = None,
    cut: Cut = NO_CUT,
) -> Reading:
    """Find the architecture and parse its layers by the rules of the Keras that wrote it.

    config: an architecture in a file of its own. cut: the layers between which the model is read;
    nothing is refused that lies outside of them.

    Raises:
        InvalidModelFileError: there is no architecture, or it is broken; UsageError: layers
            that bound no part.
    """
    architecture = find_architecture(container, read_given_config(config))
    generation = generation_of(architecture.version)
    parsing = Parsing(generation, command=_command(container.source, config))
    root = parse_architecture(architecture.model, parsing)
    check_call_count(root)
    whole = None
    if cut and root.graph is not None:  # (a root that is refused has none)
        from keras2torch_birnn.readers.config.cut import take_part

        root, parsing, whole = take_part(root, parsing, cut)
    check_names(root, parsing)
    check_backend(architecture.backend, root, parsing)
    notes = (
        describe_rules(parsing.generation, root, architecture.writer),
        *parsing.notes,
        *list_first_states(root, parsing.generation),
        *note_custom_layers(root, architecture.model),
        *describe_penalties(parsing.penalties),
        *describe_augmentation(root),
        *_misnamed_note(container),
    )
    return Reading(container, parsing, root, notes, architecture, whole)


def find_architecture(container: Container, config: Mapping[str, Any] | None) -> Architecture:
    """Find the architecture; where the file is a part of a model, the error names the whole."""
    try:
        return container.architecture(config)
    except MissingArchitectureError as error:
        from keras2torch_birnn.readers.containers.mistakes import whole_of

        path = container.source.path
        whole = None if path is None else whole_of(path)
        if whole is None:
            raise
        raise MissingArchitectureError(*whole) from error


def _command(source: Source, config: PathLike | None) -> str:
    """Return the command that converts this file, or the file of a live model."""
    file = "MODEL" if source.path is None else source.name
    options = [] if config is None else [f"--config {shlex.quote(os.fspath(config))}"]
    options += [f"--plugin {shlex.quote(name)}" for name in REGISTERED.loaded]
    return " ".join(["k2t convert", shlex.quote(file), "OUT", *options])


def infer_shapes(reading: Reading) -> Reading:
    """Infer the shapes of every layer, unless something is not supported.

    Raises:
        InvalidModelFileError: a layer that is larger than any memory.
    """
    root, parsing = reading.root, reading.parsing
    if not parsing.problems:
        check_input_dtypes(root, parsing)
    if not parsing.problems:
        root = infer_model(root, parsing.problems)
        check_layer_sizes(root)
    return replace(reading, root=root)


def read_weights(reading: Reading, *, values: bool) -> Reading:
    """Locate, check and read the weights, unless something is not supported.

    values: as ``load_weights`` takes it.

    Raises:
        WeightMismatchError: the weights and the configuration do not fit each other.
    """
    if reading.problems:
        return reading
    root, located, notes = load_weights(
        reading.root,
        reading.container,
        reading.parsing,
        reading.whole,
        values=values,
    )
    return replace(
        reading,
        root=root,
        notes=(*reading.notes, *notes),
        located=located,
    )


def read_vocabularies(reading: Reading) -> Reading:
    """Read the vocabularies of layers that were cut off, unless something is not supported."""
    if reading.problems or reading.whole is None:
        return reading
    from keras2torch_birnn.readers.weights.vocabularies import find_vocabularies

    vocabularies, notes = find_vocabularies(
        reading.whole, reading.container, reading.parsing.generation
    )
    return replace(reading, vocabularies=vocabularies, notes=(*reading.notes, *notes))


def read_given_config(path: PathLike | None) -> Mapping[str, Any] | None:
    """Read the architecture that the user gives, if one is given: as JSON, or in a model's file.

    Raises:
        InvalidModelFileError: too long, or not the JSON of a model, such as YAML.
    """
    if path is None:
        return None
    with in_file(path), ExitStack() as opening:
        if holds_model(path):
            return _architecture_of_model(path)
        from keras2torch_birnn.readers.containers.mistakes import HOW_TO_TURN_YAML, is_yaml

        text = read_text(file_window(opening, Path(path)), "")
        if is_yaml(text):
            raise InvalidModelFileError("YAML, which k2t does not read", HOW_TO_TURN_YAML)
        return parse_object(text, place="", needed=["class_name", "config"])


def holds_model(path: PathLike) -> bool:
    """Tell whether a path that is given for an architecture is a model: no file of text."""
    if is_folder(Path(path)):
        return True
    with ExitStack() as opening:  # of an HDF5 file, of a .keras archive
        return file_window(opening, Path(path)).head(1) in (b"\x89", b"P")


def _architecture_of_model(path: PathLike) -> Mapping[str, Any]:
    """Return the JSON of a model, with the version and backend that its file names."""
    with open_container(path) as container:
        architecture = find_architecture(container, None)
    return {
        **architecture.model,
        "keras_version": architecture.version,
        "backend": architecture.backend,
    }


def _misnamed_note(container: Container) -> list[str]:
    """Note that a file named as HDF5 is an archive. TensorFlow 2 wrote HDF5 files named .keras."""
    path = container.source.path
    named_hdf5 = path is not None and path.suffix.lower() in (".h5", ".hdf5")
    misnamed = container.kind == "keras_zip" and named_hdf5
    return ["the file is a .keras archive by its content"] if misnamed else []


# ---- weights alone -------------------------------------------------------------------------------


# ``weights``: the arrays of a model by name, whatever its architecture is.


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
        from keras2torch_birnn.readers.containers.live_model import read_live_arrays

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
