"""Say what may be meant by a word or a file's name that is not known, and how to get an extra."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from itertools import islice
from pathlib import Path

from keras2torch_birnn.errors import (
    UsageError,
    escape_controls,
    name_file,
    printable,
    split_address,
)
from keras2torch_birnn.limits import MAX_GROUP_MEMBERS

# Words of other libraries -> ours.
_OTHERS: Mapping[str, str] = {
    **dict.fromkeys(("avg", "average", "mean"), "ave"),
    **dict.fromkeys(("add", "plus"), "sum"),
    **dict.fromkeys(("multiply", "prod", "product"), "mul"),
    **dict.fromkeys(("cat", "concatenate"), "concat"),
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
    **dict.fromkeys(("float", "f4", "single"), "float32"),
    **dict.fromkeys(("double", "f8"), "float64"),
    **dict.fromkeys(("bf16", "half"), "bfloat16"),
    **dict.fromkeys(("tensorflow", "tf"), "keras"),
    **dict.fromkeys(("numpy", "np"), "reference"),
}


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return "did you mean ...?" for a word that is like one of the known; else an empty text."""
    names = {name.lower(): name for name in known}
    given = str(word).lower()
    other = _OTHERS.get(given)
    alike = [one for one in names if _digits(one) == _digits(given) or not _digits(given)]
    near = [other] if other in names else get_close_matches(given, alike, 1)
    return f"did you mean {printable(names[near[0]])}?" if near else ""


def _digits(word: str) -> str:
    """Return the digits of a word: float64 is not meant by float16."""
    return "".join(filter(str.isdigit, word))


def unknown_value(
    shown: str, known: Iterable[str], word: object, error: type[UsageError] = UsageError
) -> UsageError:
    """Return the error for a value that is none of the known. shown: "--merge avg"."""
    names = tuple(known)
    listed = f"{', '.join(names[:-1])} or {names[-1]}" if len(names) == 2 else ""
    expected = listed or f"one of {', '.join(names)}"
    return error(f"{shown}: {expected} is expected", did_you_mean(word, names))


def explain_missing(path: Path) -> str:
    """Say what may be meant by the name of a file that does not exist; else an empty text."""
    if address := split_address(path.as_posix()):
        if address[0] == "file":
            return f"name its path: /{escape_controls(address[1])}"
        return f"{printable(name_file(path))} is an address: download it first"
    if str(path) == "-":
        return "a model is read from a file, not from standard input"
    with suppress(OSError):
        names = [one.name for one in islice(path.parent.iterdir(), MAX_GROUP_MEMBERS)]
        for near in get_close_matches(path.name, names):
            # A suffix alone is no likeness, and a folder of that name is no file.
            if near != path.name and get_close_matches(path.stem, [Path(near).stem]):
                return f"did you mean {escape_controls(path.with_name(near))}?"
    return ""


def advise_extra(extra: str) -> str:
    """Return the command that installs an extra, a key of ``optional-dependencies``.

    A package that runs from its folder, without being installed, is named by that folder.
    """
    try:
        name = distribution("keras2torch_birnn").metadata["Name"]
    except PackageNotFoundError:
        name = "."
    return f"pip install '{name}[{extra}]'"
