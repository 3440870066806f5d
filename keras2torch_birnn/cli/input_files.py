"""Files that a command reads: missing ones, and ones given in each other's place."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keras2torch_birnn.errors import (
    K2TError,
    MissingArchitectureError,
    UsageError,
    escape_controls,
    in_file,
)

# Command -> what it expects, the first two of it being files, and which of these k2t wrote.
_ORDERS: Mapping[str, tuple[str, int]] = {
    "convert": ("MODEL OUT", 1),
    "verify": ("MODEL OUT", 1),
    "export": ("SOURCE TARGET", 0),
    "write-back": ("OUT MODEL NEW", 0),
}


# Files beside a model that are tried as its architecture.
_BESIDE = 20


@contextmanager
def checking_files(command: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Refuse files that are missing, before torch is imported; tell two that were exchanged.

    Raises:
        InvalidModelFileError: a file is missing; UsageError: the order that fits.
    """
    to_read = (arguments.get(one) for one in ("out", "model", "source"))
    for path in filter(None, to_read):
        if path is not arguments.get("out") or ends_as_out(path):
            refuse_missing(path)
    try:
        yield
    except MissingArchitectureError as error:
        models = arguments.get("paths") or [arguments.get("model")]
        name_architecture(error, Path(models[0]))
        raise
    except K2TError as error:
        exchanged = _find_exchanged(command, arguments)
        if exchanged is None:
            raise
        raise exchanged from error


def name_architecture(error: MissingArchitectureError, model: Path) -> None:
    """Name in the advice the one ``.json`` beside a file of weights that fits it."""
    from keras2torch_birnn.readers import read_model

    def fits(architecture: Path) -> bool:
        try:
            read_model(model, config=architecture)
        except K2TError:
            return False
        return True

    found = [one for one in sorted(model.parent.glob("*.json"))[:_BESIDE] if fits(one)]
    if len(found) == 1:
        error.advice = f"{escape_controls(found[0])} fits: --config {shlex.quote(str(found[0]))}"


def _find_exchanged(command: str, arguments: Mapping[str, Any]) -> UsageError | None:
    """Return an error that shows the right call, if k2t wrote the other one of two files."""
    if command not in _ORDERS:
        return None
    from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

    expected, of_k2t = _ORDERS[command]
    named = arguments.get("paths") or [
        arguments[one] for one in map(str.lower, expected.split()) if arguments[one] is not None
    ]
    first, second, *others = map(str, (*named, ""))
    files = Path(first), Path(second)
    if not all(one.is_file() for one in files) or not is_checkpoint(files[1 - of_k2t]):
        return None
    if command != "export" and not _is_model(files[of_k2t]):
        return None
    call = shlex.join(("k2t", command, second, first, *filter(None, others)))
    return UsageError(
        f"{escape_controls(files[1 - of_k2t])} is a model that k2t converted; "
        f"expected is k2t {command} {expected}",
        f"run {call}",
    )


def _is_model(path: Path) -> bool:
    """Return whether a file seems to hold a Keras model."""
    from keras2torch_birnn.readers.containers import open_container

    try:
        open_container(path).close()
    except K2TError:
        return False
    return True


def refuse_missing(path: Path) -> None:
    """Refuse a file to read that does not exist.

    Raises:
        InvalidModelFileError: the error of opening it.
    """
    if not is_there(path):
        from keras2torch_birnn.readers.input_files import open_file

        with in_file(path):
            open_file(path).close()


def ends_as_out(path: Path | None) -> bool:
    """Return whether a path has a suffix of what ``k2t convert`` writes."""
    return path is not None and path.suffix.lower() in (".pt", ".pth", ".safetensors")


def is_there(path: Path) -> bool:
    """Return whether a path exists, or is the prefix of a checkpoint's files."""
    try:
        return os.path.lexists(path) or os.path.lexists(f"{path}.index")
    except ValueError:  # opening it will say so
        return False
