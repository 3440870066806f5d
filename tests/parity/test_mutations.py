"""The mutation law: every deliberate bug, one at a time, must break the parity with real Keras."""

from __future__ import annotations

from dataclasses import replace

import pytest
from mutations.checks import agrees_layer_by_layer, agrees_with_keras, assert_right, read
from mutations.patches import Mutation
from mutations.table import OF_LAYERS
from specs import read_entry


@pytest.fixture(autouse=True)
def use_engines_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutations change Python; the native kernel is compared with the reference in test_native."""
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")


@pytest.mark.thorough  # make test reads files that notice each
@pytest.mark.parametrize("mutation", OF_LAYERS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutation_breaks_the_parity(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmutated every file passes; mutated every file fails, by both checks."""
    assert mutation.files
    for file in mutation.files:
        assert_right(file)
    mutation.patch(monkeypatch)
    for file in mutation.files:
        case = read(file)
        if mutation.rereads:
            case = replace(case, spec=read_entry(file))
        assert not agrees_with_keras(case), f"{file} does not notice"
        if not (mutation.late or mutation.rereads):
            assert not agrees_layer_by_layer(case), f"{file}: verify does not notice"


def test_the_names_of_the_mutations_differ() -> None:
    assert len({m.name for m in OF_LAYERS}) == len(OF_LAYERS)
