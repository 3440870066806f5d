"""Source text of BatchNormalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras2torch_birnn.exporting.source.code import Expression, call, code, member, symbol
from keras2torch_birnn.exporting.source.emission import (
    MASK_REACHES,
    Emission,
    Emit,
    Helper,
    Site,
    refuse,
    same_names,
)
from keras2torch_birnn.schema import normalized_axes
from keras2torch_birnn.schema.training_rules import BATCH_RULE, BatchRule
from keras2torch_birnn.spec import LayerSpec

_HELPERS = "keras2torch_birnn.exporting.source.helpers.normalization"


def _batch(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a BatchNormalization as torch's, or as a helper where frozen, masked or of many axes.

    Where its training differs from Keras', a note says so.

    Raises:
        UnsupportedLayerError: it normalizes several axes.
    """
    config, weights, shape = layer.config, layer.weights, layer.input_shape
    rule = layer.semantics.get(BATCH_RULE, BatchRule())
    if len(config["axis"]) != 1 or not isinstance(shape, tuple):
        raise refuse(layer, "several axes")
    (axis,) = normalized_axes(config, len(shape))
    rank, last = len(shape), axis == len(shape) - 1
    given = ["gamma" in weights, "beta" in weights]
    frozen = rule.by == "moving averages"
    masked = rule.masked != "all" and bool(layer.semantics.get(MASK_REACHES))
    features = int(weights["moving_mean"].shape[0])
    share = 1.0 - config["momentum"]
    momentum = float(np.float32(share)) if rule.single else round(share, 12)
    if rule.by == "batch, not followed":
        momentum = 0.0  # torch leaves the averages alone then
    options = {"eps": config["epsilon"], "momentum": momentum}
    if not any(given):
        options["affine"] = False

    kind = "nn.BatchNorm1d"
    helpers: tuple[Helper, ...] = ()
    notes: tuple[str, ...] = ()
    after: tuple[Expression, ...] = ()
    if frozen:
        kind, helpers = "FrozenBatchNorm", (Helper(_HELPERS, "FrozenBatchNorm"),)
    elif masked and not (last and rank > 2):
        notes = (f"{name}: all steps count in training, masked ones too",)
    elif masked:
        kind, helpers = "MaskedBatchNorm", (Helper(_HELPERS, "MaskedBatchNorm"),)
        if rule.count_raised_by:
            raised = member(f"{name}.count_raised_by")
            after = (code("{} = {}", raised, rule.count_raised_by),)
    elif rank > 3:
        kind, helpers = "AnyBatchNorm", (Helper(_HELPERS, "AnyBatchNorm"),)
    torchs = rule.bessel and not (rule.bessel_epsilon or rule.unbiased_start)
    if not frozen and kind != "MaskedBatchNorm" and not torchs:
        notes += (f"{name}: the moving variance follows torch's rule in training",)

    def normalize(site: Site) -> Expression:
        module, x = member(name), site.x
        if kind == "MaskedBatchNorm":
            return call(module, x, *(() if site.mask is None else (site.mask,)))
        if rank == 2 or axis == 1:
            return call(module, x)
        if rank == 3:
            return code("{}({}.transpose(1, 2)).transpose(1, 2)", module, x)
        return code("{}({}.movedim({}, 1)).movedim(1, {})", module, x, axis, axis)

    shown = dict(zip(("weight", "bias"), given, strict=True))
    absent = [key for key, has in shown.items() if not has] if any(given) else []
    keys = [
        *(key for key, has in shown.items() if has),
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    unset = member(f"{name}.register_parameter")
    return Emission(
        normalize,
        {name: call(symbol(kind), features, **options)},
        same_names(name, keys),
        helpers,
        notes,
        after=(*after, *(call(unset, key, None) for key in absent)),
    )


EMITTERS: Mapping[str, Emit] = {"BatchNormalization": _batch}
