"""``inspect``: describe a file's layers as a table. Imports torch late."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.functional.activation_labels import activation_label
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.containers.live_model import ModelSource
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.rnn.cell_kind import can_share_module
from keras2torch_birnn.rnn.engines import static_engine
from keras2torch_birnn.rnn.unwrap_rnn import layers_of_stack, unwrap
from keras2torch_birnn.schema import CELL_GATES, CELLS, RECURRENT, cells_in_order
from keras2torch_birnn.schema.cells import CELL_LAYERS
from keras2torch_birnn.schema.conv_lstm import CONV_LSTMS
from keras2torch_birnn.schema.custom_cells import has_custom_cell, is_custom_cell
from keras2torch_birnn.schema.penalties import describe
from keras2torch_birnn.spec import LayerNames, LayerSpec, ModelSpec, cut_at
from keras2torch_birnn.torch_import import loading_torch

NOT_RUN = "see below"  # "why" of a layer with a problem, which the list below the table explains


@dataclass(frozen=True)
class LayerRow:
    """Row of the table of ``k2t inspect``. ``training``: regularizers and constraints, in words."""

    path: str
    class_name: str
    output_shape: Any
    merge_mode: str
    gates: str
    mask: str
    engine: str
    reason: str
    training: str = ""


@dataclass(frozen=True)
class Inspection:
    """Result of ``k2t inspect``: all layers, the notes, and everything that is not supported."""

    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    problems: tuple[K2TError, ...]


def inspect(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
) -> Inspection:
    """Read the structure of a file or live model; list what is unsupported, not raising it.

    from_layer, to_layer: as for ``convert``.

    Raises:
        InvalidModelFileError: the file is broken; UsageError: layers that bound no part.
    """
    load_plugins(plugins)
    cut = cut_at(from_layer, to_layer)
    spec, problems = read_with_problems(path, config=config, weights="shapes", cut=cut)
    masks: Mapping[str, str] = {}
    if not problems:
        with loading_torch():
            from keras2torch_birnn.conversion import build
            from keras2torch_birnn.plugins.checks import complete_shapes

        try:
            spec = complete_shapes(spec)
            masks = build(spec).meta["masks"]
        except K2TError as error:
            problems = [error]
    all_problems = gather(problems).problems if problems else ()
    rows = layer_rows(spec, all_problems, masks)
    return Inspection(rows, spec.notes, all_problems)


def layer_rows(
    spec: ModelSpec, problems: Sequence[K2TError], masks: Mapping[str, str]
) -> tuple[LayerRow, ...]:
    """Make the rows of ``k2t inspect``. A layer with a problem lacks some of its options."""
    places = sorted(problem.place for problem in problems)
    refused = {
        id(part)
        for layer in spec.root.walk()
        if layer.graph is None and _has_problem(layer.place, places)
        for part in layer.walk()
    }
    return tuple(
        LayerRow(layer.place, layer.class_name, layer.output_shape, "", "", "", "", NOT_RUN)
        if id(layer) in refused
        else _make_row(layer, masks.get(layer.place, ""))
        for layer in spec.root.walk()
        if layer is not spec.root and layer.class_name != "InputLayer"
    )


def _has_problem(place: str, others: Sequence[str]) -> bool:
    """Return whether one of the sorted places is this layer's, or that of a part of it."""
    for start in (place, f"{place}/"):
        at = bisect_left(others, start)
        if at < len(others) and (others[at] == place or others[at].startswith(f"{place}/")):
            return True
    return False


def _make_row(layer: LayerSpec, mask: str) -> LayerRow:
    engine, reason = _describe_engine(layer)
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
        training="; ".join(describe(layer)),
    )


def _describe_engine(layer: LayerSpec) -> tuple[str, str]:
    """Return the engine of a layer, and the reason."""
    layer = unwrap(layer)
    if layer.class_name in CELL_GATES:
        choice = static_engine(layer)
        return choice.engine, choice.reason
    if layer.class_name in CONV_LSTMS:
        return "loop", "torch has no convolutional LSTM"
    if layer.class_name in CELLS or is_custom_cell(layer):
        return "part", "of an RNN"
    if has_custom_cell(layer):
        return "loop", "custom cell"
    if layer.class_name == "RNN" and all(cell.class_name in CELL_LAYERS for cell in _cells(layer)):
        engines = [static_engine(cell) for cell in layers_of_stack(layer)]
        same = len({choice.engine for choice in engines}) == 1
        reason = " / ".join(choice.reason for choice in engines)
        return (engines[0].engine if same else "stack"), f"cells of a stack: {reason}"
    if layer.class_name == "Bidirectional" and len(layer.parts) == 2:
        halves = tuple(map(unwrap, layer.parts.values()))
        if all(half.class_name in RECURRENT for half in halves):
            forward, backward = (_describe_engine(half) for half in halves)
            if halves[0].class_name in CELL_GATES and can_share_module(*halves):
                fused = forward[0] == "fused"
                return forward[0], forward[1] + ", bidirectional" * fused
            if forward == backward:
                return "pair", forward[1]
            return "pair", f"halves differ: {forward[1]} / {backward[1]}"
    return "torch", ""


def _cells(layer: LayerSpec) -> tuple[LayerSpec, ...]:
    return cells_in_order(layer.parts["cell"]) if "cell" in layer.parts else ()
