"""Every deliberate bug of the cut, one at a time, must break the parity of a part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from cut_fixtures import ROWS, recorded
from mutations.cutting import MUTATIONS, CutMutation
from specs import FIXTURES

from keras2torch_birnn.errors import K2TError, UsageError
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import compute
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.spec import Array, Cut, leaves

ATOL, RTOL = 1e-5, 1e-4


def wanted_of(file: str, cut: Cut) -> tuple[Sequence[Array], Sequence[Array]]:
    """Return inputs and outputs of a part: recorded by Keras, or computed by the whole."""
    if file.removeprefix("cut/") in ROWS:
        return recorded(file.removeprefix("cut/"))
    whole = read_model(FIXTURES / file)
    inputs = draw_inputs(whole, steps=7, seed=3)
    trace = compute(whole, inputs)
    ends = [one for name in cut.last for one in leaves(trace.layers[name])]
    entering = [
        value
        for name in cut.first
        for call in whole.graph.calls
        if call.layer == name
        for ref in leaves(call.args)
        for value in [list(leaves(trace.layers[ref.layer]))[ref.output]]
    ]
    return entering or inputs, ends or list(trace.outputs)


def agrees(file: str, cut: Cut, given: Sequence[Array], wanted: Sequence[Array]) -> bool:
    """Tell whether the part computes this, by the reference and by torch."""
    part = read_model(FIXTURES / file, cut=cut)
    exact = compute(part, given).outputs
    with torch.no_grad():
        tensors = [torch.from_numpy(np.ascontiguousarray(one)) for one in given]
        got = [y.numpy() for y in flat(build(part, dtype="float64")(*tensors))]
    return all(
        len(found) == len(wanted)
        and all(
            a.shape == b.shape and np.allclose(a, b, atol=ATOL, rtol=RTOL)
            for a, b in zip(found, wanted, strict=True)
        )
        for found in (exact, got)
    )


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutation_breaks_the_parity_of_a_part(
    mutation: CutMutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that is refused, because a mask would be lost, must not be accepted."""
    cases = [(file, cut, *wanted_of(file, cut)) for file, cut in mutation.parts]
    for case in cases:
        try:
            assert agrees(*case)
        except UsageError as error:
            assert "a mask of" in error.message
    mutation.patch(monkeypatch)
    for case in cases:
        try:
            assert not agrees(*case), f"{case[0]} does not notice"
        except UsageError:
            raise
        except (K2TError, ValueError, IndexError, RuntimeError):
            continue  # sizes that differ notice it as well


def test_the_names_of_the_mutations_differ() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
