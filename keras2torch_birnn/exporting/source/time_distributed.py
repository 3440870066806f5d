"""Source text of TimeDistributed: steps are folded into the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from keras2torch_birnn.exporting.source.emission import Called, Emission, Emit, Site, refuse
from keras2torch_birnn.spec import LayerSpec


def emitters(emit: Callable[[LayerSpec, str], Emission]) -> Mapping[str, Emit]:
    """Return the table; ``emit`` writes the layer at every step."""

    def time_distributed(layer: LayerSpec, name: str) -> Emission:
        inner = layer.parts["layer"]
        emission = emit(inner, name)
        if inner.class_name == "Dense":
            return emission  # torch's takes any rank, too

        def call(site: Site) -> str | Called:
            several = isinstance(site.x, tuple)
            like = site.x[0] if several else site.x
            folded: Any = tuple(fold(x) for x in site.x) if several else fold(site.x)
            mask = None if site.mask is None else fold(site.mask)
            called = emission.call(replace(site, args=(folded,), mask=mask))
            sizes = f"{like}.shape[:2]"
            if isinstance(called, str):
                return unfold(called, sizes)
            if not isinstance(called.values, str):
                raise refuse(layer, "several outputs")
            keep = site.fresh("steps")
            unfolded = f"{site.out} = {unfold(called.values, keep)}"
            lines = (f"{keep} = {sizes}", *called.statements, unfolded)
            return Called(lines, site.out)

        state = {f"layer.{key}": there for key, there in emission.state.items()}
        return replace(emission, call=call, state=state, same=False)

    return {"TimeDistributed": time_distributed}


def fold(x: str) -> str:
    """Write (B, T, ...) -> (B * T, ...)."""
    return f"{x}.flatten(0, 1)"


def bracketed(text: str) -> str:
    """Put brackets around an expression of operators."""
    depth, outside = 0, ""
    for char in text:
        depth -= char in ")]"
        outside += "" if depth else char
        depth += char in "(["
    return f"({text})" if " " in outside else text


def unfold(y: str, sizes: str) -> str:
    """Write (B * T, ...) -> (B, T, ...); the method of the same name has no type."""
    return f"torch.unflatten({y}, 0, {sizes})"
