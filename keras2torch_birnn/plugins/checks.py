"""Plugins' layers on trial: what shape they give, whether they do what they say, whether they last.

The code of a plugin is the user's own: whatever it raises comes out as a PluginError that names
class, place and line, and what would go wrong later is looked for before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import K2TError, PluginError, WeightMismatchError, gather
from keras2torch_birnn.layers.input_casts import to_ids
from keras2torch_birnn.layers.registry import convert_layer, mask_flow
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.schema.custom_layers import (
    blaming,
    named_weights,
    output_count,
    own_of,
    shown,
)
from keras2torch_birnn.schema.shape_inference import expected_weights, infer_model, shape_leaves
from keras2torch_birnn.spec import (
    Array,
    LayerSpec,
    ModelSpec,
    Shape,
    Structure,
    leaves,
    map_structure,
    shape_fits,
    with_dtype,
)

# Two sizes for every free axis, all different: an axis that does not follow is fixed.
_SIZES = ((2, 5, 7, 11), (3, 7, 11, 13))
# Up to so many inputs of one layer, some may be ids and others floats.
_MIXED = 4


def own_layers(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """The layers that plugins supply."""
    return tuple(layer for layer in spec.root.walk() if own_of(layer) is not None)


# ---- shapes --------------------------------------------------------------------------------------


def completed(spec: ModelSpec) -> ModelSpec:
    """The spec with the output shapes that only what runs can tell, and all that follow from them.

    Raises:
        PluginError: a converter fails; WeightMismatchError: weights do not fit the shapes.
    """
    seen: dict[str, Structure] = {}
    root = spec.root
    while unknown := [
        layer
        for layer in replace(spec, root=root).root.walk()
        if own_of(layer) is not None and layer.output_shape is None
        if layer.place not in seen and None not in shape_leaves(layer.input_shape)
    ]:
        seen |= {layer.place: measured(layer) for layer in unknown}
        problems: list[K2TError] = []
        root = infer_model(_with_outputs(root, seen), problems)
        if problems:
            raise gather(problems)
    if seen:
        _check_weights(root)
    return replace(spec, root=root)


def measured(layer: LayerSpec) -> Structure:
    """The output's shape as the module gives it for zeros, None for an axis that follows the input.

    None where it does not run on those: nothing is known then.
    """
    module = convert_layer(layer).eval()
    double = any(w.dtype == np.float64 for w in layer.weights.values())
    floats = torch.float64 if double else torch.float32
    shape = layer.input_shape
    several = len(tuple(shape_leaves(shape)))
    alike = [(kind,) * several for kind in (floats, torch.int64)]
    mixed = product((floats, torch.int64), repeat=several) if several <= _MIXED else ()
    for kinds in dict.fromkeys((*alike, *mixed)):
        for spread in (False, True)[: 1 + (several > 1)]:
            try:
                first, second = (
                    _shapes_for(module, shape, sizes, kinds, spread=spread) for sizes in _SIZES
                )
            except Exception:  # the user's code, on values that may mean nothing to it
                continue
            return _joined(first, second)
    return None


def _shapes_for(
    module: nn.Module,
    shape: Structure,
    sizes: Sequence[int],
    kinds: Sequence[torch.dtype],
    *,
    spread: bool,
) -> Structure:
    """The shapes of what the module gives; ``spread``: each tensor is an argument of its own."""
    left = iter(kinds)

    def zeros(one: Shape) -> Tensor:
        free = [sizes[0] if i == 0 else sizes[min(i, 3)] for i in range(len(one))]
        full = [f if s is None else s for s, f in zip(one, free, strict=True)]
        return torch.zeros(full).to(next(left))

    def every(structure: Structure) -> Structure:
        if any(isinstance(part, tuple) for part in structure):
            return tuple(every(part) for part in structure)
        return zeros(structure)

    given = every(shape)
    with torch.no_grad():
        out = module(*given) if spread else module(given)
    return map_structure(lambda tensor: _Size(tuple(tensor.shape)), out)


class _Size:
    """A shape that is one leaf of a structure."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes


def _joined(first: Structure, second: Structure) -> Structure:
    if isinstance(first, _Size):
        if len(first.sizes) != len(second.sizes):
            return None
        return tuple(a if a == b else None for a, b in zip(first.sizes, second.sizes, strict=True))
    return tuple(_joined(a, b) for a, b in zip(first, second, strict=True))


def _with_outputs(layer: LayerSpec, shapes: Mapping[str, Structure]) -> LayerSpec:
    graph = layer.graph
    if graph is not None:
        inner = tuple(_with_outputs(one, shapes) for one in graph.layers)
        graph = replace(graph, layers=inner)
    parts = {key: _with_outputs(part, shapes) for key, part in layer.parts.items()}
    own = own_of(layer) is not None and layer.place in shapes
    output = shapes[layer.place] if own else layer.output_shape
    return replace(layer, graph=graph, parts=parts, output_shape=output)


def _check_weights(root: LayerSpec) -> None:
    problems: list[K2TError] = []
    for layer in root.walk():
        for name, wanted in (named_weights(layer) or expected_weights(layer)).items():
            found = layer.weights[name].shape if name in layer.weights else wanted
            if wanted is None or found is None or shape_fits(found, wanted):
                continue
            sizes = ", ".join("any" if size is None else str(size) for size in wanted)
            problems.append(
                WeightMismatchError(
                    f"{name} {found}, the layers before it imply ({sizes})",
                    "what the plugin's layer gives is not what Keras' did",
                    place=layer.place,
                )
            )
    if problems:
        raise gather(problems)


# ---- runs ----------------------------------------------------------------------------------------


class _Trial(fx.Interpreter):
    """Runs a model and says whose layer fails, or gives what it should not."""

    def __init__(self, model: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype
        self.own: Mapping[str, LayerSpec] = model.meta["own"]
        self.makers = {
            after: layer for layer in self.own.values() if callable(after := mask_flow(layer).after)
        }

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer."""
        layer = self.own.get(target)
        if layer is None:
            return super().call_module(target, args, kwargs)
        with blaming(layer, "its module"):
            result = super().call_module(target, args, kwargs)
        _check_result(layer, result, self.dtype)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function: one that makes a mask may be a plugin's."""
        layer = self.makers.get(target)
        if layer is None:
            return super().call_function(target, args, kwargs)
        with blaming(layer, "its mask function"):
            return super().call_function(target, args, kwargs)


def check_dtype(layer: LayerSpec, result: Any, dtype: torch.dtype) -> None:
    """Refuse floats of another precision than the model's.

    Raises:
        PluginError: there are some.
    """
    given = [one for one in leaves(result) if isinstance(one, Tensor) and one.is_floating_point()]
    wrong = next((one.dtype for one in given if one.dtype != dtype), None)
    if wrong is not None:
        raise PluginError(
            f"{shown(layer)}: its module gives {wrong} in a model of {dtype}",
            "use the dtype of its input, or of a buffer where the input are ids",
            place=layer.place,
        )


def watched(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model, with a look at the dtype of what plugins' layers give."""
    for target, layer in getattr(model, "meta", {}).get("own", {}).items():

        def look(_: nn.Module, __: Any, result: Any, layer: LayerSpec = layer) -> None:
            check_dtype(layer, result, dtype)

        model.get_submodule(target).register_forward_hook(look)
    return model


def _check_result(layer: LayerSpec, result: Any, dtype: torch.dtype) -> None:
    expected = 1 if layer.parts else output_count(layer)
    given = list(result) if isinstance(result, tuple | list) else [result]
    several = not isinstance(result, Tensor)
    if several != (expected > 1) or len(given) != expected:
        found = f"{len(given)} outputs" if several else "one output"
        raise PluginError(
            f"{shown(layer)}: its module gives {found}, {expected} are expected",
            "say outputs= in the plugin, or return one tensor",
            place=layer.place,
        )
    shapes = tuple(shape_leaves(layer.output_shape))
    for tensor, shape in zip(given, shapes, strict=len(shapes) == len(given)):
        if not isinstance(tensor, Tensor):
            raise PluginError(
                f"{shown(layer)}: its module gives {type(tensor).__name__}",
                "a tensor is expected",
                place=layer.place,
            )
        if shape is not None and not shape_fits(tuple(tensor.shape), shape):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise PluginError(
                f"{shown(layer)}: its module gives {tuple(tensor.shape)}, ({sizes}) is expected",
                "by the file, or by output= in the plugin",
                place=layer.place,
            )
    check_dtype(layer, result, dtype)


def tried(model: fx.GraphModule, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
    """The model's outputs, each layer of a plugin watched; ``dtype``: the model's.

    Raises:
        PluginError: one fails, or gives what it should not.
    """
    with torch.no_grad():
        return _Trial(model, dtype).run(*inputs)


def check_lasting(
    model: nn.Module, again: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], names: str
) -> None:
    """Refuse a model that computes something else when its state is all that is left of it.

    ``again``: built from the spec without weights. A module that keeps numbers elsewhere than in
    its parameters and buffers would come out of OUT with zeros in their place.

    Raises:
        PluginError: it does.
    """
    try:
        again.load_state_dict(model.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise PluginError(
            f"{names}: a module differs when it is built without weights: {reason}",
            "its parameters may not depend on the values of weights",
        ) from error
    pairs = zip(run(model), run(again), strict=True)
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs):
        raise PluginError(
            f"{names}: a module keeps numbers outside of its parameters and buffers",
            "use torch.nn.Parameter or register_buffer, or they are lost when OUT is loaded",
        )


# ---- in the place of an equation -----------------------------------------------------------------


def fallback_equation(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
    """What the plugin's module and mask rule give, where the plugin has no NumPy equation.

    Says nothing of the layer itself, but lets the reference judge all the others.
    """
    exact = np.dtype(context.dtype)
    module = convert_layer(with_dtype(layer, exact)).eval()
    flow = mask_flow(layer)

    def tensor(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        made = torch.from_numpy(np.ascontiguousarray(value))
        return to_ids(made) if value.dtype.kind in "iu" else made

    x, given = map_structure(tensor, inputs), map_structure(tensor, mask)
    some = any(one is not None for one in leaves(given))
    options = {
        **map_structure(tensor, dict(context.call_options)),
        **({"mask": given} if flow.takes and some else {}),
    }
    dtype = torch.float64 if exact == np.float64 else torch.float32
    with torch.no_grad(), blaming(layer, "its module"):
        out = module.to(dtype)(*(x if context.arguments > 1 else (x,)), **options)
        check_dtype(layer, out, dtype)
        after = given
        if callable(flow.after) and (some or flow.makes):
            after = flow.after(x, given, **flow.constants)
    if flow.after == "none" or not (some or flow.makes):
        after = None
    elif isinstance(after, tuple):
        after = after[0]
    return map_structure(_array, out), map_structure(_array, after)


def _array(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.numpy()
