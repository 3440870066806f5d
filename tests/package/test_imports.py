"""Imports of the package: which module may import which, and when; its public names."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_process
from package_source import MODULES, PACKAGE, imported
from warm_process import run_code

import keras2torch_birnn
from keras2torch_birnn.cli.commands import COMMANDS
from keras2torch_birnn.rnn.torch_private import mark_constant

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "fixtures" / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"
KERAS = {"keras", "tensorflow", "tf_keras"}


def loaded(code: str) -> set[str]:
    """Top names in sys.modules after the code has run in a process of its own."""
    report = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = run_process(sys.executable, "-c", f"{code}\n{report}")
    assert done.code == 0, done.err
    return set(done.out.splitlines()[-1].split())


# ---- imports -----------------------------------------------------------------------------------


def test_importing_the_package_is_cheap() -> None:
    assert not {"torch", "h5py", "numpy", *KERAS} & loaded("import keras2torch_birnn")


def test_no_command_imports_torch_that_does_not_need_it(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    calls = [
        *(["--help"], ["--version"], ["convert", "--help"], ["verify", "-h"]),
        *(["plugin"], ["convert"], ["verify"]),
        *([name, "--help"] for name in COMMANDS),
        *(["plugin", "new", "--help"], ["explain"], ["convrt"]),
    ]
    without_numpy = len(calls)
    calls += [
        *(["version"], ["layers"], ["layers", "LSMT"], ["bench"]),
        *(["inspect", "none.h5"], ["map", "none.h5"]),
        *(["plugin", "new", "none.h5"], ["verify", "none.pt"], ["layers", "GRU"]),
        *(["convert", "none.h5", "--out-dir", "new"], ["convert", str(DEMO), "out.pt", "-j", "2"]),
        *(["convert", str(DEMO)], ["convert", "none.h5", "out.pt"]),
        *(["convert", str(DEMO), "out.pt", "--dtype", "int8"], ["convert", str(DEMO), "out.h5"]),
        *(["verify", "none.h5", "empty.pt"], ["verify", str(DEMO), "none.pt"]),
        *(["export", "none.h5", "out.onnx"], ["export", str(DEMO), "out.h5"]),
        *(["write-back", "none.pt", str(DEMO), "new.h5"], ["compare", "none.h5", "port.py:Net"]),
        *(["bench", "none.h5"], ["bench", "--rnn", "lsmt"]),
    ]
    code = (
        "import os, sys\n"
        "from keras2torch_birnn.cli import app\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"for number, call in enumerate({calls}):\n"
        "    try: app(call, prog_name='k2t')\n"
        "    except SystemExit: pass\n"
        "    assert 'torch' not in sys.modules, call\n"
        f"    assert number >= {without_numpy} or 'numpy' not in sys.modules, call"
    )
    assert not {"h5py", *KERAS} & loaded(code)


def test_a_conversion_imports_only_the_modules_that_its_model_needs() -> None:
    code = (
        "import keras2torch_birnn, sys\n"
        f"keras2torch_birnn.convert({str(DEMO)!r})\n"
        "print(*{n for n in sys.modules if n.startswith('keras2torch_birnn')})"
    )
    done = run_code(code)
    assert done.code == 0, done.err
    modules = {name.removeprefix("keras2torch_birnn.") for name in done.out.split()}
    assert len(modules) <= 180
    needless = ("readers.tensorflow", "readers.operations", "readers.config.keras1", "saving")
    needless += ("layers.convolution", "schema.reshaping", "exporting")
    assert not [name for name in modules if name.startswith(needless)]


def test_parts_load_only_what_they_may() -> None:
    """In one process, those without torch first; nothing more of its compiler than torch loads."""
    code = """
import sys
import keras2torch_birnn.readers, keras2torch_birnn.reference, keras2torch_birnn.schema
print(*sys.modules)
import torch
compiler = "torch._dynamo" in sys.modules
import keras2torch_birnn.layers, keras2torch_birnn.rnn.modules
import keras2torch_birnn.verification
import keras2torch_birnn.golden, keras2torch_birnn.rnn.bidirectional_stack
assert compiler == ("torch._dynamo" in sys.modules)
print(*sys.modules)
"""
    done = run_process(sys.executable, "-c", code)
    assert done.code == 0, done.err
    light, heavy = (set(line.split()) for line in done.out.splitlines())
    assert not light & {"torch", "h5py", *KERAS}
    assert not heavy & {"h5py", *KERAS}


def test_constants_are_marked_as_torch_marks_them() -> None:
    ours, theirs = [lambda: 1 for _ in range(2)]
    assert mark_constant(ours) is ours
    torch_compiler: Any = torch.compiler
    torch_compiler.assume_constant_result(theirs)
    assert vars(ours) == vars(theirs) != {}


def importing(names: set[str], among: Sequence[Path] = MODULES) -> set[str]:
    """Modules, by their path in the package, that import any of these."""
    return {place(module) for module in among if names & imported(module)}


def place(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def test_only_child_processes_import_keras() -> None:
    assert importing(KERAS) == {"verification/keras_child.py", "cli/bench/contenders.py"}


def test_only_child_processes_import_h5py() -> None:
    apart = {
        "verification/keras_child.py",
        "readers/hdf5/parser_child.py",
        "trainers/hdf5_child.py",
        "cli/bench/stack.py",
    }
    assert importing({"h5py"}) == apart


def test_nothing_that_reads_or_checks_imports_torch() -> None:
    parts = ("readers/", "reference/", "schema/", "spec.py", "cli/")
    modules = [
        module
        for module in MODULES
        if place(module).startswith(parts) and not place(module).startswith("cli/bench/")
    ]
    assert len(modules) > 100
    assert importing({"torch"}, modules) == {"schema/merge_modes.py"}  # in a call


def test_docstrings_begin_with_no_question() -> None:
    """They begin with an imperative or a noun phrase (CONTRIBUTING.md)."""
    folders = (PACKAGE, *(ROOT / name for name in ("benchmarks", "fixtures", "tests", "tools")))
    files_of_ours = [file for folder in folders for file in folder.rglob("*.py")]
    begins = re.compile(r'^\s*r?"""(What|Whether|Of)\b', re.MULTILINE)
    found = [str(file) for file in files_of_ours if begins.search(file.read_text("utf-8"))]
    assert len(files_of_ours) > 500
    assert not found


# ---- the package -------------------------------------------------------------------------------


def test_every_public_name_is_there_and_documented() -> None:
    names = keras2torch_birnn.__all__
    assert all(getattr(keras2torch_birnn, name).__doc__ for name in names)
    assert {*names} <= {*dir(keras2torch_birnn)}


def test_type_checkers_and_the_table_of_names_agree() -> None:
    """``__init__`` names everything twice: as imports for type checkers, and in a table."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    checked = [(str(node.module), alias) for node in imports for alias in node.names]
    assert len(imports) == len(block.body)
    assert all(alias.asname == alias.name for _, alias in checked)  # exported explicitly
    assert {alias.name: module for module, alias in checked} == {
        name: f"keras2torch_birnn.{module}" for name, module in keras2torch_birnn._MODULES.items()
    }


def test_no_module_hides_a_public_name() -> None:
    """Importing a module sets its name on the package: ``k2t.verify`` must stay the function."""
    modules = {path.stem for path in PACKAGE.rglob("*.py")} | {
        path.name for path in PACKAGE.iterdir() if path.is_dir()
    }
    assert not modules & set(keras2torch_birnn.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        _ = keras2torch_birnn.convrt


def test_the_package_is_typed() -> None:
    assert files("keras2torch_birnn").joinpath("py.typed").is_file()
    data = re.search(r"^keras2torch_birnn = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert data is not None
    assert '"py.typed"' in data[1]
