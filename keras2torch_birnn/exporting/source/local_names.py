"""Local names of a generated ``forward``, each free again behind the last use of its value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from keras2torch_birnn.exporting.source.names import local


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
