"""Prove that OUT computes what MODEL computes: per layer, per device, by several yardsticks.

The verdict has two parts. In float64 the converted model must agree with the NumPy reference to
rounding, which no wrong gate, flip or mask survives. In its own precision it must agree to
``atol + rtol |y|``, or else be as close to the exact value as Keras (or plain float32 arithmetic)
is: some trained nets amplify rounding, and no implementation can be closer than that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.conversion import (
    difference,
    flat,
    in_float64,
    origin,
    reset_states,
    run,
)
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.inputs import draw_inputs
from keras2torch_birnn.keras_runner import KerasAnswer, ask_keras
from keras2torch_birnn.own import equation_of, shown
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.reference.own_layers import by_plugin
from keras2torch_birnn.saving import checked_device, load
from keras2torch_birnn.spec import (
    Array,
    LayerSpec,
    ModelSpec,
    Structure,
    leaves,
    model_from_json,
)
from keras2torch_birnn.trial import completed, own_layers, stands_for

Against = Literal["auto", "keras", "reference", "golden"]
AGAINST: tuple[Against, ...] = ("auto", "keras", "reference", "golden")

ATOL, RTOL = 1e-5, 1e-4
# float64 arithmetic keeps about 1e-16; sums over thousands of terms and steps lose some of it.
ATOL_FLOAT64, RTOL_FLOAT64 = 1e-9, 1e-9
# A result may be this many times as far from exact as the yardstick is.
ALLOWANCE = 4.0
STEPS = 11


@dataclass(frozen=True)
class LayerParity:
    """One layer's output against the reference, both in float64.

    ``worst_index`` says where in the output the largest error stands.
    """

    path: str
    max_abs_error: float
    max_rel_error: float
    worst_index: tuple[int, ...]
    ok: bool


@dataclass(frozen=True)
class Comparison:
    """The model's outputs on one device against one yardstick.

    ``yardstick_error``: how far the yardstick's own arithmetic is off from exact; 0 if unknown.
    ``counts``: whether the verdict depends on it.
    """

    device: str
    against: str
    max_abs_error: float
    max_rel_error: float
    yardstick_error: float
    ok: bool
    counts: bool = True


@dataclass(frozen=True)
class ParityReport:
    """What ``verify`` found.

    ``max_abs_error`` is the largest error of the comparisons that count. ``first_divergence`` is
    the path of the first layer that is wrong, or None.
    """

    ok: bool
    max_abs_error: float
    max_rel_error: float
    comparisons: tuple[Comparison, ...]
    layers: tuple[LayerParity, ...]
    first_divergence: str | None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def verify(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = ("cpu",),
    against: Against = "auto",
    atol: float = ATOL,
    rtol: float = RTOL,
    masked_steps: str | None = None,
    plugins: Iterable[PluginName] = (),
) -> ParityReport:
    """Compare the converted model OUT with what MODEL computes.

    With one path, that is OUT, checked against the golden vectors inside it. ``against``:
    "reference" (float64 NumPy), "keras" (the live Keras that can load the file, in a child
    process), "golden", or "auto": the reference, and Keras where it is installed.
    ``masked_steps``: as for ``convert``; by default what OUT was converted with. ``plugins``: as
    for ``convert``.

    Raises:
        UsageError: a device or a Keras that is not there; and what reading either file raises.
    """
    if against not in AGAINST:
        raise UsageError(f"against {against!r}: one of {', '.join(AGAINST)} is expected")
    load_plugins(plugins)
    places = expand_devices(devices)
    if out is None or against == "golden":
        return _against_golden(out or model, places, atol, rtol)
    spec = _read(model, config, masked_steps)
    converted = load(out)
    chosen = masked_steps or model_from_json(json.loads(origin(converted).spec_text)).masked_steps
    if chosen != spec.masked_steps:
        spec = _read(model, config, chosen)
    _check_same_model(spec, converted, out)
    inputs = draw_inputs(spec, steps=STEPS, seed=1)
    notes: list[str] = []
    trace = compute(spec, inputs, own=_by_plugin)
    exact = trace.outputs
    layers = _per_layer(converted, inputs, trace.layers)
    without = [shown(layer) for layer in own_layers(spec) if equation_of(layer) is None]
    if without:
        notes.append(
            f"{', '.join(dict.fromkeys(without))}: no NumPy equation, so what its module gives is "
            "taken as given; all other layers are judged by the reference"
        )
    comparisons: list[Comparison] = []
    answer = _keras_answer(model, config, spec, inputs, against, notes)
    rounding = _rounding(spec, inputs, exact)
    if answer is not None:
        rounding = max(rounding, _error(answer.outputs, exact)[0])
    for device in places:
        got = _outputs(converted, inputs, device, strict=True)
        if against != "keras":
            comparisons.append(_compare(got, exact, device, "reference", rounding, atol, rtol))
        if answer is not None:
            comparisons.append(
                _compare(got, answer.outputs, device, answer.name, rounding, atol, rtol)
            )
        if device.startswith("cuda"):
            loose = _outputs(converted, inputs, device, strict=False)
            default = _compare(loose, exact, device, "reference, default TF32", 0.0, atol, rtol)
            comparisons.append(Comparison(**{**asdict(default), "counts": False}))
    return _report(comparisons, layers, notes)


def _read(
    model: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    masked_steps: str | None,
) -> ModelSpec:
    """The spec of MODEL, with the shapes that plugins' layers give."""
    spec = read_model(model, config=config, masked_steps=masked_steps)
    with in_file(model):
        return completed(spec)


def _by_plugin(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
    """A plugin's NumPy equation, or its module in the place of one."""
    if equation_of(layer) is not None:
        return by_plugin(layer, inputs, mask, context)
    return stands_for(layer, inputs, mask, context)


def expand_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Turn "all" into every device there is, and check that each is there."""
    names: list[str] = []
    for device in devices or ("cpu",):
        every = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        names += every if device == "all" else [device]
    for name in names:
        checked_device(name)
    return tuple(dict.fromkeys(names))


def _check_same_model(spec: ModelSpec, converted: nn.Module, out: object) -> None:
    """Refuse to compare a model with a file that was made from another one."""
    theirs = json.loads(origin(converted).spec_text)["root"]
    ours = json.loads(spec.to_json())["root"]
    if _outline(theirs) != _outline(ours):
        with in_file(out):
            raise WeightMismatchError(
                "was made from another model: their layers differ", "convert MODEL again"
            )


def _outline(layer: Mapping[str, Any]) -> Any:
    inner = [*layer.get("parts", {}).values(), *layer.get("graph", {}).get("layers", ())]
    return (layer["class_name"], layer["name"], [_outline(part) for part in inner])


# ---- numbers ----------------------------------------------------------------------------------


def _error(got: Sequence[Any], wanted: Sequence[Any]) -> tuple[float, float]:
    """Largest absolute error, and the largest relative to the largest wanted value."""
    if len(got) != len(wanted):
        return float("inf"), float("inf")
    absolute = max((difference(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
    size = max((float(np.nanmax(np.abs(b), initial=0.0)) for b in wanted if np.size(b)), default=0)
    return absolute, absolute / size if size else absolute


def close(got: Any, wanted: Any, atol: float, rtol: float) -> bool:
    """Whether |got - wanted| <= atol + rtol |wanted| everywhere, NaN where NaN."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return got.shape == wanted.shape and bool(
        np.allclose(got, wanted, rtol=rtol, atol=atol, equal_nan=True)
    )


def _compare(
    got: Sequence[Array],
    wanted: Sequence[Array],
    device: str,
    against: str,
    rounding: float,
    atol: float,
    rtol: float,
) -> Comparison:
    absolute, relative = _error(got, wanted)
    ok = len(got) == len(wanted) and all(
        close(a, b, atol, rtol) for a, b in zip(got, wanted, strict=True)
    )
    ok = ok or absolute <= ALLOWANCE * rounding
    return Comparison(device, against, absolute, relative, rounding, ok)


def _rounding(spec: ModelSpec, inputs: Sequence[Array], exact: Sequence[Array]) -> float:
    """How far the same equations in float32 are off from float64."""
    return _error(compute(spec, inputs, dtype=np.float32, own=_by_plugin).outputs, exact)[0]


# ---- running the model ------------------------------------------------------------------------


def _outputs(
    model: nn.Module, inputs: Sequence[Array], device: str, *, strict: bool
) -> tuple[Array, ...]:
    tensors = tuple(torch.from_numpy(np.asarray(x)) for x in inputs)
    with _precision(strict=strict):
        return tuple(y.numpy() for y in run(model.to(device), tensors))


@contextmanager
def _precision(*, strict: bool) -> Iterator[None]:
    """``strict``: no TF32 on CUDA, which cuDNN's RNNs use by default (errors of about 1e-3)."""
    if not strict or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


class _Recorder(fx.Interpreter):
    """Runs the model's code and keeps what every Keras layer gave."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Any] = {}
        self.paths: Mapping[str, str] = module.meta["paths"]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; keep the result of those that are a Keras layer's call."""
        result = super().run_node(n)
        path = self.paths.get(n.name)
        if path is not None:
            self.found[path] = result
        return result


def layer_outputs(model: nn.Module, inputs: Sequence[Array]) -> dict[str, tuple[Tensor, ...]]:
    """Every layer's outputs by path, computed by a float64 copy of the model on the CPU."""
    copy = in_float64(model)
    if not isinstance(copy, fx.GraphModule):
        raise UsageError("this model was not made by k2t")
    reset_states(copy)
    recorder = _Recorder(copy)
    given = [torch.from_numpy(np.asarray(x)) for x in inputs]
    with torch.no_grad():
        recorder.run(*[x.double() if x.is_floating_point() else x for x in given])
    return {path: flat(value) for path, value in recorder.found.items()}


def _per_layer(
    model: nn.Module, inputs: Sequence[Array], wanted: Mapping[str, Any]
) -> tuple[LayerParity, ...]:
    return tuple(
        _layer_parity(path, [t.numpy() for t in got], [np.asarray(w) for w in leaves(wanted[path])])
        for path, got in layer_outputs(model, inputs).items()
        if path in wanted
    )


def _layer_parity(path: str, got: Sequence[Array], wanted: Sequence[Array]) -> LayerParity:
    absolute, relative = _error(got, wanted)
    ok = len(got) == len(wanted) and all(
        close(a, b, ATOL_FLOAT64, RTOL_FLOAT64) for a, b in zip(got, wanted, strict=True)
    )
    worst: tuple[int, ...] = ()
    if got and wanted and got[0].shape == wanted[0].shape and got[0].size:
        apart = np.nan_to_num(np.abs(got[0].astype(np.float64) - wanted[0]), nan=0.0)
        worst = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
    return LayerParity(path, absolute, relative, worst, ok)


# ---- yardsticks -------------------------------------------------------------------------------


def _keras_answer(
    model: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    spec: ModelSpec,
    inputs: Sequence[Array],
    against: Against,
    notes: list[str],
) -> KerasAnswer | None:
    """What the live Keras computes, or None with a note that says why not."""
    if against not in ("auto", "keras"):
        return None
    answer = ask_keras(Path(model), None if config is None else Path(config), spec, inputs)
    if isinstance(answer, KerasAnswer):
        return answer
    if against == "keras":
        raise UsageError(f"cannot compare with Keras: {answer}", "use --against reference")
    notes.append(f"not compared with Keras: {answer}")
    return None


def _against_golden(
    out: str | os.PathLike[str], places: Sequence[str], atol: float, rtol: float
) -> ParityReport:
    model = load(out)
    golden = origin(model).golden
    wanted = [y.numpy() for y in golden.outputs]
    inputs = [x.numpy() for x in golden.inputs]
    name = "golden" if golden.made_by == "reference" else f"golden by the {golden.made_by} itself"
    comparisons = [
        _compare(
            _on_golden(model, inputs, device, out),
            wanted,
            device,
            name,
            golden.rounding,
            atol,
            rtol,
        )
        for device in places
    ]
    return _report(comparisons, (), [])


def _on_golden(
    model: nn.Module, inputs: Sequence[Array], device: str, out: object
) -> tuple[Array, ...]:
    """The outputs; inputs of a file need not be such as its model takes."""
    try:
        return _outputs(model, inputs, device, strict=True)
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = printable(f"{type(error).__name__}: {error}".splitlines()[0])
        with in_file(out):
            raise InvalidModelFileError(
                f"the model cannot be computed on its golden inputs ({reason})",
                "convert again",
                place="golden",
            ) from None


def _report(
    comparisons: Sequence[Comparison], layers: Sequence[LayerParity], notes: Sequence[str]
) -> ParityReport:
    counting = [c for c in comparisons if c.counts]
    wrong = next((layer.path for layer in layers if not layer.ok), None)
    return ParityReport(
        ok=bool(counting) and all(c.ok for c in counting) and wrong is None,
        max_abs_error=max((c.max_abs_error for c in counting), default=0.0),
        max_rel_error=max((c.max_rel_error for c in counting), default=0.0),
        comparisons=tuple(comparisons),
        layers=tuple(layers),
        first_divergence=wrong,
        notes=tuple(notes),
    )
