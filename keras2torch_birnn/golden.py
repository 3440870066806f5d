"""Golden vectors, and the origin of a model: they, its spec and the weights' checksum."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import InvalidModelFileError, UsageError, check_module, printable
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import find_float_dtype, move_inputs, run
from keras2torch_birnn.plugins.checks import (
    add_dtype_checks,
    check_round_trip,
    find_plugin_layers,
    run_checked,
)
from keras2torch_birnn.progress import advance, begin
from keras2torch_birnn.reference.rounding import Measured, by_reference, differences, steadiest
from keras2torch_birnn.reference.sample_inputs import (
    Drawn,
    candidates,
    check_memory,
    draw_inputs,
)
from keras2torch_birnn.schema import SCHEMA
from keras2torch_birnn.schema.custom_cells import lacks_initial_states
from keras2torch_birnn.schema.custom_layers import equation_of, shown
from keras2torch_birnn.spec import ModelSpec, change_weights, without_values, zeros

GOLDEN_STEPS = 7

_META = "keras2torch_birnn"


# Errors of arithmetic on tensors that do not fit each other, if no shape check found that before.
_FAILURES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Golden:
    """Golden vectors: small random inputs and their exact outputs, computed in float64.

    ``made_by``: "reference", or "model" where a float64 copy of the model computed them, because
    its weights were trained since or a layer has no NumPy equation. ``rounding``: the largest error
    of plain float32 arithmetic on these inputs; ``roundings``: that of each output, empty in older
    files.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    made_by: str
    rounding: float
    roundings: tuple[float, ...] = ()

    def rounding_of_each(self) -> tuple[float, ...]:
        """Return the rounding error of each output; older files hold only the largest."""
        return self.roundings or (self.rounding,) * len(self.outputs)


@dataclass(frozen=True)
class Origin:
    """Origin of a model. ``checksum``: of the weights to which ``golden`` belongs.

    ``spec``: what the model was built from, with zeros in the place of its weights.
    """

    spec: ModelSpec
    golden: Golden
    checksum: int

    def __deepcopy__(self, memo: object) -> Origin:
        """Return itself, which never changes; a copy of its zeros would take memory."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the zeros out of a pickle, which would write each of them."""
        shapes = change_weights(self.spec.root, lambda zeros: (zeros.shape, zeros.dtype))
        return _restore, (replace(self.spec, root=shapes), self.golden, self.checksum)


def _restore(spec: ModelSpec, golden: Golden, checksum: int) -> Origin:
    """Make an origin of what its pickle holds: shapes and dtypes in the place of weights."""
    root = change_weights(spec.root, lambda found: zeros(*found))
    return Origin(replace(spec, root=root), golden, checksum)


def origin(model: nn.Module) -> Origin:
    """Return the origin of a converted model.

    Raises:
        UsageError: the model was not made by ``k2t.convert`` or ``k2t.load``, or is a path.
    """
    check_module(model)
    found = getattr(model, "meta", {}).get(_META)
    if not isinstance(found, Origin):
        raise UsageError(
            "this model was not made by k2t.convert or k2t.load",
            "save its state_dict with torch.save instead",
        )
    return found


def attach_origin(model: fx.GraphModule, facts: Origin) -> fx.GraphModule:
    """Attach an origin to a model."""
    model.meta[_META] = facts
    return model


def checksum(model: nn.Module) -> int:
    """Compute a checksum of all weights and their names."""
    total = 0
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous()
        total = zlib.crc32(name.encode(), total)
        if data.numel():
            total = zlib.crc32(data.reshape(-1).view(torch.uint8).numpy(), total)
            advance(data.nbytes)
    return total


def make_golden(spec: ModelSpec, model: fx.GraphModule) -> Golden:
    """Compute golden vectors, after checking the layers of plugins.

    Raises:
        PluginError: a layer of a plugin fails, or its state does not survive saving.
        InvalidModelFileError: the model cannot be computed.
    """
    begin("test vectors")
    with _computing():
        if find_plugin_layers(spec):
            _check_plugins(spec, model)
        return _make_by_reference(spec, model)


def check_golden_memory(spec: ModelSpec) -> None:
    """Refuse a model whose golden vectors would need too much memory, before it is built.

    Raises:
        UnsupportedOptionError: it is one. InvalidModelFileError: the model cannot be computed.
    """
    with _computing():
        check_memory(spec, steps=GOLDEN_STEPS, shorten=True)


@contextmanager
def _computing() -> Iterator[None]:
    """Make an error of arithmetic a refusal of the file."""
    try:
        yield
    except _FAILURES as error:
        raise InvalidModelFileError(
            f"it cannot be computed on inputs of its own shapes ({_reason(error)})",
            "refused; if Keras can, please report it",
        ) from error


def _reason(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))


def _check_plugins(spec: ModelSpec, model: fx.GraphModule) -> None:
    """Check a plugin's layers before anything is written."""
    inputs = tuple(map(torch.from_numpy, draw_inputs(spec, steps=GOLDEN_STEPS, seed=0)))
    run_checked(model, move_inputs(model, inputs), find_float_dtype(model))
    names = ", ".join(dict.fromkeys(shown(layer) for layer in find_plugin_layers(spec)))
    again = build(without_values(spec)).to(find_float_dtype(model))
    check_round_trip(model, again, lambda one: run(one, inputs), names)


def _make_by_reference(spec: ModelSpec, model: fx.GraphModule) -> Golden:
    drawn = candidates(spec, steps=GOLDEN_STEPS, seed=0, shorten=True)
    if not reference_covers(spec):
        return _make_by_model(model, drawn)
    return _to_golden(
        steadiest(drawn, lambda one: by_reference(spec, one, keep=False))[0], "reference"
    )


def _to_golden(measured: Measured, made_by: str) -> Golden:
    return Golden(
        tuple(map(torch.from_numpy, measured.drawn.arrays)),
        tuple(torch.from_numpy(np.asarray(y, order="C")) for y in measured.outputs),
        made_by,
        max(measured.roundings, default=0.0),
        measured.roundings,
    )


def reference_covers(spec: ModelSpec) -> bool:
    """Return whether the reference has an equation for every layer of the model."""
    return all(
        layer.class_name in SCHEMA
        or (equation_of(layer) is not None and not lacks_initial_states(layer))
        for layer in spec.root.walk()
    )


def make_golden_by_model(model: nn.Module, *, shorten: bool = True) -> Golden:
    """Compute golden vectors with a float64 copy of the model itself.

    shorten: take the inputs of the golden vectors before, and those like them, which may be shorter
    than the file's inputs are declared.

    Raises:
        InvalidModelFileError: the model cannot be computed on any of them.
    """
    facts = origin(model)
    before = Drawn("", tuple(x.numpy() for x in facts.golden.inputs))
    others = candidates(facts.spec, steps=GOLDEN_STEPS, seed=0, shorten=shorten)
    with _computing():
        return _make_by_model(model, chain([before] if shorten else [], others))


def _make_by_model(model: nn.Module, drawn: Iterable[Drawn]) -> Golden:
    return _to_golden(steadiest(drawn, measure_by_model(model))[0], "model")


def copy_in_float64(model: nn.Module) -> nn.Module:
    """Copy the model to the CPU in float64 and eval mode.

    The copy raises a PluginError where a plugin's layer returns another precision.
    """
    return add_dtype_checks(deepcopy(model).cpu().double().eval(), torch.float64)


def measure_by_model(model: nn.Module) -> Callable[[Drawn], Measured]:
    """Return a function that runs a float64 copy of the model, and measures its own rounding."""
    copy = copy_in_float64(model)

    def measure(drawn: Drawn) -> Measured:
        inputs = tuple(map(torch.from_numpy, drawn.arrays))
        exact = tuple(y.numpy() for y in run(copy, inputs))
        single = tuple(y.numpy() for y in run(model, inputs))
        return Measured(drawn, exact, differences(single, exact))

    return measure
