"""Verify that a checkpoint computes what its Keras file does: each layer, each device.

The verdict has two parts. In float64 every layer must agree with the NumPy reference, each on the
reference's own input (``layer_check``): that finds any wrong gate, flip or mask. In its own
precision the whole model must agree to ``atol + rtol |y|``, or be as close to the exact value as
plain float32 arithmetic is, on inputs where that is meaningful (``reference.rounding``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.comparison.outputs import compare, frozen_outputs, outputs
from keras2torch_birnn.comparison.report import (
    Comparison,
    LayerParity,
    ParityReport,
    report_of,
)
from keras2torch_birnn.comparison.tolerance import Tolerance, close, resolve_tolerance
from keras2torch_birnn.errors import (
    ArgumentTypeError,
    InvalidModelFileError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.exporting import is_exported
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import find_float_dtype
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.plugins.checks import EQUATION_OR_MODULE, complete_shapes, find_plugin_layers
from keras2torch_birnn.progress import begin
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers.container import ModelSource, Source, source_of
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.reference.rounding import Measured, by_reference, steadiest
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates
from keras2torch_birnn.saving.checkpoint import load, resolve_device
from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint
from keras2torch_birnn.schema.custom_cells import lacks_initial_states
from keras2torch_birnn.schema.custom_layers import equation_of, shown
from keras2torch_birnn.spec import (
    Cut,
    LayerNames,
    LayerSpec,
    ModelSpec,
    cut_at,
    with_dtype,
)
from keras2torch_birnn.suggestions import unknown_value
from keras2torch_birnn.verification.exported import (
    load_baseline,
    open_target,
    verify_exported,
)
from keras2torch_birnn.verification.given_inputs import InputData, given_inputs
from keras2torch_birnn.verification.layer_check import check_layers, keep_worse
from keras2torch_birnn.verification.live_keras import KerasAnswer, NoAnswer, ask_keras

__all__ = [
    "AGAINST",
    "Comparison",
    "LayerParity",
    "ParityReport",
    "check_layers",
    "close",
    "expand_devices",
    "verify",
]

Against = Literal["auto", "keras", "reference", "golden"]
"""The numbers that outputs are compared with."""
AGAINST: tuple[Against, ...] = ("auto", "keras", "reference", "golden")
STEPS = 11  # of free axes


def verify(
    model: ModelSource,
    out: PathLike | None = None,
    *,
    config: PathLike | None = None,
    devices: Sequence[str] = ("cpu",),
    against: Against = "auto",
    atol: float | None = None,
    rtol: float | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
    inputs: InputData | None = None,
) -> ParityReport:
    """Compare the converted model in the file ``out`` with the Keras file or live ``model``.

    With one path alone, that is the converted file, checked against the golden vectors inside it.

    Args:
        model: The Keras file or live model, as for ``convert``. For an export also what
            ``k2t convert`` wrote.
        out: What ``k2t convert`` or ``save`` wrote, or what ``k2t.export`` wrote; of an export
            every batch of every length counts.
        config: As for ``convert``.
        devices: Devices of torch to compute on, or ``["all"]`` for every one there is.
        against: "reference" (float64 NumPy), "keras" (live Keras, in a child process), "golden", or
            "auto", the reference, and Keras where it is installed.
        atol: Absolute tolerance, applied exactly. Without ``atol`` and ``rtol`` it is
            ``1e-5 + 1e-4 |y|``, or the rounding error of float32 arithmetic.
        rtol: Relative tolerance, applied exactly.
        from_layer: Not needed, as ``out`` holds where its model was cut; if given, the same.
        to_layer: As ``from_layer``.
        plugins: As for ``convert``.
        inputs: Your own data, in addition to random inputs: the path of an ``.npz``, a dict by the
            inputs' names, or a list in Keras' order.

    Returns:
        The verdict (``ok``), with every comparison behind it.

    Raises:
        UsageError: A device or a Keras is missing, or inputs do not fit the model.
        K2TError: Either file cannot be read, as ``convert`` and ``load`` say it.
    """
    if against not in AGAINST:
        raise unknown_value(f"against {against!r}", AGAINST, against)
    tolerance = resolve_tolerance(atol, rtol)
    if isinstance(out, nn.Module):
        raise ArgumentTypeError(
            f"out: the path of a file is expected, found a module ({type(out).__name__})",
            "k2t.compare takes a module",
        )
    load_plugins(plugins)
    source, cut = source_of(model), cut_at(from_layer, to_layer)
    exported = source.path if out is None else out
    if isinstance(exported, str | os.PathLike) and is_exported(exported):
        read = partial(_read, source, config, cut)
        return _verify_export(source, out, read, devices, against, tolerance, inputs)
    places = expand_devices(devices)
    if out is None:
        if against in ("keras", "reference") or config or cut or inputs is not None:
            raise need_model()
        if source.path is None:
            raise ArgumentTypeError(
                "without a converted file to compare with",
                "name it: k2t.verify(model, 'out.pt')",
                file=source.name,
            )
        return _verify_golden(load(source.path), source.path, places, tolerance)
    if against == "golden" and inputs is not None:
        raise UsageError("golden vectors have their own inputs", "use --against reference")
    converted = load(out)
    spec = _read_converted(source, converted, out, config, cut)
    if against == "golden":
        _check_same_weights(spec, converted, out)
        return _verify_golden(converted, out, places, tolerance)
    own_data = () if inputs is None else (given_inputs(spec, inputs),)
    drawn = candidates(spec, steps=STEPS, seed=1)
    first = next(drawn)  # shows a wrong layer best; layer checks need no steady inputs
    runs = _run_reference(spec, first, own_data, inputs)
    layers = _judge_layers(converted, spec, runs)
    steady, tried = _find_steadiest(spec, chain(own_data, [first], drawn), runs)
    notes = list(_plugin_notes(spec))
    answer = _ask_keras(source, config, spec, steady, against, notes) if steady.judged else None
    others = [one for one in tried if not one.judged and one is not steady]
    comparisons = [
        comparison
        for measured in (*others, steady)
        for comparison in _compare(
            converted, measured, places, tolerance, answer if measured is steady else None, against
        )
    ]
    return _report(comparisons, layers, notes, answer)


def need_model() -> UsageError:
    """Return the error for what OUT alone does not tell."""
    return UsageError(
        "OUT alone can be compared with its golden vectors only",
        "name both files: k2t verify MODEL OUT",
    )


def _read_converted(
    source: Source,
    converted: nn.Module,
    out: PathLike,
    config: PathLike | None,
    cut: Cut,
) -> ModelSpec:
    """Read the Keras model as ``out`` was converted from it: its cut and precision.

    Raises:
        UsageError, WeightMismatchError: ``out`` was made from another model, or another part.
    """
    theirs = origin(converted).spec
    spec = _read(source, config, cut or theirs.cut)
    with in_file(out):
        if spec.cut != theirs.cut:
            made = f"with {theirs.cut.options}" if theirs.cut else "without --from and --to"
            raise UsageError(f"was converted {made}", "leave these options out, or convert again")
        if _outline(theirs.root) != _outline(spec.root):
            raise WeightMismatchError(
                "was made from another model: their layers differ", "convert MODEL again"
            )
    if find_float_dtype(converted) != torch.float32:
        return spec
    return replace(spec, root=with_dtype(spec.root, np.dtype(np.float32)))  # it may be on purpose


def _run_reference(
    spec: ModelSpec, first: Drawn, own_data: Sequence[Drawn], source: InputData | None
) -> dict[str, Measured]:
    """Run the reference on the first random inputs and the user's; record every layer's scan."""
    begin("the reference")
    runs = {first.name: by_reference(spec, first, EQUATION_OR_MODULE, scans=True)}
    return runs | {data.name: _on_given(spec, data, source) for data in own_data}


def _judge_layers(
    converted: nn.Module, spec: ModelSpec, runs: Mapping[str, Measured]
) -> tuple[LayerParity, ...]:
    """Judge every layer on the inputs that it has in these runs; keep the worst of each."""
    layers: tuple[LayerParity, ...] = ()
    for run in runs.values():
        if run.trace is not None:
            found = check_layers(converted, spec, run.trace, run.drawn.arrays)
            layers = keep_worse(layers, found)
    return layers


def _find_steadiest(
    spec: ModelSpec, drawn: Iterable[Drawn], runs: Mapping[str, Measured]
) -> tuple[Measured, Sequence[Measured]]:
    """Find the inputs on which the reference is steadiest, and those that were tried."""

    def measure(inputs: Drawn) -> Measured:
        return runs.get(inputs.name) or by_reference(spec, inputs, EQUATION_OR_MODULE)

    begin("whole model")
    return steadiest(drawn, measure)


def _report(
    comparisons: Sequence[Comparison],
    layers: Sequence[LayerParity],
    notes: Sequence[str],
    answer: KerasAnswer | NoAnswer | None,
) -> ParityReport:
    if not isinstance(answer, NoAnswer):
        return report_of(comparisons, layers, notes)
    reason = answer.reason if answer.foreign or answer.unknown else ""
    return report_of(comparisons, layers, notes, without_keras=reason, contradicted=answer.unknown)


def _verify_export(
    source: Source,
    out: PathLike | None,
    read: Callable[[], ModelSpec],
    devices: Sequence[str],
    against: Against,
    tolerance: Tolerance,
    inputs: InputData | None,
) -> ParityReport:
    """Compare an exported file with the Keras model's reference, or with what it was made from.

    read: reads the Keras model.

    Raises:
        UsageError: options that have no meaning for it.
    """
    if out is None:
        open_target(source.path or "")
        raise UsageError(
            "an export has no golden vectors", "name its model, too: k2t verify OUT EXPORT"
        )
    if against not in ("auto", "reference"):
        raise UsageError(f"an export is not compared with {against}", "use --against auto")
    if set(devices) - {"cpu"}:
        raise UsageError(f"an export is run on the CPU, not on {', '.join(devices)}")
    if source.path is not None and source.path.is_file() and is_checkpoint(source.path):
        if against == "reference":
            raise UsageError(
                "a converted model has no reference", "name the Keras file: k2t verify MODEL EXPORT"
            )
        (spec, measure), name = load_baseline(source.path), "the converted model in float64"
    else:
        spec, name = read(), "reference"
        measure = partial(by_reference, spec, own=EQUATION_OR_MODULE)
    return verify_exported(
        out,
        (spec, measure),
        name,
        tolerance,
        steps=STEPS,
        own_data=() if inputs is None else (given_inputs(spec, inputs),),
    )


def _on_given(spec: ModelSpec, data: Drawn, source: InputData | None) -> Measured:
    """Run the reference on the user's data: ids may exceed a vocabulary, shapes may not fit.

    Raises:
        UsageError: it cannot be run on them.
    """
    try:
        return by_reference(spec, data, EQUATION_OR_MODULE, scans=True)
    except (ValueError, IndexError) as error:
        reason = printable(f"{error}".strip().partition("\n")[0])
        with in_file(source) if isinstance(source, str | os.PathLike) else nullcontext():
            raise UsageError(
                f"the model cannot be computed on the given inputs ({reason})"
            ) from None


def _compare(
    converted: nn.Module,
    measured: Measured,
    places: Sequence[str],
    tolerance: Tolerance,
    keras: KerasAnswer | NoAnswer | None,
    against: Against,
) -> Iterator[Comparison]:
    """Compare on these inputs, on every device, with the reference and with live Keras."""
    answer = keras if isinstance(keras, KerasAnswer) else None
    arrays, named = measured.drawn.arrays, measured.drawn.name
    for device in places:
        compared = partial(
            compare, roundings=measured.roundings, tolerance=tolerance, device=device, inputs=named
        )
        actual = outputs(converted, arrays, device, strict=True)
        if against != "keras" or answer is None:
            yield compared(actual, measured.outputs, against="reference")
        judged = measured.judged and device == "cpu"
        fast = frozen_outputs(converted, arrays) if judged else None
        if fast is not None:
            yield compared(fast, measured.outputs, against="reference, frozen")
        if answer is not None:
            yield compared(
                actual, answer.outputs, against=answer.name, coarseness=answer.coarseness
            )
        if device.startswith("cuda"):
            loose = outputs(converted, arrays, device, strict=False)
            default = compared(loose, measured.outputs, against="reference, default TF32")
            yield replace(default, counts=False, yardstick_error=0.0)


def _plugin_notes(spec: ModelSpec) -> Iterator[str]:
    without = [shown(layer) for layer in find_plugin_layers(spec) if equation_of(layer) is None]
    if without:
        yield (
            f"{', '.join(dict.fromkeys(without))}: no NumPy equation, so its module is not "
            "verified; all other layers are compared with the reference"
        )
    cells = [layer for layer in find_plugin_layers(spec) if equation_of(layer) is not None]
    unknown = [shown(cell) for cell in cells if lacks_initial_states(cell)]
    if unknown:
        yield (
            f"{', '.join(dict.fromkeys(unknown))}: no NumPy function of its initial states, so "
            "those of its module are not verified"
        )


def _read(
    source: Source,
    config: PathLike | None,
    cut: Cut,
) -> ModelSpec:
    """Read the spec of the Keras model, with the output shapes of plugins' layers."""
    spec = read_model(source, config=config, cut=cut)
    with in_file(source.name):
        return complete_shapes(spec)


def expand_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Replace "all" by every available device, and check that each device is available.

    Raises:
        UsageError: one is not, or computes nothing.
    """
    names: list[str] = []
    for device in devices or ("cpu",):
        names += ("cpu", *find_accelerators()) if device == "all" else [device]
    for name in names:
        if resolve_device(name).type == "meta":
            raise UsageError("device meta: it holds no numbers to compare", "use --device cpu")
    return tuple(dict.fromkeys(names))


def find_accelerators() -> tuple[str, ...]:
    """Return the name of the machine's accelerator (cuda, xpu, mps ...), if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return () if found is None else (found.type,)


def _check_same_weights(spec: ModelSpec, converted: nn.Module, out: object) -> None:
    """Refuse a file with other weights: its own golden vectors would say nothing of the model."""
    found = converted.state_dict()
    for name, tensor in build(spec).state_dict().items():
        nan = tensor.is_floating_point()
        if not np.array_equal(found.get(name, torch.empty(0)), tensor, equal_nan=nan):
            with in_file(out):
                raise WeightMismatchError(
                    f"has other weights than the model: {printable(name)}",
                    "verify it --against reference, or convert MODEL again",
                )


def _outline(layer: LayerSpec) -> list[tuple[str, str, str]]:
    return [(one.class_name, one.name, one.place) for one in layer.walk()]


# ---- baselines --------------------------------------------------------------------------------


def _ask_keras(
    source: Source,
    config: PathLike | None,
    spec: ModelSpec,
    measured: Measured,
    against: Against,
    notes: list[str],
) -> KerasAnswer | NoAnswer | None:
    """Compute live Keras' outputs; add a note that says why it gave none."""
    if against not in ("auto", "keras"):
        return None
    if spec.cut:
        if against == "keras":
            raise UsageError(
                "a part of a model is not compared with Keras", "use --against reference"
            )
        notes.append("not compared with Keras: the model is a part of the file's")
        return None
    place = None if config is None else Path(config)
    answer = ask_keras(source, place, spec, measured.drawn.arrays)
    if isinstance(answer, KerasAnswer):
        return answer
    if against == "keras":
        raise UsageError(f"cannot compare with Keras: {answer.reason}", "use --against reference")
    notes.append(f"compared with the NumPy reference only: {answer.reason}")
    return answer


def _verify_golden(
    model: nn.Module, file: PathLike, places: Sequence[str], tolerance: Tolerance
) -> ParityReport:
    """Compare a converted model, loaded from a file, with the golden vectors in it."""
    golden = origin(model).golden
    arrays = [x.numpy() for x in golden.inputs]
    name = "golden" if golden.made_by == "reference" else f"golden by the {golden.made_by} itself"
    compared = partial(
        compare,
        expected=[y.numpy() for y in golden.outputs],
        roundings=golden.rounding_of_each(),
        tolerance=tolerance,
    )
    comparisons = [
        compared(outputs(model, arrays, device, strict=True), device=device, against=name)
        for device in places
    ]
    judged = "cpu" in places and all(one.judged for one in comparisons)
    fast = frozen_outputs(model, arrays) if judged else None
    if fast is not None:
        comparisons.append(compared(fast, device="cpu", against=f"{name}, frozen"))
    for one in comparisons:  # a file's golden inputs need not fit its model
        if one.failure:
            with in_file(file):
                raise InvalidModelFileError(
                    f"the model cannot be computed on its golden inputs ({one.failure})",
                    "convert again",
                    place="golden",
                )
    return report_of(comparisons, (), [])
