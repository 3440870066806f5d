"""Errors that the package raises; each has file, place, finding and advice.

Inner code knows place and finding; the outermost function adds the file (``in_file``), so that
the user sees one line for each problem and no chain of exceptions.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from keras2torch_birnn.limits import MAX_PRINTED_LINE, MAX_PRINTED_NAME

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)


def printable(text: object, most: int = MAX_PRINTED_NAME) -> str:
    """Make a text from a file safe to print: ASCII, escapes for the rest, ``most`` characters."""
    # Cut first: a name may be 30 MB long.
    escaped = str(text)[: most + 1].encode("ascii", "backslashreplace").decode("ascii")
    escaped = "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in escaped)
    return escaped if len(escaped) <= most else escaped[: most - 3] + "..."


def escape_controls(text: object, most: int | None = None) -> str:
    """Make a text of the user's, such as a path, safe to print: letters of all scripts stay.

    Controls, line ends, marks that change the direction of writing and bytes that are no text are
    escaped. most: the number of characters to keep.
    """
    kept = str(text) if most is None else str(text)[: most + 1]
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept
    )
    return escaped if most is None or len(escaped) <= most else f"{escaped[: most - 3]}..."


def split_address(path: object) -> tuple[str, str] | None:
    """Split an address, https://..., of whose slashes ``Path`` keeps one; None if it is none."""
    found = _ADDRESS.fullmatch(str(path))
    return (found[1], found[2]) if found else None


def name_file(path: object) -> str:
    """Name a file as the user did: an address with both slashes."""
    address = split_address(path)
    if address is None:
        return str(path)
    return f"{address[0]}:{'///' if address[0] == 'file' else '//'}{address[1]}"


class K2TError(Exception):
    """Base of all errors of the package.

    ``str()`` is one line for each problem: ``FILE: PLACE: message; advice``.

    Attributes:
        message: What is wrong.
        advice: What to do about it.
        place: Path of the layer or object in the file.
        file: The file, as the user named it.
        class_name: Keras' class of the layer, if it is known.
        problems: The error itself, or all that it lists.
    """

    exit_code = 70
    code = "internal"

    def __init__(self, message: str, advice: str = "", *, place: str = "", file: str = "") -> None:
        super().__init__(message)
        self.message, self.advice, self.place, self.file = message, advice, place, name_file(file)
        self.class_name = ""
        self.problems: tuple[K2TError, ...] = (self,)

    def lines(self) -> tuple[str, ...]:
        """Return one line for each problem, all with the file's name."""
        return tuple(p._line(self.file) for p in self.problems)

    def to_dicts(self) -> list[dict[str, str]]:
        """Return each problem as data: file, place, code, class, message and what to do."""
        return [
            {
                "file": p.file or self.file,
                "place": printable(p.place),
                "code": p.code,
                "class": printable(p.class_name),
                "message": escape_controls(p.message, MAX_PRINTED_LINE),
                "do": escape_controls(p.advice, MAX_PRINTED_LINE),
            }
            for p in self.problems
        ]

    def _line(self, file: str) -> str:
        # The file's name is the user's own, so it is never cut. Names from files in the finding
        # should be printable already; paths of the user need not be.
        name = self.file or file
        where = ": ".join(p for p in (escape_controls(name), printable(self.place)) if p)
        what = escape_controls(
            f"{self.message}; {self.advice}" if self.advice else self.message, MAX_PRINTED_LINE
        )
        return f"{where}: {what}" if where else what

    def __str__(self) -> str:
        return "\n".join(self.lines())


class InvalidModelFileError(K2TError):
    """The input is damaged, hostile, or of another format than it claims (exit code 3)."""

    exit_code = 3
    code = "invalid_file"


def invalid(finding: str, place: str = "") -> InvalidModelFileError:
    """Return the error for what is refused and has no remedy."""
    return InvalidModelFileError(finding, "refused", place=place)


def damaged(finding: str, place: str = "") -> InvalidModelFileError:
    """Return the error for what no writer of such files leaves."""
    return InvalidModelFileError(finding, "the file is damaged", place=place)


class MissingArchitectureError(InvalidModelFileError):
    """The input is fine, but holds weights only; the architecture must be given (exit code 4)."""

    exit_code = 4
    code = "weights_only"


class WeightMismatchError(InvalidModelFileError):
    """Weights are missing, superfluous, or of other shapes than configured (exit code 3)."""

    code = "weight_mismatch"


class UnsupportedLayerError(K2TError):
    """The input is fine but holds layers that cannot be converted (exit code 4)."""

    exit_code = 4
    code = "unsupported_layer"


class UnsupportedOptionError(K2TError):
    """A layer can be converted, but not with this option or value (exit code 4)."""

    exit_code = 4
    code = "unsupported_option"


class OutputError(K2TError):
    """The result cannot be written (exit code 5)."""

    exit_code = 5
    code = "output"


class UsageError(K2TError):
    """The call itself is wrong, such as a device that does not exist (exit code 2)."""

    exit_code = 2
    code = "usage"


class ArgumentTypeError(UsageError, TypeError):
    """An argument is of another type, or a tensor of another dtype, than is expected."""


class ArgumentValueError(UsageError, ValueError):
    """An argument is of the right type, but has a wrong value or shape."""


class FrozenModelError(UsageError, AttributeError):
    """A frozen model is asked for what only a module has."""


def check_module(model: object) -> None:
    """Refuse what is no module of torch, such as the path of a model.

    Raises:
        ArgumentTypeError: it is none.
    """
    if isinstance(model, str | os.PathLike):
        found = f"a model is expected, found the path {os.fspath(model)!r}"
        advice = "k2t.convert(path) reads a Keras model, k2t.load(path) a converted one"
        raise ArgumentTypeError(found, advice)
    if not hasattr(model, "named_modules"):
        raise ArgumentTypeError(f"a model is expected, found {type(model).__name__}")


class PluginError(UsageError):
    """A plugin fails, or differs from its own declaration (exit code 2)."""

    code = "plugin"


def gather(problems: Sequence[K2TError]) -> K2TError:
    """Join several problems into one error that lists them all, in order.

    The class is that of the first unsupported layer, if any, else that of the first problem.
    """
    first = next((p for p in problems if isinstance(p, UnsupportedLayerError)), problems[0])
    joined = type(first)(first.message, first.advice, place=first.place, file=first.file)
    joined.problems = tuple(q for p in problems for q in p.problems)
    joined.__cause__ = next((p.__cause__ for p in problems if p.__cause__ is not None), None)
    return joined


@contextmanager
def in_file(file: object) -> Iterator[None]:
    """Add the file's name to any K2TError that passes through without one."""
    try:
        yield
    except K2TError as error:
        error.file = error.file or name_file(file)
        raise


@contextmanager
def in_place(place: str) -> Iterator[None]:
    """Add a place of the file to an error about its content that has none."""
    try:
        yield
    except InvalidModelFileError as error:
        error.place = error.place or place
        raise


# What code that expects Keras' own structure raises where a text has another.
_OTHER_STRUCTURE = (*(AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError),)


@contextmanager
def expecting_keras(place: str) -> Iterator[None]:
    """Turn what fails on a text that Keras did not write into one line, with its cause.

    Nothing inside may allocate by a number of the file before it is checked.

    Raises:
        InvalidModelFileError: the text has not the structure that Keras writes.
    """
    try:
        yield
    except K2TError:
        raise
    except _OTHER_STRUCTURE as error:
        what = f"not as Keras writes it ({type(error).__name__} at {line_of(error)})"
        raise invalid(what, place) from error


def line_of(error: BaseException) -> str:
    """Return ``file.py:7``: the last line reached outside of libraries and this package.

    Where there is none (a shipped plugin fails, or a library at once): the last line of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path(__file__).parent)
    users = [
        frame
        for frame in frames
        if not frame.filename.startswith((here, "<")) and "site-packages" not in frame.filename
    ]
    frame = (users or list(frames))[-1]
    return printable(f"{Path(frame.filename).name}:{frame.lineno}")
