"""The user's own port: a class or function in a Python file, which is run, and its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    PluginError,
    UsageError,
    escape_controls,
    in_file,
    line_of,
    name_file,
    printable,
    split_address,
)
from keras2torch_birnn.limits import MAX_JSON_BYTES
from keras2torch_birnn.plugins import run_file
from keras2torch_birnn.readers.input_files import decode_text, open_file, parse_object
from keras2torch_birnn.readers.steps import PathLike
from keras2torch_birnn.saving.state_dicts import read_plain
from keras2torch_birnn.suggestions import did_you_mean


def load_port(named: str, weights: PathLike | None = None) -> nn.Module:
    """Run a Python file and make the port that it holds: ``FILE.py:NAME``.

    NAME is a class or function that is called without arguments, or a module. weights: a
    ``state_dict`` in a ``.pt``, ``.pth`` or ``.safetensors`` file. Run files of your own only.

    Raises:
        UsageError: no such file or name, or it gives no module; PluginError: it fails.
        InvalidModelFileError: the weights are no state_dict.
    """
    file, _, name = named.rpartition(":")
    if not file or not name or split_address(named):
        shown = escape_controls(name_file(named))
        raise UsageError(f"{shown}: FILE.py:NAME is expected", _advise(named))
    module = run_file(file)
    found = getattr(module, name, None)
    if found is None:
        near = did_you_mean(name, (one for one in vars(module) if not one.startswith("_")))
        raise UsageError(
            f"{escape_controls(file)} defines no {printable(name)}", near or "check the name"
        )
    made = found if isinstance(found, nn.Module) or _needs_arguments(found) else _call(found, name)
    if not isinstance(made, nn.Module):
        if callable(made):
            raise UsageError(
                f"{printable(name)} is or gives a plain function, a torch.nn.Module is expected",
                "make one of it in three lines, and name that: class Port(torch.nn.Module): / "
                f"def forward(self, *inputs): / return {printable(name)}(*inputs)",
            )
        raise UsageError(
            f"{printable(name)} gives {type(made).__name__}, a torch.nn.Module is expected",
            "name a class or function that is called without arguments",
        )
    if weights is not None:
        with in_file(weights):
            _load(made, _read(Path(weights)))
    return made


def _needs_arguments(entry: Any) -> bool:
    """Tell whether this is a function that takes the inputs, or an object that is called so."""
    if isinstance(entry, type) or not callable(entry):
        return False
    try:
        inspect.signature(entry).bind()
    except TypeError:
        return True
    except ValueError:  # it is written in C
        return False
    return False


def _advise(named: str) -> str:
    """Say what to do with a name that is none of a class in a file."""
    if named.lower().endswith((".pt", ".pth", ".safetensors")):
        return "a state_dict goes with --weights, beside the class that it is of"
    return "name the class after a colon"


def _call(entry: Any, name: str) -> Any:
    if not callable(entry):
        return entry
    try:
        return entry()
    except (Exception, SystemExit) as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        raise PluginError(
            f"{printable(name)}() fails: {printable(lines[0])} ({line_of(error)})",
            "it is called without arguments; name a function that makes the port",
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    content = read_plain(path, "write a state_dict with torch.save(port.state_dict(), ...)")
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise InvalidModelFileError(
            "holds no state_dict", "write it with torch.save(port.state_dict(), ...)"
        )
    return dict(content)


def _load(port: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        port.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[1:3])
        raise InvalidModelFileError(
            f"does not fit the port: {printable(reason)}", "give the state_dict of this class"
        ) from None


def read_map(path: PathLike) -> dict[str, str]:
    """Read the user's map: JSON text with names of the port's modules -> paths of Keras layers.

    Raises:
        InvalidModelFileError: it is something else.
    """
    with in_file(path):
        with open_file(Path(path)) as file:
            text = decode_text(file.read(MAX_JSON_BYTES + 1), place="")
        found = parse_object(text, place="")
        if not all(isinstance(value, str) for value in found.values()):
            raise InvalidModelFileError(
                "a text is expected for each module", 'write {"encoder.lstm": "bidirectional"}'
            )
        return {str(key): str(value) for key, value in found.items()}
