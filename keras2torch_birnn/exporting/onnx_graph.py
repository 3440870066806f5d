"""From a converted model to a graph of ONNX, by torch's exporter. B batch, T time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import fx
from torch.export import ExportedProgram

from keras2torch_birnn import __version__
from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, printable
from keras2torch_birnn.exporting.onnx_operators import TRANSLATIONS
from keras2torch_birnn.exporting.onnx_recurrent import replace_recurrent
from keras2torch_birnn.exporting.target import MARK
from keras2torch_birnn.exporting.torch_program import (
    Axes,
    Inputs,
    draw_example,
    open_axes,
    quiet,
    record_program,
)
from keras2torch_birnn.spec import ModelSpec, leaves

# Of ONNX Runtime from 1.14 and OpenVINO from 2023.0 on; torch's exporter writes no older one.
OPSET = 18
# Of free axes while the graph is recorded: the first of these numbers that fits the model.
_STEPS = (11, 29, 71, 173, 419, 1019)
# What torch's exporter says of an operator that it cannot translate.
_NO_FORM = re.compile(r"No ONNX function found for <OpOverload\(op='\w+\.(\w+)'")


def make_graph(model: fx.GraphModule, spec: ModelSpec) -> onnx_ir.Model:
    """Return the model as a graph of ONNX with Keras' names; the model's modules are replaced.

    Raises:
        UnsupportedLayerError, UnsupportedOptionError: what has no ONNX form.
    """
    steps = _choose_steps(model, spec)
    replace_recurrent(model)
    inputs = draw_example(model, spec, steps, seed=0)
    exported = _export(model, inputs, open_axes(spec, inputs))
    name_ends(exported.graph, *_names_of_ends(spec))
    name_axes(exported.graph)
    return exported


class _Sizes(fx.Interpreter):
    """A run of a model that notes the sizes of all tensors."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.found: list[int] = []

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node."""
        result = super().run_node(n)
        for leaf in leaves(result):
            self.found += leaf.shape if isinstance(leaf, torch.Tensor) else ()
        return result


def _choose_steps(model: fx.GraphModule, spec: ModelSpec) -> int:
    """Return a number of steps with which no size is 1 where more steps give more.

    torch takes such a 1 for one at all lengths: 11 steps are a single one behind a window of 11.
    """

    def sizes(steps: int) -> list[int]:
        run = _Sizes(model)
        with torch.no_grad():
            run.run(*draw_example(model, spec, steps, seed=0))
        return run.found

    shapes = (layer.config["shape"] for layer in spec.input_layers())
    if not any(shape is None or None in shape[1:] for shape in shapes):
        return _STEPS[0]  # no axis but the batch is open
    found = sizes(_STEPS[0])
    for steps, more in pairwise(_STEPS):
        before, found = found, sizes(more)
        # Equal sizes tell nothing: a window asks for more steps than both.
        if before != found and not any(a == 1 != b for a, b in zip(before, found, strict=False)):
            return steps
    return _STEPS[-1]


def _export(model: fx.GraphModule, inputs: Inputs, axes: Axes) -> onnx_ir.Model:
    """Run torch's exporter.

    Raises:
        UnsupportedLayerError: it cannot export the model.
    """
    program = None
    with quiet(), torch.no_grad():
        try:
            program = record_program(model, inputs, axes)
            found = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=dict(TRANSLATIONS),
                verbose=False,
            )
        except K2TError:
            raise
        except Exception as error:
            raise _refused(error, program) from error
    if found is None:
        raise UnsupportedLayerError("torch's exporter returned no model")
    exported: onnx_ir.Model = found.model
    return exported


def _refused(error: BaseException, program: ExportedProgram | None = None) -> UnsupportedLayerError:
    """Make the error for a model that torch's exporter does not take, with the first cause."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if program is not None and (missing := _NO_FORM.search(str(cause))):
        name = missing[1]
        return UnsupportedLayerError(
            f"torch's operator {name} has no ONNX form",
            "export it as .pt2",
            place=_user_of(name, program),
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = printable(lines[0] if lines else type(cause).__name__, 400)
    return UnsupportedLayerError(
        f"torch's exporter does not take this model ({type(cause).__name__}: {reason})",
        "export it as .pt2",
    )


def _user_of(operator: str, program: ExportedProgram) -> str:
    """Return the path of the first module that uses an operator, empty if no module does."""
    for node in program.graph.nodes:
        name = getattr(node.target, "_opname", "")
        if name == operator:
            paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            return paths[-1] if paths else ""
    return ""


# ---- names ---------------------------------------------------------------------------------------


def _names_of_ends(spec: ModelSpec) -> tuple[list[str], list[str]]:
    """Return Keras' names of the inputs and of the outputs, all different."""
    inputs, outputs = (list(leaves(one)) for one in (spec.graph.inputs, spec.graph.outputs))
    found: list[str] = []
    for ref in (*inputs, *outputs):
        name = ref.layer.encode(errors="backslashreplace").decode()  # a lone surrogate is no UTF-8
        count, one = 0, name
        while one in found:
            count += 1
            one = f"{name}_{count}"
        found.append(one)
    return found[: len(inputs)], found[len(inputs) :]


def name_ends(graph: onnx_ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give the inputs and outputs their names; inner values of the same name get another."""
    ends = {id(value) for value in graph.inputs}
    for place, value in enumerate(graph.outputs):
        if id(value) in ends:  # an input, or the same output twice
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
        ends.add(id(graph.outputs[place]))
    names = {*inputs, *outputs}
    inner = [*graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for number, value in enumerate((*inner, *graph.inputs)):
        if value.name in names:
            value.name = f"k2t_value_{number}"
    for value, name in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name


def name_axes(graph: onnx_ir.Graph) -> None:
    """Name free axes: ``batch``, ``time``, and ``time_2``, ... where others are independent."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                continue
            kind = ("batch", "time")[axis] if axis < 2 else "size"
            same = sum(name.partition("_")[0] == kind for name in names.values())
            names.setdefault(str(size), f"{kind}_{same + 1}" if same else kind)
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = onnx_ir.Shape(
                [
                    size if isinstance(size, int) else names.get(str(size.value), None)
                    for size in value.shape
                ]
            )


def save_graph(model: onnx_ir.Model, spec: ModelSpec, path: Path) -> None:
    """Write the graph, its weights and where it comes from to one file.

    Raises:
        UnsupportedLayerError: the exporter made an invalid graph.
    """
    model.producer_name, model.producer_version = MARK, __version__
    model.metadata_props.update(
        {
            MARK: __version__,
            "keras": spec.generation.version,
        }
    )
    onnx_ir.save(model, path)
    try:
        onnx.checker.check_model(path)
    except onnx.checker.ValidationError as error:
        raise _refused(error) from None
