"""``write_source``: a converted model as plain PyTorch source and its weights by name."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from keras2torch_birnn.building import build
from keras2torch_birnn.errors import K2TError, gather
from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    call,
    code,
    join,
    literal,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.emission import MASK_REACHES, Emission, Helper, Value
from keras2torch_birnn.exporting.source.forward import Body, BodyWriter, Layers
from keras2torch_birnn.exporting.source.graph_nodes import names_of_functions, without_steps_around
from keras2torch_birnn.exporting.source.module_text import (
    ModelText,
    write_class,
    write_load,
    write_module,
)
from keras2torch_birnn.exporting.source.names import (
    Names,
    attribute,
    class_name,
    local,
    plain_text,
    reserved,
    show_shape,
)
from keras2torch_birnn.exporting.source.pages import emit
from keras2torch_birnn.exporting.source.recurrent_call import HOLD, RUN
from keras2torch_birnn.exporting.source.snippets import copy
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.graph import leaf_layers
from keras2torch_birnn.layers.operations import GraphConstant
from keras2torch_birnn.schema.dtype_flow import declared_dtype
from keras2torch_birnn.spec import ModelSpec

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
        spec = origin(model).spec
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
        writer = BodyWriter(self.graph, layers, taken, double=self.double, floats=floats)
        body = writer.write(self.inputs(taken))
        self.problems += writer.problems
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
        specs = {path: layer for path, _, layer in leaf_layers(self.spec.root)}
        called = dict.fromkeys(
            str(node.target)
            for node in self.graph.graph.nodes
            if node.op == "call_module"
            and not isinstance(self.graph.get_submodule(str(node.target)), GraphConstant)
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
                built = self.graph.get_submodule(target)
                emissions[target] = emit(layer, attributes[target], built)
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
            code("{}: {} | None = None", member(f"{part}_state"), _STATE[count])
            for emission in layers.emissions.values()
            for part, count in emission.carried.items()
        ]
        result, result_type = _result(body.result)
        statements = [one.code for one in body.statements]
        draft = "\n".join(one.text for one in (*members, *buffers, *statements))
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
            statements=body.statements,
            result=result,
            result_type=result_type,
            carried=carried,
            double=self.double,
        )
        classes = [*write_class(model), "", "", *write_load(name, double=self.double)]
        docstring = f"The Keras model {local(self.spec.root.name)} in plain PyTorch."
        return write_module([docstring], copied, classes)

    def docstring(self, layers: Layers) -> list[str]:
        """Return the docstring of the class: which Keras it follows, and how training differs."""
        generation = self.spec.generation
        keras = "tf.keras" if generation.name == "tf.keras" else "Keras"
        lines = [f"As {keras} {plain_text(generation.version)} computes it."]
        notes = [plain_text(note) for one in layers.emissions.values() for note in one.notes]
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


_TENSOR = symbol("Tensor")
_STATE: Mapping[int, Expression] = {1: _TENSOR, 2: code("tuple[Tensor, Tensor]")}


_BUFFERS = frozenset(("running_mean", "running_var", "num_batches_tracked", "mean", "variance"))


_FREEZE_SECOND = code(
    """\
for name, parameter in self.named_parameters():
    if "bias_hh" in name:  # Keras has one bias only
        parameter.requires_grad_(False)"""
)


def _members(layers: Layers, frozen: list[str]) -> Iterator[Expression]:
    """Yield the statements that make the members, and freeze what is not trained."""
    keys = [key for emission in layers.emissions.values() for key in emission.state.values()]
    second = {key for key in keys if ".bias_hh_l" in key}
    together = len(second) > 1 and second <= set(frozen)
    known = set(keys) - second if together else set(keys)
    for emission in layers.emissions.values():
        for name, constructor in emission.members.items():
            yield Statement(member(name), constructor).code
            own = [key for key in emission.state.values() if _belongs(key, name) and key in known]
            fixed = [key for key in own if key in frozen]
            trained = {key.rpartition(".")[2] for key in own if key not in frozen} - _BUFFERS
            if fixed and not trained:
                yield _freeze(name)
            else:
                yield from map(_freeze, fixed)
        yield from emission.after
    if together:
        yield _FREEZE_SECOND


def _freeze(attribute: str) -> Expression:
    return call(member(f"{attribute}.requires_grad_"), False)


def _belongs(key: str, member: str) -> bool:
    return key == member or key.startswith(f"{member}.")


def _constants(body: Body, double: bool) -> tuple[list[Expression], list[Expression]]:
    """Return annotations and statements of buffers: constants of the file's graph."""
    annotations, lines = [], []
    floats = torch.float64 if double else torch.float32
    for name, value in body.constants.items():
        annotations.append(code("{}: Tensor", symbol(name)))
        kind = {} if value.dtype == floats else {"dtype": value.dtype}
        zeros = call(symbol("torch.zeros"), tuple(value.shape), **kind)
        lines.append(call(member("register_buffer"), name, zeros))
    return annotations, lines


def _names(code: str) -> Iterable[str]:
    """Return the names that code uses, in the order of their first use."""
    names = (node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return dict.fromkeys(names)


def _result(value: Value) -> tuple[Expression, Expression]:
    """Return the returned expression and its type."""
    if isinstance(value, Mapping):
        parts = [(str(key), *_result(one)) for key, one in value.items()]
        inner = join(", ", (code("{}: {}", key, one) for key, one, _ in parts))
        types = join(" | ", dict.fromkeys(kind for _, _, kind in parts))
        return code("{{{}}}", inner), code("dict[str, {}]", types)
    if isinstance(value, tuple):
        several = [_result(one) for one in value]
        types = join(", ", (kind for _, kind in several))
        return literal(tuple(one for one, _ in several)), code("tuple[{}]", types)
    return literal(value), _TENSOR


def _refusal(problems: list[K2TError]) -> K2TError:
    """Join the problems, each once."""
    each = {str(one): one for problem in problems for one in problem.problems}
    return gather(list(each.values()))


__all__ = ["SourceFiles", "write_source"]
