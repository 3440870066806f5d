"""Verify that a checkpoint computes what its Keras file does: each layer, each device.

The verdict has two parts. In float64 every layer must agree with the NumPy reference, each on the
reference's own input (``layer_check``): that finds any wrong gate, flip or mask. In its own
precision the whole model must agree to ``atol + rtol |y|``, or be as close to the exact value as
plain float32 arithmetic is, on inputs where that is meaningful (``whole_model``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from keras2torch_birnn.comparison.outputs import compare, outputs
from keras2torch_birnn.comparison.report import (
    Comparison,
    LayerParity,
    ParityReport,
    report_of,
)
from keras2torch_birnn.comparison.tolerance import Tolerance, close, resolve_tolerance
from keras2torch_birnn.conversion import find_float_dtype, origin
from keras2torch_birnn.errors import (
    ArgumentTypeError,
    InvalidModelFileError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.exporting import is_exported
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.plugins.checks import EQUATION_OR_MODULE, complete_shapes, find_plugin_layers
from keras2torch_birnn.progress import begin
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.containers.live_model import ModelSource, is_path, name_source
from keras2torch_birnn.reference.rounding import Measured, by_reference, steadiest
from keras2torch_birnn.reference.sample_inputs import Drawn, candidates
from keras2torch_birnn.saving.checkpoint import load, resolve_device
from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint
from keras2torch_birnn.schema.custom_cells import lacks_initial_states
from keras2torch_birnn.schema.custom_layers import equation_of, shown
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import (
    Cut,
    LayerNames,
    ModelSpec,
    cut_at,
    with_dtype,
)
from keras2torch_birnn.verification.exported import load_baseline, make_baseline, verify_exported
from keras2torch_birnn.verification.given_inputs import Given, given_inputs
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
AGAINST: tuple[Against, ...] = ("auto", "keras", "reference", "golden")
STEPS = 11  # of free axes


def verify(
    model: ModelSource,
    out: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    devices: Sequence[str] = ("cpu",),
    against: Against = "auto",
    atol: float | None = None,
    rtol: float | None = None,
    masked_steps: str | None = None,
    from_layer: LayerNames = (),
    to_layer: LayerNames = (),
    plugins: Iterable[PluginName] = (),
    inputs: Given | None = None,
    with_maps: bool = False,
) -> ParityReport:
    """Compare the converted model in the file ``out`` with the Keras file or live ``model``.

    With one path alone, that is the converted file, checked against the golden vectors inside it.
    ``against``: "reference" (float64 NumPy), "keras" (live Keras, in a child process), "golden",
    or "auto": the reference, and Keras where it is installed.
    ``atol``, ``rtol``: applied exactly; without them ``1e-5 + 1e-4 |y|``, or the rounding error of
    float32 arithmetic. ``masked_steps``: as for ``convert``; by default the choice with which
    ``out`` was converted. ``from_layer``, ``to_layer``: not needed, as ``out`` holds where its
    model was cut; if given, they must be the same. ``plugins``: as for ``convert``. ``inputs``:
    your own data, in addition to random inputs: the path of an ``.npz``, a dict by the inputs'
    names, or a list in Keras' order. ``out`` may also be what ``k2t.export`` wrote, and ``model``
    then either what ``k2t convert`` wrote or the Keras file; every batch of every length counts.
    ``with_maps``: also map the errors of recurrent layers by step and unit (``LayerParity.maps``),
    which takes longer.

    Raises:
        UsageError: a device or a Keras that is missing, or inputs that do not fit the model;
            and every error of reading either file.
    """
    if against not in AGAINST:
        raise UsageError(f"against {against!r}: one of {', '.join(AGAINST)} is expected")
    limit = resolve_tolerance(atol, rtol)
    if isinstance(out, nn.Module):
        raise ArgumentTypeError(
            f"out: the path of a file is expected, found a module ({type(out).__name__})",
            "k2t.compare takes a module",
        )
    load_plugins(plugins)
    exported = model if out is None else out
    if is_path(exported) and is_exported(exported):
        cut = cut_at(from_layer, to_layer)
        read = partial(_read, model, config, masked_steps, cut)
        return _exported(model, out, read, devices, against, limit, inputs)
    places = expand_devices(devices)
    if out is None or against == "golden":
        if inputs is not None:
            raise UsageError(
                "golden vectors have their own inputs", "name both files: k2t verify MODEL OUT"
            )
        return _against_golden(out or _path_alone(model), places, limit)
    converted = load(out)
    theirs = model_from_json(json.loads(origin(converted).spec_text))
    cut = cut_at(from_layer, to_layer) or theirs.cut
    spec = _read(model, config, masked_steps, cut)
    _check_cut(spec, theirs, out)
    chosen = masked_steps or theirs.masked_steps
    if chosen != spec.masked_steps:
        spec = _read(model, config, chosen, cut)
    _check_same_model(spec, converted, out)
    spec = _in_precision(spec, converted)
    own_data = () if inputs is None else (given_inputs(spec, inputs),)
    drawn = candidates(spec, steps=STEPS, seed=1)
    begin("the reference")
    judged = next(drawn)  # show a wrong layer best; layer checks need no steady inputs
    on_drawn = by_reference(spec, judged, EQUATION_OR_MODULE, scans=True)
    known = {judged.name: on_drawn}
    judge = partial(_layers, converted, spec, with_maps=with_maps)
    layers = judge(on_drawn)
    for data in own_data:
        known[data.name] = _on_given(spec, data, inputs)
        layers = keep_worse(layers, judge(known[data.name]))

    def measure(one: Drawn) -> Measured:
        return known.get(one.name) or by_reference(spec, one, EQUATION_OR_MODULE)

    begin("whole model")
    best, tried = steadiest(chain(own_data, [judged], drawn), measure)
    notes = list(_plugin_notes(spec))
    answer: KerasAnswer | NoAnswer | None = None
    if best.judged:
        answer = _keras_answer(model, config, spec, best, against, notes)
    comparisons = [
        one
        for measured in tried
        if not measured.judged and measured is not best
        for one in _comparisons(converted, measured, places, limit, None, against)
    ]
    found = answer if isinstance(answer, KerasAnswer) else None
    comparisons += _comparisons(converted, best, places, limit, found, against)
    if not isinstance(answer, NoAnswer):
        return report_of(comparisons, layers, notes)
    reason = answer.reason if answer.foreign or answer.unknown else ""
    return report_of(comparisons, layers, notes, without_keras=reason, contradicted=answer.unknown)


def _exported(
    model: ModelSource,
    out: str | os.PathLike[str] | None,
    read: Callable[[], ModelSpec],
    devices: Sequence[str],
    against: Against,
    limit: Tolerance,
    inputs: Given | None,
) -> ParityReport:
    """Compare an exported file with the Keras model's reference, or with what it was made from.

    read: reads the Keras model.

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
    if is_path(model) and Path(model).is_file() and is_checkpoint(Path(model)):
        if against == "reference":
            raise UsageError(
                "a converted model has no reference", "name the Keras file: k2t verify MODEL EXPORT"
            )
        baseline, name = load_baseline(model), "the converted model in float64"
    else:
        baseline, name = make_baseline(read(), EQUATION_OR_MODULE), "reference"
    spec = baseline[0]
    return verify_exported(
        out,
        baseline,
        name,
        limit,
        steps=STEPS,
        own_data=() if inputs is None else (given_inputs(spec, inputs),),
    )


def _on_given(spec: ModelSpec, data: Drawn, source: Given | None) -> Measured:
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


def _layers(
    converted: nn.Module, spec: ModelSpec, measured: Measured, *, with_maps: bool
) -> tuple[LayerParity, ...]:
    """Judge every layer on these inputs, if the reference's run recorded its scans."""
    if measured.trace is None:
        return ()
    inputs = measured.drawn.arrays
    return check_layers(converted, spec, measured.trace, inputs, with_maps=with_maps)


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
    cells = [layer for layer in find_plugin_layers(spec) if equation_of(layer) is not None]
    unknown = [shown(cell) for cell in cells if lacks_initial_states(cell)]
    if unknown:
        yield (
            f"{', '.join(dict.fromkeys(unknown))}: no NumPy function of its initial states, so "
            "those of its module are not verified"
        )


def _path_alone(model: ModelSource) -> str | os.PathLike[str]:
    """Return the path of a converted file that is given by itself.

    Raises:
        ArgumentTypeError: it is none.
    """
    if is_path(model):
        return model
    with in_file(name_source(model)):
        raise ArgumentTypeError(
            "without a converted file to compare with", "name it: k2t.verify(model, 'out.pt')"
        )


def _read(
    model: ModelSource,
    config: str | os.PathLike[str] | None,
    masked_steps: str | None,
    cut: Cut,
) -> ModelSpec:
    """Read the spec of the Keras model, with the output shapes of plugins' layers."""
    spec = read_model(model, config=config, masked_steps=masked_steps, cut=cut)
    with in_file(name_source(model)):
        return complete_shapes(spec)


def expand_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Replace "all" by every available device, and check that each device is available."""
    names: list[str] = []
    for device in devices or ("cpu",):
        every = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        names += every if device == "all" else [device]
    for name in names:
        resolve_device(name)
    return tuple(dict.fromkeys(names))


def _check_cut(spec: ModelSpec, theirs: ModelSpec, out: object) -> None:
    """Refuse a cut of the user's that is not the one with which the file was made."""
    if spec.cut != theirs.cut:
        made = f"with {theirs.cut.options}" if theirs.cut else "without --from and --to"
        with in_file(out):
            raise UsageError(f"was converted {made}", "leave these options out, or convert again")


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
    model: ModelSource,
    config: str | os.PathLike[str] | None,
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
    answer = ask_keras(model, place, spec, measured.drawn.arrays)
    if isinstance(answer, KerasAnswer):
        return answer
    if against == "keras":
        raise UsageError(f"cannot compare with Keras: {answer.reason}", "use --against reference")
    notes.append(f"compared with the NumPy reference only: {answer.reason}")
    return answer


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
