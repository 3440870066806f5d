"""Text of a model file never becomes code of an exported module."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from commands import run_process
from hypothesis import given
from hypothesis import strategies as st
from specs import KERAS3, chain, dense
from torch import fx

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.errors import K2TError, UnsupportedLayerError, UnsupportedOptionError
from keras2torch_birnn.exporting.source import write_source
from keras2torch_birnn.exporting.source.code import (
    Expression,
    Statement,
    call,
    code,
    join,
    literal,
    symbol,
)
from keras2torch_birnn.exporting.source.module_text import write_class, write_forward
from keras2torch_birnn.layers import functional
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.spec import ModelSpec

SOURCE = Path(write_source.__file__).parent
ROOT = SOURCE.parents[2]
HOSTILE = "__import__('pathlib').Path('CANARY').touch() or x"

# ---- the type ------------------------------------------------------------------------------------

MISTAKES = """
from keras2torch_birnn.exporting.source.code import Expression, Statement, code, symbol
from keras2torch_birnn.exporting.source.code import Called, Emission, Site
from keras2torch_birnn.exporting.source.functions import fold, spell_method
from keras2torch_birnn.exporting.source.plain_layers import EMITTERS

text: str = input()
right = Statement(symbol("x"), code("{} + 1", symbol("x")))
Expression(text)
Statement(symbol("x"), text)
Emission(lambda site: f"self.layer({text})")
Emission(lambda site: site.x, {"layer": text})
Emission(lambda site: site.x, after=(text,))
Called((text,), symbol("x"))
fold(text)
symbol("x").text = text


def written() -> Expression:
    return text
"""


@pytest.mark.thorough
def test_the_type_checker_refuses_text_where_code_is_expected(tmp_path: Path) -> None:
    """Only the modules of this folder are read: names from elsewhere have no type here."""
    snippet = tmp_path / "mistakes.py"
    snippet.write_text(MISTAKES, encoding="utf-8")
    options = ("--no-error-summary", "--follow-imports=skip", f"--cache-dir={tmp_path / 'cache'}")
    modules = re.findall(r"source\.(\w+) import", MISTAKES)
    files_read = (snippet, *(SOURCE / f"{module}.py" for module in sorted({*modules})))
    done = run_process(sys.executable, "-m", "mypy", *options, *files_read, cwd=ROOT)
    told = [line.partition("mistakes.py:")[2] for line in done.out.splitlines()]
    found = {int(line.partition(":")[0]) for line in told if line}
    lines = MISTAKES.splitlines()
    wrong = lines.index("Expression(text)") + 1
    calls = range(wrong, wrong + 8)
    assert found == {*calls, len(lines)}, done.out


def test_an_expression_is_made_by_its_own_module_alone() -> None:
    with pytest.raises(TypeError):
        Expression("x")
    with pytest.raises(TypeError):
        replace(symbol("x"), text="y")


def test_an_expression_becomes_no_text_by_accident() -> None:
    x = symbol("x")
    with pytest.raises(TypeError, match=r"goes into code\(\)"):
        f"{x}"
    with pytest.raises(TypeError, match=r"goes into code\(\)"):
        str(x)
    assert repr(x) == "<Expression 'x'>"


def calls_of(tree: ast.AST, name: str) -> list[ast.Call]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [one for one in calls if isinstance(one.func, ast.Name) and one.func.id == name]


def test_templates_are_constants_and_no_other_module_makes_an_expression() -> None:
    read = 0
    for path in SOURCE.glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for one in (*calls_of(tree, "code"), *calls_of(tree, "join")):
            read += 1
            assert isinstance(one.args[0], ast.Constant | ast.Subscript), ast.unparse(one)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if path.name != "code.py":
            assert not names & {"_make_expression", "_literal"}, path.name
        assert "__new__" not in attributes, path.name
        assert ("__setattr__" in attributes) == (path.name == "code.py"), path.name
    assert read > 50


# ---- literals ------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
)


@given(PLAIN)
def test_a_literal_is_the_value_and_nothing_else(value: Any) -> None:
    text = literal(value).text
    assert ast.literal_eval(text) == value
    assert text.isascii()
    assert text.isprintable()


@given(st.text(st.characters()))
def test_a_text_in_a_template_is_a_literal(text: str) -> None:
    tree = ast.parse(code("f({}, {key})".replace("{key}", "{}"), text, symbol("x")).text).body[0]
    assert isinstance(tree, ast.Expr)
    assert isinstance(tree.value, ast.Call)
    assert [ast.unparse(one) for one in tree.value.args] == [repr(text), "x"]


def test_dtypes_slices_and_ellipsis_have_literals() -> None:
    values = (torch.float32, slice(1, None, -1), ..., float("-inf"))
    assert literal(values).text == '(torch.float32, slice(1, None, -1), ..., float("-inf"))'


@pytest.mark.parametrize("value", [{"a": 1}, b"x", object(), 1j])
def test_what_has_no_literal_is_an_error(value: object) -> None:
    with pytest.raises(TypeError, match="has no literal"):
        literal(value)


@pytest.mark.parametrize("text", ["class", "a b", "1a", "a..b", "", "größe", "x\n", HOSTILE])
def test_a_name_is_an_identifier_of_ascii(text: str) -> None:
    with pytest.raises(UnsupportedLayerError, match="cannot be a name in Python source"):
        symbol(text)


@pytest.mark.parametrize("keyword", ["class", "a=1, b"])
def test_the_keyword_of_a_call_is_an_identifier(keyword: str) -> None:
    with pytest.raises(UnsupportedLayerError, match="cannot be a name in Python source"):
        call(symbol("f"), **{keyword: 1})


def test_a_separator_is_a_comma_or_an_operator() -> None:
    with pytest.raises(ValueError, match="no separator"):
        join("; import os; ", ["a", "b"])


def test_a_comment_and_a_docstring_end_at_their_line() -> None:
    evil = 'a\n        import os\r"""\\\u2028b'
    statement = Statement(symbol("x"), call(symbol("f"), 7), comment=evil)
    body = write_forward(["x"], evil, [statement] * 2, symbol("x"), symbol("Tensor"))
    lines = write_class("Model", [evil], (), body)
    tree = ast.parse("\n".join(lines))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    assert all(line.isprintable() for line in lines)


# ---- whole models --------------------------------------------------------------------------------


MODEL = ModelSpec(chain(dense(5, 3, seed=1), shape=(None, 3)), KERAS3)


def write_changed(change: Callable[[fx.GraphModule], None]) -> str:
    """Write the model with another graph, as after a reader that takes too much."""

    def built(spec: ModelSpec) -> fx.GraphModule:
        graph = build(spec)
        change(graph)
        return graph

    converted = build_model(MODEL)
    with patch.object(write_source, "build", built):
        return write_source.write_source(converted, MODEL).text


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((HOSTILE,), {}, "where a tensor is expected"),
        ((*"xx",), {}, "2 arguments where one is expected"),
        (None, {"training": HOSTILE}, "Dense is called with "),
        (None, {"a=1) or x, b": HOSTILE}, "Dense is called with "),
    ],
    ids=["a text", "two arguments", "a keyword", "a keyword with code"],
)
def test_a_layer_called_with_anything_but_a_tensor_is_refused(
    args: tuple[str, ...] | None, kwargs: dict[str, str], words: str
) -> None:
    def change(graph: fx.GraphModule) -> None:
        call = next(node for node in graph.graph.nodes if node.target == "dense_1")
        call.args, call.kwargs = args or call.args, kwargs

    with pytest.raises(UnsupportedOptionError, match=words):
        write_changed(change)


def test_a_text_in_the_call_of_a_function_is_a_literal() -> None:
    def change(graph: fx.GraphModule) -> None:
        output = next(node for node in graph.graph.nodes if node.op == "output")
        with graph.graph.inserting_before(output):
            node = graph.graph.call_function(
                functional.top_k, (output.args[0], HOSTILE), {"k": [HOSTILE, slice(HOSTILE)]}
            )
            output.args = (node,)

    text = write_changed(change)
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert "__import__" not in names
    assert text.count(HOSTILE) == 3


def test_a_file_with_code_as_an_argument_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``k2t.load`` took it; it refuses such a file."""
    monkeypatch.chdir(tmp_path)
    graph = MODEL.graph
    calls = tuple(replace(c, args=(HOSTILE,)) if c.args else c for c in graph.calls)
    hostile = replace(MODEL, root=replace(MODEL.root, graph=replace(graph, calls=calls)))
    with pytest.raises(K2TError):
        write_source.TARGET.write(build_model(MODEL), hostile, tmp_path / "out.py")
    assert list(tmp_path.iterdir()) == []
