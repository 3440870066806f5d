"""``examples/predict_many.py`` on two workers, one of which is killed in the middle of a shard.

Workers are skipped where Ray is not installed: it is in the extra ``[ray]``, not in ``[test]``.
"""

from __future__ import annotations

import errno
import os
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import FIXTURES, STACK_H5, environment, run_process

import keras2torch_birnn as k2t

SCRIPT = Path(__file__).parents[2] / "examples" / "predict_many.py"
SHARDS, ROWS = 5, 11

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra [ray] is not installed")


def wait_for_reader(pipe: Path, process: subprocess.Popen[bytes], printed: Path) -> tuple[int, int]:
    """Return a descriptor of the pipe's other end, and the process that reads it."""
    while process.poll() is None:
        try:
            end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads yet
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
            continue
        for place in Path("/proc").glob("[0-9]*/fd/*"):
            pid = int(place.parts[2])
            with suppress(OSError):
                if pid != os.getpid() and place.readlink() == pipe:
                    return end, pid
    raise AssertionError(printed.read_text())


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker by /proc")
def test_a_killed_workers_shard_is_repeated_and_finished_shards_are_kept(tmp_path: Path) -> None:
    model, drawn = k2t.convert(STACK_H5), np.random.default_rng(5)
    k2t.save(model, tmp_path / "model.pt")
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    for folder in (inputs, outputs):
        folder.mkdir()
    shards = {f"{n}.npy": drawn.normal(size=(ROWS, 7, 3)).astype("f4") for n in range(SHARDS)}
    for name, array in shards.items():
        np.save(inputs / name, array)
    (outputs / "0.npy").write_bytes(b"from an earlier run")
    # A worker that reads this shard waits until the pipe is closed.
    whole, pipe = tmp_path / "whole.npy", inputs / "3.npy"
    pipe.rename(whole)
    os.mkfifo(pipe)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "model.pt"), str(inputs), str(outputs)]
    printed = tmp_path / "printed"
    with printed.open("w") as file:  # nobody empties a pipe while this waits
        process = subprocess.Popen(
            [*command, "--workers", "2", "--rows", "4"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES=""),
        )
    end, worker = wait_for_reader(pipe, process, printed)
    whole.replace(pipe)
    os.kill(worker, signal.SIGKILL)
    os.close(end)
    assert process.wait() == 0, printed.read_text()
    out = printed.read_text()
    assert f"{SHARDS} shards, {SHARDS - 1} to do" in out.splitlines()
    # Ray's own words about the killed worker stand between them.
    done = sorted(line for line in out.splitlines() if line.endswith(" rows"))
    assert done == [f"{n}.npy: {ROWS} rows" for n in range(1, SHARDS)]
    assert sorted(path.name for path in outputs.iterdir()) == sorted(shards)
    assert (outputs / "0.npy").read_bytes() == b"from an earlier run"
    for name in list(shards)[1:]:
        with torch.no_grad():
            wanted = model(torch.from_numpy(shards[name])).numpy()
        np.testing.assert_allclose(np.load(outputs / name), wanted, rtol=1e-5, atol=1e-5)


TWO_OUTPUTS = FIXTURES / "training" / "keras-3.15.1" / "two_outputs.before.keras"
# In every process that starts with it: whoever reads this shard is killed.
DEADLY = """
import os, numpy
load = numpy.load
numpy.load = lambda path, *a, **k: os._exit(9) if "deadly" in str(path) else load(path, *a, **k)
"""


@needs_ray
def test_shards_that_cannot_be_computed_are_named_and_the_others_computed(tmp_path: Path) -> None:
    model, drawn = k2t.convert(TWO_OUTPUTS), np.random.default_rng(5)
    k2t.save(model, tmp_path / "model.pt")
    inputs, outputs = tmp_path / "inputs", tmp_path / "outputs"
    for folder in (inputs, outputs):
        folder.mkdir()
    (outputs / ".good.npy.4711").write_bytes(b"of a killed run")
    good = drawn.normal(size=(ROWS, 7, 3)).astype("f4")
    np.save(inputs / "good.npy", good)
    np.save(inputs / "deadly.npy", good)
    np.save(inputs / "narrow.npy", good[..., :2])
    (inputs / "broken.npy").write_bytes(b"no array")
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    given = environment(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=path)
    files = (SCRIPT, tmp_path / "model.pt", inputs, outputs)
    done = run_process(sys.executable, *files, "--workers", 2, env=given)
    said = "3 shards are not computed: broken.npy, deadly.npy, narrow.npy"
    assert done.code == 1 and said in done.err, done.err
    lines = done.out.splitlines()
    assert f"good.npy: {ROWS} rows" in lines
    assert "deadly.npy: not computed: its worker was killed 3 times" in lines
    assert any(line.startswith("broken.npy: not computed: ValueError: ") for line in lines)
    assert any(line.startswith("narrow.npy: not computed: ArgumentValueErr") for line in lines)
    assert [path.name for path in outputs.iterdir()] == ["good.npz"]
    with np.load(outputs / "good.npz") as found, torch.no_grad():
        for at, wanted in enumerate(model(torch.from_numpy(good))):
            np.testing.assert_allclose(found[f"output_{at}"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{model}", "none", "outputs"), "none holds no shard (NAME.npy)"),
        (("{model}", "empty", "outputs"), "empty holds no shard (NAME.npy)"),
        (("{model}", "{model}", "outputs"), "holds no shard (NAME.npy)"),
        (("none.pt", "inputs", "outputs"), "none.pt: cannot be opened"),
        (("inputs/0.npy", "inputs", "outputs"), "0.npy: not a file that k2t wrote"),
        (("{model}", "inputs", "{model}"), "model.pt is no folder"),
        (("{model}", "inputs", "outputs", "--workers", "0"), "argument --workers: invalid"),
        (("{model}", "inputs", "outputs", "--rows", "-1"), "argument --rows: invalid"),
    ],
)
def test_a_wrong_call_is_told_in_one_line_before_a_worker_starts(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())  # it needs none
    monkeypatch.chdir(tmp_path)
    for folder in ("inputs", "empty"):
        Path(folder).mkdir()
    np.save("inputs/0.npy", np.zeros((2, 7, 3), "f4"))
    k2t.save(k2t.convert(STACK_H5), "model.pt")
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit) as caught:
        main([one.format(model="model.pt") for one in arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not Path("outputs").exists()
