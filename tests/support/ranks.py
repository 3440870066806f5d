"""Processes of ``torch.distributed`` that a test starts, each with its rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from commands import environment


def run_ranks(count: int, script: str, store: Path, *options: str) -> None:
    """Run ``script STORE RANK`` in so many processes at once; all have to end well."""
    started = [
        subprocess.Popen(
            [sys.executable, *options, script, str(store), str(rank)],
            env=environment(PYTHONPATH=":".join(sys.path), OMP_NUM_THREADS="1"),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    for process in started:
        _, said = process.communicate()
        assert process.returncode == 0, said
