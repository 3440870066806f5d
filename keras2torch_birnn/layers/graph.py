"""A model's graph as a ``torch.fx.GraphModule``: straight-line code with Keras' layer names.

Nested models are inlined; their layers are under their name (``encoder.lstm_1``). Whether a
tensor has a mask is known when the graph is built, so the code that runs only what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx, nn

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError, gather
from keras2torch_birnn.layers.core import INPUT_CASTS
from keras2torch_birnn.layers.model_graph import ModelGraph, attribute_names
from keras2torch_birnn.layers.recurrent import (
    check_steps,
    fold_steps,
    holds_model,
    inner_mask_leaves,
    mask_enters,
    step_counts,
    unfold_steps,
)
from keras2torch_birnn.layers.registry import (
    SAME,
    Converter,
    MaskFlow,
    Step,
    around,
    check_said,
    convert_layer,
    mask_flow,
)
from keras2torch_birnn.layers.training_terms import attach_terms, count_calls
from keras2torch_birnn.schema import OPS, WITH_GRAPH
from keras2torch_birnn.schema.custom_layers import custom_layer_of, output_count
from keras2torch_birnn.schema.dtype_flow import (
    TAKES_IDS,
    Node,
    declared_dtype,
    dtype_of,
    output_dtypes,
    takes_unchanged,
    without_time_distributed,
)
from keras2torch_birnn.schema.operations.dtypes import Dtypes
from keras2torch_birnn.schema.shape_inference import as_called
from keras2torch_birnn.spec import (
    Call,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    map_structure,
    tensors,
)


def _read(graph: Graph) -> frozenset[str]:
    """Return the inputs that must have the declared dtype for the layers that read them.

    Not those that are states or masks alone, see ``_KEYWORDS``.
    """
    read = {ref.layer for ref in leaves(graph.outputs)}
    for call in graph.calls:
        layer = graph.layer(call.layer)
        name = layer.parts.get("layer", layer).class_name
        if name not in TAKES_IDS and name != "ops.NotEqual":
            read.update(ref.layer for ref in tensors(call.args))
    return frozenset(read)


if TYPE_CHECKING:
    from keras2torch_birnn.layers.operations import OperationNodes

# An input of a model: the fx node, its mask, its dtype.
Input = tuple[Any, Any, str]
_GIVEN = "given"  # the dtype of a user's input, not known yet
# Keywords of a call -> the dtype that they are; layers take masks of any.
_KEYWORDS = {"initial_state": "float"}


class _Emitter:
    """Writer of one model's calls into an fx graph, together with every tensor's mask."""

    def __init__(self, *, double: bool) -> None:
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.double = double
        # fx node name -> path of the Keras call ("dense", "dense#1", "encoder/lstm")
        self.paths: dict[str, str] = {}
        # The same for the nodes that make a call's mask
        self.mask_paths: dict[str, str] = {}
        # fx node name -> the number of TimeDistributed that fold their steps into its batch
        self.folded: dict[str, int] = {}
        self.problems: list[K2TError] = []
        # The same paths -> what the layer does with the mask that reaches it
        self.masks: dict[str, str] = {}
        # Module's path -> the plugin's layer that it is, or wraps, without weights
        self.own: dict[str, LayerSpec] = {}
        # The number of enclosing TimeDistributed, whose steps are folded into the batch
        self.folds = 0
        # Names of the nodes of steps around modules
        self.around: set[str] = set()
        # Module's path -> that of the one whose output is regularized, after the steps
        self.outputs: dict[str, str] = {}

    @cached_property
    def operations(self) -> OperationNodes:
        """Writer of operations; most models have none."""
        from keras2torch_birnn.layers.operations import OperationNodes

        return OperationNodes(self.graph, self.root, double=self.double)

    def modules(self, graph: Graph, parent: nn.Module, prefix: str = "") -> dict[str, str]:
        """Build every layer of the graph under ``parent``; return its attribute names."""
        names = attribute_names([layer.name for layer in graph.layers])
        for layer in graph.layers:
            if layer.class_name != "InputLayer" and layer.class_name not in OPS:
                try:
                    self.add(layer, parent, names, prefix)
                except K2TError as problem:
                    self.problems.append(problem)
        return names

    def add(
        self, layer: LayerSpec, parent: nn.Module, names: Mapping[str, str], prefix: str
    ) -> None:
        """Build a layer under ``parent``, with a module for its output if steps make that."""
        name = names[layer.name]
        module, output = self.module(layer, f"{prefix}{name}")
        parent.add_module(name, module)
        if output is not None:
            beside = f"{name}_output"
            while beside in names.values() or hasattr(parent, beside):
                beside += "_"
            parent.add_module(beside, output)
            self.outputs[f"{prefix}{name}"] = f"{prefix}{beside}"

    def module(self, layer: LayerSpec, path: str) -> tuple[nn.Module, nn.Module | None]:
        """Build a layer; a model, or what holds one, as a tree of modules without code.

        The second one is for the output of the steps after the module, where that is regularized.
        """
        if layer.graph is not None:
            holder = nn.Module()
            self.modules(layer.graph, holder, f"{path}.")
            return holder, None
        if not holds_model(layer):
            module, steps = convert_layer(layer), around(layer).after is not None
            return module, attach_terms(module, layer, folded=self.folds > 0, steps=steps)
        check_steps(layer)
        holder = nn.Module()
        self.folds += 1
        inner, _ = self.module(layer.parts["layer"], f"{path}.layer")
        holder.add_module("layer", inner)
        self.folds -= 1
        return holder, None

    def run(
        self, graph: Graph, inputs: list[Input], prefix: str, path: str
    ) -> tuple[Structure, Structure]:
        """Emit all calls of a graph; return outputs and masks."""
        names = attribute_names([layer.name for layer in graph.layers])
        values: dict[tuple[str, int], Structure] = {}
        masks: dict[tuple[str, int], Structure] = {}
        by_layer = dict(zip((ref.layer for ref in leaves(graph.inputs)), inputs, strict=False))
        dtypes: dict[Node, Dtypes] = {}
        read = _read(graph)
        used = _count_outputs(leaves((tuple(call.args for call in graph.calls), graph.outputs)))

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, TensorRef):
                return leaf
            found = values[leaf.layer, leaf.call]
            if isinstance(found, tuple):
                return found[leaf.output]
            if leaf.output:  # only a plugin's layer can have more than is known
                raise UnsupportedOptionError(
                    f"output {leaf.output} is used, but its plugin knows of one",
                    "declare outputs= there",
                    place=graph.layer(leaf.layer).place,
                )
            return found

        def mask(leaf: Any) -> Any:
            if not isinstance(leaf, TensorRef) or not leaf.masked:
                return None
            found = masks[leaf.layer, leaf.call]
            return found[leaf.output] if isinstance(found, tuple) else found

        for call in graph.calls:
            layer, key = graph.layer(call.layer), (call.layer, call.index)
            where = f"{path}{call.layer}" + (f"#{call.index}" if call.index else "")
            if layer.class_name == "InputLayer":
                x, masks[key], dtype = by_layer[call.layer]
                wanted = declared_dtype(layer) if call.layer in read else dtype
                values[key], dtypes[key] = self.cast(x, dtype, wanted), (wanted,)
                continue
            dtypes[key] = output_dtypes(layer, call, dtypes)
            came_as = tuple(dtype_of(leaf, dtypes) for leaf in leaves(call.args))
            args = tuple(map_structure(value, arg) for arg in call.args)
            arg_masks = tuple(map_structure(mask, arg) for arg in call.args)
            target = f"{prefix}{names[call.layer]}"
            if layer.class_name in OPS:
                came = next((m for m in _flat(arg_masks) if m is not None), None)
                values[key] = self.operation(layer, args, target, where, used.get(key, 1))
                masks[key] = self.mask_of_operation(layer, where, came)
            elif layer.graph is not None:
                # A passed mask is put on its tensor; one that has none keeps what it came with.
                passed = _flat(map_structure(value, call.kwargs.get("mask", ())))
                came = _flat(arg_masks)
                reach = [a if b is None else b for a, b in zip_longest(came, passed)]
                pairs = list(zip(_flat(args), reach, came_as, strict=True))
                gave, left = self.run(layer.graph, pairs, f"{target}.", f"{where}/")
                values[key], masks[key] = _numbered(gave), _numbered(left)
            else:
                args, kwargs = self.arguments(layer, call, value, dtypes)
                values[key], masks[key] = self.call(
                    layer, came_as, target, where, args, arg_masks, kwargs
                )
        return map_structure(value, graph.outputs), map_structure(mask, graph.outputs)

    def cast(self, x: Any, dtype: str, wanted: str) -> Any:
        """Cast a tensor from one dtype to another."""
        if dtype == wanted or {dtype, wanted} == {"int32", "int64"}:
            return x
        like = (self.operations.like(),) if wanted == "float" else ()
        args = (x, *like)
        return self.graph.create_node("call_function", INPUT_CASTS[wanted], args, name=x.name)

    def arguments(
        self, layer: LayerSpec, call: Call, value: Any, dtypes: Mapping[Node, Dtypes]
    ) -> tuple[tuple[Structure, ...], dict[str, Structure]]:
        """Return the arguments of a layer's call, cast to float unless it takes them unchanged.

        A plugin's layer gets integers as int64, as torch requires for ids.
        """
        own = custom_layer_of(without_time_distributed(layer)) is not None

        def structure(argument: Structure, wanted: str) -> Structure:
            def tensor(leaf: Any) -> Any:
                if not isinstance(leaf, TensorRef):
                    return value(leaf)
                dtype = dtype_of(leaf, dtypes)
                become = "ids" if own and dtype.startswith("int") else wanted
                return self.cast(value(leaf), dtype, become) if become else value(leaf)

            return map_structure(tensor, argument)

        came = tuple(dtype_of(leaf, dtypes) for leaf in leaves(call.args))
        unchanged = own or takes_unchanged(layer, came)
        return (
            tuple(structure(arg, "" if unchanged else "float") for arg in call.args),
            {key: structure(arg, _KEYWORDS.get(key, "")) for key, arg in call.kwargs.items()},
        )

    def operation(
        self, layer: LayerSpec, args: tuple[Structure, ...], target: str, where: str, used: int
    ) -> Structure:
        """Emit one call of an operation; ``used``: the number of its outputs in use."""
        try:
            node, value = self.operations.emit(layer, args, target.replace(".", "_"), used)
        except UnsupportedOptionError as problem:
            self.problems.append(problem)
            return args[0]
        if node is not None and layer.semantics["kinds"]["gives"] != ("size",):
            self._name(self.paths, node, where)
        return value

    def mask_of_operation(self, layer: LayerSpec, where: str, came: Any) -> Any:
        """Return the mask after an operation: none, but a cast that changes nothing keeps it."""
        passes = layer.semantics["kinds"]["passes_mask"]
        if came is None:
            return None
        if passes is None:
            self.problems.append(
                UnsupportedOptionError(
                    "a mask into a cast of floats, in a file that computes in half precision, is "
                    "not supported: whether it goes on depends on the exact dtype",
                    "save the model with the policy float32",
                    place=layer.place,
                )
            )
        self.masks[where] = "passes it on" if passes else "drops it"
        return came if passes else None

    def call(
        self,
        layer: LayerSpec,
        dtypes: Dtypes,
        target: str,
        where: str,
        args: tuple[Structure, ...],
        arg_masks: tuple[Structure, ...],
        kwargs: dict[str, Structure],
    ) -> tuple[Structure, Structure]:
        """Emit one call of a layer that is no model."""
        flow = mask_flow(as_called(layer, kwargs))
        arriving = _any(arg_masks[0] if len(arg_masks) == 1 else arg_masks)
        mask = _any(kwargs.pop("mask", arriving))
        if len(args) > 1 and mask is not None and arriving is not None:
            # A mask passed to one of several arguments; the others keep what they came with.
            mask = tuple(a if b is None else b for a, b in zip(arriving, mask, strict=True))
        goes_on = arriving if kwargs.pop("keep_mask", False) else mask
        ignored = kwargs.pop("ignore_mask", False)
        if mask is not None:
            check_said(layer, flow)
        if flow.refused and mask is not None and not ignored:
            advice = "drop the mask before this layer, and save again"
            raise UnsupportedOptionError(flow.refused, advice, place=layer.place)
        if holds_model(layer):
            if mask is not goes_on:
                raise UnsupportedOptionError(
                    "a mask passed to TimeDistributed over a whole model is not supported: this "
                    "Keras hands on another",
                    "make the mask inside the model, and save again",
                    place=layer.place,
                )
            return self.steps(layer, dtypes, target, where, args[0], mask)
        if flow.takes and mask is not None and not ignored:
            kwargs["mask"] = mask
        if any(custom_layer_of(part) is not None for part in layer.walk()):
            self.own[target] = replace(layer, weights={})
        node = self.module_call(layer, target, args, kwargs)
        after = self._mask_after(flow, target, args, goes_on)
        if callable(flow.after) and after is not None:
            self._name(self.mask_paths, after, where)
        if isinstance(after, tuple) and custom_layer_of(layer) is not None:
            after = after[0]  # several inputs, one output: the first mask goes with it
        came = mask is not None or goes_on is not None
        self._tell(where, node, came=came, used="mask" in kwargs, after=after)
        count = 2 if kwargs.get("return_attention_scores") else _outputs(layer)
        if count == 1:
            return node, after
        # States carry no mask; with merge_mode None both halves do.
        heads = 2 if layer.config.get("merge_mode", "") is None else 1
        return (
            tuple(self.graph.call_function(getitem, (node, i)) for i in range(count)),
            tuple(after if i < heads else None for i in range(count)),
        )

    def module_call(
        self,
        layer: LayerSpec,
        target: str,
        args: tuple[Structure, ...],
        kwargs: dict[str, Structure],
    ) -> fx.Node:
        """Emit the call of a layer's module, and the steps around it."""
        steps = around(as_called(layer, kwargs))
        if steps.before is not None:
            args = (self.step(steps.before, args[0]), *args[1:])
        node = self.graph.call_module(target, args, kwargs)
        self._fold(node)
        if steps.after is not None:
            node = self.step(steps.after, node)
        if target in self.outputs:
            node = self.graph.call_module(self.outputs[target], (node,))
            self.around.add(node.name)
        return node

    def step(self, step: Step, x: Any) -> fx.Node:
        """Emit a step before or after a layer's module."""
        node = self.graph.call_function(step.function, (x, *step.args), dict(step.options))
        self.around.add(node.name)
        return node

    def _name(self, names: dict[str, str], node: fx.Node, where: str) -> None:
        """Record which Keras call computed a node's value or mask."""
        names[node.name] = where
        self._fold(node)

    def _fold(self, node: fx.Node) -> None:
        if self.folds:
            self.folded[node.name] = self.folds

    def _tell(self, where: str, node: fx.Node, *, came: bool, used: bool, after: Any) -> None:
        """Record the call of a node, and the effect of a mask."""
        self._name(self.paths, node, where)
        if came:
            effect = "drops it" if after is None else "passes it on"
            self.masks[where] = "uses it" if used else effect
        elif after is not None:
            self.masks[where] = "makes it"

    def steps(
        self,
        layer: LayerSpec,
        dtypes: Dtypes,
        target: str,
        where: str,
        x: Structure,
        mask: Structure,
    ) -> tuple[Structure, Structure]:
        """Emit a TimeDistributed that holds a model: fold the steps, the model's calls, unfold."""
        inner, enters = layer.parts["layer"], mask is not None and mask_enters(layer)
        if enters and isinstance(x, tuple):
            raise UnsupportedOptionError(
                "a mask into TimeDistributed over several inputs",
                "join the inputs before it (Concatenate), or drop the mask, and save again",
                place=layer.place,
            )
        folded = map_structure(lambda t: self.graph.call_function(fold_steps, (t,)), x)
        folded_mask = self.graph.call_function(fold_steps, (mask,)) if enters else None
        below, path = f"{target}.layer", f"{where}/{inner.name}"
        self.folds += 1
        if inner.graph is None:
            y, inner_mask = self.steps(inner, dtypes, below, path, folded, folded_mask)
        else:
            given = [
                (t, folded_mask, dtype) for t, dtype in zip(leaves(folded), dtypes, strict=True)
            ]
            y, inner_mask = self.run(inner.graph, given, f"{below}.", f"{path}/")
        self.folds -= 1
        first = next(leaves(x))
        node = self.graph.call_function(unfold_steps, (y, first))
        after = mask
        if inner_mask_leaves(layer) and inner_mask is not None:
            after = self.graph.call_function(unfold_steps, (inner_mask, first))
        elif inner_mask_leaves(layer) and mask is not None:
            after = self.graph.call_function(step_counts, (first, mask))
        if after is not mask:
            self._name(self.mask_paths, after, where)
        self._tell(where, node, came=mask is not None, used=enters, after=after)
        return node, after

    def _mask_after(
        self, flow: MaskFlow, target: str, args: tuple[Structure, ...], mask: Any
    ) -> Any:
        if flow.after == "none" or (mask is None and not flow.makes):
            return None
        if flow.every and None in _flat(mask):
            return None
        if flow.after == "first":
            return _flat(mask)[0]
        if callable(flow.after):
            return self.graph.create_node(
                "call_function",
                flow.after,
                (args[0] if len(args) == 1 else args, mask),
                dict(flow.constants),
                name=f"{target.replace('.', '_')}_mask",
            )
        return mask


def _numbered(structure: Structure) -> Structure:
    """Return an inner model's outputs as a tuple in the order in which references count them."""
    single = structure is None or isinstance(structure, fx.Node)
    return structure if single else tuple(_flat(structure))


def _flat(structure: Structure) -> list[Any]:
    """Return the leaves of a structure of fx nodes, None included."""
    return list(leaves(structure))


def _any(mask: Structure) -> Structure:
    """Return the masks, or None if all are None."""
    return None if all(leaf is None for leaf in _flat(mask)) else mask


def _outputs(layer: LayerSpec) -> int:
    """Return the number of a layer's outputs."""
    if custom_layer_of(layer) is not None:
        return output_count(layer)
    one = layer.parts.get("forward_layer", layer)
    if not one.config.get("return_state") and layer.config.get("merge_mode", "") is not None:
        return 1
    shape = layer.output_shape
    return len(shape) if isinstance(shape, tuple) and isinstance(shape[0], tuple) else 1


def leaf_layers(layer: LayerSpec, path: str = "") -> Iterator[tuple[str, LayerSpec]]:
    """Yield the path of its module and every layer that ``graph_module`` builds from one."""
    if layer.graph is not None:
        names = attribute_names([inner.name for inner in layer.graph.layers])
        for inner in layer.graph.layers:
            if inner.class_name != "InputLayer" and inner.class_name not in OPS:
                where = f"{path}.{names[inner.name]}" if path else names[inner.name]
                yield from leaf_layers(inner, where)
    elif holds_model(layer):
        yield from leaf_layers(layer.parts["layer"], f"{path}.layer")
    else:
        yield path, layer


def graph_module(layer: LayerSpec) -> fx.GraphModule:
    """Build a Sequential or Functional model as a GraphModule.

    It takes the model's inputs in Keras' order and returns its outputs in Keras' structure.
    ``meta["paths"]`` maps each node of the graph to its Keras call, ``meta["mask_paths"]`` to the
    call whose mask it is, ``meta["folded"]`` to the number of time axes folded into its batch;
    ``meta["around"]`` names the nodes of steps before and after a layer's module;
    ``meta["masks"]`` maps the calls that a mask reaches to its effect, and ``meta["output_masks"]``
    names the node of each output's mask, None if it has none.
    """
    if layer.graph is None:
        raise TypeError("a model has a graph")
    weights = (array for part in layer.walk() for array in part.weights.values())
    emitter = _Emitter(double=any(array.dtype == np.float64 for array in weights))
    names = emitter.modules(layer.graph, emitter.root)
    if emitter.problems:
        raise gather(emitter.problems)
    refs = leaves(layer.graph.inputs)
    given = [(emitter.graph.placeholder(names[ref.layer]), None, _GIVEN) for ref in refs]
    outputs, masks = emitter.run(layer.graph, given, "", "")
    if emitter.problems:
        raise gather(emitter.problems)
    emitter.graph.output(outputs)
    emitter.graph.lint()
    class_name = attribute_names([layer.name])[layer.name]
    module = ModelGraph(emitter.root, emitter.graph, class_name)
    module.meta["paths"] = emitter.paths
    module.meta["mask_paths"] = emitter.mask_paths
    module.meta["folded"] = emitter.folded
    module.meta["masks"] = emitter.masks
    module.meta["around"] = frozenset(emitter.around)
    module.meta["own"] = emitter.own
    module.meta["output_masks"] = tuple(mask and mask.name for mask in _flat(masks))
    count_calls(module)
    return module


def _count_outputs(graph_leaves: Iterator[Any]) -> dict[tuple[str, int], int]:
    """Return (layer, call) -> the number of its outputs in use: one more than the highest."""
    found: dict[tuple[str, int], int] = {}
    for ref in graph_leaves:
        if isinstance(ref, TensorRef):
            key = (ref.layer, ref.call)
            found[key] = max(found.get(key, 1), ref.output + 1)
    return found


CONVERTERS: Mapping[str, Converter] = dict.fromkeys(WITH_GRAPH, Converter(graph_module, SAME))
