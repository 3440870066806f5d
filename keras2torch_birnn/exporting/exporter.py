"""``export``: write a model in a target's form, check it on golden vectors, put it in place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, fx, nn

from keras2torch_birnn.comparison.outputs import compare, outputs
from keras2torch_birnn.comparison.report import Comparison
from keras2torch_birnn.comparison.tolerance import resolve_tolerance
from keras2torch_birnn.errors import InvalidModelFileError, K2TError, UsageError, in_file
from keras2torch_birnn.exporting import find_target
from keras2torch_birnn.exporting.child_process import run_exported
from keras2torch_birnn.exporting.target import Target
from keras2torch_birnn.exporting.torch_program import settle_sizes
from keras2torch_birnn.golden import Golden, checksum, make_golden_by_model, origin
from keras2torch_birnn.reference.sample_inputs import free_steps
from keras2torch_birnn.rnn.engine_settings import check_float32
from keras2torch_birnn.saving.atomic import (
    PREFIX,
    NewFile,
    check_output,
    is_stream,
    os_errors,
    write_atomically,
)
from keras2torch_birnn.spec import Array, ModelSpec, shape_fits
from keras2torch_birnn.suggestions import advise_extra


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Attributes:
        files: What was written, the file of ``path`` last.
        target: The form, by its suffix.
        checked: The comparison of the file with the golden vectors; None if it could not be run
            here, and then a note says why.
        runtime: What ran the file.
        notes: What a reader should know without being an error.
    """

    files: tuple[Path, ...]
    target: str
    checked: Comparison | None
    runtime: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        one = self.checked
        return {
            "files": [str(file) for file in self.files],
            "target": self.target,
            "checked_in": self.runtime if one else None,
            "max_abs_error": one.max_abs_error if one else None,
            "max_rel_error": one.max_rel_error if one else None,
            "notes": list(self.notes),
        }


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
    any_length: bool = False,
) -> Exported:
    """Write a converted model in a form that runs without this package, by the path's suffix.

    Inputs and outputs have Keras' names; batch and time are free where the Keras file leaves them
    free. The file is run on the golden vectors before it gets its name; where it cannot be run, a
    note says so.

    Args:
        model: What ``convert`` or ``load`` returned.
        path: The file to write: ``.onnx`` for ONNX Runtime and other runtimes, ``.pt2`` for
            ``torch.export.load``, ``.py`` for a Python file that needs torch alone.
        overwrite: Whether an existing file may be replaced. One that k2t did not write never is,
            unless it is empty.
        any_length: Make time free also where the Keras file fixes it and no weight depends on it.

    Returns:
        The files, and how far the exported model's numbers are from the golden vectors.

    Raises:
        UnsupportedLayerError: Some layers have no such form; all of them are listed.
        UnsupportedOptionError: The same, where all of it are options of layers.
        OutputError: The file cannot be written, or must not be replaced.
        UsageError: A package is missing, not a converted model, or one in reduced precision.
    """
    saved = origin(model)
    check_float32(model, "an export")
    place, form = Path(path), find_target(path)
    target = form.load()
    files = target.files(place)
    for file, kind in files.items():
        check_output(file, kind, overwrite=overwrite)
    with in_file(path):
        if reason := target.why_cannot_write():
            raise UsageError(reason, advise_extra("export"))
        stored = saved.spec
        spec = free_steps(stored) if any_length else stored
        golden = _choose_golden(model, spec)
        own = _run_golden(model, golden)
        spec, settled = settle_sizes(model, spec, golden.inputs, stored)
        beside = None if is_stream(place) else Path(os.path.realpath(place)).parent
        with os_errors(), tempfile.TemporaryDirectory(prefix=PREFIX, dir=beside) as folder:
            written = Path(folder, place.name)
            notes = target.write(copy_structure(model), spec, written)
            checked, more = _check(target, written, golden, own)
            made = (
                NewFile(file, kind, written.with_name(file.name).replace)
                for file, kind in files.items()
            )
            write_atomically(*made, overwrite=overwrite)
    notes = (*settled, *notes, *more)
    return Exported(tuple(files), form.name, checked, target.runtime, notes)


def _choose_golden(model: nn.Module, spec: ModelSpec) -> Golden:
    """Return the stored golden vectors, or make new ones if the weights or input shapes changed."""
    saved = origin(model)
    declared = [layer.config["shape"] for layer in spec.input_layers()]
    fit = all(
        shape is None or shape_fits(tuple(x.shape), tuple(shape))
        for shape, x in zip(declared, saved.golden.inputs, strict=True)
    )
    if fit and checksum(model) == saved.checksum:
        return saved.golden
    return make_golden_by_model(model, shorten=fit)


def copy_structure(model: nn.Module) -> fx.GraphModule:
    """Copy a model's modules to the CPU and eval mode; tensors on the CPU are shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            parameter.detach().cpu(), requires_grad=parameter.requires_grad
        )
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().cpu()
    copy: Any = deepcopy(model, memo)
    copy.cpu().eval()
    return cast(fx.GraphModule, copy)


def _check(
    target: Target, path: Path, golden: Golden, own: Comparison
) -> tuple[Comparison | None, tuple[str, ...]]:
    """Run a file on the golden inputs and compare; or return a note that it cannot be run.

    own: how the converted model itself compares.
    """
    if reason := target.why_cannot_run():
        return None, (f"nothing was checked: {reason}",)
    (computed,) = run_exported(path, [[_numpy(x) for x in golden.inputs]])
    found = _compare(computed, golden)
    if found.judged and not found.ok and not own.ok:
        raise _refuse_golden(f"it is off by {own.max_abs_error:.1e}")
    if not found.judged:
        return None, ("nothing was checked: rounding is too large on the golden vectors",)
    if found.failure:
        raise K2TError(
            f"the exported model does not run in {target.runtime} ({found.failure}); nothing was "
            "written",
            "please report it",
        )
    if not found.ok:
        raise K2TError(
            f"the exported model does not compute what the converted one does in "
            f"{target.runtime} (max abs error {found.max_abs_error:.1e}); nothing was written",
            "please report it",
        )
    return found, ()


def _run_golden(model: nn.Module, golden: Golden) -> Comparison:
    """Compare the model itself with its golden vectors.

    Raises:
        InvalidModelFileError: it cannot be computed on them, whatever the export does.
    """
    inputs = [_numpy(x) for x in golden.inputs]
    found = _compare(outputs(copy_structure(model), inputs, "cpu", strict=True), golden)
    if found.failure:
        raise _refuse_golden(found.failure)
    return found


def _refuse_golden(reason: str) -> InvalidModelFileError:
    return InvalidModelFileError(
        f"the converted model does not compute its own golden vectors ({reason}); nothing was "
        "written",
        "see what `k2t verify` says of it, and convert again",
        place="golden",
    )


def _compare(computed: Sequence[Array] | str, golden: Golden) -> Comparison:
    return compare(
        computed,
        [_numpy(y) for y in golden.outputs],
        golden.rounding_of_each(),
        resolve_tolerance(None, None),
        device="cpu",
        against="golden",
    )


def _numpy(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
