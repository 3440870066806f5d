"""950 damaged and hostile inputs, always the same: ours to read right or to refuse in one line.

The long runs and what came of them: ``docs/trust.md``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
from commands import FIXTURES
from sampling import examples, rest_thorough

from keras2torch_birnn import InvalidModelFileError
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.readers.hdf5 import parser_process

# Children are made by fork and held by the limits of the operating system.
containers = pytest.importorskip("fuzz.containers")
crossed = pytest.importorskip("fuzz.changes").crossed
runs = pytest.importorskip("fuzz.runs")
seeds = pytest.importorskip("fuzz.seeds").seeds

pytestmark = pytest.mark.own_processes

TESTS = Path(__file__).parents[1]
COUNTS = {"containers": 320, "architectures": 175, "answers": 350, "outs": 80, "uses": 25}
SEED = 2026


@pytest.mark.parametrize("kind", rest_thorough(COUNTS, ["containers", "answers"]))
def test_mutants_are_read_right_or_refused(kind: str) -> None:
    """In a process of its own, which a bug may crash."""
    count = examples(COUNTS[kind])
    code = "from fuzz.campaign import batch_main; batch_main()"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, kind, str(SEED), "0", str(count)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tally: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert tally["findings"] == []
    assert sum(tally["outcomes"].values()) == count
    # It is rare that h5py loses values; if it is not, ours of the good files are wrong.
    compared = tally["compared"]
    assert 50 * compared.get(containers.LOST, 0) <= compared.get("equal", 0)
    # Some are still good, most are not: the damage is neither too small nor too great.
    assert 0.05 < tally["outcomes"]["accepted"] / count < 0.8


def test_the_independent_reader_sees_a_difference(tmp_path: Path) -> None:
    """The measure of the runs above is not blind."""
    values = np.arange(6, dtype="f4").reshape(2, 3)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"], file["b"] = values, values
    wrong = values.copy()
    wrong[1, 2] = np.nextafter(wrong[1, 2], np.float32(9))
    tally = runs.Tally()
    mutant = runs.Mutant(0, Random(0), tmp_path, tally, {})
    files = {"m.h5": (tmp_path / "m.h5").read_bytes()}
    taken = containers.Taken(mutant, [("/a", values), ("/b", wrong)], files, {})
    containers.compare([taken], tally)
    assert dict(tally.compared) == {"equal": 1, "DIFFERENT": 1}
    assert [finding["error"] for finding in tally.findings] == ["differs from h5py: /b"]


def test_the_parser_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py's import runs ``uname`` if it is found: whatever has that name."""
    program, mark = tmp_path / "uname", tmp_path / "it ran"
    program.write_text(f"#!/bin/sh\necho > '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_model(FIXTURES / "keras-2.2.4" / "plain_gru_after_back_seq.h5")
    assert not mark.exists()


@pytest.mark.every(3)
@pytest.mark.parametrize("number", [91, 423, 437])
def test_files_on_which_the_hdf5_library_runs_in_circles(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crossed pointers on which HDF5 2.0.0 never ends; other versions may refuse them at once."""
    monkeypatch.setitem(parser_process._LIMITS, "cpu", 1)
    seed = seeds()[number % len(seeds())]
    random = Random(f"pointers 1 {number}")
    victim = random.choice(seed.victims)
    changed = crossed(seed.files[victim], random)
    path, config = seed.write(tmp_path, {**seed.files, victim: changed})
    with pytest.raises(InvalidModelFileError):
        read_model(path, config=config)
