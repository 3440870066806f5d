"""``inspect``: describe a file's layers as a table. Imports torch late."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from keras2torch_birnn.comparison.html import Table, Verdict, format_cell, show_in_cell
from keras2torch_birnn.errors import K2TError, UsageError, gather, printable
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_with_problems
from keras2torch_birnn.readers.containers.container import ModelSource, source_of
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.rnn.cell_kind import can_share_module, layers_of_stack, unwrap
from keras2torch_birnn.rnn.engines import static_engine
from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint
from keras2torch_birnn.schema import CELL_GATES, CELLS, CONV_LSTMS, RECURRENT, cells_in_order
from keras2torch_birnn.schema.core import activation_label
from keras2torch_birnn.schema.custom_cells import has_custom_cell, is_custom_cell
from keras2torch_birnn.schema.recurrent import CELL_LAYERS
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.schema.training_rules import describe
from keras2torch_birnn.spec import Cut, LayerNames, LayerSpec, ModelSpec, Shapes, cut_at
from keras2torch_birnn.torch_import import loading_torch

_HEAD = ("layer", "class", "shape", "merge", "activ.", "mask", "params", "engine")
NOT_RUN = "see below"  # "why" of a layer with a problem, which the list below the table explains


@dataclass(frozen=True)
class LayerRow:
    """Row of the table of ``k2t inspect``.

    parameters: as Keras counts them, with those of inner layers; None where they were not read.
    half_of: the path of the Bidirectional layer that it is a half of.
    training: regularizers and constraints, in words.
    """

    path: str
    class_name: str
    output_shape: Shapes
    merge_mode: str
    gates: str
    mask: str
    engine: str
    reason: str
    parameters: int | None = None
    half_of: str = ""
    training: str = ""


@dataclass(frozen=True)
class Inspection:
    """Result of ``k2t inspect``: all layers, the notes, and everything that is not supported.

    layers, parameters: of the whole model, as Keras counts them; None if something is unsupported.
    """

    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...]
    problems: tuple[K2TError, ...]
    layers: int | None = None
    parameters: int | None = None

    def table(self, *, every_half: bool = False) -> tuple[Table, tuple[str, ...]]:
        """Return the table of the layers, and what its numbers in brackets stand for.

        every_half: also those of a Bidirectional layer whose two halves are alike.
        """
        shown = self.rows if every_half else _without_equal_halves(self.rows)
        reasons = dict.fromkeys(row.reason for row in shown if row.engine and row.reason)
        numbers = {reason: f" [{at}]" for at, reason in enumerate(reasons, 1)}
        cells = tuple(_texts(row, numbers.get(row.reason, "")) for row in shown)
        footnotes = (f"{number.strip()} {printable(why)}" for why, number in numbers.items())
        return Table("Layers", _HEAD, cells, (_HEAD.index("params"),)), tuple(footnotes)

    def count(self) -> str:
        """Return how many layers and parameters the model has; empty if that is not known."""
        if self.layers is None or self.parameters is None:
            return ""
        noun = "layer" if self.layers == 1 else "layers"
        return f"{self.layers} {noun}, {self.parameters:,} parameters, as Keras counts"

    def _repr_html_(self) -> str:
        """Show what is not supported and the layers in a notebook."""
        lines = [line for problem in self.problems for line in problem.lines()]
        verdict = Verdict("ok", "SUPPORTED", self.count())
        if lines:
            verdict = Verdict("wrong", "REFUSED", "; ".join(lines))
        return show_in_cell(verdict, (self.table()[0],))


def _texts(row: LayerRow, number: str) -> tuple[str, ...]:
    """Return the texts of a row; number: that of the reason of its engine."""
    half = "  " + row.path.removeprefix(row.half_of).lstrip("/") if row.half_of else ""
    return (
        printable(half or row.path),
        printable(row.class_name),
        format_cell(row.output_shape),
        row.merge_mode,
        printable(row.gates),
        row.mask.removesuffix(" on").removesuffix(" it"),
        "" if row.parameters is None else f"{row.parameters:,}",
        f"{row.engine}{number}" if row.engine else "unsupported",
    )


def _without_equal_halves(rows: Sequence[LayerRow]) -> list[LayerRow]:
    """Leave out the halves of a Bidirectional layer, which shows their activations, if equal."""
    halves: dict[str, list[LayerRow]] = {}
    for row in rows:
        if row.half_of:
            halves.setdefault(row.half_of, []).append(row)
    equal = {
        path: pair[0]
        for path, pair in halves.items()
        if len({(h.class_name, h.gates, h.engine, h.reason, h.parameters) for h in pair}) == 1
    }
    return [
        replace(row, gates=equal[row.path].gates) if row.path in equal else row
        for row in rows
        if row.half_of not in equal
    ]


def inspect(
    path: ModelSource,
    *,
    config: PathLike | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
) -> Inspection:
    """Read the structure of a file or live model; list what is unsupported, not raising it.

    Args:
        path: As for ``convert``.
        config: As for ``convert``.
        from_layer: As for ``convert``.
        to_layer: As for ``convert``.
        plugins: Shipped ones by name, your own by path; see docs/plugins.md.

    Returns:
        A row for each layer (``rows``) and all ``problems``; a notebook shows them as a table.

    Raises:
        InvalidModelFileError: The file is broken.
        UsageError: Layers that bound no part of the model.
    """
    load_plugins(plugins)
    cut = cut_at(from_layer, to_layer)
    spec, problems = _read(path, config, cut)
    masks: Mapping[str, str] = {}
    if not problems:
        try:
            spec, masks = _find_masks(spec)
        except K2TError as error:
            problems = [error]
    all_problems = gather(problems).problems if problems else ()
    rows = layer_rows(spec, all_problems, masks)
    if all_problems:
        return Inspection(rows, spec.notes, all_problems)
    count = count_parameters(spec.root)
    return Inspection(rows, spec.notes, (), len(layers_of(spec)), count)


def _find_masks(spec: ModelSpec) -> tuple[ModelSpec, Mapping[str, str]]:
    """Return the spec with all shapes, and what each layer does with a mask.

    Raises:
        K2TError: the model cannot be built.
    """
    with loading_torch():
        from keras2torch_birnn.layers.building import build
        from keras2torch_birnn.plugins.checks import complete_shapes

    spec = complete_shapes(spec)
    return spec, build(spec).meta["masks"]


def _read(path: ModelSource, config: PathLike | None, cut: Cut) -> tuple[ModelSpec, list[K2TError]]:
    """Read the structure of a Keras model, or of what k2t wrote.

    Raises:
        UsageError: an option that is for a Keras file, with one that is converted.
    """
    file = source_of(path).path
    if file is not None and file.is_file() and is_checkpoint(file):
        if config is not None or cut:
            raise UsageError(
                "it is converted already", "leave out --config, --from and --to", file=str(path)
            )
        with loading_torch():
            from keras2torch_birnn.golden import origin
            from keras2torch_birnn.saving.checkpoint import load

        return origin(load(file)).spec, []
    return read_with_problems(path, config=config, values=False, cut=cut)


def layer_rows(
    spec: ModelSpec, problems: Sequence[K2TError], masks: Mapping[str, str]
) -> tuple[LayerRow, ...]:
    """Make the rows of ``k2t inspect``. A layer with a problem lacks some of its options."""
    refused = {id(part) for one in _refused(spec.root, problems) for part in one.walk()}
    halves = {
        id(half): layer.place
        for layer in spec.root.walk()
        if layer.class_name == "Bidirectional"
        for half in layer.parts.values()
    }
    return tuple(
        replace(
            LayerRow(layer.place, layer.class_name, layer.output_shape, "", "", "", "", NOT_RUN)
            if id(layer) in refused
            else _make_row(layer, masks.get(layer.place, "")),
            parameters=None
            if any(id(part) in refused for part in layer.walk())
            else count_parameters(layer),
            half_of=halves.get(id(layer), ""),
        )
        for layer in spec.root.walk()
        if layer is not spec.root and layer.class_name != "InputLayer"
    )


def _refused(root: LayerSpec, problems: Sequence[K2TError]) -> list[LayerSpec]:
    """Return the layers, not models, that have a problem, or a part with one."""
    parts = (problem.place.split("/") for problem in problems)
    places = {"/".join(some[:end]) for some in parts for end in range(1, len(some) + 1)}
    return [layer for layer in root.walk() if layer.graph is None and layer.place in places]


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


def layers_of(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """Return the layers as Keras counts them: those of the model itself, without its inputs."""
    return tuple(layer for layer in spec.graph.layers if layer.class_name != "InputLayer")


def count_parameters(layer: LayerSpec) -> int | None:
    """Count the values of all weights of a layer and of its parts, as ``count_params`` does.

    Where no weights were read, by the sizes that the configuration implies. None: unknown ones.
    """
    sizes: list[int] = []
    for part in layer.walk():
        shapes = [weight.shape for weight in part.weights.values()]
        for shape in shapes or expected_weights(part).values():
            known = [size for size in shape if size is not None]
            if len(known) < len(shape):
                return None
            sizes.append(math.prod(known))
    return sum(sizes)
