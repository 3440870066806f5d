"""Torch's private names: without them models are slower, never broken or wrong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from commands import FIXTURES, environment
from package_source import nodes
from warm_process import HAS_FORK, run_in_fork

from keras2torch_birnn.rnn.torch_private import PRIVATE, find

CHILD = Path(__file__).parents[1] / "support" / "private_names_child.py"
MODEL = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"


@pytest.mark.parametrize("name", PRIVATE)
def test_this_torch_has_the_name(name: str) -> None:
    assert find(name) is not None


@pytest.mark.skipif(not HAS_FORK, reason="no fork here")
@pytest.mark.parametrize(
    "groups",
    [[[*PRIVATE]], [[name] for name in PRIVATE]],
    ids=["all", "each"],
)
@pytest.mark.thorough
def test_without_private_names_the_numbers_are_the_same(groups: list[list[str]]) -> None:
    given = [str(MODEL), str(MODEL.with_suffix(".npz")), *(",".join(names) for names in groups)]
    job = {"script": str(CHILD), "arguments": given, "folder": str(CHILD.parent)}
    done = run_in_fork({**job, "environment": environment()})
    wanted = [" ".join(["equal without", *names]) for names in groups]
    assert done.out.splitlines() == wanted, done.err


def test_no_other_module_names_what_is_private_in_torch() -> None:
    """Names that begin with an underscore: of torch's modules, storages and tensors."""
    own = Path(find.__code__.co_filename)
    named = {row.path.rpartition(".")[2] for row in PRIVATE.values()}
    found = []
    for page in {*own.parent.rglob("*.py")} - {own}:
        code = [*nodes(page)]
        imports = [
            node
            for node in code
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "torch"
        ]
        names = [(alias.name, alias.asname or alias.name) for one in imports for alias in one.names]
        found += [f"{page.name}: import {name}" for name, _ in names if re.match("_[^_]", name)]
        roots = {"torch", *(shown for _, shown in names)}
        for node in code:
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                source = ast.unparse(node)
                if source.partition(".")[0] in roots or node.attr in named:
                    found.append(f"{page.name}: {source}")
    assert not found
