"""Torch's private names: without them models are slower, never broken or wrong."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from commands import FIXTURES, environment
from package_source import nodes
from warm_process import HAS_FORK, run_in_fork

from keras2torch_birnn.torch_private import PRIVATE, find, foreach, one_by_one

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


LISTED = {
    "abs": (),
    "add": (0.3,),
    "add_": ("list",),
    "addcdiv_": ("list", "list", -0.3),
    "addcmul": ("list", "list", 0.7),
    "addcmul_": ("list", "list", 0.7),
    "copy_": ("list",),
    "div": (1.7,),
    "div_": ("list",),
    "lerp_": ("list", 0.3),
    "maximum_": ("list",),
    "mul": (0.3,),
    "mul_": ("list",),
    "norm": (),
    "sign_": (),
    "sqrt": (),
    "sqrt_": (),
    "sub_": ("list",),
    "zero_": (),
}


def test_operations_on_lists_are_those_that_the_package_uses() -> None:
    package = Path(find.__code__.co_filename).parent
    text = "".join(page.read_text(encoding="utf-8") for page in package.rglob("*.py"))
    assert set(re.findall(r"\bforeach\.(\w+)\(", text)) == set(LISTED)


@pytest.mark.parametrize("name", LISTED)
def test_one_tensor_after_the_other_is_what_torch_does_with_lists(name: str) -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        random = torch.Generator().manual_seed(seed)
        return [torch.rand(size, 3, generator=random) + 0.1 for size in (5, 7)]

    others = [draw(i) if kind == "list" else kind for i, kind in enumerate(LISTED[name], 1)]
    lists, singles = draw(0), draw(0)
    wanted = getattr(foreach, name)(lists, *others) or lists
    found = one_by_one(name, singles, *others)
    for a, b, c, d in zip(wanted, found, lists, singles, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(d, c)
