"""Save and load checkpoints: a plain dict of tensors and texts, or safetensors. Never a pickle.

Keys: ``format``, ``architecture`` and ``facts`` (JSON texts, see ``readers.kept``), ``state_dict``
(dense CPU tensors), ``golden``; and, if parameters were frozen or unfrozen in torch,
``requires_grad`` (name -> bool, the changed ones).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    OutputError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.golden import (
    Golden,
    Origin,
    attach_origin,
    checksum,
    make_golden_by_model,
    origin,
)
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import find_float_dtype
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.plugins.checks import complete_shapes
from keras2torch_birnn.progress import begin
from keras2torch_birnn.saving.atomic import NewFile, write_atomically
from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT
from keras2torch_birnn.saving.content import (
    first_line,
    make_content,
    make_metadata,
    name_golden,
    parse_golden,
    parse_spec,
    read_content,
)
from keras2torch_birnn.saving.validation import NOT_OURS, REMEDY, check_golden
from keras2torch_birnn.spec import ModelSpec


def save(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a converted model to a ``.pt``, ``.pth`` or ``.safetensors`` file, atomically.

    If the weights were trained since the conversion, the model's own float64 outputs become the
    golden vectors. ``requires_grad`` of the parameters is kept.

    Args:
        model: What ``convert`` or ``load`` returned.
        path: The file to write; its suffix is the format.
        overwrite: Whether an existing file may be replaced. One that k2t did not write never is,
            unless it is empty.

    Raises:
        OutputError: The file cannot be written, or must not be replaced.
        UsageError: Not a converted model, or one whose modules were exchanged since.
    """
    facts = origin(model)
    twin = build(facts.spec)
    check_modules(model, twin)
    requires_grad = _find_changed_requires_grad(model, twin)
    golden = make_golden_by_model(model) if checksum(model) != facts.checksum else None
    write_checkpoint(
        model, Path(path), overwrite=overwrite, golden=golden, requires_grad=requires_grad
    )


def write_checkpoint(
    model: nn.Module,
    path: Path,
    *,
    overwrite: bool,
    golden: Golden | None = None,
    requires_grad: Mapping[str, bool] = {},
    beside: NewFile | None = None,
) -> None:
    """Write a model to a checkpoint.

    ``golden``: None for the vectors of the conversion. ``requires_grad``: of parameters that were
    frozen or unfrozen in torch. ``beside``: another file, which is written together with it.
    """
    facts = origin(model)
    kept, golden = facts.spec.kept, golden or facts.golden
    tensors = _make_dense({**model.state_dict(), **name_golden(golden)})

    def write(file: Path) -> None:
        begin("writing")
        try:
            if path.suffix.lower() == ".safetensors":
                texts = make_metadata(kept, golden, requires_grad)
                safetensors.torch.save_file(tensors, file, metadata=texts)
            else:
                with file.open("wb") as opened:
                    torch.save(make_content(kept, tensors, golden, requires_grad), opened)
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise _find_cause(error) from None

    made = NewFile(path, CHECKPOINT, write)
    write_atomically(*((made,) if beside is None else (beside, made)), overwrite=overwrite)


def _find_cause(error: Exception) -> BaseException:
    """Find the error that a library's writer hides: an OSError, or Ctrl-C."""
    found = error.__context__
    while found is not None:
        if isinstance(found, OSError) or not isinstance(found, Exception):
            return found
        found = found.__context__
    return OutputError(f"cannot be written ({first_line(error)})", "disk full?")


def _make_dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, in C order, each with memory of its own that it fills."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        memory = dense.untyped_storage()
        if memory.nbytes() != dense.nbytes or memory.data_ptr() in taken:
            dense = dense.clone()
        taken.add(dense.untyped_storage().data_ptr())
        found[name] = dense
    return found


_SAVE_ELSEWHERE = (
    "save the state_dict of a changed model with torch.save; k2t.save writes converted models only"
)


def check_modules(model: nn.Module, twin: nn.Module, advice: str = _SAVE_ELSEWHERE) -> None:
    """Refuse a model whose modules are not those of its spec: its file could never be loaded.

    ``twin``: the model that the spec builds. ``advice``: what to do instead.
    """
    found, wanted = (dict(one.named_modules(remove_duplicate=False)) for one in (model, twin))
    del found[""], wanted[""]
    for name in dict.fromkeys((*wanted, *found)):
        there, expected = (_class(modules.get(name)) for modules in (found, wanted))
        if there != expected:
            raise UsageError(f"{printable(name)}: {there}, converted was {expected}", advice)
    shapes, before = (
        {name: _shown(tensor.shape) for name, tensor in one.state_dict(keep_vars=True).items()}
        for one in (model, twin)
    )
    for name in dict.fromkeys((*before, *shapes)):
        is_now, was = shapes.get(name, "nothing"), before.get(name, "nothing")
        if is_now != was:
            raise UsageError(f"{printable(name)}: {is_now}, converted was {was}", advice)


def _class(module: nn.Module | None) -> str:
    return "nothing" if module is None else printable(type(module).__qualname__)


def _find_changed_requires_grad(model: nn.Module, twin: nn.Module) -> dict[str, bool]:
    """Find the parameters that were frozen or unfrozen in torch."""
    of_keras = {name: one.requires_grad for name, one in twin.named_parameters()}
    return {
        name: one.requires_grad
        for name, one in model.named_parameters()
        if one.requires_grad is not of_keras.get(name, True)
    }


def _restore_requires_grad(model: nn.Module, requires_grad: Any) -> None:
    """Restore ``requires_grad`` as it was when the model was saved."""
    parameters = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    if not (
        isinstance(requires_grad, Mapping)
        and requires_grad.keys() <= parameters.keys()
        and all(isinstance(value, bool) for value in requires_grad.values())
    ):
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="requires_grad")
    for name, value in requires_grad.items():
        parameters[name].requires_grad_(value)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    plugins: Iterable[PluginName] = (),
) -> fx.GraphModule:
    """Read a model that ``save`` or ``k2t convert`` wrote: eval mode, on ``device``.

    Call ``.train()`` on it before it is trained, also where a trainer does that for its own module:
    some keep the mode of the modules inside, and then train without dropout.

    Args:
        path: The ``.pt``, ``.pth`` or ``.safetensors`` file.
        device: Where the parameters go, such as "cuda".
        plugins: Those of the conversion, unless they are loaded already.

    Returns:
        The model, as ``convert`` returned it.

    Raises:
        InvalidModelFileError: Not such a file, or damaged.
        WeightMismatchError: Its tensors do not fit its architecture.
        UnsupportedLayerError: A layer of a plugin that is not loaded.
        UsageError: There is no such device.
    """
    load_plugins(plugins)
    with in_file(path):
        content = read_content(Path(path))
        spec = complete_shapes(parse_spec(content))
        golden = parse_golden(content["golden"])
        check_golden(spec, golden.inputs)
        model = _build_checked(spec)
        _assign(model, content["state_dict"])
        _restore_requires_grad(model, content.get("requires_grad", {}))
        facts = Origin(spec, golden, checksum(model))
    # the weights have the checkpoint's dtype; constants that the spec built must follow
    model = model.to(resolve_device(device), find_float_dtype(model))
    return attach_origin(model, facts).eval()


def _build_checked(spec: ModelSpec) -> fx.GraphModule:
    """Build the model; report any failure of the builder as a damaged architecture."""
    try:
        return build(spec)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise InvalidModelFileError(
            f"its architecture is damaged ({type(error).__name__}: {first_line(error)})",
            "convert again",
            place="architecture",
        ) from None


def _assign(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Assign these tensors to the model; refuse missing, extra and misshapen ones, and other kinds.

    One module at a time: on a model of n layers, torch's ``load_state_dict`` would scan every name
    n times.
    """
    expected = model.state_dict()
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    for names, what in ((missing, "without"), (extra, "with")):
        if names:
            raise _mismatch(f"{what} {min(names, key=str)}")
    for name, wanted in expected.items():
        if not isinstance(state[name], Tensor) or state[name].shape != wanted.shape:
            found = getattr(state[name], "shape", type(state[name]).__name__)
            raise _mismatch(f"{name} is {_shown(found)}, expected {_shown(wanted.shape)}")
        if state[name].is_floating_point() != wanted.is_floating_point():
            raise _mismatch(f"{name} is of {state[name].dtype}, expected {wanted.dtype}")
    by_module: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        owner, _, last = name.rpartition(".")
        by_module.setdefault(owner, {})[last] = value
    modules = dict(model.named_modules(remove_duplicate=False))
    for owner, tensors in by_module.items():
        try:
            modules[owner].load_state_dict(tensors, strict=False, assign=True)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise _mismatch(f"{owner}: {str(error).strip().splitlines()[-1].strip()}") from None


def _shown(shape: Any) -> str:
    return str(list(shape)) if isinstance(shape, torch.Size) else str(shape)


def _mismatch(what: str) -> WeightMismatchError:
    return WeightMismatchError(f"its tensors do not fit its architecture: {printable(what)}")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name, if this machine has it."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        from keras2torch_birnn.suggestions import did_you_mean

        near = did_you_mean(device, ("cpu", "cuda", "xpu", "mps")) or "use cpu or cuda"
        advice = "name one device at a time" if "," in str(device) else near
        raise UsageError(f"device {printable(str(device))!r} is unknown", advice) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device cuda: this machine has no CUDA device that torch can use",
            "use --device cpu, or install a CUDA build of torch",
        )
    try:
        torch.empty(1, device=found)
    except Exception as failure:  # each kind of device has its own
        reason = str(failure).partition("\n")[0]
        raise UsageError(
            f"device {found}: torch cannot use it here ({printable(reason)})", "use --device cpu"
        ) from None
    return found
