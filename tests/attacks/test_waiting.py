"""A refusal is heard at once: whoever gives a bad file does not wait for torch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import STACK_H5, assert_refused, environment, k2t_process


@pytest.mark.every(2)
@pytest.mark.parametrize("command", ["convert", "inspect"])
def test_a_refusal_does_not_wait_for_torch(command: str, tmp_path: Path) -> None:
    """Here torch takes forever to import."""
    slow = tmp_path / "slow" / "torch"
    slow.mkdir(parents=True)
    (slow / "__init__.py").write_text("import time\nprint('here')\ntime.sleep(600)\n")
    path = os.environ.get("PYTHONPATH", "")
    file, out = tmp_path / "model.h5", tmp_path / "out.pt"
    file.write_bytes(STACK_H5.read_bytes()[:3000])
    run = k2t_process(
        *(command, file, *((out,) if command == "convert" else ())),
        env=environment(PYTHONPATH=os.pathsep.join((str(slow.parent), path))),
        timeout=120,
    )
    assert_refused(run, 3, file, "truncated: ")
    assert not out.exists()
