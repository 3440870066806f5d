"""Write the weights of a trained model back into a copy of the Keras file that it came from.

``weight_places`` finds the way back of every layer, ``new_values`` what has to be written, and
``copies`` writes it into a private copy, which gets its name when it reads back as the trained
model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch import Tensor, nn

from keras2torch_birnn.errors import UsageError, WeightMismatchError, in_file, printable
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.containers import open_container, opened
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.saving.atomic import (
    FileKind,
    NewFile,
    check_output,
    is_stream,
    write_atomically,
)
from keras2torch_birnn.saving.checkpoint import check_modules
from keras2torch_birnn.spec import LayerSpec, ModelSpec
from keras2torch_birnn.trainers.copies import check_kind, optimizer_groups, write_copy
from keras2torch_birnn.trainers.new_values import Trained, check_reads_as, find_changed
from keras2torch_birnn.trainers.weight_places import locate

_INSTEAD = "write-back never replaces a file: name another, or remove it first"
_CHANGED_MODULES = "put its weights into a model that k2t.convert makes of the source"
_KEPT_NOTE = (
    "the optimizer's state was kept, and is that of the weights before: training on in Keras "
    "begins with it (optimizer=drop removes it)"
)
_SHOWN_NAMES, _SHOWN_VALUE = 3, 80


@dataclass(frozen=True)
class WrittenModel:
    """A file that ``write_back`` wrote.

    Attributes:
        path: The file.
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
    optimizer: str = "keep",
    config: PathLike | None = None,
    plugins: Iterable[PluginName] = (),
    allow_rounding: bool = False,
) -> WrittenModel:
    """Write a trained model's weights into a copy of the Keras file that it was converted from.

    The copy differs in the arrays whose values changed, and nowhere else; it is read again and
    compared with the model before it gets its name. Nothing replaces an existing file, and the
    source is never touched. After an error, nothing is left behind.

    Args:
        model: What ``convert`` or ``load`` returned, trained, on any device.
        source: The Keras file: ``.h5``, also one of weights alone, or ``.keras``.
        out: The file to write.
        optimizer: "keep" leaves the optimizer's state of the file, with a note; "drop" removes it.
        config: As for ``convert``.
        plugins: As for ``convert``.
        allow_rounding: Whether values may be rounded to the dtype of the file, if it has fewer
            bits.

    Returns:
        What was written.

    Raises:
        UsageError: No converted model, or its modules were exchanged.
        UnsupportedOptionError: The source is in another format.
        WeightMismatchError: The source is another model, or has no place for a value.
        InvalidModelFileError: The source is broken.
        OutputError: ``out`` exists or cannot be written.
    """
    load_plugins(plugins)
    if optimizer not in ("keep", "drop"):
        raise UsageError(f"optimizer {printable(optimizer)!r}: keep or drop is expected")
    spec = _parse_origin(model)
    path, target = Path(source), Path(out)
    with opened(source) as container:
        check_kind(container)
        kind = FileKind("NEW", (path.suffix.lower(),), lambda _: True, _INSTEAD)
        if not is_stream(target):
            check_output(target, kind, sources=[path], overwrite=False)
        located = locate(container, config=config, cut=spec.cut)
        _check_same_model(spec, located.spec)
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        trained = Trained(tensors, located.read_as, allow_rounding)
        changed = find_changed(located, trained)
        groups = optimizer_groups(container.store)
        removed = groups if optimizer == "drop" else []

        def write(place: Path) -> None:
            with in_file(path):
                write_copy(container, path, place, changed, removed)
                container.close()  # raises if the source has changed meanwhile
                with open_container(place) as copy:
                    check_reads_as(locate(copy, config=config, cut=spec.cut), trained)

        write_atomically(NewFile(target, kind, write), overwrite=False)
    notes = [_KEPT_NOTE] if changed and groups and not removed else []
    notes += _describe_values(tensors)
    return WrittenModel(target, len(changed), len(located.arrays), tuple(notes))


def _parse_origin(model: nn.Module) -> ModelSpec:
    """Return the spec of a converted model whose modules are still those of the spec."""
    spec = origin(model).spec
    check_modules(model, build(spec), _CHANGED_MODULES)
    return spec


def _describe_values(tensors: Mapping[str, Tensor]) -> list[str]:
    """Make a note of weights that are NaN or infinite."""
    found = [name for name, one in tensors.items() if not bool(one.isfinite().all())]
    if not found:
        return []
    shown = ", ".join(map(printable, found[:_SHOWN_NAMES]))
    more = ", ..." if len(found) > _SHOWN_NAMES else ""
    return [f"{len(found)} tensors have values that are NaN or infinite: {shown}{more}"]


def _check_same_model(trained: ModelSpec, source: ModelSpec) -> None:
    """Refuse a source with other layers, options, connections or another Keras than the model's.

    An option that only one of them has is passed over: another version of k2t may have written it.

    Raises:
        WeightMismatchError: names the first difference.
    """
    there, here = (
        f"Keras {one.generation.name} {one.generation.version}" for one in (trained, source)
    )
    _check_equal(there, here, "")
    for was, now in zip_longest(trained.root.walk(), source.root.walk()):
        place = (was or now).place
        _check_equal(_describe(was), _describe(now), place)
        for option in was.settings.keys() & now.settings.keys():
            one, other = (f"{option}={json.dumps(of.settings[option])}" for of in (was, now))
            _check_equal(one, other, place)
        if was.graph is not None and now.graph is not None:
            for name in ("calls", "inputs", "outputs"):
                one, other = (getattr(of.graph, name) for of in (was, now))
                if one != other:
                    _check_equal(f"{name} {one}", f"{name} {other}", place)


def _describe(layer: LayerSpec | None) -> str:
    return "nothing" if layer is None else f"{layer.name} ({layer.class_name})"


def _check_equal(trained: str, source: str, place: str) -> None:
    if trained != source:
        there, here = (printable(one, _SHOWN_VALUE) for one in (trained, source))
        raise WeightMismatchError(
            f"another model than that of OUT: {here} here, {there} there",
            "give the model that OUT was converted from",
            place=printable(place),
        )
