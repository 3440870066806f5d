"""``write_source``: a converted model as plain PyTorch source and its weights by name."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from keras2torch_birnn.conversion import build, origin
from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.exporting.source.body import Body, Layers
from keras2torch_birnn.exporting.source.emission import MASK_REACHES, Emission, Helper, literal
from keras2torch_birnn.exporting.source.forward import write_body
from keras2torch_birnn.exporting.source.graph_nodes import (
    names_of_functions,
    without_steps_around,
)
from keras2torch_birnn.exporting.source.module_text import (
    ModelText,
    words,
    write_class,
    write_load,
    write_module,
)
from keras2torch_birnn.exporting.source.names import (
    Names,
    attribute,
    class_name,
    local,
    reserved,
    show_shape,
)
from keras2torch_birnn.exporting.source.pages import emit
from keras2torch_birnn.exporting.source.recurrent_call import HOLD, RUN
from keras2torch_birnn.exporting.source.snippets import copy
from keras2torch_birnn.layers.attribute_names import attribute_names
from keras2torch_birnn.layers.operations import Numbers
from keras2torch_birnn.schema import OPS
from keras2torch_birnn.schema.dtype_flow import declared_dtype
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.schema.training_rules import with_training_rules
from keras2torch_birnn.spec import Graph, LayerSpec, ModelSpec

_IMPORTED = {"torch", "functional", "nn", "partial", "math", "Tensor", "Path", "load_file"}


@dataclass(frozen=True)
class SourceFiles:
    """The two files of a model in plain PyTorch.

    text: of the module; tensors: name in its state_dict -> value; names: the converted model's name
    of a tensor -> its name there; notes: where training it differs from training in Keras.
    """

    text: str
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


def write_source(model: nn.Module, spec: ModelSpec | None = None) -> SourceFiles:
    """Write a converted model as source that needs torch and safetensors alone.

    spec: what the model was built from; by default that of its origin.

    Raises:
        UnsupportedLayerError: lists everything that has no source form.
    """
    if spec is None:
        spec = model_from_json(json.loads(origin(model).spec_text))
    return _Writer(model, spec).write()


class _Writer:
    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        self.model, self.spec = model, spec
        self.graph = without_steps_around(build(spec))
        self.state = model.state_dict()
        self.attributes = Names({*reserved(), *_IMPORTED, *dir(nn.Module())})
        self.problems: list[K2TError] = []
        self.double = any(t.dtype == torch.float64 for t in self.state.values())

    def write(self) -> SourceFiles:
        """Write text and tensors.

        Raises:
            UnsupportedLayerError: lists everything that has no source form.
        """
        layers = self.emit_layers()
        offered = [RUN, HOLD, *(h for e in layers.emissions.values() for h in e.helpers)]
        taken = {
            *reserved(),
            *_IMPORTED,
            *names_of_functions(self.graph),
            *(helper.name for helper in offered),
        }
        floats = [declared_dtype(one) == "float" for one in self.spec.input_layers()]
        body, problems = write_body(
            self.graph, layers, self.inputs(taken), taken, double=self.double, floats=floats
        )
        self.problems += problems
        if self.problems:
            raise _refusal(self.problems)
        tensors, frozen = self.tensors(layers, body)
        text = self.text(layers, body, [*offered, *body.helpers], frozen)
        notes = (note for one in layers.emissions.values() for note in one.notes)
        names = {
            f"{target}.{key}": there
            for target, emission in layers.emissions.items()
            for key, there in emission.state.items()
        }
        return SourceFiles(text, tensors, names, tuple(dict.fromkeys(notes)))

    def emit_layers(self) -> Layers:
        """Write every layer that the graph calls; collect what has no source form."""
        specs = dict(_by_module(with_training_rules(self.spec.root, self.spec.generation)))
        called = dict.fromkeys(
            str(node.target)
            for node in self.graph.graph.nodes
            if node.op == "call_module"
            and not isinstance(self.graph.get_submodule(str(node.target)), Numbers)
        )
        masked = {
            str(node.target)
            for node in self.graph.graph.nodes
            if node.op == "call_module" and "mask" in node.kwargs
        }
        emissions: dict[str, Emission] = {}
        attributes: dict[str, str] = {}
        for target in called:
            attributes[target] = self.attributes.add(attribute(target))
            try:
                layer = specs[target]
                if target in masked:
                    layer = replace(layer, semantics={**layer.semantics, MASK_REACHES: True})
                emissions[target] = emit(layer, attributes[target])
            except K2TError as problem:
                self.problems.append(problem)
        return Layers(specs, emissions, attributes)

    def inputs(self, taken: set[str]) -> list[str]:
        """Return the arguments of ``forward``: the names of the inputs, ``x`` for a single one."""
        layers = self.spec.input_layers()
        if len(layers) == 1:
            return ["x"]
        names = Names(taken)
        return [names.add(local(layer.name)) for layer in layers]

    def tensors(self, layers: Layers, body: Body) -> tuple[dict[str, Tensor], list[str]]:
        """Return the weights by their names in the module, and the names of the frozen ones."""
        parameters = dict(self.model.named_parameters())
        tensors: dict[str, Tensor] = {}
        frozen = []
        for target, emission in layers.emissions.items():
            for key, there in emission.state.items():
                name = f"{target}.{key}"
                tensors[there] = self.state[name].detach().cpu().clone().contiguous()
                fixed = name in parameters and not parameters[name].requires_grad
                if fixed or (name not in parameters and ".bias_hh_l" in there):
                    frozen.append(there)
        for name, value in body.constants.items():
            tensors[name] = value.detach().cpu().clone()
        return tensors, frozen

    def text(self, layers: Layers, body: Body, offered: list[Helper], frozen: list[str]) -> str:
        """Write the module."""
        by_name = {helper.name: helper for helper in offered}
        members = list(_members(layers, frozen))
        annotations, buffers = _constants(body, self.double)
        carried = [
            f"self.{part}_state: {_STATE[count]} | None = None"
            for emission in layers.emissions.values()
            for part, count in emission.carried.items()
        ]
        statements = [(one.text, one.comment) for one in body.statements]
        result, result_type = _result(body.result, self.spec.graph.outputs)
        draft = "\n".join([*members, *buffers, *(text for text, _ in statements)])
        used = [by_name[name] for name in _names(draft) if name in by_name]
        copied = copy(used)
        name = Names({*reserved(), *_IMPORTED, *copied.names}).add(class_name(self.spec.root.name))
        model = ModelText(
            name=name,
            docstring=self.docstring(layers),
            annotations=annotations,
            members=[*members, *buffers],
            inputs=body.arguments,
            forward_doc=self.forward_doc(body),
            statements=statements,
            result=result,
            result_type=result_type,
            carried=carried,
            double=self.double,
        )
        classes = [*write_class(model), "", "", *write_load(name, double=self.double)]
        return write_module(self.module_docstring(), copied, classes)

    def module_docstring(self) -> list[str]:
        """Return the docstring of the module."""
        return [f"{_title(self.spec)} in plain PyTorch."]

    def docstring(self, layers: Layers) -> list[str]:
        """Return the docstring of the class: which Keras it follows, and how training differs."""
        generation = self.spec.generation
        keras = "tf.keras" if generation.name == "tf.keras" else "Keras"
        lines = [f"As {keras} {words(generation.version)} computes it."]
        notes = [words(note) for one in layers.emissions.values() for note in one.notes]
        if notes:
            lines += ["", "Training differs from Keras:"]
            lines += [f"- {note}" for note in dict.fromkeys(notes)]
        return lines

    def forward_doc(self, body: Body) -> str:
        """Return the docstring of ``forward``: the shapes of its inputs."""
        shapes = []
        for name, layer in zip(body.arguments, self.spec.input_layers(), strict=True):
            shown = show_shape(layer.output_shape or layer.config.get("shape"))
            shapes.append(f"{name} {shown}".strip())
        return f"Compute the outputs; B rows, T steps: {', '.join(shapes)}."


_STATE: Mapping[int, str] = {1: "Tensor", 2: "tuple[Tensor, Tensor]"}


def _title(spec: ModelSpec) -> str:
    return f"The Keras model {local(spec.root.name)}"


def _by_module(layer: LayerSpec, path: str = "") -> Iterator[tuple[str, LayerSpec]]:
    """Yield the path of every module that ``layers.graph`` makes, with its layer."""
    if layer.graph is not None:
        yield from _of_graph(layer.graph, path)
    elif layer.class_name == "TimeDistributed" and any(
        part.graph is not None for part in layer.walk()
    ):
        yield from _by_module(layer.parts["layer"], f"{path}.layer")
    else:
        yield path, layer


def _of_graph(graph: Graph, path: str) -> Iterator[tuple[str, LayerSpec]]:
    names = attribute_names([layer.name for layer in graph.layers])
    for layer in graph.layers:
        if layer.class_name != "InputLayer" and layer.class_name not in OPS:
            here = f"{path}.{names[layer.name]}" if path else names[layer.name]
            yield from _by_module(layer, here)


_BUFFERS = frozenset(("running_mean", "running_var", "num_batches_tracked", "mean", "variance"))


def _is_buffer(key: str) -> bool:
    return key.rpartition(".")[2] in _BUFFERS


_FREEZE_SECOND = (
    "for name, parameter in self.named_parameters():",
    '    if "bias_hh" in name:  # Keras has one bias only',
    "        parameter.requires_grad_(False)",
)


def _members(layers: Layers, frozen: list[str]) -> Iterator[str]:
    """Yield the statements that make the members, and freeze what is not trained."""
    keys = [key for emission in layers.emissions.values() for key in emission.state.values()]
    second = [key for key in keys if ".bias_hh_l" in key]
    if len(second) > 1 and set(second) <= set(frozen):
        frozen = [key for key in frozen if key not in second]
        keys = [key for key in keys if key not in second]
        yield from _each_member(layers, frozen, set(keys))
        yield "\n".join(_FREEZE_SECOND)
    else:
        yield from _each_member(layers, frozen, set(keys))


def _each_member(layers: Layers, frozen: list[str], known: set[str]) -> Iterator[str]:
    for emission in layers.emissions.values():
        for name, constructor in emission.members.items():
            yield f"self.{name} = {constructor}"
            own = [key for key in emission.state.values() if _belongs(key, name) and key in known]
            fixed = [key for key in own if key in frozen]
            trained = [key for key in own if key not in frozen and not _is_buffer(key)]
            if fixed and not trained:
                yield f"self.{name}.requires_grad_(False)"
            else:
                yield from (f"self.{key}.requires_grad_(False)" for key in fixed)
        yield from emission.after


def _belongs(key: str, member: str) -> bool:
    return key == member or key.startswith(f"{member}.")


def _constants(body: Body, double: bool) -> tuple[list[str], list[str]]:
    """Return annotations and statements of buffers: constants of the file's graph."""
    annotations, lines = [], []
    floats = torch.float64 if double else torch.float32
    for name, value in body.constants.items():
        annotations.append(f"{name}: Tensor")
        kind = "" if value.dtype == floats else f", dtype={value.dtype}"
        shape = literal(tuple(value.shape))
        lines.append(f'self.register_buffer("{name}", torch.zeros({shape}{kind}))')
    return annotations, lines


def _names(code: str) -> Iterable[str]:
    """Return the names that code uses, in the order of their first use."""
    names = (node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return dict.fromkeys(names)


def _result(value: Any, structure: Any) -> tuple[str, str]:
    """Return the returned expression and its type."""
    if isinstance(value, Mapping):
        parts = [(literal(str(key)), *_result(one, None)) for key, one in value.items()]
        inner = ", ".join(f"{key}: {text}" for key, text, _ in parts)
        types = " | ".join(dict.fromkeys(kind for _, _, kind in parts))
        return f"{{{inner}}}", f"dict[str, {types}]"
    if isinstance(value, tuple | list):
        several = [_result(one, None) for one in value]
        inner = ", ".join(text for text, _ in several)
        types = ", ".join(kind for _, kind in several)
        comma = "," if len(several) == 1 else ""
        return f"({inner}{comma})", f"tuple[{types}]"
    return str(value), "Tensor"


def _refusal(problems: list[K2TError]) -> K2TError:
    """Join the problems, each once."""
    seen: dict[str, K2TError] = {}
    for problem in problems:
        for one in problem.problems:
            seen.setdefault(str(one), one)
    return gather(list(seen.values()))


__all__ = ["SourceFiles", "write_source"]
