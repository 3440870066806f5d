"""Write the weights of a trained model back into a copy of the Keras file that it came from.

``inverse`` finds the way back of every layer, ``new_values`` what has to be written, and
``containers`` writes it into a private copy, which gets its name when it is complete and reads
back as the trained model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.building import build
from keras2torch_birnn.errors import UsageError, in_file, printable
from keras2torch_birnn.golden import origin
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.containers.files import with_index
from keras2torch_birnn.readers.containers.shards import ShardedStore
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
    """A file or folder that was written: ``path``; ``notes`` for the user.

    ``changed``: arrays whose values changed, of ``arrays`` in all.
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
    optimizer: Any = None,
    config: PathLike | None = None,
    plugins: Iterable[PluginName] = (),
    allow_rounding: bool = False,
    others: Iterable[PathLike] = (),
) -> WrittenModel:
    """Write a trained model's weights into a copy of the Keras file that it was converted from.

    Only the bytes of weights that changed differ from the source; nothing replaces an existing
    file, and the source is never touched. A model of several files (SavedModel, checkpoint, shards,
    TF.js, folder) becomes a new folder with files of the same names.

    model: from ``k2t.convert`` or ``k2t.load``, trained, on any device. source: any format that
    ``convert`` reads, unpacked; ``config`` and ``plugins`` as there. optimizer: "keep" (or None)
    leaves the optimizer's state of the file, with a note; "drop" removes it; the optimizer of
    ``k2t.training`` writes its iterations, learning rate and slots. allow_rounding: values
    may be rounded to the dtype of the file, if it has fewer bits. others: more files that ``out``
    must not be.

    After an error, nothing is left behind.

    Raises:
        UsageError: no converted model, its modules were exchanged, or the choice is not possible.
        WeightMismatchError: the source is another model, or has no place for a value.
        InvalidModelFileError: the source is broken.
        OutputError: ``out`` exists or cannot be written.
    """
    load_plugins(plugins)
    choice, target = parse_choice(optimizer), Path(out)
    trained = _parse_trained(model)
    path = with_index(Path(source))
    sources = (path, config, *(Path(p) for p in plugins), *others)
    with ExitStack() as opening, in_file(source):
        container = opening.enter_context(open_container(path))
        located = locate(
            container, config=config, masked_steps=trained.masked_steps, cut=trained.cut
        )
        check_same_model(trained, located.spec)
        facts = Model(_tensors(model), located.read_as, allow_rounding)
        given = read_given_config(config)
        state = _new_state(container, located, model, optimizer, given)
        changed: set[str] = set()
        notes: list[str] = []

        def write(place: Path) -> None:
            with in_file(source):
                drop = _drops(container, choice)
                kind, arrays = writer_of(container), tuple(located.arrays.values())
                arrays += () if state is None else tuple(state.stored.arrays())
                with kind(container, path, place, arrays, drop=drop) as writer:
                    for piece in layer_pieces(located, facts):
                        writer.put(piece)
                    for piece in state.pieces(facts) if state else ():
                        writer.put(piece)
                    writer.finish()
                changed.update(writer.changed)
                loading = describe_loading(container, located.spec.generation)
                notes.extend(_describe(container, path, writer, choice, loading))
                notes.extend(_describe_values(facts.tensors))
                notes.extend(() if state is None else state.describe_losses())
                container.close()  # raises if the source has changed meanwhile
                if writer.changed or drop:
                    written = _same_place(container, path, place)
                    check_written(
                        written,
                        facts,
                        config=config,
                        masked_steps=trained.masked_steps,
                        cut=trained.cut,
                    )
                    if state is not None:
                        _check_state(written, state, config, trained)

        _write(container, path, target, write, sources)
    count = len(located.arrays) + (0 if state is None else len(list(state.stored.arrays())))
    return WrittenModel(target, len(changed), count, tuple(notes))


def _new_state(
    container: Container,
    located: Located,
    model: nn.Module,
    optimizer: Any,
    given: Mapping[str, Any] | None,
) -> NewState | None:
    """Return the state to write, if an optimizer is given; ``given``: the JSON of ``config``.

    Raises:
        UsageError: it cannot be written.
    """
    if not isinstance(optimizer, KerasOptimizer):
        return None
    if located.spec.cut:
        raise UsageError(
            "a part of a model has no optimizer's state", "keep or drop that of the file"
        )
    return NewState(container, located, model, optimizer, given)


def _check_state(
    written: Path, state: NewState, config: PathLike | None, trained: ModelSpec
) -> None:
    with open_container(written) as container:
        located = locate(container, config=config, masked_steps=trained.masked_steps)
        state.check(container, located)


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
    if not writer_of(container).drops_optimizer or isinstance(container.store, ShardedStore):
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
    write_atomically(target, write, kind, overwrite=False, size=source.stat().st_size)


def _same_place(container: Container, source: Path, target: Path) -> Path:
    """Return the path in the copy that corresponds to the source."""
    return target if is_one_file(container) or source.is_dir() else target / source.name


def _describe(
    container: Container, source: Path, writer: Writer, choice: Choice, loading: tuple[str, ...]
) -> list[str]:
    """Make notes about what is not as one might think.

    loading: where Keras does not go on with the optimizer's state of such a file.
    """
    notes: list[str] = []
    if choice == "write":
        notes.extend(loading)
    elif writer.changed and choice == "keep" and has_optimizer(container):
        notes.extend(loading or (KEPT_NOTE,))
    if not all(map(keeps_length, writer.changed.values())):
        notes.append(
            "the file has compressed arrays, which the HDF5 library wrote again: its length may "
            "differ"
        )
    if writer.changed and (source / _FINGERPRINT).is_file():
        notes.append(f"{_FINGERPRINT} still describes the weights before; TensorFlow only logs it")
    return notes
