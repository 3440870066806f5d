"""Check plugin layers: infer output shapes, test them against their declaration, round-trip state.

A plugin's code is the user's own: whatever it raises becomes a PluginError with class, place and
line, and later failures are detected here, before anything is written.
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
from keras2torch_birnn.layers.core import to_ids
from keras2torch_birnn.layers.registry import convert_layer, mask_flow
from keras2torch_birnn.reference.context import Context, OwnEquations, Result
from keras2torch_birnn.reference.custom_layers import by_plugin, initial_states_by_plugin
from keras2torch_birnn.rnn.custom_cell import initial_states
from keras2torch_birnn.schema.custom_cells import is_custom_cell
from keras2torch_birnn.schema.custom_layers import (
    custom_layer_of,
    equation_of,
    initial_states_of,
    named_weights,
    naming_plugin,
    output_count,
    shown,
)
from keras2torch_birnn.schema.shape_inference import expected_weights, infer_model, shape_leaves
from keras2torch_birnn.spec import (
    Array,
    LayerSpec,
    ModelSpec,
    Shape,
    Structure,
    format_shape,
    leaves,
    map_structure,
    shape_fits,
    with_dtype,
)

# Layers that hold a plugin's cell.
RECURRENT_WRAPPERS = ("RNN", "Bidirectional")
# Two sizes for every free axis, all different: an output axis equal in both runs is fixed.
_SIZES = ((2, 5, 7, 11), (3, 7, 11, 13))
# Layers with at most this many inputs are also tried with ids and floats mixed.
_MIXED = 4


def find_plugin_layers(spec: ModelSpec) -> tuple[LayerSpec, ...]:
    """Find the layers that plugins supply."""
    return tuple(layer for layer in spec.root.walk() if custom_layer_of(layer) is not None)


# ---- shapes --------------------------------------------------------------------------------------


def complete_shapes(spec: ModelSpec) -> ModelSpec:
    """Add the output shapes that only running a plugin's module shows, and all that follow."""
    seen: dict[str, Structure] = {}
    root = spec.root
    while unknown := [
        layer
        for layer in replace(spec, root=root).root.walk()
        if custom_layer_of(layer) is not None and layer.output_shape is None
        if layer.place not in seen and None not in shape_leaves(layer.input_shape)
    ]:
        seen |= {layer.place: infer_output_shape(layer) for layer in unknown}
        problems: list[K2TError] = []
        root = infer_model(_with_outputs(root, seen), problems)
        if problems:
            raise gather(problems)
    if seen:
        _check_weights(root)
    return replace(spec, root=root)


def infer_output_shape(layer: LayerSpec) -> Structure:
    """Infer the output shape by running the module on zeros; None for axes that follow the input.

    None where the module does not run on them.
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
                    _run_on_zeros(module, shape, sizes, kinds, spread=spread) for sizes in _SIZES
                )
                return _join_shapes(first, second)
            except Exception:  # the user's code, on values that may mean nothing to it
                continue
    return None


def _run_on_zeros(
    module: nn.Module,
    shape: Structure,
    sizes: Sequence[int],
    kinds: Sequence[torch.dtype],
    *,
    spread: bool,
) -> Structure:
    """Return the outputs; ``spread``: pass each tensor as an argument of its own."""
    left = iter(kinds)

    def zeros(shape: Shape) -> Tensor:
        free = [sizes[0] if i == 0 else sizes[min(i, 3)] for i in range(len(shape))]
        full = [f if s is None else s for s, f in zip(shape, free, strict=True)]
        return torch.zeros(full).to(next(left))

    def every(structure: Structure) -> Structure:
        if any(isinstance(part, tuple) for part in structure):
            return tuple(every(part) for part in structure)
        return zeros(structure)

    given = every(shape)
    with torch.no_grad():
        return module(*given) if spread else module(given)


def _join_shapes(first: Structure, second: Structure) -> Structure:
    if isinstance(first, Tensor):
        if first.dim() != second.dim():
            return None
        return tuple(a if a == b else None for a, b in zip(first.shape, second.shape, strict=True))
    return tuple(_join_shapes(a, b) for a, b in zip(first, second, strict=True))


def _with_outputs(layer: LayerSpec, shapes: Mapping[str, Structure]) -> LayerSpec:
    if custom_layer_of(layer) is not None and layer.place in shapes:
        layer = replace(layer, output_shape=shapes[layer.place])
    return layer.map_inner(lambda _, one: _with_outputs(one, shapes))


def _check_weights(root: LayerSpec) -> None:
    problems: list[K2TError] = []
    for layer in root.walk():
        for name, wanted in (named_weights(layer) or expected_weights(layer)).items():
            found = layer.weights[name].shape if name in layer.weights else wanted
            if wanted is None or found is None or shape_fits(found, wanted):
                continue
            problems.append(
                WeightMismatchError(
                    f"{name} {found}, the layers before it imply {format_shape(wanted)}",
                    "the plugin's layer has another output shape than Keras' layer",
                    place=layer.place,
                )
            )
    if problems:
        raise gather(problems)


# ---- runs ----------------------------------------------------------------------------------------


class _CheckingInterpreter(fx.Interpreter):
    """Interpreter that checks what plugin layers return, and names the layer that fails."""

    def __init__(self, model: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype
        self.own: Mapping[str, LayerSpec] = model.meta["own"]
        self.makers = {
            after: layer for layer in self.own.values() if callable(after := mask_flow(layer).after)
        }

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer; check its result if a plugin supplies it."""
        layer = self.own.get(target)
        if layer is None:
            return super().call_module(target, args, kwargs)
        with naming_plugin(_supplied(layer), "its module"):
            result = super().call_module(target, args, kwargs)
        _check_result(layer, result, self.dtype)
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a function: a mask function may be a plugin's."""
        layer = self.makers.get(target)
        if layer is None:
            return super().call_function(target, args, kwargs)
        with naming_plugin(layer, "its mask function"):
            return super().call_function(target, args, kwargs)


def check_dtype(layer: LayerSpec, result: Any, dtype: torch.dtype) -> None:
    """Refuse floats of another precision than the model's."""
    given = [one for one in leaves(result) if isinstance(one, Tensor) and one.is_floating_point()]
    wrong = next((one.dtype for one in given if one.dtype != dtype), None)
    if wrong is not None:
        raise PluginError(
            f"{shown(_supplied(layer))}: its module returns {wrong} in a model of {dtype}",
            "use the dtype of its input, or of a buffer if the inputs are ids",
            place=layer.place,
        )


def add_dtype_checks(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Make the model check the dtype of its plugin layers' outputs; return it."""
    for target, layer in getattr(model, "meta", {}).get("own", {}).items():

        def check(_: nn.Module, __: Any, result: Any, layer: LayerSpec = layer) -> None:
            check_dtype(layer, result, dtype)

        model.get_submodule(target).register_forward_hook(check)
    return model


def _supplied(layer: LayerSpec) -> LayerSpec:
    """Return the part of a layer that a plugin supplies."""
    return next((part for part in layer.walk() if custom_layer_of(part) is not None), layer)


def _check_result(layer: LayerSpec, result: Any, dtype: torch.dtype) -> None:
    if layer.class_name in RECURRENT_WRAPPERS:  # their loop checks what the cell gives
        check_dtype(layer, result, dtype)
        return
    expected = 1 if layer.parts else output_count(layer)
    given = list(result) if isinstance(result, tuple | list) else [result]
    several = not isinstance(result, Tensor)
    if several != (expected > 1) or len(given) != expected:
        found = f"{len(given)} outputs" if several else "one output"
        raise PluginError(
            f"{shown(layer)}: its module returns {found}, expected {expected}",
            "declare outputs= in the plugin, or return one tensor",
            place=layer.place,
        )
    shapes = tuple(shape_leaves(layer.output_shape))
    for tensor, shape in zip(given, shapes, strict=len(shapes) == len(given)):
        if not isinstance(tensor, Tensor):
            raise PluginError(
                f"{shown(layer)}: its module returns {type(tensor).__name__}",
                "a tensor is expected",
                place=layer.place,
            )
        if shape is not None and not shape_fits(tuple(tensor.shape), shape):
            raise PluginError(
                f"{shown(layer)}: its module returns {format_shape(tuple(tensor.shape))}, "
                f"{format_shape(shape)} is expected",
                "the file, or output= in the plugin, declares that",
                place=layer.place,
            )
    check_dtype(layer, result, dtype)


def run_checked(model: fx.GraphModule, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
    """Run the model and check the result of each plugin layer; ``dtype``: the model's."""
    with torch.no_grad():
        return _CheckingInterpreter(model, dtype).run(*inputs)


def check_round_trip(
    model: nn.Module, again: nn.Module, run: Callable[[nn.Module], Sequence[Tensor]], names: str
) -> None:
    """Refuse a model whose outputs change when it is rebuilt from its state_dict.

    ``again``: built from the spec without weights. Numbers that a module keeps outside of its
    parameters and buffers would be zeros in a model that is loaded from a checkpoint.
    """
    try:
        again.load_state_dict(model.state_dict(), strict=True, assign=True)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise PluginError(
            f"{names}: a module differs if it is built without weights: {reason}",
            "its parameters may not depend on the values of weights",
        ) from error
    pairs = zip(run(model), run(again), strict=True)
    if not all(torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) for a, b in pairs):
        raise PluginError(
            f"{names}: a module keeps numbers outside of its parameters and buffers",
            "use torch.nn.Parameter or register_buffer, or they are lost on loading",
        )


# ---- fallback equation ---------------------------------------------------------------------------


def equation_or_module(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    """Compute a plugin's layer by its NumPy equation, or by its module if it has none."""
    if equation_of(layer) is not None:
        return by_plugin(layer, inputs, mask, context)
    return fallback_equation(layer, inputs, mask, context)


def fallback_equation(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> Result:
    """Compute a layer by the plugin's module and mask rule, for plugins without a NumPy equation.

    Does not verify this layer; it lets verification continue with all the others.
    """
    if is_custom_cell(layer):
        return _fallback_step(layer, inputs, mask, context)
    module, dtype = _module_of(layer, context)
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
    with torch.no_grad(), naming_plugin(layer, "its module"):
        out = module(*(x if context.arguments > 1 else (x,)), **options)
        check_dtype(layer, out, dtype)
        after = given
        if callable(flow.after) and (some or flow.makes):
            after = flow.after(x, given, **flow.constants)
    if flow.after == "none" or not (some or flow.makes):
        after = None
    elif isinstance(after, tuple):
        after = after[0]
    return map_structure(_array, out), map_structure(_array, after)


def _module_of(layer: LayerSpec, context: Context) -> tuple[nn.Module, torch.dtype]:
    """Convert a plugin's layer, to compute in the reference's dtype."""
    exact = np.dtype(context.dtype)
    dtype = torch.float64 if exact == np.float64 else torch.float32
    return convert_layer(with_dtype(layer, exact)).eval().to(dtype), dtype


def _fallback_step(
    cell: LayerSpec, x: Array, states: tuple[Array, ...], context: Context
) -> tuple[Array, tuple[Array, ...]]:
    """Compute one step of a cell by the plugin's module."""
    module, dtype = _module_of(cell, context)
    with torch.no_grad(), naming_plugin(cell, "its module"):
        first, *others = (
            torch.from_numpy(np.ascontiguousarray(array, context.dtype)) for array in (x, *states)
        )
        output, new = module(first, tuple(others))
        check_dtype(cell, (output, tuple(new)), dtype)
    return output.detach().numpy(), tuple(state.detach().numpy() for state in new)


def _first_states(cell: LayerSpec, rows: int, context: Context) -> tuple[Array, ...]:
    """Compute a cell's initial states by the plugin's NumPy function, or else by its module."""
    if initial_states_of(cell) is not None:
        return initial_states_by_plugin(cell, rows, context)
    module, dtype = _module_of(cell, context)
    with torch.no_grad(), naming_plugin(cell, "its module"):
        states = initial_states(module, cell, torch.zeros((), dtype=dtype), rows)
    return tuple(state.detach().numpy() for state in states)


EQUATION_OR_MODULE = OwnEquations(equation_or_module, _first_states)


def _array(tensor: Tensor | None) -> Array | None:
    return None if tensor is None else tensor.numpy()
