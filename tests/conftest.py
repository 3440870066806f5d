"""Settings for all tests and for every process that they start.

One thread: the tensors of the tests are small. Two threads of OpenMP that share them wait for each
other, four times as long as one computes, and far longer on a machine that has other work to do.
Tests of threads ask for theirs by ``torch.set_num_threads``; after each test there is one again.

The files of ``torch.compile`` go when the run ends. Its precompiled headers would stay, 150 MB for
each set of flags, and the few compilations here take longer with them than without.

A file of tests that needs an optional package is left out where that is not installed.

Ctrl-C interrupts: a shell that runs the tests in the background tells them to ignore it.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fixture_archives import MissingArchivesError, unpacked
from optional_packages import TestFile
from sampling import FEW_EXAMPLES, mark_thorough
from torch_settings import unchanged_settings

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "0")

pytest_plugins = ("kernel_fixtures",)


def pytest_configure(config: pytest.Config) -> None:
    """Unpack the fixtures, and set what files and other processes read when they start."""
    if config.option.markexpr == "not thorough":
        os.environ[FEW_EXAMPLES] = "1"
    with suppress(MissingArchivesError):
        unpacked()
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        made = tempfile.TemporaryDirectory(prefix="k2t-inductor-", ignore_cleanup_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = made.name
        config.add_cleanup(made.cleanup)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    """Collect a file of tests as a ``TestFile``."""
    found: pytest.Module = TestFile.from_parent(parent, path=module_path)
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what only ``make test-all`` runs, before ``-m`` is applied."""
    mark_thorough(items)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while millions of objects that stay are made: it takes a fourth more."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Leave what was collected out of all later searches for garbage, and search less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def _settings_of_torch() -> Iterator[None]:
    """Fail a test that leaves torch's settings changed; its number of threads is set back."""
    with unchanged_settings():
        yield


@pytest.fixture(autouse=True)
def _few_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start a process for each HDF5 file and each export only in tests marked own_processes."""
    if request.node.get_closest_marker("own_processes") is not None:
        yield
        return
    from parsing_here import parsing_here
    from warm_process import exports_in_forks

    with parsing_here(), exports_in_forks():
        yield
