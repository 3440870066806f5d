"""Source text of TimeDistributed: steps are folded into the batch."""

from __future__ import annotations

from dataclasses import replace

from keras2torch_birnn.exporting.source.code import Expression, Statement, code
from keras2torch_birnn.exporting.source.emission import Called, Emission, Site, Value, refuse
from keras2torch_birnn.spec import LayerSpec


def at_every_step(inner: LayerSpec, emission: Emission) -> Emission:
    """Write a layer that is called with the steps of its input, one after another."""

    def called(site: Site) -> Expression | Called:
        steps = tuple(fold(x) for x in site.tensors)
        folded: Value = steps if isinstance(site.args[0], tuple) else steps[0]
        mask = None if site.step_mask is None else fold(site.step_mask)
        at_once = emission.call(replace(site, args=(folded,), mask=mask))
        sizes = code("{}.shape[:2]", site.tensors[0])
        if isinstance(at_once, Expression):
            return unfold(at_once, sizes)
        if not isinstance(at_once.values, Expression):
            raise refuse(inner, "several outputs")
        keep = site.fresh("steps")
        unfolded = Statement(site.out, unfold(at_once.values, keep))
        return Called((Statement(keep, sizes), *at_once.statements, unfolded), site.out)

    state = {f"layer.{key}": there for key, there in emission.state.items()}
    return replace(emission, call=called, state=state, same=False)


def fold(x: Expression) -> Expression:
    """Write (B, T, ...) -> (B * T, ...)."""
    return code("{}.flatten(0, 1)", x)


def unfold(y: Expression, sizes: Expression) -> Expression:
    """Write (B * T, ...) -> (B, T, ...); the method of the same name has no type."""
    return code("torch.unflatten({}, 0, {})", y, sizes)
