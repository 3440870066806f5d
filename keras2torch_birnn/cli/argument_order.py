"""Files that are missing, or in another order than a command expects, told from what they hold.

A missing one is refused before torch is imported. Nothing more is looked at before a command has
failed, so that a right call costs nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, TypeAlias

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    UsageError,
    escape_controls,
    in_file,
)

Kind: TypeAlias = Literal["model", "out", "export", "port", "other"]

_KINDS: Mapping[Kind, str] = {
    "model": "a Keras model",
    "out": "a model that k2t converted",
    "export": "an exported model",
    "port": "a port in Python",
    "other": "none of these",
}
_PORT = re.compile(r"(.+\.py):\w+")

# Command -> its arguments in order: the parameter, the name in the help, and what it may be of the
# kinds above. None: a file to write, which may not exist yet.
_ORDERS: Mapping[str, tuple[tuple[str, str, tuple[Kind | None, ...]], ...]] = {
    "convert": (("paths", "MODEL", ("model",)), ("paths", "OUT", ("out", None))),
    "verify": (("model", "MODEL", ("model",)), ("out", "OUT", ("out", "export"))),
    "export": (("source", "SOURCE", ("model", "out")), ("target", "TARGET", ("export", None))),
    "write-back": (
        ("out", "OUT", ("out",)),
        ("model", "MODEL", ("model",)),
        ("new", "NEW", (None,)),
    ),
    "compare": (("model", "MODEL", ("model",)), ("port", "FILE.py:NAME", ("port", "export"))),
}
# A command -> another one that is taken for it.
_TAKEN_FOR = {"compare": "verify", "verify": "compare"}


@contextmanager
def checking_arguments(command: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Refuse files that are missing; replace an error if the files would fit in another order.

    Raises:
        InvalidModelFileError: a file is missing; UsageError: the order that fits.
    """
    try:
        _check_inputs(command, arguments)
        yield
    except K2TError as error:
        found = _find_mistake(command, arguments)
        if found is None:
            raise
        raise found from error


def _check_inputs(command: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a file to read that does not exist.

    Raises:
        InvalidModelFileError: the error of opening it.
    """
    if arguments.get("atol") is not None or arguments.get("rtol") is not None:
        return  # a wrong one is told first
    names = [arguments[one] for one in ("model", "source") if arguments.get(one) is not None]
    if command in ("verify", "write-back") and ends_as_out(arguments.get("out")):
        names.insert(0, arguments["out"])
    for name in names:
        refuse_missing(name)


def refuse_missing(path: Path) -> None:
    """Refuse a file to read that does not exist.

    Raises:
        InvalidModelFileError: the error of opening it.
    """
    if not is_there(path):
        from keras2torch_birnn.readers.containers.files import open_file

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


def _find_mistake(command: str, arguments: Mapping[str, Any]) -> K2TError | None:
    """Return an error that shows the right call, None if the arguments fit, or no order does."""
    order = _ORDERS.get(command, ())
    names = _list_names(order, arguments)
    kinds = [_find_kind(name) for name in names]
    wrong = [
        f"{escape_controls(name)} is {_KINDS[kind]}"
        for name, kind, (_, _, allowed) in zip(names, kinds, order, strict=False)
        if kind is not None and kind not in ("other", *allowed)
    ]
    if command == "verify" and kinds == ["model"]:
        return InvalidModelFileError(
            "is a Keras model, and not one that k2t converted",
            f"name both: k2t verify {shlex.quote(names[0])} OUT",
            file=names[0],
        )
    if not wrong or len(names) != len(order):
        return None
    for other in filter(None, (command, _TAKEN_FOR.get(command))):
        for some in permutations(range(len(names))):
            places = zip(some, _ORDERS[other], strict=False)
            if all(kinds[at] in allowed for at, (_, _, allowed) in places):
                usage = " ".join(("k2t", command, *(shown for _, shown, _ in order)))
                call = shlex.join(("k2t", other, *(names[at] for at in some)))
                return UsageError(f"{wrong[0]}; expected is {usage}", f"run {call}")
    return None


def _list_names(order: Sequence[tuple[str, str, Any]], arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments that were given, in their order."""
    values = [arguments[parameter] for parameter in dict.fromkeys(one for one, _, _ in order)]
    every = [one for value in values for one in (value if isinstance(value, list) else (value,))]
    return [str(one) for one in every if one is not None]


def _find_kind(name: str) -> Kind | None:
    """Tell what a file holds; None if there is none."""
    from keras2torch_birnn.exporting import TARGETS
    from keras2torch_birnn.readers.containers import open_container
    from keras2torch_birnn.saving.checkpoint_kind import is_checkpoint

    port = _PORT.fullmatch(name)
    if port is not None and Path(port[1]).is_file():
        return "port"
    path = Path(name)
    with suppress(OSError, ValueError):
        if path.is_file() and is_checkpoint(path):
            return "out"
        if path.is_file() and path.suffix.lower() in {row.suffix for row in TARGETS}:
            return "export"
        if not path.exists():
            return None
    try:
        open_container(path).close()
    except K2TError:
        return "other"
    return "model"
