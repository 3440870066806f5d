"""Ports that are right but for some modules: of files, and of small models that no file holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from graph_specs import chain_graph, spec_of
from torch import Tensor, nn

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.changes import Change, followed_by
from keras2torch_birnn.porting.comparing import _Comparison
from keras2torch_birnn.porting.matching import find_units, match_units
from keras2torch_birnn.porting.report import PortFinding, PortReport
from keras2torch_birnn.porting.right_tensors import find_leaves
from keras2torch_birnn.spec import ModelSpec

# Inputs of a graph: name, kind and shape.
Inputs = Sequence[tuple[str, str, tuple[int, ...]]]
FLOATS: Inputs = [("x", "float", (7, 5))]
IDS: Inputs = [("x", "ids", (7,))]
TWO: Inputs = [*FLOATS, ("z", "float", (7, 5))]
# The right module and what it is called with -> what the port computes instead
Wrong = Callable[..., Any]


# ---- models --------------------------------------------------------------------------------------


def chain_of(*layers: Any, inputs: Inputs = FLOATS) -> ModelSpec:
    """Make a model of layers, each of which reads the one before; they are layer_0, layer_1, ..."""
    return spec_of(chain_graph(*layers, inputs=inputs))


def model_of(
    *steps: Any,
    inputs: Inputs = FLOATS,
    outputs: Any = None,
    version: str = "3.15.1",
    **shared: Any,
) -> ModelSpec:
    """Make a model of steps; its output is that of the last one, unless others are named."""
    outputs = outputs or steps[-1][0]
    graph = {"inputs": inputs, "shared": shared, "steps": steps, "outputs": outputs}
    return spec_of(graph, version)


# ---- ports ---------------------------------------------------------------------------------------


class Instead(nn.Module):
    """A module of a right port, and what is done with it."""

    def __init__(self, right: nn.Module, wrong: Wrong) -> None:
        super().__init__()
        self.right, self.wrong = right, wrong

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.wrong(self.right, *args, **given)


class Plus(nn.Module):
    """A number is added."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return x + self.more


def port_of(source: Path | ModelSpec, **wrong: Wrong) -> nn.Module:
    """Convert a model, and replace the modules of these names."""
    port = build_model(source) if isinstance(source, ModelSpec) else k2t.convert(source)
    for name, instead in wrong.items():
        port.set_submodule(name, Instead(port.get_submodule(name), instead))
    return port


def torchs_lstm(right: Any, x: Tensor) -> Any:
    """Return an ``nn.LSTM`` with the weights of a converted layer."""
    two = "weight_ih_l0_reverse" in right.state_dict()
    lstm = nn.LSTM(x.shape[-1], right.hidden_size, batch_first=True, bidirectional=two).to(x)
    lstm.load_state_dict(right.state_dict(), strict=False)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
    return lstm


def normalize_last(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a module whose channels come second, as torch's do, to channels that come last."""
    y: Tensor = norm(x.movedim(-1, 1)).movedim(1, -1)
    return y


# ---- comparisons ---------------------------------------------------------------------------------


def comparison_of(spec: ModelSpec, port: nn.Module) -> _Comparison:
    known, units = find_leaves(spec), find_units(port)
    return _Comparison(spec, port, known, units, match_units(units, known, []))


def compare_spec(spec: ModelSpec, port: nn.Module) -> PortReport:
    """Compare a port with a model that no file holds."""
    return comparison_of(spec, port).report(batches(spec, None), None)


def compare_with(source: Path | ModelSpec, **wrong: Wrong) -> PortReport:
    """Compare a port in which the modules of these names are replaced."""
    port = port_of(source, **wrong)
    return (
        compare_spec(source, port) if isinstance(source, ModelSpec) else k2t.compare(source, port)
    )


def told(report: PortReport) -> list[tuple[str, str]]:
    return [(one.layer, one.kind) for one in report.findings]


def only_finding(report: PortReport, layer: str, kind: str) -> PortFinding:
    """Return the only finding, which has to be of this kind at this layer."""
    assert told(report) == [(layer, kind)], "\n".join(report.lines())
    return report.findings[0]


def adding(layer: str, name: str, more: Any) -> Change:
    """Return a mistake: something is added to the output of a layer of this class name."""
    where = {(layer, name): followed_by(partial(_plus, more))}
    return Change("", layer, "something is added", where)


def _plus(more: Any, x: Any) -> Any:
    return x + more
