"""Fixtures for tests of the native kernel; conftest.py has them loaded.

Torch is imported where one is used: the process that starts the workers needs none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from keras2torch_birnn.rnn.native import codes, library
from keras2torch_birnn.rnn.native.processors import INSTRUCTION_SETS


def isa_bits() -> list[int]:
    """The instruction sets that this processor has."""
    if library.why_missing():
        return []
    return list(library.find_sets("float32").values())


def sets_not_run() -> str:
    """Say which instruction sets the tests did not run; empty if all were."""
    if reason := library.why_missing():
        return f"not run here: the native kernel ({reason})"
    have = {name for precision in codes.PRECISIONS for name in library.find_sets(precision)}
    absent = [one.name for one in INSTRUCTION_SETS if one.name not in have]
    return f"not run here: {', '.join(absent)}" if absent else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what a green run does not tell of."""
    if found := sets_not_run():
        terminalreporter.write_line(found)


@contextmanager
def run_by(bit: int) -> Iterator[None]:
    """Let the kernel run by one instruction set."""
    from keras2torch_birnn.layers import recorded_layers, recorded_values, recording
    from keras2torch_birnn.rnn.native import gradient, op

    with pytest.MonkeyPatch.context() as patch:
        for module in (op, gradient, recording, recorded_values, recorded_layers):
            patch.setattr(module, "instruction_set", partial(int, bit))
        yield


@pytest.fixture(params=isa_bits())
def isa(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every instruction set of this processor in turn."""
    with run_by(request.param):
        yield int(request.param)


@pytest.fixture
def native_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the engine that the environment of the tests asks for."""
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "auto")


@pytest.fixture
def forced_native(native_where_it_pays: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the other, which whole files ask for."""
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "native")


@pytest.fixture(params=["torch's", "our own"])
def threads(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both kinds of threads that the kernel can run on."""
    from keras2torch_birnn.rnn.native import op

    if request.param == "our own":
        library.library().k2t_use_threads_of(None)
    elif not op.use_torch_threads():
        pytest.skip("torch has no OpenMP runtime here")
    yield request.param
    op.use_torch_threads.cache_clear()
