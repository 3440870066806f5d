"""SECURITY.md says what the code does: its limits and its formats are read from there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from h5py import h5z
from package_source import nodes

from keras2torch_birnn import limits
from keras2torch_birnn.readers.hdf5 import parser_child
from keras2torch_birnn.readers.store import STORED_DTYPES

PACKAGE = Path(limits.__file__).parent
POLICY = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| .+ \| ([\d,]+) ?(KiB|MiB|s)? \| `limits\.(\w+)` \|$", re.MULTILINE)
UNITS = {"": 1, "s": 1, "KiB": 1 << 10, "MiB": 1 << 20}
# The range of int64; and bounds of caches, requests and messages, which refuse no file.
NOT_IN_THE_TABLE = {
    *("MIB", "MIN_INT64", "MAX_INT64"),
    "MAX_PROGRAMS_PER_MODEL",
    *("MAX_PRINTED_NAME", "MAX_PRINTED_LINE", "MAX_LAYERS_IN_NOTE"),
}
# How a module would call a limit of its own.
LIMIT = re.compile(r"_?(MAX|MOST|MAXIMUM|LARGEST|DEEPEST|LONGEST|HIGHEST|BIGGEST)(_|$)|.*_MAX$")


def stated() -> dict[str, int]:
    """Every row of the table: the constant's name and what the table says it is."""
    return {
        name: int(digits.replace(",", "")) * UNITS[unit]
        for digits, unit, name in ROW.findall(POLICY)
    }


def test_a_limit_is_what_the_table_says() -> None:
    assert {name: getattr(limits, name) for name in stated()} == stated()


def test_every_limit_is_in_the_table() -> None:
    known = {name for name in vars(limits) if name.isupper()}
    assert known >= NOT_IN_THE_TABLE
    assert known - NOT_IN_THE_TABLE == set(stated())
    table = POLICY.partition("## Limits")[2].partition("## What is read")[0]
    assert table.count("\n| ") == len(stated()) + 1  # no row that the pattern passes over


def assigned(module: Path) -> set[str]:
    """The names that a module assigns at its top level."""
    found: set[str] = set()
    for node in nodes(module)[0].body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)}
    return found


def test_no_other_module_defines_a_limit() -> None:
    found = {
        f"{module.relative_to(PACKAGE).as_posix()}: {name}"
        for module in PACKAGE.rglob("*.py")
        if module.name != "limits.py"
        for name in assigned(module)
        if LIMIT.match(name)
    }
    assert not found


def test_all_limits_have_one_style_of_name() -> None:
    names = assigned(Path(limits.__file__)) - {"MIB", "MIN_INT64"}
    assert not {name for name in names if not name.startswith("MAX_")}


def test_the_kinds_of_numbers_are_those_that_are_read() -> None:
    wide = {8 * int(name[2:]) for name in STORED_DTYPES if name[0] in "<>" and name[1] == "f"}
    whole = {8 * int(name[2:]) for name in STORED_DTYPES if name[0] in "<>" and name[1] in "iu"}
    others = {name for name in STORED_DTYPES if name[0] not in "<>"}
    assert (wide, whole) == ({16, 32, 64}, {8, 16, 32, 64})
    assert others == {"bool", "bfloat16"}
    assert "Floats of 16, 32 and 64 bits, integers of 8 to 64 bits, both byte orders" in POLICY
    assert all(f"`{name}`" in POLICY for name in others)


def test_the_filters_are_those_that_are_read() -> None:
    child = (parser_child.GZIP, parser_child.SHUFFLE, parser_child.FLETCHER32)
    assert child == (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)
    assert "The filters gzip, shuffle and fletcher32." in POLICY


def test_the_child_and_its_parent_know_the_same_numbers() -> None:
    assert set(parser_child._NUMBERS) == {name[1:] for name in STORED_DTYPES if name[0] in "<>"}


# What could run what stands in a file -> the modules that may, and never with a model file.
COULD_RUN: dict[str, set[str]] = {
    **{
        name: set()
        for name in ("pickle", "marshal", "shelve", "dill", "yaml", "eval", "exec", "compile")
    },
    "__import__": {"__init__.py"},  # the package's own modules, by a table of names
    # shipped plugins, and the modules in the table of engines
    "import_module": {
        "plugins/__init__.py",
        "exporting/__init__.py",  # in the table of targets
        "schema/row.py",  # pages of layers, by the schema's own classes
        "cli/bench/contenders.py",  # contenders in a table, and our own export
        "rnn/torch_private.py",  # names of torch in a table
    },
    "exec_module": {"plugins/__init__.py"},  # --plugin FILE.py
    "torch.load": {"saving/content.py", "saving/state_dicts.py"},  # weights_only
    "extract": set(),
    "extractall": set(),
}


def uses(path: Path) -> set[str]:
    """The names of ``COULD_RUN`` that a module imports or calls."""
    found: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").partition(".")[0], *(a.name for a in node.names)}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            found |= {called, called.rpartition(".")[2] if called.startswith("importlib") else ""}
            found |= {"exec_module", "extract", "extractall"} & {called.rpartition(".")[2]}
    return found & COULD_RUN.keys()


def test_nothing_in_the_package_runs_what_stands_in_a_file() -> None:
    found: dict[str, set[str]] = {name: set() for name in COULD_RUN}
    for path in PACKAGE.rglob("*.py"):
        for name in uses(path):
            found[name].add(path.relative_to(PACKAGE).as_posix())
    assert found == COULD_RUN
