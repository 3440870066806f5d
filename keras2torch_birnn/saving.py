"""OUT, in and out: a plain dict of tensors and texts, or the same as safetensors. Never a pickle.

``format``, ``spec`` (JSON text), ``state_dict`` (dense CPU tensors), ``golden``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

from keras2torch_birnn.conversion import (
    Golden,
    Origin,
    build,
    checksum,
    model_golden,
    origin,
    with_origin,
)
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    OutputError,
    UsageError,
    WeightMismatchError,
    in_file,
    printable,
)
from keras2torch_birnn.plugins import PluginName, load_plugins
from keras2torch_birnn.readers.unrolled import check_calls
from keras2torch_birnn.spec import ModelSpec, model_from_json
from keras2torch_birnn.writing import write_whole

FORMAT = "keras2torch_birnn/1"
_NOT_OURS = "not a file that k2t wrote, or damaged"
_REMEDY = "make it with `k2t convert`"
_GOLDEN = "golden/"  # prefix of golden tensors in safetensors; no parameter's name has a slash


def save(model: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a converted model, atomically. The suffix ``.safetensors`` chooses that format.

    If the weights were trained since the conversion, the model's own float64 outputs become the
    golden vectors.

    Raises:
        OutputError: it cannot be written. UsageError: not a converted model.
    """
    facts = origin(model)
    golden = facts.golden
    if checksum(model) != facts.checksum:
        golden = model_golden(model, golden.inputs)
    state = _state(model)
    target = Path(path)
    if target.suffix == ".safetensors":
        tensors, texts = _to_safetensors(facts.spec_text, state, golden)
        write_whole(
            target, lambda file: _write_safetensors(tensors, texts, file), overwrite=overwrite
        )
        return
    content = {
        "format": FORMAT,
        "spec": facts.spec_text,
        "state_dict": state,
        "golden": {
            "inputs": list(golden.inputs),
            "outputs": list(golden.outputs),
            "made_by": golden.made_by,
            "rounding": golden.rounding,
        },
    }
    write_whole(target, lambda file: _write_torch(content, file), overwrite=overwrite)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors: dense, on the CPU, none a part of more memory than its own.

    A copy is made only where it must be: the weights can be most of what fits into memory.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        state[name] = tensor
    return state


def _write_torch(content: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's own writer, where Python has OSError
        raise OutputError(f"cannot be written ({_first_line(error)})", "disk full?") from None


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

    ``plugins``: those that the model was converted with, unless they are loaded already.

    Raises:
        InvalidModelFileError: not such a file, or damaged; WeightMismatchError: its tensors are
            not those of its spec; UsageError: no such device; UnsupportedLayerError: a layer of a
            plugin that is not loaded.
    """
    load_plugins(plugins)
    with in_file(path):
        content = read_content(Path(path))
        spec = content_spec(content)
        model = build(spec)
        _assign(model, content["state_dict"])
        golden = _golden(content["golden"])
        facts = Origin(content["spec"], golden, checksum(model))
    return with_origin(model, facts).eval().to(checked_device(device))


def _assign(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Give the model these tensors, all that it needs and no others.

    One module at a time: torch's ``load_state_dict`` on a model of n layers looks n times at every
    name.
    """
    expected = model.state_dict()
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    for names, what in ((missing, "without"), (extra, "with")):
        if names:
            raise _unfit(f"{what} {min(names, key=str)}")
    for name, wanted in expected.items():
        if not isinstance(state[name], Tensor) or state[name].shape != wanted.shape:
            found = getattr(state[name], "shape", type(state[name]).__name__)
            raise _unfit(f"{name} is {_shown(found)}, expected {_shown(wanted.shape)}")
    own: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        owner, _, last = name.rpartition(".")
        own.setdefault(owner, {})[last] = value
    modules = dict(model.named_modules(remove_duplicate=False))
    for owner, tensors in own.items():
        try:
            modules[owner].load_state_dict(tensors, strict=False, assign=True)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise _unfit(f"{owner}: {str(error).strip().splitlines()[-1].strip()}") from None


def _shown(shape: Any) -> str:
    return str(list(shape)) if isinstance(shape, torch.Size) else str(shape)


def _unfit(what: str) -> WeightMismatchError:
    return WeightMismatchError(f"its tensors do not fit its spec: {printable(what)}")


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device if this machine has it.

    Raises:
        UsageError: it has not.
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
    """Read the dict of OUT from either format and check its outline."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InvalidModelFileError(f"cannot be opened ({error.strerror})") from None
    if start == b"\x89HDF":
        raise InvalidModelFileError(_NOT_OURS, _REMEDY)
    content = _from_torch(path) if start[:2] == b"PK" else _from_safetensors(path)
    version = content.get("format")
    if isinstance(version, str) and version != FORMAT and version.startswith("keras2torch_birnn/"):
        raise InvalidModelFileError(
            f"format {printable(version)}, this k2t reads {FORMAT}", "upgrade keras2torch_birnn"
        )
    wanted = {"format": str, "spec": str, "state_dict": Mapping, "golden": Mapping}
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise InvalidModelFileError(_NOT_OURS, _REMEDY, place=key)
    if content["format"] != FORMAT:
        raise InvalidModelFileError(_NOT_OURS, _REMEDY, place="format")
    if not all(isinstance(t, Tensor) for t in content["state_dict"].values()):
        raise InvalidModelFileError(_NOT_OURS, _REMEDY, place="state_dict")
    return content


def _from_torch(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        raise InvalidModelFileError(f"{_NOT_OURS} ({_first_line(error)})", _REMEDY) from None
    return content if isinstance(content, dict) else {}


def _from_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            texts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise InvalidModelFileError(f"{_NOT_OURS} ({_first_line(error)})", _REMEDY) from None
    golden: dict[str, Any] = {"inputs": [], "outputs": []}
    for name in sorted(n for n in tensors if n.startswith(_GOLDEN)):
        golden.setdefault(name.split("/")[1], []).append(tensors.pop(name))
    try:
        golden |= json.loads(texts.get("golden", "{}"))
    except (TypeError, ValueError, RecursionError):
        raise InvalidModelFileError(_NOT_OURS, _REMEDY, place="golden") from None
    return {
        "format": texts.get("format"),
        "spec": texts.get("spec"),
        "state_dict": tensors,
        "golden": golden,
    }


def _to_safetensors(
    spec: str, state: Mapping[str, Tensor], golden: Golden
) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = dict(state)
    for kind, values in (("inputs", golden.inputs), ("outputs", golden.outputs)):
        for i, value in enumerate(values):
            tensors[f"{_GOLDEN}{kind}/{i:06d}"] = value.contiguous()
    about = {"made_by": golden.made_by, "rounding": golden.rounding}
    return tensors, {"format": FORMAT, "spec": spec, "golden": json.dumps(about)}


def content_spec(content: Mapping[str, Any]) -> ModelSpec:
    """The spec of OUT; its arrays are placeholders."""
    try:
        spec = model_from_json(json.loads(content["spec"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidModelFileError(
            f"its spec is damaged ({printable(error)})", "convert again", place="spec"
        ) from None
    check_calls(spec.root)
    return spec


def _golden(content: Mapping[str, Any]) -> Golden:
    try:
        inputs, outputs = tuple(content["inputs"]), tuple(content["outputs"])
        golden = Golden(inputs, outputs, str(content["made_by"]), float(content["rounding"]))
    except (KeyError, TypeError, ValueError):
        raise InvalidModelFileError(_NOT_OURS, _REMEDY, place="golden") from None
    if not inputs or not all(isinstance(t, Tensor) for t in (*inputs, *outputs)):
        raise InvalidModelFileError(_NOT_OURS, _REMEDY, place="golden")
    return golden
