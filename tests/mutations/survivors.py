"""The changes that the judge does not notice, each with its reason.

``survivors.txt`` names them one a line: function, the expression as it is, and what it becomes, so
that a function may move. A line that begins with ``#`` is the reason of the lines below it, up to
the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mutations.mutator import Mutant

# What the judge never does -> words in expressions that decide it, which are not changed.
NEVER_DONE: Mapping[str, frozenset[str]] = {
    "training": frozenset(
        "training trainable requires_grad_ is_grad_enabled needs_gradient frozen FROZEN _is_frozen "
        "dropout recurrent_dropout implementation momentum have_tangents".split()
    ),
    "exports, compilation, other devices and engines": frozenset(
        "is_compiling is_exporting_by_torch is_traced is_cuda is_cpu are_mapped requested_engine "
        "flags".split()
    ),
    "layers and cells of plugins": frozenset(
        "custom_layer_of is_custom_cell has_custom_cell".split()
    ),
    "telling what runs inside a TimeDistributed": frozenset(("folds",)),
}
_WORDS = frozenset().union(*NEVER_DONE.values())


def _read() -> Mapping[str, str]:
    found, reason = {}, ""
    for line in Path(__file__).with_name("survivors.txt").read_text("utf-8").splitlines():
        if line.startswith("#"):
            reason = line[1:].strip()
        elif line:
            found[line] = reason
    return found


# Change -> why no case notices it.
SURVIVORS = _read()


def may_survive(mutant: Mutant) -> bool:
    """Tell whether the judge need not notice a change."""
    return mutant.name in SURVIVORS or not _WORDS.isdisjoint(mutant.words)
