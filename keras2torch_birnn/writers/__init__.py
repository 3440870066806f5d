"""Write the weights of a trained model back into a copy of the Keras file that it came from.

``inverse`` finds the way back of every layer, ``new_values`` what has to be written, and
``containers`` writes it into a private copy, which gets its name when it is complete and reads
back as the trained model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.building import build
from keras2torch_birnn.errors import UsageError, in_file, printable
from keras2torch_birnn.golden import origin
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.containers import open_container, opened
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.files import with_index
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.readers.steps import PathLike, read_given_config
from keras2torch_birnn.saving.atomic import (
    FileKind,
    check_new_folder,
    check_output,
    check_replacing,
    is_stream,
    write_atomically,
    write_folder_atomically,
)
from keras2torch_birnn.saving.checkpoint import check_modules
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import ModelSpec
from keras2torch_birnn.trainers.optimizer import KerasOptimizer
from keras2torch_birnn.writers.containers import Writer, is_one_file, writer_of
from keras2torch_birnn.writers.hdf5 import keeps_length
from keras2torch_birnn.writers.layers import Located, check_written, layer_pieces, locate
from keras2torch_birnn.writers.match_models import check_same_model
from keras2torch_birnn.writers.new_values import Model
from keras2torch_birnn.writers.optimizer import (
    KEPT_NOTE,
    Choice,
    describe_loading,
    has_optimizer,
    parse_choice,
)
from keras2torch_birnn.writers.optimizer_state import NewState

_INSTEAD = "write-back never replaces a file or folder: name another, or remove it first"
_CHANGED_MODULES = "put its weights into a model that k2t.convert makes of the source"
_FINGERPRINT = "fingerprint.pb"
_SHOWN = 3  # names of a note


@dataclass(frozen=True)
class WrittenModel:
    """A file or folder that ``write_back`` wrote.

    Attributes:
        path: The file or folder.
        changed: The number of arrays whose values changed.
        arrays: The number of arrays in all.
        notes: What a reader should know without being an error.
    """

    path: Path
    changed: int
    arrays: int
    notes: tuple[str, ...]


def write_back(
    model: nn.Module,
    source: PathLike,
    out: PathLike,
    *,
    optimizer: KerasOptimizer | str | None = None,
    config: PathLike | None = None,
    plugins: Iterable[PluginName] = (),
    allow_rounding: bool = False,
    others: Iterable[PathLike] = (),
) -> WrittenModel:
    """Write a trained model's weights into a copy of the Keras file that it was converted from.

    Only the bytes of weights that changed differ from the source; nothing replaces an existing
    file, and the source is never touched. A model of several files (SavedModel, checkpoint, TF.js,
    folder) becomes a new folder with files of the same names. After an error, nothing is
    left behind.

    Args:
        model: What ``convert`` or ``load`` returned, trained, on any device.
        source: The Keras file, in any format that ``convert`` reads, unpacked.
        out: The file or folder to write.
        optimizer: "keep" (or None) leaves the optimizer's state of the file, with a note; "drop"
            removes it; the optimizer of ``k2t.training`` writes its iterations, learning rate and
            slots.
        config: As for ``convert``.
        plugins: As for ``convert``.
        allow_rounding: Whether values may be rounded to the dtype of the file, if it has fewer
            bits.
        others: More files that ``out`` must not be.

    Returns:
        What was written.

    Raises:
        UsageError: No converted model, its modules were exchanged, or the choice is not possible.
        WeightMismatchError: The source is another model, or has no place for a value.
        InvalidModelFileError: The source is broken.
        OutputError: ``out`` exists or cannot be written.
    """
    load_plugins(plugins)
    choice, target = parse_choice(optimizer), Path(out)
    trained = _parse_trained(model)
    path = with_index(Path(source))
    with opened(source) as container:
        located = locate(
            container, config=config, masked_steps=trained.masked_steps, cut=trained.cut
        )
        check_same_model(trained, located.spec)
        facts = Model(_tensors(model), located.read_as, allow_rounding)
        state = _new_state(container, located, model, optimizer, read_given_config(config))
        copy = _Copy(container, path, located, facts, trained, config, choice, state)
        sources = (path, config, *map(Path, plugins), *others)
        _write(container, path, target, copy.write, sources)
    return WrittenModel(target, len(copy.changed), len(copy.arrays), tuple(copy.notes))


@dataclass
class _Copy:
    """The copy of a model that is written; ``changed`` and ``notes`` come out on the way."""

    container: Container
    path: Path
    located: Located
    facts: Model
    trained: ModelSpec
    config: PathLike | None
    choice: Choice
    state: NewState | None
    changed: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def arrays(self) -> tuple[StoredArray, ...]:
        """Every array that may be written: of weights, and of the optimizer's state."""
        own = () if self.state is None else self.state.stored.arrays()
        return (*self.located.arrays.values(), *own)

    def write(self, place: Path) -> None:
        """Write the copy at a place of its own, and check that it reads back as the model."""
        with in_file(self.container.source.name):
            drop = _drops(self.container, self.choice)
            writer_class = writer_of(self.container)
            with writer_class(self.container, self.path, place, self.arrays, drop=drop) as writer:
                for piece in layer_pieces(self.located, self.facts):
                    writer.put(piece)
                for piece in self.state.pieces(self.facts) if self.state else ():
                    writer.put(piece)
                writer.finish()
            self.changed.update(writer.changed)
            self.notes.extend(self._describe(writer))
            self.container.close()  # raises if the source has changed meanwhile
            if writer.changed or drop:
                self._check(_same_place(self.container, self.path, place))

    def _describe(self, writer: Writer) -> Iterator[str]:
        """Yield notes about what is not as one might think."""
        loading = describe_loading(self.container, self.located.spec.generation)
        if self.choice == "write":
            yield from loading
        elif writer.changed and self.choice == "keep" and has_optimizer(self.container):
            yield from loading or (KEPT_NOTE,)
        if not all(map(keeps_length, writer.changed.values())):
            yield (
                "the file has compressed arrays, which the HDF5 library wrote again: its length "
                "may differ"
            )
        if writer.changed and (self.path / _FINGERPRINT).is_file():
            yield (f"{_FINGERPRINT} still describes the weights before; TensorFlow only logs it")
        yield from _describe_values(self.facts.tensors)
        yield from () if self.state is None else self.state.describe_losses()

    def _check(self, written: Path) -> None:
        """Check that the copy reads back as the trained model, and its optimizer as the given one.

        Raises:
            WeightMismatchError: it does not.
        """
        masked_steps, cut = self.trained.masked_steps, self.trained.cut
        check_written(written, self.facts, config=self.config, masked_steps=masked_steps, cut=cut)
        if self.state is not None:
            with open_container(written) as container:
                located = locate(container, config=self.config, masked_steps=masked_steps)
                self.state.check(container, located)


def _new_state(
    container: Container,
    located: Located,
    model: nn.Module,
    optimizer: Any,
    config: Mapping[str, Any] | None,
) -> NewState | None:
    """Return the state to write, if an optimizer is given; ``config``: the JSON of the argument.

    Raises:
        UsageError: it cannot be written.
    """
    if not isinstance(optimizer, KerasOptimizer):
        return None
    if located.spec.cut:
        raise UsageError(
            "a part of a model has no optimizer's state", "keep or drop that of the file"
        )
    return NewState(container, located, model, optimizer, config)


def _parse_trained(model: nn.Module) -> ModelSpec:
    """Return the spec of a converted model whose modules are still those of the spec."""
    spec = model_from_json(json.loads(origin(model).spec_text))
    check_modules(model, build(spec), _CHANGED_MODULES)
    return spec


def _tensors(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}


def _describe_values(tensors: Mapping[str, Tensor]) -> list[str]:
    """Make a note of weights that are NaN or infinite."""
    found = [name for name, one in tensors.items() if not bool(one.isfinite().all())]
    if not found:
        return []
    shown = ", ".join(map(printable, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
    return [f"{len(found)} tensors have values that are NaN or infinite: {shown}"]


def _drops(container: Container, choice: Choice) -> bool:
    """Tell whether an optimizer's state has to be removed.

    Raises:
        UsageError: that is not possible in this format.
    """
    if choice != "drop" or not has_optimizer(container):
        return False
    if not writer_of(container).drops_optimizer:
        raise UsageError(
            "the optimizer's state cannot be removed from a model in this format",
            "keep it, and compile the model anew in Keras",
        )
    return True


def _write(
    container: Container,
    source: Path,
    target: Path,
    write: Callable[[Path], None],
    others: Iterable[PathLike | None],
) -> None:
    """Write a file or a folder, whatever the source is."""
    writer_of(container)
    sources = [None if one is None else Path(one) for one in others]
    if not is_one_file(container):
        check_new_folder(target, instead=_INSTEAD, sources=sources)
        write_folder_atomically(target, write, instead=_INSTEAD)
        return
    kind = FileKind("NEW", (source.suffix.lower(),), lambda _: True, _INSTEAD)
    if not is_stream(target):
        check_output(target, kind, sources=sources)
        check_replacing(target, kind, overwrite=False)
    write_atomically(target, write, kind, overwrite=False)


def _same_place(container: Container, source: Path, target: Path) -> Path:
    """Return the path in the copy that corresponds to the source."""
    return target if is_one_file(container) or source.is_dir() else target / source.name
