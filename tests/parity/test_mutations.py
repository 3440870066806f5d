"""The mutation law: every deliberate bug, one at a time, must break the parity with real Keras."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from mutations import operations
from mutations.checks import agrees_layer_by_layer, agrees_with_keras, assert_right, read
from mutations.patches import Mutation
from mutations.table import OF_LAYERS
from specs import Fixture, read_entry

from keras2torch_birnn import K2TError

MUTATIONS = (*OF_LAYERS, *operations.MUTATIONS)
# A bug of an operation may also end in arguments that do not fit.
ENDS = (K2TError, RuntimeError, IndexError, TypeError, ValueError)


@pytest.fixture(autouse=True)
def use_engines_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations change Python; the native kernel is compared with the reference in test_native."""
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")


@pytest.mark.thorough  # make test reads files that notice each
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutation_breaks_the_parity(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmutated every file passes; mutated every file fails, by both checks."""
    assert mutation.files
    for file in mutation.files:
        assert_right(file)
    mutation.patch(monkeypatch)
    for file in mutation.files:
        assert not holds(agrees_with_keras, mutation, file), f"{file} does not notice"
        if not (mutation.late or mutation.rereads):
            noticed = not holds(agrees_layer_by_layer, mutation, file)
            assert noticed, f"{file}: verify does not notice"


def holds(check: Callable[[Fixture], bool], mutation: Mutation, file: str) -> bool:
    """Tell whether a check finds nothing."""
    with suppress(*(() if mutation in OF_LAYERS else ENDS)):
        case = read(file)
        return check(replace(case, spec=read_entry(file)) if mutation.rereads else case)
    return False


def test_the_names_of_the_mutations_differ() -> None:
    for table in (OF_LAYERS, operations.MUTATIONS):
        assert len({m.name for m in table}) == len(table)
