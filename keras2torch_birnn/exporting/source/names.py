"""Names of a model file as names of Python source."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata
from collections.abc import Iterable

from keras2torch_birnn.limits import MAX_SOURCE_NAME
from keras2torch_birnn.spec import Structure

# Methods that the mixin of the Hugging Face Hub adds.
_HUB = ("from_pretrained", "generate_model_card", "push_to_hub", "save_pretrained")
# Letters on a line of 88 beside "        ", ": Tensor = self.", "(" and a number.
_BOTH_NAMES = 60
_AMBIGUOUS = ("l", "o", "i")  # pycodestyle E741, in any case


class Names:
    """Allocator of names that are unique in one scope."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._used = set(taken)
        self._times: dict[str, int] = {}

    def add(self, wanted: str) -> str:
        """Return ``wanted``, or it with a number if it is taken."""
        base = wanted = wanted[:MAX_SOURCE_NAME]
        while wanted in self._used or keyword.iskeyword(wanted) or keyword.issoftkeyword(wanted):
            self._times[base] = number = self._times.get(base, 1) + 1
            wanted = f"{base}_{number}"
        self._used.add(wanted)
        return wanted


def reserved() -> set[str]:
    """Return the names that no local or attribute gets: Python's own, and those of the Hub."""
    return {*dir(builtins), *keyword.kwlist, *_HUB, *_AMBIGUOUS, "self", "load"}


def local(name: str) -> str:
    """Return a text as the name of a local variable: lower case, ASCII."""
    words = re.sub(r"\W+", "_", _drop_accents(name), flags=re.ASCII)
    plain = words.strip("_").lower()[:MAX_SOURCE_NAME]
    return plain if plain and not plain[0].isdigit() else f"value_{plain}".rstrip("_")


def attribute(target: str) -> str:
    """Return the path of a module as the name of an attribute.

    "layer", the part of a TimeDistributed, is left out.
    """
    *outer, last = target.lower().split(".")
    return "_".join([*(part for part in outer if part != "layer"), last])


def local_beside(attribute: str, target: str) -> str:
    """Return the local name of the output of a module: the last name of its path.

    It is so short that the beginning of the call of ``attribute`` fits on a line.
    """
    name = local(target.rpartition(".")[2])
    return name[: _BOTH_NAMES - len(attribute)].rstrip("_")


def class_name(name: str) -> str:
    """Return a text as the name of a class: words begin with a capital letter."""
    words = re.findall(r"[A-Za-z0-9]+", _drop_accents(name))
    joined = "".join(word[0].upper() + word[1:] for word in words)
    generic = re.fullmatch(r"(Sequential|Model|Functional)?[0-9]*", joined)
    return "Model" if generic or joined[0].isdigit() else joined


def _drop_accents(name: str) -> str:
    """Return the beginning of a name; letters with accents become those without."""
    parts = unicodedata.normalize("NFKD", name[:MAX_SOURCE_NAME])
    return "".join(char for char in parts if not unicodedata.combining(char))


def plain_text(text: object, most: int | None = 80) -> str:
    """Return a text as words for a comment or a docstring: nothing in it can end either."""
    return re.sub(r"[^A-Za-z0-9 _.,:;()'+/=-]+", "_", str(text))[:most].strip()


def show_shape(shape: Structure) -> str:
    """Write a shape with letters for the sizes that are free; empty if it is unknown."""
    if not isinstance(shape, tuple) or any(isinstance(size, tuple) for size in shape):
        return ""
    letters = ("B", "T", "?", "?", "?", "?")
    sizes = [
        letters[min(axis, 5)] if size is None or axis == 0 else str(int(size))
        for axis, size in enumerate(shape)
    ]
    return plain_text(f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})")
