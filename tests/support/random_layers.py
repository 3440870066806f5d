"""Random layers with random options that fit a tensor: the steps of ``random_graphs``.

A layer is a pair (class name, keywords) as in ``fixtures/cases/table.py``, in tf.keras' words.
Output shapes come from the package's schema; Keras contradicts where they are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from hypothesis import strategies as st

from keras2torch_birnn.readers.config.cut import STOPS
from keras2torch_birnn.schema import CLASS_NAMES, REQUIRED, SCHEMA, ShapeError, merged_output
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

Layer: TypeAlias = tuple[str, dict[str, Any]]
Shape: TypeAlias = tuple[int, ...]
Value = TypeVar("Value")

# The Keras that are alive, and multi-backend Keras 2, which only ``graph_specs`` asks.
NEW = ("keras", "tf_keras")
PACKAGES = (*NEW, "keras2")
CELLS = ("LSTM", "GRU", "SimpleRNN")
VOCABULARY = 17
UNITS = (2, 3, 5)
# Without jumps: a jump would turn rounding into a difference.
SMOOTH = "tanh relu sigmoid linear softsign elu selu softplus gelu swish hard_sigmoid".split()
SMOOTH_3 = ["leaky_relu", "mish", "silu", "log_sigmoid", "hard_silu"]
GATES = "sigmoid hard_sigmoid tanh softsign".split()


@dataclass(frozen=True)
class Tensor:
    """A tensor of a graph that is being drawn.

    ``shape`` has the sizes the model will run with, without the batch; ``free``: the graph does
    not declare the first of them. ``masked``: a mask may be on it. ``whole``: it holds ids.
    """

    name: str
    shape: Shape
    free: bool = False
    masked: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Source:
    """Source of choices: Hypothesis, for the Keras called ``package``."""

    draw: Callable[[Any], Any]
    package: str

    @property
    def keras3(self) -> bool:
        """Tell whether the graph is for Keras 3."""
        return self.package == "keras"

    def pick(self, options: Sequence[Value]) -> Value:
        """Choose one of the options; the first is the simplest."""
        picked: Value = self.draw(st.sampled_from(options))
        return picked

    def order(self, items: Sequence[Value]) -> list[Value]:
        """Put the items into any order."""
        ordered: list[Value] = self.draw(st.permutations(items))
        return ordered

    def often(self) -> bool:
        """True or False."""
        return self.pick((False, True))

    def seldom(self) -> bool:
        """True in one of five."""
        return self.pick((False, False, False, False, True))

    def activation(self) -> str:
        """An activation without jumps."""
        return self.pick((*SMOOTH, *SMOOTH_3) if self.keras3 else SMOOTH)

    def some(self, **options: Any) -> dict[str, Any]:
        """A part of the options; the others keep Keras' defaults."""
        return {key: value for key, value in options.items() if self.often()}


@dataclass(frozen=True)
class Recipe:
    """Layers of one class with one input and one output."""

    fits: Callable[[Tensor], bool]
    options: Callable[[Source, Tensor], dict[str, Any]]
    packages: Sequence[str]


def output_shape(layer: Layer, shape: Shape) -> Shape:
    """Infer the output shape by the schema, with actual sizes; ShapeError if it does not fit."""
    found: Shape = _output(layer, (None, *shape))[1:]
    return found


def _output(layer: Layer, shape: Any) -> Any:
    name, keywords = CLASS_NAMES[layer[0]], layer[1]
    if name == "Bidirectional":
        half = _output(keywords["layer"], shape)
        back = _output(keywords.get("backward_layer", keywords["layer"]), shape)
        return merged_output(keywords.get("merge_mode", "concat"), half, back)
    if name == "TimeDistributed":
        inner = _output(keywords["layer"], (None, *shape[2:]))
        return (None, shape[1], *inner[1:])
    if name == "Sequential":
        for inner in keywords["layers"]:
            shape = _output(inner, shape)
        return shape
    schema = SCHEMA[name]
    config: dict[str, Any] = {}
    for key, option in {**schema.options, **schema.semantics}.items():
        value = keywords.get(key, option.default)
        unsaid = value is REQUIRED or (value is None and key not in keywords)
        parsed = unsaid or key.endswith("activation")
        config[key] = value if parsed else option.parse(value)
    schema.weights(config, shape)
    return schema.output(config, shape)


# ---- what a tensor has to be ---------------------------------------------------------------------


def rank(*ranks: int, fixed: bool = False, plain: bool = False) -> Callable[[Tensor], bool]:
    """Reals of so many dimensions; ``fixed``: all declared; ``plain``: without a mask."""
    return lambda x: (
        len(x.shape) in ranks
        and not x.whole
        and not (fixed and x.free)
        and not (plain and x.masked)
    )


ANY, STEPS, IMAGE = rank(1, 2, 3), rank(2), rank(3)


def nothing(source: Source, x: Tensor) -> dict[str, Any]:
    """No options."""
    return {}


def _rate(source: Source, x: Tensor) -> dict[str, Any]:
    return {"rate": 0.3}


# ---- recurrent -----------------------------------------------------------------------------------


def cell(
    source: Source,
    x: Tensor,
    units: int | None = None,
    *,
    name: str = "",
    inside: bool = False,
    **fixed: Any,
) -> Layer:
    """LSTM, GRU or SimpleRNN; ``inside`` a Bidirectional Keras 3 takes no ``go_backwards``."""
    name = name or source.pick(CELLS)
    options = source.some(
        activation=source.activation(),
        use_bias=source.often(),
        dropout=0.2,
        recurrent_dropout=0.2,
        go_backwards=source.often(),
        unroll=source.seldom() and not x.free,
        return_sequences=True,
    )
    if inside and source.keras3:
        options.pop("go_backwards", None)
    if name != "SimpleRNN":
        options |= source.some(recurrent_activation=source.pick(GATES))
        options |= {} if source.keras3 else source.some(implementation=source.pick((1, 2)))
    if name == "GRU":
        options |= source.some(reset_after=source.often())
    if name == "LSTM":
        options |= source.some(unit_forget_bias=source.often())
    return name, {"units": units or source.pick(UNITS), **options, **fixed}


def bidirectional(source: Source, x: Tensor, units: int | None = None, **fixed: Any) -> Layer:
    """Bidirectional with any merge mode, sometimes with a backward layer of its own."""
    forward = cell(source, x, units, inside=True, **fixed)
    options: dict[str, Any] = source.some(merge_mode=source.pick((*MERGE_MODES, None)))
    if source.seldom():
        turned = not forward[1].get("go_backwards", False)
        own = source.some(activation=source.activation(), use_bias=source.often())
        options["backward_layer"] = forward[0], {**forward[1], **own, "go_backwards": turned}
    return "Bidirectional", {"layer": forward, **options}


def _unmerged(layer: Layer) -> bool:
    return layer[1].get("merge_mode", "") is None


def _both(source: Source, x: Tensor) -> dict[str, Any]:
    layer = bidirectional(source, x)
    if _unmerged(layer):
        layer[1]["merge_mode"] = "concat"
    return layer[1]


# ---- windows -------------------------------------------------------------------------------------


def _axes(count: int, value: Sequence[int]) -> Any:
    return value[0] if count == 1 else tuple(value)


def _window(
    source: Source, x: Tensor, *, causal: bool = False, dilated: bool = True
) -> dict[str, Any]:
    """Kernel, stride or dilation, padding: never both of them, as in TensorFlow."""
    count = len(x.shape) - 1
    kernel = [source.pick((1, 2, 3)) for _ in range(count)]
    options: dict[str, Any] = {"kernel_size": _axes(count, kernel)}
    paddings = ["valid"] if all(k <= s for k, s in zip(kernel, x.shape, strict=False)) else []
    paddings += ["same", *(["causal"] if causal and count == 1 else [])]
    options["padding"] = source.pick(paddings)
    step = source.pick((1, 2))
    if step > 1 and source.often():
        options["strides"] = _axes(count, [step] * count)
    elif step > 1 and dilated and options["padding"] != "valid":
        options["dilation_rate"] = _axes(count, [step] * count)
    return {**options, **source.some(activation=source.activation(), use_bias=source.often())}


def _conv(source: Source, x: Tensor) -> dict[str, Any]:
    filters = source.pick((3, 5, 2 * x.shape[-1]))
    options = {"filters": filters, **_window(source, x, causal=True)}
    if filters == 2 * x.shape[-1] and source.often():
        options["groups"] = x.shape[-1]
    return options


def _depthwise(source: Source, x: Tensor) -> dict[str, Any]:
    return {**_window(source, x, dilated=False), **source.some(depth_multiplier=2)}


def _separable(source: Source, x: Tensor) -> dict[str, Any]:
    window = _window(source, x, causal=not source.keras3, dilated=False)
    return {"filters": source.pick((3, 5)), **window, **source.some(depth_multiplier=2)}


def _transposed(source: Source, x: Tensor) -> dict[str, Any]:
    return {"filters": source.pick((3, 5)), **_window(source, x, dilated=False)}


def _pool(source: Source, x: Tensor) -> dict[str, Any]:
    count = len(x.shape) - 1
    sizes = [source.pick((2, 3)) for _ in range(count)]
    fits = all(k <= s for k, s in zip(sizes, x.shape, strict=False))
    options = {"pool_size": _axes(count, sizes), "padding": "valid" if fits else "same"}
    if source.often():
        options["padding"] = "same"
    return {**options, **source.some(strides=_axes(count, [source.pick((1, 2))] * count))}


def _around(source: Source, count: int) -> Any:
    """Sizes before and after, per axis."""
    pairs = [(source.pick((0, 1)), source.pick((1, 0, 2))) for _ in range(count)]
    return pairs[0] if count == 1 else tuple(pairs)


def _padded(source: Source, x: Tensor) -> dict[str, Any]:
    return {"padding": _around(source, len(x.shape) - 1)}


def _cropped(source: Source, x: Tensor) -> dict[str, Any]:
    return {"cropping": _around(source, len(x.shape) - 1)}


def _long(count: int) -> Callable[[Tensor], bool]:
    """Nothing is cropped away."""
    return lambda x: rank(count)(x) and min(x.shape[:-1]) > 3


def _upsampled(source: Source, x: Tensor) -> dict[str, Any]:
    return {"size": _axes(len(x.shape) - 1, [2, 2])}


# ---- the others ----------------------------------------------------------------------------------


def _dense(source: Source, x: Tensor) -> dict[str, Any]:
    some = source.some(activation=source.activation(), use_bias=source.often())
    return {"units": source.pick((3, 5, x.shape[-1])), **some}


def _einsum(source: Source, x: Tensor) -> dict[str, Any]:
    steps, units = None if x.free else x.shape[0], source.pick(UNITS)
    equation, shape, bias = source.pick(
        (
            ("...c,cd->...d", units, "d"),
            ("abc,cd->abd", (steps, units), "d"),
            ("abc,dce->abde", (steps, units, 2), "e"),
        )
    )
    some = source.some(activation=source.activation(), bias_axes=bias)
    return {"equation": equation, "output_shape": shape, **some}


def _prelu(source: Source, x: Tensor) -> dict[str, Any]:
    shared = x.free or (len(x.shape) > 1 and source.often())
    return {"shared_axes": [1]} if shared else {}


def _normalized(source: Source, x: Tensor) -> dict[str, Any]:
    several = len(x.shape) > 1 and not x.free and source.often()
    options = source.some(center=source.often(), scale=source.often(), epsilon=1e-2)
    return {**options, **({"axis": [1, 2]} if several else {})}


def _batch_normalized(source: Source, x: Tensor) -> dict[str, Any]:
    first = len(x.shape) > 1 and not x.free and source.often()
    options = source.some(center=source.often(), scale=source.often(), epsilon=1e-2)
    return {**options, **({"axis": 1} if first else {})}


def _grouped(source: Source, x: Tensor) -> dict[str, Any]:
    width = x.shape[-1]
    divisors = [n for n in (1, 2, 3, width) if width % n == 0]
    options = source.some(center=source.often(), scale=source.often())
    return {"groups": source.pick(divisors), **options}


def _reshaped(source: Source, x: Tensor) -> dict[str, Any]:
    if x.free:
        return {"target_shape": (-1, *x.shape[1:], 1) if len(x.shape) < 3 else (-1, x.shape[-1])}
    total = math.prod(x.shape)
    targets = [(*x.shape, 1), (*reversed(x.shape),), (-1, x.shape[-1]), (total, 1)]
    return {"target_shape": source.pick([t for t in targets if len(t) < 4])}


def _permuted(source: Source, x: Tensor) -> dict[str, Any]:
    order = source.order(range(1, len(x.shape) + 1))
    return {"dims": tuple(order)}


def _relu(source: Source, x: Tensor) -> dict[str, Any]:
    return source.some(negative_slope=0.1, max_value=1.5, threshold=0.0)


def _distributed(source: Source, x: Tensor) -> dict[str, Any]:
    """Around another layer, without the first axis."""
    if source.keras3 and x.masked and len(x.shape) > 2:  # its mask would not lose an axis with it
        return {"layer": ("Dense", _dense(source, x))}
    step = Tensor(x.name, x.shape[1:], masked=x.masked, whole=x.whole)
    # Older ones give each step's mask to the layer, and fail where that takes none.
    refused = STOPS if x.masked and not source.keras3 else ()
    return {"layer": single(source, step, without=("TimeDistributed", *_NOT_IN_STEPS, *refused))}


_NOT_IN_STEPS = ("Masking", "GroupNormalization", "Sequential", "Softmax", "RepeatVector")


def _stack(source: Source, x: Tensor) -> dict[str, Any]:
    """A Sequential of some layers."""
    layers: list[Layer] = []
    inner = x
    for _ in range(source.pick((1, 2, 3))):
        layer = single(source, inner, without=("Sequential",))
        layers.append(layer)
        inner = Tensor(x.name, output_shape(layer, inner.shape), x.free, x.masked)
        inner = Tensor(x.name, inner.shape, x.free and len(inner.shape) > 1, x.masked)
    shape = (None, *x.shape[1:]) if x.free else x.shape
    return {"layers": layers, "input_shape": shape}


def _categories(source: Source, x: Tensor) -> dict[str, Any]:
    modes = ("one_hot", "multi_hot", "count") if len(x.shape) == 1 else ("one_hot",)
    return {"num_tokens": VOCABULARY, "output_mode": source.pick(modes)}


def _embedded(source: Source, x: Tensor) -> dict[str, Any]:
    return {"input_dim": VOCABULARY, "output_dim": source.pick(UNITS), "mask_zero": source.often()}


def _ids(x: Tensor) -> bool:
    return x.whole


def _flat_or_short(x: Tensor) -> bool:
    return rank(2, 3, fixed=True)(x) and math.prod(x.shape) < 200


def _options(
    fits: Callable[[Tensor], bool],
    options: Callable[[Source, Tensor], dict[str, Any]] = nothing,
    *packages: str,
) -> Recipe:
    return Recipe(fits, options, packages or PACKAGES)


RECIPES: Mapping[str, Recipe] = {
    **{
        name: _options(STEPS, lambda source, x, name=name: cell(source, x, name=name)[1])
        for name in CELLS
    },
    "Bidirectional": _options(STEPS, _both),
    "TimeDistributed": _options(lambda x: len(x.shape) > 1, _distributed),
    "Sequential": _options(ANY, _stack),
    "Dense": _options(ANY, _dense),
    "EinsumDense": _options(STEPS, _einsum, *NEW),
    "Embedding": _options(_ids, _embedded),
    "Masking": _options(rank(2, 3)),
    "Activation": _options(ANY, lambda source, x: {"activation": source.activation()}),
    "ReLU": _options(ANY, _relu),
    "LeakyReLU": _options(ANY, lambda source, x: source.some(alpha=0.2)),
    "ELU": _options(ANY, lambda source, x: source.some(alpha=0.7)),
    "ThresholdedReLU": _options(ANY, lambda source, x: {"theta": 0.01}, "tf_keras"),
    "Softmax": _options(rank(1, 2, 3, plain=True), lambda source, x: source.some(axis=-1)),
    "PReLU": _options(rank(1, 2), _prelu),
    "Dropout": _options(ANY, _rate),
    "SpatialDropout1D": _options(STEPS, _rate),
    "SpatialDropout2D": _options(IMAGE, _rate),
    "Identity": _options(ANY, nothing, "keras"),
    "GaussianNoise": _options(ANY, lambda source, x: {"stddev": 0.3}),
    "GaussianDropout": _options(ANY, _rate),
    "AlphaDropout": _options(ANY, _rate),
    "ActivityRegularization": _options(ANY, lambda source, x: {"l2": 0.1}),
    "BatchNormalization": _options(ANY, _batch_normalized),
    "LayerNormalization": _options(ANY, _normalized, *NEW),
    "GroupNormalization": _options(rank(2, 3, plain=True), _grouped, *NEW),
    "UnitNormalization": _options(ANY, nothing, *NEW),
    "RMSNormalization": _options(ANY, nothing, "keras"),
    "Flatten": _options(_flat_or_short),
    "Reshape": _options(rank(2, 3), _reshaped),
    "Permute": _options(rank(2, 3, fixed=True), _permuted),
    "RepeatVector": _options(rank(1), lambda source, x: {"n": source.pick((3, 7))}),
    "ZeroPadding1D": _options(STEPS, _padded),
    "ZeroPadding2D": _options(IMAGE, _padded),
    "Cropping1D": _options(_long(2), _cropped),
    "Cropping2D": _options(_long(3), _cropped),
    "UpSampling1D": _options(STEPS, lambda source, x: {"size": 2}),
    "UpSampling2D": _options(IMAGE, _upsampled),
    "MaxPooling1D": _options(STEPS, _pool),
    "MaxPooling2D": _options(IMAGE, _pool),
    "AveragePooling1D": _options(STEPS, _pool),
    "AveragePooling2D": _options(IMAGE, _pool),
    "GlobalMaxPooling1D": _options(STEPS, lambda source, x: source.some(keepdims=source.often())),
    "GlobalMaxPooling2D": _options(IMAGE, lambda source, x: source.some(keepdims=source.often())),
    "GlobalAveragePooling1D": _options(
        STEPS, lambda source, x: source.some(keepdims=source.often())
    ),
    "GlobalAveragePooling2D": _options(
        IMAGE, lambda source, x: source.some(keepdims=source.often())
    ),
    "Conv1D": _options(STEPS, _conv),
    "Conv2D": _options(IMAGE, _conv),
    "DepthwiseConv1D": _options(STEPS, _depthwise, *NEW),
    "DepthwiseConv2D": _options(IMAGE, _depthwise),
    "SeparableConv1D": _options(STEPS, _separable),
    "SeparableConv2D": _options(IMAGE, _separable),
    "Conv1DTranspose": _options(STEPS, _transposed, *NEW),
    "Conv2DTranspose": _options(IMAGE, _transposed),
    "Normalization": _options(
        ANY, lambda source, x: {"axis": None, "mean": 0.2, "variance": 1.7}, *NEW
    ),
    "Rescaling": _options(ANY, lambda source, x: {"scale": 1.3, **source.some(offset=-0.2)}, *NEW),
    "CategoryEncoding": _options(_ids, _categories, *NEW),
}


def single(source: Source, x: Tensor, without: Sequence[str] = ()) -> Layer:
    """A layer with one input that fits the tensor, and one output that is not too large."""
    fitting = [
        name
        for name, recipe in RECIPES.items()
        if name not in without and source.package in recipe.packages and recipe.fits(x)
    ]
    # Layers that fit anything are many: the others are drawn more often.
    special = [name for name in fitting if RECIPES[name].fits is not ANY]
    name = source.pick([*fitting, *special, *special])
    layer = name, RECIPES[name].options(source, x)
    return layer if _is_small(layer, x.shape) else ("Dense", {"units": 3})


def _is_small(layer: Layer, shape: Shape) -> bool:
    try:
        out = output_shape(layer, shape)
    except ShapeError:  # two choices that exclude each other, as a long window on few steps
        return False
    return len(out) < 5 and math.prod(out) < 700 and out[-1] < 40
