"""Source text of TimeDistributed: steps are folded into the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from keras2torch_birnn.exporting.source.code import Expression, Statement, code
from keras2torch_birnn.exporting.source.emission import Called, Emission, Emit, Site, Value, refuse
from keras2torch_birnn.exporting.source.pages import emit
from keras2torch_birnn.spec import LayerSpec


def _time_distributed(layer: LayerSpec, name: str) -> Emission:
    inner = layer.parts["layer"]
    emission = emit(inner, name)
    if inner.class_name == "Dense":
        return emission  # torch's takes any rank, too

    def at_every_step(site: Site) -> Expression | Called:
        steps = tuple(fold(x) for x in site.tensors)
        folded: Value = steps if isinstance(site.args[0], tuple) else steps[0]
        mask = None if site.step_mask is None else fold(site.step_mask)
        called = emission.call(replace(site, args=(folded,), mask=mask))
        sizes = code("{}.shape[:2]", site.tensors[0])
        if isinstance(called, Expression):
            return unfold(called, sizes)
        if not isinstance(called.values, Expression):
            raise refuse(layer, "several outputs")
        keep = site.fresh("steps")
        unfolded = Statement(site.out, unfold(called.values, keep))
        return Called((Statement(keep, sizes), *called.statements, unfolded), site.out)

    state = {f"layer.{key}": there for key, there in emission.state.items()}
    return replace(emission, call=at_every_step, state=state, same=False)


def fold(x: Expression) -> Expression:
    """Write (B, T, ...) -> (B * T, ...)."""
    return code("{}.flatten(0, 1)", x)


def unfold(y: Expression, sizes: Expression) -> Expression:
    """Write (B * T, ...) -> (B, T, ...); the method of the same name has no type."""
    return code("torch.unflatten({}, 0, {})", y, sizes)


EMITTERS: Mapping[str, Emit] = {"TimeDistributed": _time_distributed}
