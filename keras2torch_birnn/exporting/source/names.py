"""Names of a generated module: from names of a model file, unique in their scope."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from torch import fx

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


class LocalNames:
    """The names in use while the nodes are written one after another.

    nodes: in the order in which they are written. taken: names that no local variable may have.
    is_alias: tells whether a node has the value of its argument, or a part of it, by the same name.
    """

    def __init__(
        self, nodes: Sequence[fx.Node], taken: Iterable[str], is_alias: Callable[[fx.Node], bool]
    ) -> None:
        self._place = {node: number for number, node in enumerate(nodes)}
        self._taken = frozenset(taken)
        self._is_alias = is_alias
        self._ends: dict[str, int] = {}  # local name -> the place of its last use
        self._now = 0

    def go_to(self, node: fx.Node) -> None:
        """Begin with the next node."""
        self._now = self._place[node]

    def keep(self, name: str, node: fx.Node) -> None:
        """Keep a name in use as long as the value of a node is read."""
        self._ends[name] = self._last_use(node)

    def _last_use(self, node: fx.Node) -> int:
        """Return the place of the last node that reads this one, also through others."""
        found = self._place[node]
        for user in (one for one in node.users if one in self._place):
            found = max(found, self._place[user])
            if self._is_alias(user):
                found = max(found, self._last_use(user))
        return found

    def give(self, node: fx.Node, wanted: str, other: str = "") -> str:
        """Return the local name of a node's value: ``wanted`` where that is free, else another."""
        other = other or local(node.name)
        name = self._number(wanted or other, self._now, other)
        self.keep(name, node)
        return name

    def fresh(self, wanted: str) -> str:
        """Return a local name for use within the statements of the current node."""
        name = self._number(wanted, self._now - 1, wanted)
        self._ends[name] = self._now
        return name

    def _is_free(self, name: str, at: int) -> bool:
        """Tell whether a local name is not in use from a place on."""
        return name not in self._taken and self._ends.get(name, -1) <= at

    def _number(self, wanted: str, at: int, other: str) -> str:
        """Return ``wanted`` if it is free, else ``other``, with a number if that is not."""
        if self._is_free(wanted, at):
            return wanted
        name, number = other, 1
        while not self._is_free(name, at):
            number += 1
            name = f"{other}_{number}"
        return name
