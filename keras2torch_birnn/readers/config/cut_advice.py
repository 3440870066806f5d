"""Propose where to cut a model: behind the layers that read text, before the one of the loss.

A proposal is made of the graph alone; the caller tries it before it is printed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from keras2torch_birnn.readers.config.cut_names import Path
from keras2torch_birnn.readers.config.text_layers import TextLayer, is_text_layer
from keras2torch_birnn.schema.dtype_flow import Node
from keras2torch_birnn.spec import NO_CUT, Cut, Graph, LayerSpec, tensors

_ADVISED = 100  # refused layers; a file of more is no model with text in front
_LOSS = re.compile(r"loss|ctc|metric", re.IGNORECASE)


def propose_cut(root: LayerSpec, refused: Collection[str], texts: Mapping[str, TextLayer]) -> Cut:
    """Propose a cut; an empty one where the refused layers are elsewhere.

    refused: the places of layers that are not supported. texts: those that read text, by place.
    """
    if root.graph is None or len(refused) > _ADVISED:
        return NO_CUT
    level = _Level(root.graph, refused, texts)
    return Cut(_join(level.first()), _join((name,) for name in level.last()))


def _join(paths: Sequence[Path] | Iterator[Path]) -> tuple[str, ...]:
    return tuple(dict.fromkeys("/".join(path) for path in paths))


@dataclass
class _Level:
    """The calls of one graph, and what is before and behind each."""

    graph: Graph
    refused: Collection[str]
    texts: Mapping[str, TextLayer]

    def __post_init__(self) -> None:
        self.before: dict[Node, list[Node]] = {}
        self.behind: dict[Node, list[Node]] = {}
        for call in self.graph.calls:
            node = (call.layer, call.index)
            refs = tensors((call.args, call.kwargs))
            self.before[node] = list(dict.fromkeys((ref.layer, ref.call) for ref in refs))
            self.behind.setdefault(node, [])
            for other in self.before[node]:
                self.behind[other].append(node)

    def first(self) -> list[Path]:
        """Return the first layers behind those that read text."""
        texts = [node for node in self.before if self._reads_text(node)]
        front = self._reach(texts, self.before)
        waiting = deque(node for text in texts for node in self.behind[text])
        found: dict[Path, None] = {}
        while waiting:
            node = waiting.popleft()
            if node in front:
                continue
            if not self._is_refused(node):
                found[(node[0],)] = None
            elif any(not self._is_refused(other) for other in self._below(node)):
                front |= self._reach([node], self.before)
                waiting += self.behind[node]
        return [*found, *self._first_inside()]

    def _first_inside(self) -> Iterator[Path]:
        """Yield the same of the models in this one."""
        for layer in self.graph.layers:
            if layer.graph is not None:
                inner = _Level(layer.graph, self.refused, self.texts)
                yield from ((layer.name, *path) for path in inner.first())

    def last(self) -> list[str]:
        """Return the layers whose outputs are those of the model, without what adds the loss."""
        losses = [node for node in self.before if self._adds_loss(node)]
        if not losses:
            return []
        gone = self._reach(losses, self.behind)
        names: dict[str, None] = {}
        for ref in tensors(self.graph.outputs):
            node = (ref.layer, ref.call)
            kept = [node] if node not in gone else self._results(node, gone)
            if not kept:
                return []
            names[kept[0][0]] = None
        return list(names)

    def _results(self, end: Node, gone: Collection[Node]) -> list[Node]:
        """Return what the loss reads that was computed, the longest computation first."""
        above = self._reach([end], self.before)
        read = [
            node
            for loss in above
            if loss in gone
            for node in self.before[loss]
            if node not in gone and self._layer(node).class_name != "InputLayer"
        ]
        return sorted(read[:_ADVISED], key=lambda node: -len(self._reach([node], self.before)))

    def _adds_loss(self, node: Node) -> bool:
        """Tell whether a refused layer is at the end, and is made for training by its looks.

        It reads an input that nothing else reads (the labels), or is called so, or nothing that the
        model gives depends on it; or it turns ids to text again.
        """
        if not self._is_refused(node):
            return False
        below, layer = self._below(node), self._layer(node)
        if any(not self._is_refused(other) for other in below):
            return False
        if is_text_layer(layer):
            return self._gives_text(layer)
        labels = any(
            self._layer(other).class_name == "InputLayer" and len(self.behind[other]) == 1
            for other in self.before[node]
        )
        ends = {(ref.layer, ref.call) for ref in tensors(self.graph.outputs)}
        unused = ends.isdisjoint({node, *below})
        return labels or unused or bool(_LOSS.search(f"{layer.class_name} {layer.name}"))

    def _reads_text(self, node: Node) -> bool:
        """Tell whether a layer reads text, or is an IntegerLookup that is refused."""
        layer = self._layer(node)
        reads = is_text_layer(layer) or (layer.place in self.texts and self._is_refused(node))
        return reads and not self._gives_text(layer)

    def _gives_text(self, layer: LayerSpec) -> bool:
        return layer.place in self.texts and self.texts[layer.place].gives_text

    def _is_refused(self, node: Node) -> bool:
        layer = self._layer(node)
        return layer.graph is None and layer.place in self.refused

    def _layer(self, node: Node) -> LayerSpec:
        return self.graph.layer(node[0])

    def _below(self, node: Node) -> set[Node]:
        return self._reach(self.behind[node], self.behind)

    @staticmethod
    def _reach(starts: Sequence[Node], edges: Mapping[Node, Sequence[Node]]) -> set[Node]:
        """Return these calls and all that the edges lead to."""
        found: set[Node] = set()
        waiting = list(starts)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting += edges[node]
        return found
