"""The mutation law for operations: every deliberate bug must break the parity with real Keras."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from mutations.checks import agrees_layer_by_layer, agrees_with_keras, assert_right, read
from mutations.operations import MUTATIONS
from mutations.patches import Mutation
from specs import Fixture, read_entry

from keras2torch_birnn import K2TError


@pytest.mark.thorough  # make test reads files that notice each
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutation_breaks_the_parity(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmutated every file passes; mutated every file fails, by both checks."""
    assert mutation.files
    for file in mutation.files:
        assert_right(file)
    mutation.patch(monkeypatch)
    for file in mutation.files:
        again = mutation.rereads
        assert not holds(agrees_with_keras, file, again=again), f"{file} does not notice"
        if not again:
            assert not holds(agrees_layer_by_layer, file), f"{file}: verify does not notice"


def holds(check: Callable[[Fixture], bool], file: str, *, again: bool = False) -> bool:
    """Tell whether a check finds nothing; a bug may also end in arguments that do not fit."""
    try:
        case = read(file)
        return check(replace(case, spec=read_entry(file)) if again else case)
    except (K2TError, RuntimeError, IndexError, TypeError, ValueError):
        return False


def test_the_names_of_the_mutations_differ() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
