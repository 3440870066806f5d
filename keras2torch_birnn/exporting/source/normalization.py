"""Source text of BatchNormalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
from keras2torch_birnn.spec import LayerSpec

_HELPERS = "keras2torch_birnn.exporting.source.helpers.normalization"


def _batch(layer: LayerSpec, name: str, built: Any) -> Emission:
    """Write a BatchNormalization as torch's, or as a helper where frozen, masked or of many axes.

    Where its training differs from Keras', a note says so.

    Raises:
        UnsupportedLayerError: its input has an unknown number of axes.
    """
    rule, axis, shape = built.rule, built.axis, layer.input_shape
    if not isinstance(shape, tuple):
        raise refuse(layer, "an input of unknown rank")
    rank, masked = len(shape), rule.masked != "all" and bool(layer.semantics.get(MASK_REACHES))
    momentum = built.momentum if rule.single else round(built.momentum, 12)
    if rule.by == "batch, not followed":
        momentum = 0.0  # torch leaves the averages alone then
    options = {"eps": built.eps, "momentum": momentum}
    absent = [key for key in ("weight", "bias") if getattr(built, key) is None]
    if len(absent) == 2:
        options["affine"], absent = False, []

    torchs = rule.bessel and not (rule.bessel_epsilon or rule.unbiased_start)
    differs: tuple[str, ...] = ()
    if not torchs:
        differs = (f"{name}: the moving variance follows torch's rule in training",)
    after: tuple[Expression, ...] = ()
    if rule.by == "moving averages":
        kind, differs = "FrozenBatchNorm", ()
    elif masked and axis == rank - 1 and rank > 2:
        kind, differs = "MaskedBatchNorm", ()
        if rule.count_raised_by:
            raised = member(f"{name}.count_raised_by")
            after = (code("{} = {}", raised, rule.count_raised_by),)
    else:
        kind = "AnyBatchNorm" if rank > 3 else "nn.BatchNorm1d"
        if masked:
            differs = (f"{name}: all steps count in training, masked ones too", *differs)

    def normalize(site: Site) -> Expression:
        module, x = member(name), site.x
        if kind == "MaskedBatchNorm":
            return call(module, x, *(() if site.mask is None else (site.mask,)))
        if rank == 2 or axis == 1:
            return call(module, x)
        if rank == 3:
            return code("{}({}.transpose(1, 2)).transpose(1, 2)", module, x)
        return code("{}({}.movedim({}, 1)).movedim(1, {})", module, x, axis, axis)

    unset = member(f"{name}.register_parameter")
    return Emission(
        normalize,
        {name: call(symbol(kind), built.num_features, **options)},
        same_names(name, [*built.state_dict()]),
        () if kind.startswith("nn.") else (Helper(_HELPERS, kind),),
        differs,
        after=(*after, *(call(unset, key, None) for key in absent)),
    )


EMITTERS: Mapping[str, Emit] = {"BatchNormalization": _batch}
