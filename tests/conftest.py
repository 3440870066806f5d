"""Settings for all tests and for every process that they start.

One thread: the tensors of the tests are small. Two threads of OpenMP that share them wait for each
other, four times as long as one computes, and far longer on a machine that has other work to do.
Tests of threads ask for theirs by ``torch.set_num_threads``.

Ctrl-C interrupts: a shell that runs the tests in the background tells them to ignore it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("kernel_fixtures",)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked gpu where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


# Folders whose tests are about numbers in files of ours, not about how files are parsed.
PARSED_HERE = frozenset(
    (
        "exporting",
        "layers",
        "parity",
        "plugins",
        "porting",
        "rnn",
        "trainers",
        "verification",
        "writers",
    )
)


@pytest.fixture(autouse=True)
def _parsing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Start no process for each HDF5 file in ``PARSED_HERE``."""
    from parsing_here import parsing_here

    with parsing_here() if request.path.parent.name in PARSED_HERE else nullcontext():
        yield
