"""The mutation law: every change of the mapping, one at a time, must break parity with real Keras.

Lines that no case of the judge runs, such as most refusals, exports and plugins, are not judged.
"""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import islice
from types import CodeType, FunctionType

import pytest
from mutations.by_hand import BUGS
from mutations.judge import CASES, agrees, cases_by_line, notices
from mutations.mutator import Mutant, applied, living_functions, mutants_of
from mutations.survivors import SURVIVORS, may_survive
from package_source import PACKAGE, name_of

from keras2torch_birnn.layers import CONVERTERS
from keras2torch_birnn.schema import PAGES

# What turns Keras' weights and settings into a torch model, by folder.
MAPPING: Mapping[str, str] = {
    "readers/config": "cells cut generations keras1",
    "readers/operations": "reworks translation",
    "readers/weights": "paths slots v3",
    "schema": "convolution merge_modes recurrent",
    "layers": "attention convolution core functional graph merging normalization operations "
    "preprocessing recurrent registry reshaping",
    "rnn": "activations cell_kind masks modules parameters",
    "rnn/engines": "loop torch_kernel",
}
MODULES = [f"{folder}/{name}.py" for folder, names in MAPPING.items() for name in names.split()]
# Changes that ``make test`` tries, of lines that so many cases run; drawn the same way each time.
SEED, FEW_CASES, FEW_CHANGES = 20261203, 12, 50
# Of the changes of a module, ``make test-all`` tries each third: all take minutes.
STEP = 1 if "K2T_ALL_CHANGES" in os.environ else 3

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGPROF"), reason="no signal after some seconds of the processor"
)


@pytest.fixture(autouse=True)
def use_engines_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python is changed; the native kernel is compared with the reference in test_native."""
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")


@functools.cache
def functions() -> Mapping[CodeType, list[FunctionType]]:
    for module in MODULES:
        import_module(name_of(PACKAGE / module))
    return living_functions()


@functools.cache
def all_cases_by_line() -> Mapping[tuple[str, int], list[str]]:
    functions()  # what runs at import is then over
    return cases_by_line(CASES)


def is_noticed(mutant: Mutant, cases: Iterable[str]) -> bool:
    with applied(mutant, functions()):
        return any(notices(case, mutant.file) for case in cases)


@pytest.mark.thorough
@pytest.mark.parametrize("module", MODULES)
def test_every_change_of_a_module_is_noticed(module: str) -> None:
    by_line = all_cases_by_line()
    missed = [
        str(mutant)
        for mutant in islice(mutants_of(module), 0, None, STEP)
        if (cases := by_line.get((module, mutant.line)))
        and not may_survive(mutant)
        and not is_noticed(mutant, cases)
    ]
    assert not missed, "\n".join(missed)


def test_a_sample_of_all_changes_is_noticed() -> None:
    """Let all cases try what those that are drawn do not notice."""
    draw = random.Random(SEED)
    functions()
    by_line = cases_by_line(sorted(draw.sample(CASES, FEW_CASES)))
    places = [
        mutant
        for module in MODULES
        for mutant in mutants_of(module)
        if (module, mutant.line) in by_line and not may_survive(mutant)
    ]
    missed = [
        str(mutant)
        for mutant in draw.sample(places, FEW_CHANGES)
        if not is_noticed(mutant, [*by_line[mutant.file, mutant.line], *CASES])
    ]
    assert not missed, "\n".join(missed)


def test_every_layer_is_in_a_module_that_is_changed() -> None:
    pages = {PAGES[name] for name in CONVERTERS} - {"model"}  # which is layers/graph.py
    assert {f"layers/{page}.py" for page in pages} <= {*MODULES}


@pytest.mark.thorough
def test_most_changes_are_of_lines_that_a_case_runs() -> None:
    """So that a fixture that goes does not take its part of the law along."""
    every = [mutant for module in MODULES for mutant in mutants_of(module)]
    reached = [one for one in every if (one.file, one.line) in all_cases_by_line()]
    assert len(reached) > 0.85 * len(every)


@pytest.mark.thorough
def test_nothing_that_was_changed_stays_so() -> None:
    assert not [case for case in CASES if notices(case, MODULES[0])]


def test_what_may_survive_exists_and_has_a_reason() -> None:
    names = {mutant.name for module in MODULES for mutant in mutants_of(module)}
    assert not SURVIVORS.keys() - names
    assert all(SURVIVORS.values())


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_by_hand_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    module = "readers/" if bug.rereads else ""
    assert all(agrees(file, module) for file in bug.files)
    bug.patch(monkeypatch)
    assert [file for file in bug.files if notices(file, module)] == [*bug.files]
