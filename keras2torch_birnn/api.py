"""``convert`` and ``inspect``: from a path to a model, or to a table. torch is imported late."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras2torch_birnn.errors import K2TError, gather, in_file
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.steps import PathLike, infer_shapes, parse, read_weights
from keras2torch_birnn.rnn.engine_choice import activation_label, alike, choose
from keras2torch_birnn.rnn.unwrap_rnn import layers_of_stack, plain
from keras2torch_birnn.saving.atomic import check_replacing
from keras2torch_birnn.saving.out_files import OUT
from keras2torch_birnn.schema import CELL_GATES, CELLS, RECURRENT, cells_in_order
from keras2torch_birnn.schema.cells import CELL_LAYERS
from keras2torch_birnn.schema.recurrent import CONV_LSTMS
from keras2torch_birnn.spec import LayerSpec, ModelSpec
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

    path: ``.h5``, ``.hdf5`` or ``.keras``, told apart by content. config: the text of
    ``model.to_json()``, for a file that holds only weights. dtype: "float32" or "float64".
    masked_steps: "zeros" or "previous", where a note says that the file's version leaves it open.
    plugins: shipped ones by name, your own by path, see ``plugins.load_plugins``.

    Raises:
        InvalidModelFileError, WeightMismatchError: the file is broken; UnsupportedLayerError,
        UnsupportedOptionError: with everything that cannot be converted in one list.
    """
    load_plugins(plugins)
    model, _ = convert_with_spec(path, config=config, dtype=dtype, masked_steps=masked_steps)
    return model


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


NOT_RUN = "see below"  # why a layer with a problem runs as nothing


@dataclass(frozen=True)
class LayerRow:
    """One line of ``k2t inspect``."""

    path: str
    class_name: str
    output_shape: Any
    merge_mode: str
    gates: str
    mask: str
    engine: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """What ``k2t inspect`` shows: every layer, the notes, and all that is not supported."""

    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    problems: tuple[K2TError, ...]


def inspect(
    path: PathLike, *, config: PathLike | None = None, plugins: Iterable[PluginName] = ()
) -> Inspection:
    """Read a file's structure; what is unsupported is listed, not raised.

    Raises:
        InvalidModelFileError: the file is broken.
    """
    load_plugins(plugins)
    spec, problems = read_with_problems(path, config=config, weights="shapes")
    masks: Mapping[str, str] = {}
    if not problems:
        with loading_torch():
            from keras2torch_birnn.conversion import build
            from keras2torch_birnn.plugins.checks import completed

        try:
            spec = completed(spec)
            masks = build(spec).meta["masks"]
        except K2TError as error:
            problems = [error]
    all_problems = gather(problems).problems if problems else ()
    rows = layer_rows(spec, all_problems, masks)
    return Inspection(rows, spec.notes, all_problems)


def layer_rows(
    spec: ModelSpec, problems: Sequence[K2TError], masks: Mapping[str, str]
) -> tuple[LayerRow, ...]:
    """The lines of ``k2t inspect``. A layer with a problem has not all of its options."""
    places = sorted(problem.place for problem in problems)
    refused = {
        id(part)
        for layer in spec.root.walk()
        if layer.graph is None and _at_or_in(layer.place, places)
        for part in layer.walk()
    }
    return tuple(
        LayerRow(layer.place, layer.class_name, layer.output_shape, "", "", "", "", NOT_RUN)
        if id(layer) in refused
        else _row(layer, masks.get(layer.place, ""))
        for layer in spec.root.walk()
        if layer is not spec.root and layer.class_name != "InputLayer"
    )


def _at_or_in(place: str, others: Sequence[str]) -> bool:
    """Whether one of the sorted places is this one, or a part of the layer there."""
    for start in (place, f"{place}/"):
        at = bisect_left(others, start)
        if at < len(others) and (others[at] == place or others[at].startswith(f"{place}/")):
            return True
    return False


def _row(layer: LayerSpec, mask: str) -> LayerRow:
    engine, reason = _how(layer)
    config = layer.config
    names = ("activation", "recurrent_activation")
    return LayerRow(
        path=layer.place,
        class_name=layer.class_name,
        output_shape=layer.output_shape,
        merge_mode=str(config["merge_mode"]) if "merge_mode" in config else "",
        gates=", ".join(activation_label(config[name]) for name in names if name in config),
        mask=mask,
        engine=engine,
        reason=reason,
    )


def _how(layer: LayerSpec) -> tuple[str, str]:
    """Engine and reason: a kernel of torch, or the loop."""
    layer = plain(layer)
    if layer.class_name in CELL_GATES:
        choice = choose(layer)
        return choice.engine, choice.reason
    if layer.class_name in CONV_LSTMS:
        return "loop", "torch has no convolutional LSTM"
    if layer.class_name in CELLS:
        return "part", "of an RNN"
    if layer.class_name == "RNN" and all(cell.class_name in CELL_LAYERS for cell in _cells(layer)):
        engines = [choose(cell) for cell in layers_of_stack(layer)]
        same = len({choice.engine for choice in engines}) == 1
        reason = " / ".join(choice.reason for choice in engines)
        return (engines[0].engine if same else "stack"), f"cells of a stack: {reason}"
    if layer.class_name == "Bidirectional" and len(layer.parts) == 2:
        halves = tuple(map(plain, layer.parts.values()))
        if all(half.class_name in RECURRENT for half in halves):
            forward, backward = (_how(half) for half in halves)
            if halves[0].class_name in CELL_GATES and alike(*halves):
                fused = forward[0] == "fused"
                return forward[0], forward[1] + ", bidirectional" * fused
            if forward == backward:
                return "pair", forward[1]
            return "pair", f"halves differ: {forward[1]} / {backward[1]}"
    return "torch", ""


def _cells(layer: LayerSpec) -> tuple[LayerSpec, ...]:
    return cells_in_order(layer.parts["cell"]) if "cell" in layer.parts else ()
