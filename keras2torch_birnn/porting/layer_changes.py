"""Known mistakes in ports of layers without recurrence, as changes to try: one table by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from keras2torch_birnn.porting.activation_changes import (
    activation_changes,
    alpha_changes,
    late_bias_changes,
    masked_softmax_changes,
    middle_activation_changes,
    replaced_activation_changes,
    slope_changes,
    softmax_axis_changes,
)
from keras2torch_birnn.porting.attention_changes import attention_changes
from keras2torch_birnn.porting.axis_changes import (
    RESHAPED,
    channels_first_changes,
    joined_row_changes,
    joined_step_changes,
    reshaped,
    view_changes,
)
from keras2torch_birnn.porting.bidirectional_changes import recurrent_changes
from keras2torch_birnn.porting.call_graph import place_of
from keras2torch_birnn.porting.changes import (
    Change,
    LayerCall,
    Maker,
    configured,
    followed_by,
    weighted_one,
)
from keras2torch_birnn.porting.embedding_changes import (
    compared_mask_changes,
    id_changes,
    made_mask_changes,
)
from keras2torch_birnn.porting.general_changes import (
    general_changes,
    masked_step_changes,
    row_changes,
)
from keras2torch_birnn.porting.merging_changes import (
    cosine_changes,
    distance_changes,
    joined_mask_changes,
    masked_value_changes,
    moved_input_changes,
    one_input_changes,
    order_changes,
    state_view_changes,
    transposed_input_changes,
    vector_distance_changes,
)
from keras2torch_birnn.porting.normalization_changes import (
    batch_norm_changes,
    divisor_changes,
    epsilon_changes,
    group_norm_changes,
    layer_norm_changes,
    rms_norm_changes,
    unit_norm_changes,
)
from keras2torch_birnn.porting.operation_changes import option_changes
from keras2torch_birnn.porting.recurrent_changes import CELLS, bias_changes
from keras2torch_birnn.porting.resizing_changes import (
    margin_changes,
    moved_changes,
    up_sampling_changes,
)
from keras2torch_birnn.porting.scaling_changes import (
    constant_changes,
    encoding_changes,
    statistic_changes,
)
from keras2torch_birnn.porting.state_changes import going_on
from keras2torch_birnn.porting.step_changes import (
    has_windows,
    moved_key_changes,
    norm_changes,
    one_step_changes,
    other_step_changes,
    pool_mask_changes,
    sum_changes,
)
from keras2torch_birnn.porting.window_changes import (
    convolution_changes,
    pooling_changes,
    transposed_changes,
)
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.reference.activations import softmax
from keras2torch_birnn.reference.context import Result
from keras2torch_birnn.spec import LayerSpec

# Layers that hand on their input's values; nothing can be wrong in them but their absence.
DROPOUTS = ("Dropout", "SpatialDropout1D", "GaussianNoise", "GaussianDropout")
# Layers that hand on values in other places.
MOVING = ("Flatten", "Reshape", "Permute", "RepeatVector")


def changes_of(path: str, layer: LayerSpec) -> Iterator[Change]:
    """Yield the known mistakes of a layer, the likeliest first; path: of its call."""
    if layer.class_name == "TimeDistributed":
        yield from _wrapper_changes(Maker(path, layer), layer.parts["layer"])
    while layer.class_name == "TimeDistributed":
        layer = layer.parts["layer"]
    maker = Maker(path, layer)
    if is_recurrent(layer):
        yield from recurrent_changes(maker)
        yield from row_changes(maker)
    for make in BY_CLASS.get(layer.class_name, ()):
        yield from make(maker)
    if layer.class_name in _OF_SEVERAL:
        yield from moved_input_changes(maker)
    if layer.class_name not in ("InputLayer", *DROPOUTS):
        yield from general_changes(maker)
    if layer.class_name.startswith("ops."):
        yield from option_changes(maker)


def _wrapper_changes(maker: Maker, inner: LayerSpec) -> Iterator[Change]:
    """Yield the mistakes of a TimeDistributed; inner: the layer in it."""
    yield from view_changes(maker)
    if has_windows(inner):
        yield from joined_row_changes(maker)
    yield from masked_step_changes(maker)
    if inner.config.get("activation") == "softmax":
        words = "softmax over axis 1 (the steps), Keras takes the last axis"
        place = place_of(maker.path)
        applied = {
            (place, inner.class_name): configured(activation="linear"),
            (place, "TimeDistributed"): followed_by(partial(softmax, axis=1)),
        }
        yield Change("axis", maker.path, words, applied)
    if is_recurrent(inner):
        words = "its states go on from step to step of TimeDistributed, Keras starts anew"
        yield maker.change("kept state", words, going_on)


def is_recurrent(layer: LayerSpec) -> bool:
    """Tell whether a layer is one whose mistakes with states and directions are known."""
    return layer.class_name in (*CELLS, "Bidirectional")


def mask_changes(place: str, layer: LayerSpec, path: str) -> Iterator[Change]:
    """Yield the known mistakes with the mask that a layer makes, if it makes one.

    path: the layer that the user knows as the one that makes it.
    """
    maker = Maker(path, layer, [(place, layer.class_name)])
    if layer.class_name in MASKING:
        yield from made_mask_changes(maker)
    elif layer.class_name in JOINING:
        yield from joined_mask_changes(maker)
    elif layer.class_name in (*_COMPARISONS, "ops.Any"):
        yield from compared_mask_changes(maker)


def _bias(maker: Maker) -> Iterator[Change]:
    if maker.config.get("use_bias") and "bias" in maker.layer.weights:
        yield from bias_changes(maker)


def _kernel(maker: Maker) -> Iterator[Change]:
    kernel = maker.layer.weights.get("kernel")
    if kernel is not None and min(kernel.shape) > 1 and kernel.shape[0] != kernel.shape[-1]:
        turn = weighted_one("kernel", reshaped)
        yield maker.change("reshaped", f"the kernel {RESHAPED}", turn)
    if kernel is not None and kernel.ndim == 2 and kernel.shape[0] == kernel.shape[1]:
        turn = weighted_one("kernel", np.transpose)
        yield maker.change("not transposed", "the kernel is not transposed (it is square)", turn)


def _as_class(name: str, call: LayerCall) -> Result:
    _, out_mask = call.run()
    output, _ = EQUATIONS[name](
        replace(call.layer, class_name=name), call.inputs, call.mask, call.context
    )
    return output, out_mask


def _other_class(*names: str) -> Callable[[Maker], Iterator[Change]]:
    def make(maker: Maker) -> Iterator[Change]:
        own = maker.layer.class_name
        for name in names:
            if name != own:
                words = (
                    f"it computes {name.removeprefix('ops.')}, Keras has {own.removeprefix('ops.')}"
                )
                yield maker.change("other operation", words, partial(_as_class, name))

    return make


_GLOBAL = ("GlobalAveragePooling1D", "GlobalMaxPooling1D")
_GLOBAL_2 = ("GlobalAveragePooling2D", "GlobalMaxPooling2D")
MASKING = ("Embedding", "Masking")
_MERGES = ("Add", "Multiply", "Average", "Maximum", "Subtract", "Minimum")
# Layers whose masks are those of their inputs joined.
JOINING = (*_MERGES, "Concatenate")
_MARGINS = ("ZeroPadding1D", "ZeroPadding2D", "Cropping1D", "Cropping2D")
_ATTENTIONS = ("Attention", "AdditiveAttention", "MultiHeadAttention")
_BINARY = tuple(f"ops.{name}" for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum"))
_OF_SEVERAL = (*_MERGES, *_ATTENTIONS, *_BINARY, "Concatenate", "ops.Concatenate", "Dot")
_COMPARISONS = ("ops.NotEqual", "ops.Greater", "ops.GreaterEqual", "ops.Less", "ops.LessEqual")
_REDUCTIONS = ("ops.Sum", "ops.Mean", "ops.Max")
_CONVOLUTIONS = tuple(f"{kind}Conv{n}D" for kind in ("", "Separable", "Depthwise") for n in (1, 2))
BY_CLASS: Mapping[str, tuple[Callable[[Maker], Iterator[Change]], ...]] = {
    "Dense": (activation_changes, _bias, late_bias_changes, _kernel),
    "Activation": (activation_changes, masked_softmax_changes),
    "Embedding": (id_changes,),
    "BatchNormalization": (epsilon_changes, batch_norm_changes, divisor_changes),
    "LayerNormalization": (epsilon_changes, layer_norm_changes),
    "GroupNormalization": (epsilon_changes, group_norm_changes),
    "RMSNormalization": (epsilon_changes, rms_norm_changes),
    "UnitNormalization": (unit_norm_changes,),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose"),
        (transposed_changes, activation_changes, _bias, late_bias_changes),
    ),
    **dict.fromkeys(
        _CONVOLUTIONS, (convolution_changes, activation_changes, _bias, late_bias_changes)
    ),
    **dict.fromkeys(
        _GLOBAL, (pool_mask_changes, _other_class(*_GLOBAL), sum_changes, one_step_changes)
    ),
    **dict.fromkeys(_REDUCTIONS, (_other_class(*_REDUCTIONS), norm_changes, one_step_changes)),
    **dict.fromkeys(
        ("SeparableConv1D", "SeparableConv2D"),
        (
            convolution_changes,
            activation_changes,
            middle_activation_changes,
            _bias,
            late_bias_changes,
        ),
    ),
    "Softmax": (softmax_axis_changes, masked_softmax_changes, replaced_activation_changes),
    "PReLU": (alpha_changes, replaced_activation_changes),
    "ReLU": (replaced_activation_changes,),
    "ops.Activation": (masked_softmax_changes, replaced_activation_changes),
    **{
        f"{one}Pooling{n}D": (_other_class(f"{other}Pooling{n}D"), pooling_changes)
        for n in (1, 2)
        for one, other in (("Max", "Average"), ("Average", "Max"))
    },
    **dict.fromkeys(_GLOBAL_2, (_other_class(*_GLOBAL_2),)),
    **dict.fromkeys(
        _MERGES,
        (masked_value_changes, one_input_changes, _other_class(*_MERGES), distance_changes),
    ),
    **dict.fromkeys(_BINARY, (one_input_changes, _other_class(*_BINARY), distance_changes)),
    "Subtract": (one_input_changes, _other_class(*_MERGES), distance_changes, order_changes),
    "ops.Subtract": (one_input_changes, _other_class(*_BINARY), distance_changes, order_changes),
    **dict.fromkeys(("Concatenate", "ops.Concatenate"), (order_changes, state_view_changes)),
    "Dot": (
        cosine_changes,
        order_changes,
        transposed_input_changes,
        vector_distance_changes,
    ),
    **dict.fromkeys(_ATTENTIONS, (attention_changes,)),
    **dict.fromkeys(("RepeatVector", "Permute", "UpSampling1D"), (moved_changes,)),
    "ops.Matmul": (order_changes, transposed_input_changes),
    "UpSampling2D": (up_sampling_changes,),
    **dict.fromkeys(_MARGINS, (margin_changes,)),
    "Rescaling": (constant_changes,),
    "CategoryEncoding": (encoding_changes,),
    "Normalization": (statistic_changes,),
    "LeakyReLU": (slope_changes, replaced_activation_changes),
    "ELU": (slope_changes, replaced_activation_changes),
    "ops.GetItem": (other_step_changes, moved_key_changes),
    "Flatten": (channels_first_changes,),
    "Reshape": (channels_first_changes, joined_step_changes),
}
