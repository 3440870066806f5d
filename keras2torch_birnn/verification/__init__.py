"""Verify that a checkpoint computes what its Keras file does: each layer, each device.

The verdict has two parts. In float64 every layer must agree with the NumPy reference, each on the
reference's own input (``layer_check``): that finds any wrong gate, flip or mask. In its own
precision the whole model must agree to ``atol + rtol |y|``, or be as close to the exact value as
plain float32 arithmetic is, on inputs where that is meaningful (``whole_model``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.conversion import GOLDEN_STEPS, find_float_dtype, origin
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.exporting import is_exported
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.plugins.checks import complete_shapes, fallback_equation, find_plugin_layers
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.context import Context
from keras2torch_birnn.reference.custom_layers import by_plugin
from keras2torch_birnn.reference.rounding import Measured, by_reference, steadiest
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates, fitting_steps
from keras2torch_birnn.saving.checkpoint import load, resolve_device
from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint
from keras2torch_birnn.schema.custom_layers import equation_of, shown
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import (
    LayerSpec,
    ModelSpec,
    Structure,
    with_dtype,
)
from keras2torch_birnn.verification.exported import of_checkpoint, of_reference, verify_exported
from keras2torch_birnn.verification.given_inputs import Given, given_inputs
from keras2torch_birnn.verification.layer_check import check_layers, keep_worse
from keras2torch_birnn.verification.live_keras import KerasAnswer, ask_keras
from keras2torch_birnn.verification.report import (
    Comparison,
    LayerParity,
    ParityReport,
    report_of,
)
from keras2torch_birnn.verification.tolerance import Tolerance, close, resolve_tolerance
from keras2torch_birnn.verification.whole_model import compare, outputs

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
AGAINST: tuple[Against, ...] = ("auto", "keras", "reference", "golden")
# Sizes of free axes; the second where weights do not allow the first
STEPS = (11, GOLDEN_STEPS)


def verify(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = ("cpu",),
    against: Against = "auto",
    atol: float | None = None,
    rtol: float | None = None,
    masked_steps: str | None = None,
    plugins: Iterable[PluginName] = (),
    inputs: Given | None = None,
) -> ParityReport:
    """Compare the converted model in the file ``out`` with the Keras file ``model``.

    With one path, that is the converted file, checked against the golden vectors inside it.
    ``against``: "reference" (float64 NumPy), "keras" (live Keras, in a child process), "golden",
    or "auto": the reference, and Keras where it is installed.
    ``atol``, ``rtol``: applied exactly; without them ``1e-5 + 1e-4 |y|``, or the rounding error of
    float32 arithmetic. ``masked_steps``: as for ``convert``; by default the choice with which
    ``out`` was converted. ``plugins``: as for ``convert``. ``inputs``: your own data, in addition
    to random inputs: the path of an ``.npz``, a dict by the inputs' names, or a list in Keras'
    order. ``out`` may also be what ``k2t.export`` wrote, and ``model`` then either what
    ``k2t convert`` wrote or the Keras file; every batch of every length counts there.

    Raises:
        UsageError: a device or a Keras that is missing, or inputs that do not fit the model;
            and every error of reading either file.
    """
    if against not in AGAINST:
        raise UsageError(f"against {against!r}: one of {', '.join(AGAINST)} is expected")
    limit = resolve_tolerance(atol, rtol)
    load_plugins(plugins)
    if is_exported(model if out is None else out):
        return _exported(model, out, config, devices, against, limit, masked_steps, inputs)
    places = expand_devices(devices)
    if out is None or against == "golden":
        if inputs is not None:
            raise UsageError(
                "golden vectors have their own inputs", "name both files: k2t verify MODEL OUT"
            )
        return _against_golden(out or model, places, limit)
    spec = _read(model, config, masked_steps)
    converted = load(out)
    chosen = masked_steps or model_from_json(json.loads(origin(converted).spec_text)).masked_steps
    if chosen != spec.masked_steps:
        spec = _read(model, config, chosen)
    _check_same_model(spec, converted, out)
    spec = _in_precision(spec, converted)
    own_data = () if inputs is None else (given_inputs(spec, inputs),)
    drawn = candidates(spec, steps=fitting_steps(spec, STEPS), seed=1)
    judged = next(drawn)  # show a wrong layer best; layer checks need no steady inputs
    on_drawn = by_reference(spec, judged, _by_plugin, scans=True)
    known = {judged.name: on_drawn}
    layers = _layers(converted, spec, on_drawn)
    for data in own_data:
        known[data.name] = _on_given(spec, data, inputs)
        layers = keep_worse(layers, _layers(converted, spec, known[data.name]))

    def measure(one: Drawn) -> Measured:
        return known.get(one.name) or by_reference(spec, one, _by_plugin)

    best, tried = steadiest(chain(own_data, [judged], drawn), measure)
    notes = list(_plugin_notes(spec))
    answer = None
    if best.judged:
        answer = _keras_answer(model, config, spec, best, against, notes)
    comparisons = [
        one
        for measured in tried
        if not measured.judged and measured is not best
        for one in _comparisons(converted, measured, places, limit, None, against)
    ]
    comparisons += _comparisons(converted, best, places, limit, answer, against)
    return report_of(comparisons, layers, notes)


def _exported(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    devices: Sequence[str],
    against: Against,
    limit: Tolerance,
    masked_steps: str | None,
    inputs: Given | None,
) -> ParityReport:
    """Compare an exported file with the Keras file's reference, or with what it was made from.

    Raises:
        UsageError: options that have no meaning for it.
    """
    if out is None:
        raise UsageError(
            "an export has no golden vectors", "name its model, too: k2t verify OUT EXPORT"
        )
    if against not in ("auto", "reference"):
        raise UsageError(f"an export is not compared with {against}", "use --against auto")
    if set(devices) - {"cpu"}:
        raise UsageError(f"an export is run on the CPU, not on {', '.join(devices)}")
    place = Path(model)
    if place.is_file() and is_checkpoint(place):
        if against == "reference":
            raise UsageError(
                "a converted model has no reference", "name the Keras file: k2t verify MODEL EXPORT"
            )
        baseline, name = of_checkpoint(model), "the converted model in float64"
    else:
        baseline, name = of_reference(_read(model, config, masked_steps), _by_plugin), "reference"
    spec = baseline[0]
    return verify_exported(
        out,
        baseline,
        name,
        limit,
        steps=fitting_steps(spec, STEPS),
        own_data=() if inputs is None else (given_inputs(spec, inputs),),
    )


def _on_given(spec: ModelSpec, data: Drawn, source: Given | None) -> Measured:
    """Run the reference on the user's data: ids may exceed a vocabulary, shapes may not fit.

    Raises:
        UsageError: it cannot be run on them.
    """
    try:
        return by_reference(spec, data, _by_plugin, scans=True)
    except (ValueError, IndexError) as error:
        reason = printable(f"{error}".strip().partition("\n")[0])
        with in_file(source) if isinstance(source, str | os.PathLike) else nullcontext():
            raise UsageError(
                f"the model cannot be computed on the given inputs ({reason})"
            ) from None


def _comparisons(
    converted: nn.Module,
    measured: Measured,
    places: Sequence[str],
    limit: Tolerance,
    answer: KerasAnswer | None,
    against: Against,
) -> Iterator[Comparison]:
    """Compare on these inputs, on every device, with the reference and with live Keras."""
    arrays, named = measured.drawn.arrays, measured.drawn.name
    for device in places:
        actual = outputs(converted, arrays, device, strict=True)
        if against != "keras" or answer is None:
            yield compare(
                actual,
                measured.outputs,
                measured.roundings,
                limit,
                device=device,
                against="reference",
                inputs=named,
            )
        if answer is not None:
            yield compare(
                actual,
                answer.outputs,
                measured.roundings,
                limit,
                device=device,
                against=answer.name,
                inputs=named,
                coarseness=answer.coarseness,
            )
        if device.startswith("cuda"):
            loose = outputs(converted, arrays, device, strict=False)
            default = compare(
                loose,
                measured.outputs,
                measured.roundings,
                limit,
                device=device,
                against="reference, default TF32",
                inputs=named,
            )
            yield replace(default, counts=False, yardstick_error=0.0)


def _layers(converted: nn.Module, spec: ModelSpec, measured: Measured) -> tuple[LayerParity, ...]:
    """Judge every layer on these inputs, if the reference's run recorded its scans."""
    if measured.trace is None:
        return ()
    return check_layers(converted, spec, measured.trace, measured.drawn.arrays)


def _in_precision(spec: ModelSpec, converted: nn.Module) -> ModelSpec:
    """Return the spec with float32 weights if the model was converted to float32 on purpose."""
    if find_float_dtype(converted) != torch.float32:
        return spec
    return replace(spec, root=with_dtype(spec.root, np.dtype(np.float32)))


def _plugin_notes(spec: ModelSpec) -> Iterator[str]:
    without = [shown(layer) for layer in find_plugin_layers(spec) if equation_of(layer) is None]
    if without:
        yield (
            f"{', '.join(dict.fromkeys(without))}: no NumPy equation, so its module is not "
            "verified; all other layers are compared with the reference"
        )


def _read(
    model: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    masked_steps: str | None,
) -> ModelSpec:
    """Read the spec of the Keras file, with the output shapes of plugins' layers."""
    spec = read_model(model, config=config, masked_steps=masked_steps)
    with in_file(model):
        return complete_shapes(spec)


def _by_plugin(
    layer: LayerSpec, inputs: Structure, mask: Structure, context: Context
) -> tuple[Structure, Structure]:
    """Compute a plugin's layer by its NumPy equation, or by its module if it has none."""
    if equation_of(layer) is not None:
        return by_plugin(layer, inputs, mask, context)
    return fallback_equation(layer, inputs, mask, context)


def expand_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Replace "all" by every available device, and check that each device is available."""
    names: list[str] = []
    for device in devices or ("cpu",):
        every = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        names += every if device == "all" else [device]
    for name in names:
        resolve_device(name)
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


# ---- baselines --------------------------------------------------------------------------------


def _keras_answer(
    model: str | os.PathLike[str],
    config: str | os.PathLike[str] | None,
    spec: ModelSpec,
    measured: Measured,
    against: Against,
    notes: list[str],
) -> KerasAnswer | None:
    """Compute live Keras' outputs, or return None and add a note that says why."""
    if against not in ("auto", "keras"):
        return None
    place = None if config is None else Path(config)
    answer = ask_keras(Path(model), place, spec, measured.drawn.arrays)
    if isinstance(answer, KerasAnswer):
        return answer
    if against == "keras":
        raise UsageError(f"cannot compare with Keras: {answer}", "use --against reference")
    notes.append(f"not compared with Keras: {answer}")
    return None


def _against_golden(
    out: str | os.PathLike[str], places: Sequence[str], limit: Tolerance
) -> ParityReport:
    model = load(out)
    golden = origin(model).golden
    inputs = [x.numpy() for x in golden.inputs]
    name = "golden" if golden.made_by == "reference" else f"golden by the {golden.made_by} itself"
    comparisons = [
        compare(
            outputs(model, inputs, device, strict=True),
            [y.numpy() for y in golden.outputs],
            golden.rounding_of_each(),
            limit,
            device=device,
            against=name,
        )
        for device in places
    ]
    for one in comparisons:  # a file's golden inputs need not fit its model
        if one.failure:
            with in_file(out):
                raise InvalidModelFileError(
                    f"the model cannot be computed on its golden inputs ({one.failure})",
                    "convert again",
                    place="golden",
                )
    return report_of(comparisons, (), [])
