"""The target ``.py``: a converted model as plain PyTorch source, and its weights by name."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import InvalidModelFileError, K2TError, gather, printable
from keras2torch_birnn.exporting.runtime_child import open_module
from keras2torch_birnn.exporting.source.code import (
    MASK_REACHES,
    Emission,
    Expression,
    Helper,
    Statement,
    Value,
    call,
    code,
    join,
    literal,
    member,
    symbol,
)
from keras2torch_birnn.exporting.source.forward import (
    BodyWriter,
    Layers,
    names_of_functions,
    without_steps_around,
)
from keras2torch_birnn.exporting.source.helpers import hold_last, run_valid_steps
from keras2torch_birnn.exporting.source.layers import emit
from keras2torch_birnn.exporting.source.module_text import (
    FIRST_LINE,
    write_class,
    write_forward,
    write_init,
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
from keras2torch_birnn.exporting.source.snippets import copy
from keras2torch_birnn.exporting.target import EXPORT, Session, Target
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.graph import leaf_layers
from keras2torch_birnn.layers.operations import GraphConstant
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.saving.checkpoint_kind import read_safetensors_format
from keras2torch_birnn.schema.dtype_flow import declared_dtype
from keras2torch_birnn.spec import LayerSpec, ModelSpec

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
    graph, state = without_steps_around(build(spec)), model.state_dict()
    double = any(t.dtype == torch.float64 for t in state.values())
    layers, problems = _emit_layers(graph, spec)
    emissions = [emission for _, _, emission in layers.values()]
    helpers: list[Helper] = [run_valid_steps, hold_last]
    helpers += [helper for one in emissions for helper in one.helpers]
    taken = {*reserved(), *_IMPORTED, *names_of_functions(graph)}
    taken |= {helper.__name__ for helper in helpers}
    inputs, names = spec.input_layers(), Names(taken)
    arguments = ["x"] if len(inputs) == 1 else [names.add(local(one.name)) for one in inputs]
    floats = [declared_dtype(one) == "float" for one in inputs]
    body = BodyWriter(graph, layers, arguments, taken, double=double, floats=floats)
    body.write()
    problems += body.problems
    if problems:
        each = {str(one): one for problem in problems for one in problem.problems}
        raise gather(list(each.values()))

    names_of_tensors = {
        f"{target}.{key}": there
        for target, (_, _, emission) in layers.items()
        for key, there in emission.state.items()
    }
    tensors = {there: state[name].detach() for name, there in names_of_tensors.items()}
    tensors |= {name: value.detach() for name, value in body.constants.items()}
    parameters = dict(model.named_parameters())
    frozen = {
        there
        for name, there in names_of_tensors.items()
        if (name in parameters and not parameters[name].requires_grad)
        or (name not in parameters and ".bias_hh_l" in there)
    }
    notes = tuple(dict.fromkeys(note for one in emissions for note in one.notes))
    return SourceFiles(
        _write_text(spec, emissions, body, [*helpers, *body.helpers], frozen, double=double),
        {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()},
        names_of_tensors,
        notes,
    )


def _emit_layers(graph: fx.GraphModule, spec: ModelSpec) -> tuple[Layers, list[K2TError]]:
    """Write every layer that the graph calls; return as well what has no source form."""
    specs = dict(leaf_layers(spec.root))
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    masked = {str(node.target) for node in calls if "mask" in node.kwargs}
    attributes = Names({*reserved(), *_IMPORTED, *dir(nn.Module())})
    layers: dict[str, tuple[str, LayerSpec, Emission]] = {}
    problems: list[K2TError] = []
    for target in dict.fromkeys(str(node.target) for node in calls):
        built = graph.get_submodule(target)
        if isinstance(built, GraphConstant):
            continue
        name, layer = attributes.add(attribute(target)), specs[target]
        if target in masked:
            layer = replace(layer, semantics={**layer.semantics, MASK_REACHES: True})
        try:
            layers[target] = (name, layer, emit(layer, name, built))
        except K2TError as problem:
            problems.append(problem)
    return layers, problems


def _write_text(
    spec: ModelSpec,
    emissions: Sequence[Emission],
    body: BodyWriter,
    helpers: Sequence[Helper],
    frozen: Set[str],
    *,
    double: bool,
) -> str:
    """Write the module; of ``helpers`` it gets those that it uses."""
    annotations, buffers = _constants(body.constants, double=double)
    members = [*_members(emissions, frozen), *buffers]
    carried = [
        code("{}: {} | None = None", member(f"{part}_state"), _STATE[count])
        for emission in emissions
        for part, count in emission.carried.items()
    ]
    draft = "\n".join(one.text for one in (*members, *(one.code for one in body.statements)))
    used = dict.fromkeys(n.id for n in ast.walk(ast.parse(draft)) if isinstance(n, ast.Name))
    by_name = {helper.__name__: helper for helper in helpers}
    copied = copy(by_name[name] for name in used if name in by_name)

    name = Names({*reserved(), *_IMPORTED, *copied.names}).add(class_name(spec.root.name))
    keras = "tf.keras" if spec.generation.name == "tf.keras" else "Keras"
    docstring = [f"As {keras} {plain_text(spec.generation.version)} computes it."]
    if notes := dict.fromkeys(plain_text(note) for one in emissions for note in one.notes):
        docstring += ["", "Training differs from Keras:", *(f"- {note}" for note in notes)]
    shapes = [
        f"{argument} {show_shape(layer.output_shape or layer.config.get('shape'))}".strip()
        for argument, layer in zip(body.arguments, spec.input_layers(), strict=True)
    ]
    shown = f"Compute the outputs; B rows, T steps: {', '.join(shapes)}."
    result, kind = _result(body.result)
    methods = [
        *write_init(members, carried),
        *write_forward(body.arguments, shown, body.statements, result, kind),
    ]
    classes = [
        *write_class(name, docstring, annotations, methods),
        "",
        "",
        *write_load(name, double=double),
    ]
    about = f"The Keras model {local(spec.root.name)} in plain PyTorch."
    return write_module([about], copied, classes)


_TENSOR = symbol("Tensor")
_STATE: Mapping[int, Expression] = {1: _TENSOR, 2: code("tuple[Tensor, Tensor]")}


_BUFFERS = frozenset(("running_mean", "running_var", "num_batches_tracked", "mean", "variance"))


_FREEZE_SECOND = code(
    """\
for name, parameter in self.named_parameters():
    if "bias_hh" in name:  # Keras has one bias only
        parameter.requires_grad_(False)"""
)


def _members(emissions: Sequence[Emission], frozen: Set[str]) -> Iterator[Expression]:
    """Yield the statements that make the members, and freeze what is not trained."""
    keys = [key for emission in emissions for key in emission.state.values()]
    second = {key for key in keys if ".bias_hh_l" in key}
    together = len(second) > 1 and second <= frozen
    known = set(keys) - second if together else set(keys)
    for emission in emissions:
        for name, constructor in emission.members.items():
            yield Statement(member(name), constructor).code
            own = [
                key
                for key in emission.state.values()
                if f"{key}.".startswith(f"{name}.") and key in known
            ]
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


def _constants(
    constants: Mapping[str, Tensor], *, double: bool
) -> tuple[list[Expression], list[Expression]]:
    """Return annotations and statements of buffers: constants of the file's graph."""
    annotations, lines = [], []
    floats = torch.float64 if double else torch.float32
    for name, value in constants.items():
        annotations.append(code("{}: Tensor", symbol(name)))
        kind = {} if value.dtype == floats else {"dtype": value.dtype}
        zeros = call(symbol("torch.zeros"), tuple(value.shape), **kind)
        lines.append(call(member("register_buffer"), name, zeros))
    return annotations, lines


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


__all__ = ["SourceFiles", "write_source"]


# ---- the target ----------------------------------------------------------------------------------

_FORMAT = "plain PyTorch source of keras2torch_birnn/1"


def is_our_source(path: Path) -> bool:
    """Return whether k2t wrote a module, by its first line.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(FIRST_LINE)) == FIRST_LINE.encode()


def is_our_weights_file(path: Path) -> bool:
    """Return whether k2t wrote the weights of a module, by the header.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            window = Window(file, 0, os.fstat(file.fileno()).st_size)
            return read_safetensors_format(window) == _FORMAT
    except InvalidModelFileError:
        return False


SOURCE = FileKind("plain PyTorch source", (".py",), is_our_source)
WEIGHTS = FileKind("the weights of plain PyTorch source", (".safetensors",), is_our_weights_file)


def save_source(source: SourceFiles, path: Path) -> None:
    """Write a module to ``path`` and its weights beside it, without checks."""
    path.write_text(source.text, encoding="utf-8")
    weights = path.with_suffix(WEIGHTS.suffixes[0])
    save_file(dict(source.tensors), weights, metadata={"format": _FORMAT})


class Source(Target):
    """Plain PyTorch source, and its weights beside it."""

    kind = SOURCE
    companions = (WEIGHTS,)
    alone = True
    runtime = "torch"

    def describe_other(self, path: Path) -> tuple[str, str] | None:
        """Describe Python code that does not define what ``open`` calls."""
        try:
            parts = ast.parse(path.read_bytes()).body
        except (SyntaxError, ValueError) as error:
            return f"is no Python code ({printable(error)})", EXPORT
        if any(isinstance(one, ast.FunctionDef) and one.name == "load" for one in parts):
            return None
        return (
            "Python code without the function load, which every export has",
            f"{EXPORT}; of a port of your own: k2t compare MODEL FILE.py:NAME",
        )

    def write(self, model: fx.GraphModule, spec: ModelSpec, path: Path) -> tuple[str, ...]:
        """Write the module and its weights.

        Raises:
            UnsupportedLayerError: lists everything that has no source form.
        """
        source = write_source(model, spec)
        save_source(source, path)
        return source.notes

    def open(self, path: Path) -> Session:
        """Return a function that runs the module: it is Python code, which this executes."""
        return open_module(path)


TARGET = Source()
