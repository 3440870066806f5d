"""The target ``.pt2``: an archive of ``torch.export``, which runs without this package.

The sizes that the Keras file leaves open are open in the archive, too: the batch, and in most
models the number of steps.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from keras2torch_birnn import __version__
from keras2torch_birnn.comparison.tolerance import (
    EXACT,
    all_close,
    max_errors,
    resolve_tolerance,
)
from keras2torch_birnn.errors import (
    K2TError,
    UnsupportedLayerError,
    UnsupportedOptionError,
    UsageError,
    gather,
    printable,
)
from keras2torch_birnn.exporting.target import MARK, Session, Target
from keras2torch_birnn.exporting.torch_program import (
    Axes,
    Inputs,
    draw_example,
    open_axes,
    quiet,
    record_program,
    run_quietly,
    takes,
)
from keras2torch_birnn.golden import GOLDEN_STEPS, copy_in_float64
from keras2torch_birnn.layers.running import find_float_dtype, run
from keras2torch_birnn.reference.rounding import differences
from keras2torch_birnn.saving.atomic import FileKind
from keras2torch_birnn.spec import Array, ModelSpec

# The namespaces of operators that torch itself has.
_OPERATOR: Any = type(torch.ops.aten.add.Tensor)
_OF_TORCH = frozenset({"aten", "prim", "prims", "higher_order", "inductor"})
_ADVICE = "please report it, with the file if you can"
_SEED = 1
# Open sizes while a program is recorded. They are large: what a pooling leaves of a small one is 1,
# and torch fixes that.
_STEPS = 61


def write_pt2(model: nn.Module, spec: ModelSpec, path: Path) -> None:
    """Write a converted model as an archive of ``torch.export``, and check what was written.

    The archive takes the inputs in Keras' order, under the names that they have in the model. It is
    read back, and compared with the model on inputs of other sizes than those it was recorded with.

    model: in eval mode. spec: of the model; an axis of an input is open where its shape has None.

    Raises:
        UsageError: this torch would fix an open size.
        UnsupportedLayerError, UnsupportedOptionError: a layer needs an operator that torch lacks,
            carries states from batch to batch, or cannot be exported.
        K2TError: the archive does not compute what the model computes.
    """
    _check_stateless(spec)
    problems: list[K2TError] = []
    kept: Any = None
    for like_all_sizes in (True, False):
        try:
            program = _record(model, spec, like_all_sizes=like_all_sizes)
            again = _save(program, path)
            _check_sizes(again, model, _several_sizes(model, spec))
        except K2TError as error:
            problems.append(error)
            continue
        if _takes_one_step(again, model, spec):
            return
        kept = kept or program
    if kept is None:
        raise problems[-1]
    _save(kept, path)


def _record(model: nn.Module, spec: ModelSpec, *, like_all_sizes: bool) -> Any:
    """Record a program that leaves all sizes open and needs torch's operators alone."""
    example = draw_example(model, spec, _STEPS, _SEED)
    axes = open_axes(spec, example)
    try:
        program = record_program(model, example, axes, like_all_sizes=like_all_sizes)
    except Exception as error:
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        raise UnsupportedLayerError(f"torch.export refuses it ({reason})") from error
    _check_open(program, axes)
    _check_operators(program)
    return program


def _save(program: Any, path: Path) -> nn.Module:
    """Write a program, and return what is read back."""
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={MARK: __version__})
    with quiet():
        again: nn.Module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return again


def _several_sizes(model: nn.Module, spec: ModelSpec) -> Sequence[Inputs]:
    """Return one row and two, of other steps than the recorded ones, if the model takes them."""
    five, seven = (
        draw_example(model, spec, steps, _SEED) for steps in (GOLDEN_STEPS - 2, GOLDEN_STEPS)
    )
    axes = open_axes(spec, five)
    single = [_rows(batch, axes, 0, 1) for batch in (five, seven)]
    taken = [batch for batch in single if takes(model, batch)][:1]
    taken += [batch for batch in (_rows(_twice(seven, axes), axes, 1, 3),) if takes(model, batch)]
    return taken or (_one_row_more(seven, axes),)


def _takes_one_step(exported: nn.Module, model: nn.Module, spec: ModelSpec) -> bool:
    """Tell whether a program computes what the model does where open sizes are 1."""
    one = draw_example(model, spec, 1, _SEED)
    axes = open_axes(spec, one)
    if any(axis for free in axes for axis in free) and takes(model, one):
        try:
            _check_sizes(exported, model, (_rows(one, axes, 0, 2),))
        except K2TError:
            return False
    return True


def _check_stateless(spec: ModelSpec) -> None:
    """Refuse layers that carry states from batch to batch; lists all.

    Raises:
        UnsupportedOptionError: there are some.
    """
    problems = [
        UnsupportedOptionError(
            "stateful=True cannot be exported: an archive carries no states between batches",
            "build the model with initial_state and return_state instead",
            place=layer.place,
        )
        for layer in spec.root.walk()
        if layer.config.get("stateful")
    ]
    if problems:
        raise gather(problems)


def _check_open(program: Any, axes: Axes) -> None:
    """Refuse a program in which torch has fixed a size.

    Raises:
        UsageError: it has.
    """
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes}
    for name, free in zip(names, axes, strict=True):
        shape = nodes[name].meta["val"].shape
        for axis in free:
            if not isinstance(shape[axis], torch.SymInt):
                raise UsageError(
                    f"torch {torch.__version__} fixes axis {axis} of {printable(name)} at "
                    f"{shape[axis]}",
                    _ADVICE,
                )


def _check_operators(program: Any) -> None:
    """Refuse a program that needs more than torch.

    Raises:
        UnsupportedLayerError: it does.
    """
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]
    targets = (node.target for graph in graphs for node in graph.nodes)
    operators = {one for one in targets if isinstance(one, _OPERATOR)}
    others = sorted(printable(one) for one in operators if one.namespace not in _OF_TORCH)
    if others:
        raise UnsupportedLayerError(f"it needs operators that torch lacks: {', '.join(others)}")


# ---- numbers ------------------------------------------------------------------------------------


def _check_sizes(exported: nn.Module, model: nn.Module, batches: Iterable[Inputs]) -> None:
    """Compare with the model in float64, on inputs of other sizes.

    Raises:
        K2TError: the numbers differ. UnsupportedLayerError: it does not take such a size.
    """
    exact_model = copy_in_float64(model)
    double = find_float_dtype(model) is torch.float64
    tolerance = EXACT if double else resolve_tolerance(None, None)
    for batch in batches:
        sizes = ", ".join(str(tuple(x.shape)) for x in batch)
        try:
            exact = tuple(y.numpy() for y in run_quietly(exact_model, batch))
        except (IndexError, RuntimeError, ValueError) as error:
            raise UnsupportedLayerError(
                f"the model itself does not take inputs {sizes}, whose sizes its file "
                f"leaves open ({_reason(error)})"
            ) from error
        single = tuple(y.numpy() for y in run(model, batch))
        try:
            found = tuple(y.numpy() for y in run(exported, batch))
        except (AssertionError, IndexError, RuntimeError) as error:  # of sizes that torch has fixed
            raise UnsupportedLayerError(
                f"torch.export leaves a size open that its program fixes: it does not take inputs "
                f"{sizes} ({_reason(error)})"
            ) from error
        if not all_close(found, exact, differences(single, exact), tolerance):
            absolute, _ = max_errors(found, exact)
            raise K2TError(f"on inputs {sizes} the archive is off by {absolute:.3g}", _ADVICE)


def _reason(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 400)


def _twice(inputs: Inputs, axes: Axes) -> Inputs:
    """Return the inputs doubled along every open axis but the batch."""
    found = []
    for x, free in zip(inputs, axes, strict=True):
        for axis in free:
            x = torch.cat((x, x), dim=axis) if axis else x
        found.append(x)
    return tuple(found)


def _one_row_more(inputs: Inputs, axes: Axes) -> Inputs:
    """Return the inputs with a row more, for a model that reads rows by index."""
    if not all(0 in free for free in axes):
        return inputs
    return tuple(torch.cat((x, x[:1])) for x in inputs)


def _rows(inputs: Inputs, axes: Axes, first: int, end: int) -> Inputs:
    """Return some rows of the inputs; all of them if the file fixes the batch size."""
    if not all(0 in free for free in axes):
        return inputs
    return tuple(x[first:end] for x in inputs)


# ---- the target ---------------------------------------------------------------------------------


def is_ours(path: Path) -> bool:
    """Return whether k2t wrote an archive.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/extra/{MARK}") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError):
        return False


class Pt2(Target):
    """An archive of ``torch.export``."""

    kind = FileKind("a torch.export archive", (".pt2",), is_ours)
    runtime = "torch"

    def write(self, model: fx.GraphModule, spec: ModelSpec, path: Path) -> tuple[str, ...]:
        """Write the program and its weights to one file.

        Raises:
            K2TError: as ``write_pt2``.
        """
        write_pt2(model, spec, path)
        return ()

    def open(self, path: Path) -> Session:
        """Load the program."""
        program = torch.export.load(path)
        module = program.module()
        nodes = {node.name: node for node in program.graph.nodes}
        dtypes = [nodes[name].meta["val"].dtype for name in program.graph_signature.user_inputs]

        def session(arrays: Sequence[Array]) -> Sequence[Array]:
            given = zip(arrays, dtypes, strict=True)
            inputs = tuple(torch.from_numpy(x).to(dtype) for x, dtype in given)
            return [y.numpy() for y in run(module, inputs)]

        return session


TARGET = Pt2()
