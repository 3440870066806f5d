"""The kernel's library as a file: used only where it was built from the sources beside it."""

from __future__ import annotations

import _ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kernel_layers import native

from keras2torch_birnn.rnn.native import library
from keras2torch_birnn.rnn.native.library import NoKernelError
from keras2torch_birnn.rnn.native.processors import source_hash

ROOT = Path(__file__).parents[2]
USES = """
import torch, keras2torch_birnn as k2t
torch.manual_seed(7)
torch.set_num_threads(1)
one, two = k2t.BiGRU(3, 5), k2t.BiLSTM(3, 5)
compiled = torch.compile(one, backend="eager", fullgraph=True)
print(*(layer(torch.ones(7, 2, 3))[0].sum().item() for layer in (one, two, compiled)))
"""


def clone(folder: Path, *, setup: bool = True) -> Path:
    """A copy of the package with its sources, and of setup.py: its folder of the kernel."""
    shutil.copytree(
        ROOT / "keras2torch_birnn",
        folder / "keras2torch_birnn",
        ignore=shutil.ignore_patterns("__pycache__", library.NAME),
    )
    if setup:
        shutil.copy(ROOT / "setup.py", folder)
    return folder / "keras2torch_birnn" / "rnn" / "native"


def with_library(folder: Path) -> Path:
    shutil.copy(library.FOLDER / library.NAME, folder)
    return folder


# What torch says of one patch level of Python; pyproject.toml ignores it in this process.
OF_TORCH = "ignore:Guards may run slower on Python 3.13.0:RuntimeWarning"


def run(code: str, folder: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code in a folder, with others on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    environment.pop("K2T_ENGINE", None)
    command = [sys.executable, "-W", OF_TORCH, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@native
def test_the_library_of_this_checkout_was_built_from_its_sources(tmp_path: Path) -> None:
    library.load(with_library(clone(tmp_path)))


def _longer(folder: Path) -> None:
    with (folder / "kernel.h").open("a") as file:
        file.write("// One more structure.\n")


def _other_flags(folder: Path) -> None:
    flags = folder / "processors.py"
    flags.write_text(flags.read_text().replace("-O2", "-O1"))


def _one_more(folder: Path) -> None:
    (folder / "more.cpp").touch()


def _renamed(folder: Path) -> None:
    (folder / "fingerprint.h").rename(folder / "point.h")


def _too_old(folder: Path) -> None:
    """Some library that has none of the kernel's functions."""
    shutil.copy(_ctypes.__file__, folder / library.NAME)


@native
@pytest.mark.every(2)
@pytest.mark.parametrize("change", [_longer, _other_flags, _one_more, _renamed, _too_old])
def test_a_library_of_other_sources_is_not_used(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = with_library(clone(tmp_path))
    change(folder)
    with pytest.raises(NoKernelError) as refused:
        library.load(folder)
    assert str(refused.value) == (
        f"{folder / library.NAME} was built from other sources; build it: pip install -e {tmp_path}"
    )


@pytest.mark.thorough
@native
def test_over_an_old_library_torch_computes_and_one_warning_says_how_to_rebuild(
    tmp_path: Path,
) -> None:
    wanted = run(USES, ROOT)
    folder = with_library(clone(tmp_path))
    _longer(folder)
    found = run(USES, tmp_path)
    assert wanted.stderr == ""
    assert found.stderr.count("RuntimeWarning") == 1
    assert f"was built from other sources; build it: pip install -e {tmp_path}\n" in found.stderr
    numbers = [np.array(done.stdout.split(), dtype=float) for done in (wanted, found)]
    np.testing.assert_allclose(*numbers, rtol=1e-5)


@native
def test_a_package_without_sources_uses_the_library_that_came_with_it(tmp_path: Path) -> None:
    folder = with_library(clone(tmp_path))
    for file in (*folder.glob("*.h"), *folder.glob("*.cpp")):
        file.unlink()
    assert source_hash(folder) is None
    library.load(folder)


def test_a_library_that_the_system_cannot_load_is_said_so(tmp_path: Path) -> None:
    folder = clone(tmp_path, setup=False)
    (folder / library.NAME).write_text("no library")
    with pytest.raises(NoKernelError) as refused:
        library.load(folder)
    assert refused.value.message.startswith("it cannot be loaded: ")
    assert refused.value.advice == (
        "install keras2torch_birnn again, with --force-reinstall --no-deps"
    )


def test_in_a_clone_that_was_never_built_the_folder_is_named_and_what_builds_there(
    tmp_path: Path,
) -> None:
    folder = clone(tmp_path)
    with pytest.raises(NoKernelError) as refused:
        library.load(folder)
    package = tmp_path / "keras2torch_birnn"
    assert refused.value.message.startswith(f"{package} was imported, where it was not built")
    assert refused.value.advice.endswith(f"pip install -e {tmp_path}")


def test_what_is_missing_is_said_in_short_and_the_advice_in_the_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "_absence", lambda: NoKernelError("it is gone", "look for it"))
    library.warn_once_if_missing.cache_clear()
    assert library.why_missing() == "it is gone"
    with pytest.warns(RuntimeWarning, match=r"slower on CPU: it is gone; look for it$"):
        library.warn_once_if_missing()
    library.warn_once_if_missing.cache_clear()
