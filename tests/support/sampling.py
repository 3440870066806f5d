"""Choose the cases that ``make test`` runs of tests with many; ``make test-all`` runs all of them.

Of a test with three parameters or more, enough cases are chosen that each pair of values of two of
them is met; of one with the marker ``sampled(features)``, whose only parameter stands for things
with features, that each feature is: value -> its features; of one with the marker
``every(count)``, one case of so many. The other cases get the marker
``thorough``. What is chosen depends on nothing but the cases and their order. Of examples that
Hypothesis draws, ``make test`` takes a third where they are many and each takes long.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Hashable, Iterable
from heapq import heapify, heappop, heappush
from itertools import combinations, product
from typing import Any

import pytest

# Set by conftest.py, also for the processes that it starts.
FEW_EXAMPLES = "K2T_FEW_EXAMPLES"


def examples(count: int) -> int:
    """Return ``max_examples``: all, or a third in ``make test``."""
    return count // 3 if FEW_EXAMPLES in os.environ else count


def rest_thorough(values: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """Return cases for ``parametrize``, of which ``make test`` runs those that are kept.

    A tuple has the values of several arguments.
    """
    mark = pytest.mark.thorough
    rows = [(one if isinstance(one, tuple) else (one,), one in kept) for one in values]
    return [pytest.param(*row, marks=[] if run else mark) for row, run in rows]


def in_turn(values: Iterable[Any], kinds: Iterable[Any]) -> list[Any]:
    """Return all pairs for ``parametrize``; ``make test`` runs each value with one kind."""
    values, kinds = [*values], [*kinds]
    kept = [(value, kinds[place % len(kinds)]) for place, value in enumerate(values)]
    return rest_thorough(product(values, kinds), kept)


def mark_thorough(items: Iterable[pytest.Item]) -> None:
    """Mark the cases that are not needed for their tests to meet everything once."""
    tests: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if getattr(item, "callspec", None) is not None:
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        if (marker := cases[0].get_closest_marker("every")) is not None:
            chosen: Container[int] = range(0, len(cases), *marker.args)
        else:
            features = [_list_features(case) for case in cases]
            chosen = choose_cover(features) if all(features) else range(len(cases))
        for number, case in enumerate(cases):
            if number not in chosen:
                case.add_marker("thorough")


def _list_features(case: Any) -> frozenset[Hashable]:
    """Return what a case meets; nothing if all cases of its test are wanted."""
    marker, spec = case.get_closest_marker("sampled"), case.callspec
    if marker is not None:
        (value,) = spec.params.values()
        return frozenset(marker.args[0][value])
    values = sorted((name, id(value)) for name, value in spec.params.items())
    return frozenset(combinations(values, 2)) if len(values) > 2 else frozenset()


def choose_cover(features: list[frozenset[Hashable]]) -> set[int]:
    """Return the places of sets that together have all features, the largest gain first."""
    left, chosen = set().union(*features), set[int]()
    ranked = [(-len(one), i) for i, one in enumerate(features)]  # by a gain that only shrinks
    heapify(ranked)
    while left:
        _, best = heappop(ranked)
        gain = len(features[best] & left)
        if ranked and (-gain, best) > ranked[0]:
            heappush(ranked, (-gain, best))
            continue
        chosen.add(best)
        left -= features[best]
    return chosen
