"""Keras 1 (1.0 to 1.2.2) translated to Keras 2: configs, merging, and the layout of weights.

Sources: Keras 1.2.2 ``layers/*.py`` (``get_config``, ``build``), ``engine/topology.py``
(``load_weights_from_hdf5_group``, ``Merge``), ``models.py`` (``Sequential.get_config``,
``flattened_layers``: the order in which the layers of a Sequential that begins with a Merge are in
its file). Keras 2.0 and 2.1 still have both: Keras 2.0.8 ``legacy/layers.py``,
``legacy/models.py``. Everything specific to Keras 1 is in this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from keras2torch_birnn.errors import invalid
from keras2torch_birnn.limits import MAX_MERGE_DEPTH
from keras2torch_birnn.readers.config.generations import Pass, with_refused
from keras2torch_birnn.readers.input_files import objects_in
from keras2torch_birnn.readers.weights.slots import HasShape, Layout
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.shape_inference import expected_weights
from keras2torch_birnn.spec import Array, LayerSpec, Shape, Structure

# ---- Merge ---------------------------------------------------------------------------------------


_MERGED_BY: Mapping[str, str] = {
    "sum": "Add",
    "mul": "Multiply",
    "ave": "Average",
    "max": "Maximum",
    "concat": "Concatenate",
    "dot": "Dot",
    "cos": "Merge",
}
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "concat": {"concat_axis": "axis"},
    "dot": {"dot_axes": "axes"},
    "cos": {"mode": "mode", "dot_axes": "axes"},
}


def replace_merges(entry: Any, *, masks_stay: bool) -> Any:
    """Translate Merge layers to classes of later Keras.

    ``masks_stay``: no mask leaves a Sequential that a Merge joins, as in Keras 1.
    """
    if starts_with_merge(entry):
        return build_functional(entry, masks_stay=masks_stay)
    config = entry.get("config") if isinstance(entry, Mapping) else None
    if not isinstance(config, Mapping) or entry.get("class_name") != "Merge":
        return entry
    class_name, new = translate_merge(config)
    return {**entry, "class_name": class_name, "config": new}


def translate_merge(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return class and config of the later layer that replaces a Merge.

    A Merge with a custom function is a Lambda. Later Keras has no equivalent of the cosine.
    """
    mode, kept = config.get("mode"), {"name": config.get("name")}
    if config.get("mode_type", "raw") != "raw":
        return "Lambda", kept
    if not isinstance(mode, str) or mode not in _MERGED_BY:
        return f"Merge of Keras 1 with mode {mode!r}", kept
    names = _OPTIONS.get(mode, {})
    return _MERGED_BY[mode], {**kept, **{new: config.get(old) for old, new in names.items()}}


def starts_with_merge(entry: Any) -> bool:
    """Tell whether this is a Sequential that begins with a Merge of branches."""
    if not isinstance(entry, Mapping) or entry.get("class_name") != "Sequential":
        return False
    layers = entry.get("config")
    return isinstance(layers, list) and bool(layers) and _branches(layers[0]) is not None


def _branches(entry: Any) -> Sequence[Any] | None:
    """Return the branches of a Merge at the start of a Sequential, or None."""
    if not isinstance(entry, Mapping) or entry.get("class_name") != "Merge":
        return None
    config = entry.get("config")
    found = config.get("layers") if isinstance(config, Mapping) else None
    return found if isinstance(found, list) and found else None


def build_functional(entry: Mapping[str, Any], *, masks_stay: bool) -> dict[str, Any]:
    """Build the same model as a graph: one input per branch, layers in the file's order."""
    writer = _Writer(masks_stay=masks_stay)
    end = writer.add_chain(entry["config"], depth=0)
    config = {
        "layers": writer.layers,
        "input_layers": writer.inputs,
        "output_layers": [[*end, 0]],
    }
    return {**entry, "class_name": "Model", "config": config}


def _makes_mask(layers: Any) -> bool:
    """Tell whether a layer here, or inside one, can create a mask."""
    return any(
        one.get("class_name") == "Masking" or one.get("mask_zero") is True
        for one in objects_in(layers)
    )


# A call of a layer: its name, and which of its calls.
_Call = tuple[str, int]


class _Writer:
    """Collector of the layers of all branches.

    Keras writes a branch, model or layer in every place where it is used. Within one file its name
    tells that it is the same: what is equal here is one layer, and on the same tensors one call.
    """

    def __init__(self, *, masks_stay: bool) -> None:
        self.masks_stay = masks_stay
        self.layers: list[dict[str, Any]] = []
        self.inputs: list[list[Any]] = []
        self.names: dict[str, str] = {}
        self.nodes: dict[str, list[list[list[Any]]]] = {}
        self.models: dict[str, _Call] = {}

    def add_chain(self, layers: Any, *, depth: int) -> _Call:
        """Add the layers of a Sequential; returns the call of the last."""
        if depth > MAX_MERGE_DEPTH:
            raise invalid(f"branches of a Merge nested deeper than {MAX_MERGE_DEPTH}")
        branches = _branches(layers[0])
        known = self.names.get(_identify(layers[0]))
        if branches is not None:
            end = self._add(layers[0], [self._branch(one, depth=depth + 1) for one in branches])
        elif known is not None:  # a Sequential begins with the one output that its first layer has
            end = known, 0
        else:
            end = self._add(layers[0], [self._input(layers[0])])
        for layer in layers[1:]:
            end = self._add(layer, [end])
        return end

    def _branch(self, branch: Any, *, depth: int) -> _Call:
        inside = branch.get("config")
        if branch.get("class_name") == "Sequential":
            end = self.add_chain(inside, depth=depth)
            return self._without_mask(end) if self.masks_stay and _makes_mask(inside) else end
        if branch.get("class_name") != "Model":
            return self.add_chain([branch], depth=depth)
        key = _identify(branch)
        if key not in self.models:
            self.models[key] = self._add_model(inside)
        return self.models[key]

    def _add_model(self, inside: Any) -> _Call:
        self.layers += inside["layers"]
        self.inputs += inside["input_layers"]
        name, *numbers = inside["output_layers"][0]
        if numbers != [0, 0]:
            raise invalid("a branch of a Merge has no plain output")
        return str(name), 0

    def _add(self, layer: Any, sources: Sequence[_Call]) -> _Call:
        config, key = layer["config"], _identify(layer)
        if key not in self.names:
            # A Sequential inside loses its name in the file.
            name = f"sequential_in_merge_{len(self.layers)}"
            if isinstance(config, Mapping):
                name = str(config.get("name"))
                config = {key: value for key, value in config.items() if key != "layers"}
            self.names[key], self.nodes[key] = name, []
            self.layers.append(
                {**layer, "name": name, "config": config, "inbound_nodes": self.nodes[key]}
            )
        name, nodes = self.names[key], self.nodes[key]
        node = [[*source, 0] for source in sources]
        if node not in nodes:
            nodes.append(node)
        return name, nodes.index(node)

    def _without_mask(self, end: _Call) -> _Call:
        """Add a layer that drops the mask: none leaves a Sequential that a Merge of Keras 1 joins.

        Identity passes no mask in this generation (Keras 1 itself has no such layer).
        """
        own = {"name": f"{end[0]}_without_mask"}
        return self._add({"class_name": "Identity", "config": own}, [end])

    def _input(self, layer: Any) -> _Call:
        """Add an InputLayer for the first layer of a branch."""
        while isinstance(config := layer["config"], list):
            layer = config[0]
        name = f"{config['name']}_input" if "name" in config else "merge_input"
        own = {"name": name, "batch_input_shape": config["batch_input_shape"]}
        self.layers.append(
            {"class_name": "InputLayer", "name": name, "config": own, "inbound_nodes": []}
        )
        self.inputs.append([name, 0, 0])
        return name, 0


def _identify(layer: Any) -> str:
    """Return a text that is the same for two entries of one layer, and for no others."""
    return json.dumps(layer, sort_keys=True)


# ---- configs -------------------------------------------------------------------------------------


_CLASSES: Mapping[str, str] = {
    "AtrousConvolution1D": "Conv1D",
    "AtrousConvolution2D": "Conv2D",
    "Convolution1D": "Conv1D",
    "Convolution2D": "Conv2D",
    "Convolution3D": "Conv3D",
    "SeparableConvolution2D": "SeparableConv2D",
    "TimeDistributedDense": "Dense",  # a Dense works on every step anyway
}

_SIZED = ("Dense", "TimeDistributedDense", "LSTM", "GRU", "SimpleRNN")
_WINDOWS = ("Convolution1D", "AtrousConvolution1D")
_PLANES = ("Convolution2D", "AtrousConvolution2D", "SeparableConvolution2D")
# Classes that later Keras has, too, but whose options and weights are not read here.
_REFUSED = ("Deconvolution2D", "ConvLSTM2D")
# Keys of a window's sizes.
_SIDES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_PLANES, ("nb_row", "nb_col")),
    "Convolution3D": ("kernel_dim1", "kernel_dim2", "kernel_dim3"),
}
# 2D and 3D layers whose configs lack the order of axes.
_SILENT = tuple(f"{name}{n}D" for n in (2, 3) for name in ("ZeroPadding", "Cropping", "UpSampling"))
_POOLS = ("MaxPooling1D", "AveragePooling1D")

_RENAMED: Mapping[str, str] = {
    "inner_activation": "recurrent_activation",
    "dropout_W": "dropout",
    "dropout_U": "recurrent_dropout",
    "consume_less": "implementation",
    "bias": "use_bias",
    "p": "rate",
    "sigma": "stddev",
    "border_mode": "padding",
    "nb_filter": "filters",
    "filter_length": "kernel_size",
    "subsample_length": "strides",
    "subsample": "strides",
    "atrous_rate": "dilation_rate",
    "pool_length": "pool_size",
    "dim_ordering": "data_format",
}
_RENAMED_IN: Mapping[str, Mapping[str, str]] = {
    **{name: {"output_dim": "units"} for name in _SIZED},
    **{name: {"stride": "strides"} for name in _POOLS},
    "UpSampling1D": {"length": "size"},
}
_VALUES: Mapping[str, Mapping[Any, Any]] = {
    "implementation": {"cpu": 0, "mem": 1, "gpu": 2},
    "data_format": {"tf": "channels_last"},
}

# Keys that say how training starts, or repeat the input's shape.
_NO_EFFECT = frozenset(("init", "inner_init", "forget_bias_init"))
_NO_EFFECT_IN: Mapping[str, frozenset[str]] = {
    **{name: frozenset(("input_dim",)) for name in (*_SIZED, *_WINDOWS)},
    "Embedding": frozenset(("dropout",)),
}
# What only one value of is known elsewhere: (class, key) -> that value, what the others do.
_ONLY: Mapping[tuple[str, str], tuple[Any, str]] = {
    ("BatchNormalization", "mode"): (0, "normalizes without the moving statistics, always"),
}


def fill_orderings(model: Any) -> Any:
    """Fill in ``dim_ordering`` of 2D and 3D layers that lack it, where all other layers say "tf".

    Keras 1 writes ``dim_ordering`` for convolutions and pools only. If no layer has it, nothing is
    filled in, and ``refuse_options`` reports it, as it does "th".
    """
    return _fill_ordering(model) if _orderings(model) == {"tf"} else model


def list_open_questions(model: Any) -> list[str]:
    """List what the file leaves open and how it is read: one line each."""
    silent = [*dict.fromkeys(_classes(model, _SILENT, without="dim_ordering"))]
    if not silent or _orderings(model) != {"tf"}:
        return []
    return [
        f"Keras 1 does not save dim_ordering of {', '.join(map(repr, silent))}: taken to be 'tf', "
        "as all other layers say"
    ]


def _classes(model: Any, classes: Sequence[str], *, without: str) -> Iterator[str]:
    """Yield the class of every layer of these classes whose config lacks a key."""
    for entry in objects_in(model):
        config = entry.get("config")
        lacks = isinstance(config, Mapping) and without not in config
        if lacks and entry.get("class_name") in classes:
            yield str(entry["class_name"])


def _orderings(model: Any) -> set[str]:
    """Collect every ``dim_ordering`` in a nested config."""
    found = (config.get("dim_ordering") for config in objects_in(model))
    return {own for own in found if isinstance(own, str)}


def _fill_ordering(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_fill_ordering, value))
    if not isinstance(value, Mapping):
        return value
    new = {key: _fill_ordering(part) for key, part in value.items()}
    config = new.get("config")
    if new.get("class_name") in _SILENT and isinstance(config, Mapping):
        new["config"] = {"dim_ordering": "tf", **config}
    return new


def modernize(entry: Any) -> Any:
    """Translate options and class to Keras 2; unknown classes and keys stay as they are."""
    config = entry.get("config") if isinstance(entry, Mapping) else None
    class_name = entry.get("class_name") if isinstance(entry, Mapping) else None
    if not isinstance(config, Mapping) or not isinstance(class_name, str):
        return entry
    if class_name in _REFUSED:
        return {**entry, "class_name": f"{class_name} of Keras 1"}
    if class_name in _SIDES:
        sides = _SIDES[class_name]
        sizes = [config.get(side) for side in sides]
        config = {k: v for k, v in config.items() if k not in sides}
        config["kernel_size"] = sizes
    if class_name == "ZeroPadding2D" and "padding" in config:
        config = {**config, "padding": _around(config["padding"])}
    names = {**_RENAMED, **_RENAMED_IN.get(class_name, {})}
    checked = {key for owner, key in _ONLY if owner == class_name}  # by refuse_options
    ignored = _NO_EFFECT | _NO_EFFECT_IN.get(class_name, frozenset()) | checked
    new = {
        names.get(str(key), str(key)): _value(names.get(str(key), str(key)), value)
        for key, value in config.items()
        if key not in ignored
    }
    return {**entry, "class_name": _CLASSES.get(class_name, class_name), "config": new}


def _value(key: str, value: Any) -> Any:
    if key == "padding" and isinstance(value, Mapping):  # of one axis
        return [value.get("left_pad", 0), value.get("right_pad", 0)]
    known = _VALUES.get(key, {})
    return known.get(value, value) if isinstance(value, str) else value


def _around(padding: Any) -> Any:
    """Convert two numbers, [top, bottom, left, right] or these by name to rows and columns."""
    if isinstance(padding, Mapping):
        padding = [padding.get(f"{side}_pad", 0) for side in ("top", "bottom", "left", "right")]
    if isinstance(padding, list) and len(padding) == 4:
        return [padding[:2], padding[2:]]
    return padding


def refuse_options(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse options that later Keras has no equivalent of, or that are left open."""
    return with_refused(entry, _list_unsupported_options(entry))


def _list_unsupported_options(entry: Mapping[str, Any]) -> list[str]:
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return []
    if entry.get("class_name") in _SILENT and "dim_ordering" not in config:
        return [
            f"{entry['class_name']} does not say where the channels are: Keras 1 does not save "
            "dim_ordering of this class, and the model's other layers do not all say 'tf'"
        ]
    if config.get("dim_ordering") == "th":
        return [
            f"{entry.get('class_name')} option dim_ordering='th' (channels first) of Keras 1 is "
            "not supported: build the model with 'tf', give it these weights, and save it"
        ]
    return [
        f"{class_name} option {key}={config[key]!r} is not supported: it {effect}"
        for (class_name, key), (allowed, effect) in _ONLY.items()
        if entry.get("class_name") == class_name and config.get(key, allowed) != allowed
    ]


PASSES: Mapping[str, tuple[Pass, ...]] = {
    "keras1": (refuse_options, partial(replace_merges, masks_stay=True), modernize),
    "keras2": (partial(replace_merges, masks_stay=False),),
}


# ---- weights -----------------------------------------------------------------------------------

# With consume_less "cpu" or "mem" every gate has arrays of its own, in this order.
_GATES: Mapping[str, str] = {"LSTM": "icfo", "GRU": "zrh"}
# The order of the gates within one array, everywhere else.
_FUSED: Mapping[str, str] = {"LSTM": "ifco", "GRU": "zrh"}
_RECURRENT = ("kernel", "recurrent_kernel", "bias")

# Our name -> Keras 1's, without the layer's. ``running_std`` is a variance.
_LABELS: Mapping[str, str] = {
    "kernel": "W",
    "embeddings": "W",
    "recurrent_kernel": "U",
    "bias": "b",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_std",
    "alpha": "alphas",
}
# Labels of a plugin's layer that declares none, as a pattern.
_USUAL_LABELS = (
    "[WUb](?:_[icfozrh])?|[Wb]_carry|gamma|beta|running_mean|running_std|alphas|"
    "depthwise_kernel|pointwise_kernel"
)


def _label(name: str) -> str:
    weight, _, gate = name.partition("@")
    label = _LABELS.get(weight, weight)
    return f"{label}_{gate}" if gate else label


def _split(entry: str, labels: Collection[str]) -> tuple[tuple[str, ...], str]:
    """Split ``a/forward_lstm_1_W_i:0`` into (a, forward_lstm_1) and W_i."""
    *segments, last = entry.split("/")
    known = "|".join(map(re.escape, sorted(labels))) or _USUAL_LABELS
    match = re.fullmatch(rf"(?P<layer>.*?)_(?P<label>{known})(?:_\d+)?(?::\d+)?", last)
    if match is None:  # of a plugin's layer, with any name
        return tuple(segments), re.sub(r":\d+$", "", last)
    return (*segments, match["layer"]), match["label"]


def _per_gate(layer: LayerSpec) -> bool:
    return layer.class_name in _GATES and layer.config.get("implementation") != 2


def _shapes_in_file(layer: LayerSpec, stored: Mapping[str, HasShape]) -> Mapping[str, Shape]:
    expected = expected_weights(layer)
    if not expected:  # its input does not fit, which is reported elsewhere
        return expected
    if layer.class_name == "Conv1D" and "kernel" in expected:
        length, channels, filters = expected["kernel"]
        return {**expected, "kernel": (length, 1, channels, filters)}
    if _per_gate(layer):
        return {
            f"{name}@{gate}": (*expected[name][:-1], layer.config["units"])
            for gate in _GATES[layer.class_name]
            for name in _RECURRENT
        }
    return expected


def _infer_shared_axes(layer: LayerSpec, stored: Mapping[str, HasShape]) -> LayerSpec:
    """Infer from the weights what Keras 1 does not write: ``shared_axes`` of a PReLU."""
    known = layer.class_name in SCHEMA and "shared_axes" in SCHEMA[layer.class_name].options
    given: Structure = layer.input_shape
    if not known or not stored or given is None:
        return layer
    one = next(iter(stored.values()))
    sizes = zip(one.shape, given[1:], strict=False)
    shared = tuple(i for i, (own, size) in enumerate(sizes, 1) if own == 1 != size)
    return replace(layer, config={**layer.config, "shared_axes": shared or None})


def _join(layer: LayerSpec, weights: Mapping[str, Array]) -> dict[str, Any]:
    if layer.class_name == "Conv1D":
        return {**weights, "kernel": weights["kernel"][:, 0]}
    if not _per_gate(layer):
        return dict(weights)
    order = _FUSED[layer.class_name]
    return {
        name: np.concatenate([weights[f"{name}@{gate}"] for gate in order], axis=-1)
        for name in _RECURRENT
    }


LAYOUTS: Mapping[str, Layout] = {
    "keras1": Layout(_shapes_in_file, _label, _split, _infer_shared_axes, _join, own_names=True)
}
