"""Save and load checkpoints: a plain dict of tensors and texts, or safetensors. Never a pickle.

Keys: ``format``, ``spec`` (JSON text), ``state_dict`` (dense CPU tensors), ``golden``; and, if
parameters were frozen or unfrozen in torch, ``requires_grad`` (name -> bool, the changed ones).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.conversion import (
    Golden,
    Origin,
    attach_origin,
    build,
    checksum,
    find_float_dtype,
    make_golden_by_model,
    origin,
)
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    OutputError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.functional.parameters import materialize
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.config.call_count import check_call_count
from keras2torch_birnn.readers.containers.files import open_file
from keras2torch_birnn.readers.files.strict_json import parse_json, parse_object
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.saving.atomic import find_cause, write_atomically
from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT, FORMAT
from keras2torch_birnn.saving.streaming import can_stream, stream_safetensors, stream_torch
from keras2torch_birnn.saving.validation import (
    NOT_OURS,
    REMEDY,
    check_archive,
    check_golden,
    check_spec,
    check_tensors,
)
from keras2torch_birnn.schema.stored import model_from_json
from keras2torch_birnn.spec import ModelSpec

_GOLDEN = "golden/"  # prefix of golden tensors in safetensors; no parameter's name has a slash


def save(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a converted model to a ``.pt``, ``.pth`` or ``.safetensors`` file, atomically.

    An existing file that k2t did not write is never replaced, unless it is empty.

    If the weights were trained since the conversion, the model's own float64 outputs become the
    golden vectors. ``requires_grad`` of the parameters is kept.

    Raises:
        OutputError: the file cannot be written, or must not be replaced. UsageError: not a
            converted model, or one whose modules were exchanged since.
    """
    facts = origin(model)
    twin = build(model_from_json(json.loads(facts.spec_text)))
    check_modules(model, twin)
    requires_grad = _find_changed_requires_grad(model, twin)
    golden = facts.golden
    if checksum(model) != facts.checksum:
        golden = make_golden_by_model(model)
    named = _name_golden(golden)
    tensors, target = _make_dense({**model.state_dict(), **named}), Path(path)
    size = sum(tensor.nbytes for tensor in tensors.values())

    def write(file: Path) -> None:
        if _is_safetensors(target):
            _write_safetensors(
                tensors, _make_metadata(facts.spec_text, golden, requires_grad), file
            )
        else:
            _write_torch(_make_content(facts.spec_text, tensors, golden, requires_grad), file)

    write_atomically(target, write, CHECKPOINT, overwrite=overwrite, size=size)


def _is_safetensors(path: Path) -> bool:
    return path.suffix.lower() == ".safetensors"


def write_checkpoint(
    model: nn.Module,
    path: Path,
    *,
    overwrite: bool,
    source: str | os.PathLike[str],
    finish: Callable[[], None],
) -> None:
    """Write a model whose weights may still be in the file ``source``, one tensor at a time.

    ``finish`` is called when everything is written, before the file gets its name.

    Raises:
        OutputError: ``path`` cannot be written; InvalidModelFileError: ``source`` cannot be read.
    """
    facts = origin(model)
    text, golden = facts.spec_text, facts.golden
    tensors = {**model.state_dict(keep_vars=True), **_name_golden(golden)}

    def write(file: Path) -> None:
        with in_file(source):
            if _is_safetensors(path):
                stream_safetensors(tensors, _make_metadata(text, golden, {}), file)
            elif can_stream():
                stream_torch(_make_content(text, tensors, golden, {}), file)
            else:
                materialize(model)
                _write_torch(_make_content(text, _make_dense(tensors), golden, {}), file)
            finish()

    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_atomically(path, write, CHECKPOINT, overwrite=overwrite, size=size)


def _name_golden(golden: Golden) -> dict[str, Tensor]:
    """Name the golden tensors as in safetensors."""
    return {
        f"{_GOLDEN}{kind}/{i:06d}": value
        for kind, values in (("inputs", golden.inputs), ("outputs", golden.outputs))
        for i, value in enumerate(values)
    }


def _describe_golden(golden: Golden) -> dict[str, Any]:
    return {
        "made_by": golden.made_by,
        "rounding": golden.rounding,
        "roundings": list(golden.roundings),
    }


def check_modules(model: nn.Module, twin: nn.Module) -> None:
    """Refuse a model whose modules are not those of its spec: its file could never be loaded.

    ``twin``: the model that the spec builds.

    Raises:
        UsageError: a module was exchanged, added or removed, or has other tensors.
    """
    advice = (
        "save the state_dict of a changed model with torch.save; k2t.save writes converted models "
        "only"
    )
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
    """Restore ``requires_grad`` as it was when the model was saved.

    Raises:
        InvalidModelFileError: the table names other parameters than the model's.
    """
    parameters = dict(model.named_parameters())
    if not isinstance(requires_grad, Mapping) or not requires_grad.keys() <= parameters.keys():
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="requires_grad")
    for name, value in requires_grad.items():
        parameters[name].requires_grad_(value is True)


def _make_metadata(spec: str, golden: Golden, requires_grad: Mapping[str, bool]) -> dict[str, str]:
    """Make the metadata of a ``.safetensors`` file."""
    texts = {"format": FORMAT, "spec": spec, "golden": json.dumps(_describe_golden(golden))}
    return texts | ({"requires_grad": json.dumps(requires_grad)} if requires_grad else {})


def _make_content(
    spec: str, tensors: Mapping[str, Tensor], golden: Golden, requires_grad: Mapping[str, bool]
) -> dict[str, Any]:
    """Make the plain dict of a ``.pt`` file."""
    named = _name_golden(golden)
    return {
        "format": FORMAT,  # first, because checkpoint_kind looks for it there
        "spec": spec,
        **({"requires_grad": dict(requires_grad)} if requires_grad else {}),
        "state_dict": {n: t for n, t in tensors.items() if n not in named},
        "golden": {
            kind: [tensors[name] for name in named if name.startswith(f"{_GOLDEN}{kind}/")]
            for kind in ("inputs", "outputs")
        }
        | _describe_golden(golden),
    }


def _make_dense(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensors dense, on the CPU, and owners of exactly their own memory.

    Copies only where needed: the weights may take most of the memory.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def _write_torch(content: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        raise find_cause(error) from None


def _write_safetensors(tensors: dict[str, Tensor], texts: dict[str, str], path: Path) -> None:
    try:
        safetensors.torch.save_file(tensors, path, metadata=texts)
    except safetensors.SafetensorError as error:
        raise OutputError(f"cannot be written ({_first_line(error)})", "disk full?") from None


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0])


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    *,
    plugins: Iterable[PluginName] = (),
) -> fx.GraphModule:
    """Read a model that ``save`` or ``k2t convert`` wrote: eval mode, on ``device``.

    Call ``.train()`` on it before it is trained, also where a trainer does that for its own module:
    some keep the mode of the modules inside, and then train without dropout.

    ``plugins``: those of the conversion, unless they are loaded already.

    Raises:
        InvalidModelFileError: not such a file, or damaged; WeightMismatchError: its tensors do not
            fit its spec; UsageError: no such device; UnsupportedLayerError: a layer of a plugin
            that is not loaded.
    """
    load_plugins(plugins)
    with in_file(path):
        content = read_content(Path(path))
        spec = parse_spec(content)
        golden = _parse_golden(content["golden"])
        check_golden(spec, golden.inputs)
        model = _build_checked(spec)
        _assign(model, content["state_dict"])
        _restore_requires_grad(model, content.get("requires_grad", {}))
        facts = Origin(content["spec"], golden, checksum(model))
    # the weights have the checkpoint's dtype; constants that the spec built must follow
    model = model.to(resolve_device(device), find_float_dtype(model))
    return attach_origin(model, facts).eval()


def _build_checked(spec: ModelSpec) -> fx.GraphModule:
    """Build the model; report any failure of the builder as a damaged spec."""
    try:
        return build(spec)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise InvalidModelFileError(
            f"its spec is damaged ({type(error).__name__}: {_first_line(error)})",
            "convert again",
            place="spec",
        ) from None


def _assign(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Assign these tensors to the model; refuse missing, extra and misshapen ones.

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
    return WeightMismatchError(f"its tensors do not fit its spec: {printable(what)}")


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the torch device of a name, if this machine has it.

    Raises:
        UsageError: the machine does not have it.
    """
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {printable(device)!r} is unknown", "use cpu or cuda") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device cuda: this machine has no CUDA device that torch can use",
            "use --device cpu, or install a CUDA build of torch",
        )
    return found


def read_content(path: Path) -> dict[str, Any]:
    """Read a checkpoint's dict from either format, and check its keys and their types."""
    with open_file(path) as file:
        window = Window(file, 0, os.fstat(file.fileno()).st_size)
        start = window.head(8)
        if start.startswith(b"\x89HDF"):
            raise InvalidModelFileError(NOT_OURS, REMEDY)
        if start.startswith(b"PK"):
            check_archive(window)
            content = _from_torch(file)
        else:
            content = _from_safetensors(path)
    version = content.get("format")
    if isinstance(version, str) and version != FORMAT and version.startswith("keras2torch_birnn/"):
        raise InvalidModelFileError(
            f"format {printable(version)}, this k2t reads {FORMAT}", "upgrade keras2torch_birnn"
        )
    wanted = {"format": str, "spec": str, "state_dict": Mapping, "golden": Mapping}
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise InvalidModelFileError(NOT_OURS, REMEDY, place=key)
    if content["format"] != FORMAT:
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="format")
    check_tensors(content["state_dict"], "state_dict")
    return content


def _from_torch(file: BinaryIO) -> dict[str, Any]:
    file.seek(0)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        raise InvalidModelFileError(f"{NOT_OURS} ({_first_line(error)})", REMEDY) from None
    return content if isinstance(content, dict) else {}


def _from_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidModelFileError(f"{NOT_OURS} ({_first_line(error)})", REMEDY) from None
    golden: dict[str, Any] = {"inputs": [], "outputs": []}
    for name in sorted(n for n in tensors if n.startswith(_GOLDEN)):
        golden.setdefault(name.split("/")[1], []).append(tensors.pop(name))
    objects: dict[str, dict[str, Any]] = {}
    for place in ("golden", "requires_grad"):
        try:
            objects[place] = dict(parse_object(texts.get(place, "{}"), place=place))
        except InvalidModelFileError:
            raise InvalidModelFileError(NOT_OURS, REMEDY, place=place) from None
    return {
        "format": texts.get("format"),
        "spec": texts.get("spec"),
        "state_dict": tensors,
        "golden": golden | objects["golden"],
        "requires_grad": objects["requires_grad"],
    }


def parse_spec(content: Mapping[str, Any]) -> ModelSpec:
    """Parse and check a checkpoint's spec; its arrays are placeholders."""
    try:
        spec = model_from_json(parse_json(content["spec"], place="spec"))
    except (KeyError, TypeError, ValueError, AttributeError, InvalidModelFileError) as error:
        reason = error.found if isinstance(error, InvalidModelFileError) else error
        raise InvalidModelFileError(
            f"its spec is damaged ({printable(reason)})", "convert again", place="spec"
        ) from None
    check_spec(spec, content["state_dict"])
    check_call_count(spec.root)
    return spec


def _parse_golden(content: Mapping[str, Any]) -> Golden:
    try:
        inputs, outputs = tuple(content["inputs"]), tuple(content["outputs"])
        roundings = tuple(map(float, content.get("roundings", ())))
        made_by, rounding = str(content["made_by"]), float(content["rounding"])
        golden = Golden(inputs, outputs, made_by, rounding, roundings)
    except (KeyError, TypeError, ValueError):
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="golden") from None
    if not inputs or len(roundings) not in (0, len(outputs)):
        raise InvalidModelFileError(NOT_OURS, REMEDY, place="golden")
    check_tensors({str(i): t for i, t in enumerate((*inputs, *outputs))}, "golden")
    return golden
