"""Everything that makes a layer, on pages of one name, and no circle of imports."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import MUTANTS
from package_source import NAMES, PACKAGE, modules_imported, part_in_name

from keras2torch_birnn import layers, reference, schema
from keras2torch_birnn.exporting.source.layers import EMITTERS, NOT_WRITTEN
from keras2torch_birnn.layers import registry
from keras2torch_birnn.layers.operations import NODES, OperationNodes, find_target
from keras2torch_birnn.readers.config import cut as cut_masks
from keras2torch_birnn.readers.operations import reworks
from keras2torch_birnn.reference import sample_inputs
from keras2torch_birnn.reference.operations import find_function
from keras2torch_birnn.schema import ALIASES, CELLS, LAYERS, OPS, PAGES, dtype_flow
from keras2torch_birnn.schema.operations import Operation
from keras2torch_birnn.schema.row import Pages

ROOT = Path(__file__).parents[2]


def pages(floor: Any, table: str) -> dict[str, str]:
    """Class -> the page of this floor whose table holds it."""
    found: dict[str, str] = {}
    for page in pkgutil.iter_modules(floor.__path__):
        module = importlib.import_module(f"{floor.__name__}.{page.name}")
        rows = getattr(module, table, ())
        found |= {} if isinstance(rows, Pages) else dict.fromkeys(rows, page.name)
    return found


ROWS, CONVERTERS = pages(schema, "LAYERS"), pages(layers, "CONVERTERS")
EQUATIONS = pages(reference, "EQUATIONS")
FLOOR_PAGES = {
    "schema": ROWS,
    "layers": CONVERTERS,
    "reference": EQUATIONS,
}
CLASSES = sorted({*PAGES}.union(*FLOOR_PAGES.values()) - {*OPS})

# What a layer lacks on purpose: why -> the classes.
NOT_CONVERTED = {"an input is an argument of the model's graph": {"InputLayer"}}
# Layers that do not hand on the values of their input; those on mixed pages are named.
NOT_HANDED_ON = {
    "it keeps the dtype, and joins, drops or adds values": {
        *"Add Subtract Multiply Maximum Minimum Concatenate Masking".split(),
        *"GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D".split(),
        *(f"{kind}{n}D" for kind in ("ZeroPadding", "Cropping", "UpSampling") for n in (1, 2, 3)),
    },
    "it computes numbers of its own": {
        *"Average Dot Merge Resizing".split(),
        *(f"{kind}Pooling{n}D" for kind in ("Max", "Average", "GlobalAverage") for n in (1, 2, 3)),
    },
}
COMPUTING_PAGES = {
    *"attention convolution core model normalization preprocessing recurrent".split(),
}
# Those that hand them on, and do not keep the dtype whatever their options are.
NOT_KEPT = {
    "an input has the dtype that it declares": {"InputLayer"},
    "its row says which do": {*schema.AUGMENTATION},
}


def named(reasons: Mapping[str, set[str]]) -> set[str]:
    return set().union(*reasons.values())


def classes(value: Any) -> Iterator[str]:
    """Yield the class names of all layers in a row of the table of cases."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        yield str(value[0])
    if isinstance(value, (tuple, list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from classes(item)


def cases() -> set[str]:
    """Return the classes that any case in fixtures/cases/ has."""
    sys.path.insert(0, str(ROOT / "fixtures"))
    try:
        rows = importlib.import_module("cases").CASES
    finally:
        sys.path.pop(0)
    return {name for row in rows for key in ("layers", "graph") for name in classes(row[key])}


CASES = cases()


def has_case(name: str) -> bool:
    """Tell whether there is a case with the layer."""
    names = {name, *(alias for alias, known in ALIASES.items() if known == name)}
    return name == "InputLayer" or not names.isdisjoint(CASES)


def gaps(name: str) -> list[str]:
    """List everything that a layer still lacks."""
    converter = None if name in named(NOT_CONVERTED) else layers.CONVERTERS.get(name)
    mask = None if converter is None else converter.mask
    lacking: Mapping[str, bool] = {
        "a row in LAYERS of a page of schema/": name not in LAYERS,
        "a converter in CONVERTERS of a page of layers/": name
        not in CONVERTERS.keys() | named(NOT_CONVERTED),
        "an equation in EQUATIONS of a page of reference/": name not in EQUATIONS,
        "a case in fixtures/cases/": not has_case(name),
        "its name in STOPS of readers/config/cut.py": mask is registry.NONE
        and name not in cut_masks.STOPS,
        "its name in PASSES of readers/config/cut.py": mask is registry.SAME
        and name not in {*cut_masks.PASSES, *schema.WITH_GRAPH},
        "its name in HANDS_ON of reference/sample_inputs.py (or in NOT_HANDED_ON here)": (
            ROWS.get(name) not in COMPUTING_PAGES
            and name not in sample_inputs.HANDS_ON | named(NOT_HANDED_ON)
        ),
        "its name in KEEPS of schema/dtype_flow.py": name in sample_inputs.HANDS_ON
        and name not in dtype_flow.KEEPS | named(NOT_KEPT),
    }
    return [what for what, lacks in lacking.items() if lacks]


def test_the_schema_names_every_class_of_its_pages_in_their_order() -> None:
    assert {name: page for name, page in ROWS.items() if name not in OPS} == PAGES
    for page in set(PAGES.values()):
        found = importlib.import_module(f"{schema.__name__}.{page}").LAYERS
        assert [name for name in PAGES if PAGES[name] == page] == [*found]
    assert set(ALIASES.values()) <= {*LAYERS} - {*ALIASES}


def test_every_layer_has_everything_that_makes_one() -> None:
    found = {name: gaps(name) for name in CLASSES}
    assert not [f"{name} lacks " + "; ".join(lacking) for name, lacking in found.items() if lacking]


def test_a_new_layer_is_told_every_page_it_lacks() -> None:
    lacking = "; ".join(gaps("Foo"))
    recipe = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## ")[1]
    for page in (*FLOOR_PAGES, "fixtures/cases"):
        assert f"{page}/" in lacking
        assert f"`{page}/PAGE.py`" in recipe
    for place in ("`HANDS_ON`", "`KEEPS`", "`STOPS`", "`PASSES`"):
        assert place in recipe
    assert "HANDS_ON" in lacking


def test_every_page_is_joined() -> None:
    assert set(ROWS) == set(LAYERS)
    assert set(CONVERTERS) == set(layers.CONVERTERS)
    assert set(EQUATIONS) == set(reference.EQUATIONS)
    assert set(EMITTERS) <= set(LAYERS)  # others are written as their modules


def test_what_a_layer_lacks_on_purpose_it_does_lack() -> None:
    assert not named(NOT_CONVERTED) & CONVERTERS.keys()
    assert not named(NOT_HANDED_ON) & sample_inputs.HANDS_ON
    assert not named(NOT_KEPT) & dtype_flow.KEEPS
    left = (NOT_CONVERTED, NOT_HANDED_ON, NOT_KEPT)
    assert set().union(*map(named, left)) <= ROWS.keys()
    assert not NOT_WRITTEN & EMITTERS.keys()
    assert NOT_WRITTEN <= ROWS.keys()


def test_operations_and_cells_have_equations() -> None:
    assert {EQUATIONS[name] for name in OPS} == {"operations"}
    assert OperationNodes.__module__.endswith(".layers.operations")  # written into the graph
    assert CELLS.keys() - {"StackedRNNCells"} <= pages(reference, "CELLS").keys()


def test_no_two_pages_hold_one_class() -> None:
    every = [*OPS, *CELLS, *PAGES]
    assert len(set(every)) == len(every)


def test_no_layer_both_renames_and_ignores_a_key() -> None:
    for name in {*ROWS, *CELLS}:
        row = schema.SCHEMA[name]
        assert not row.options.keys() & {*row.renamed, *row.ignored}, name
        assert set(row.renamed.values()) <= row.options.keys(), name


# ---- operations --------------------------------------------------------------------------------

READ, COMPUTED = {"keras", "tf", "node"}, {"torch", "operator", "functional", "np", "reference"}
# Steps of functions, see ``layers.operations.find_target``
OF_FUNCTIONS = {"gives", "tensors"}


def takes_numbers(row: Operation) -> bool:
    """Tell whether an operation of two tensors also computes with a number in the place of one."""
    target = find_target(row)
    if target is None or target.tensors or tuple(row.arguments) != ("x1", "x2"):
        return True
    try:
        target.function(torch.ones(2), 3.0, **target.fixed)
        target.function(3.0, torch.ones(2), **target.fixed)
    except TypeError:
        return False
    return True


def gaps_of_operation(row: Operation) -> list[str]:
    """List everything that an operation still lacks."""
    read = [form for form in row.forms if form.dialect in READ]
    steps = {name for form in read for name, *_ in form.steps}
    renamed = {ours for form in read if not form.steps for ours in form.parameters.values()}
    fixed = {ours for form in read if not form.steps for ours in form.fixed}
    odd = (renamed | fixed) - {*row.arguments, *row.options, "-", "!"}
    others = {name for form in row.forms if form not in read for name, *_ in form.steps}
    lacking: Mapping[str, bool] = {
        "a form in which Keras writes it": not read,
        "dialects that are known": not {form.dialect for form in row.forms} <= READ | COMPUTED,
        f"arguments or options {sorted(odd)}": bool(odd),
        f"steps in readers/operations/reworks.py: {sorted(steps)}": not all(
            hasattr(reworks, step) for step in steps
        ),
        f"steps of functions that are known: {sorted(others)}": not others <= OF_FUNCTIONS,
        "a function of torch, or in layers/functional.py": row.op not in NODES
        and find_target(row) is None,
        "a function of NumPy, or in reference/": find_function(row) is None,
        "|tensors behind its function of torch, which takes no number": not takes_numbers(row),
    }
    return [what for what, lacks in lacking.items() if lacks]


def test_an_operation_has_everything_that_makes_one() -> None:
    """Cases: see test_operations.test_every_function_of_the_tables_was_written_by_real_keras."""
    lacking = {name: gaps for name, row in OPS.items() if (gaps := gaps_of_operation(row))}
    assert not lacking, "; ".join(f"{name} lacks {', '.join(g)}" for name, g in lacking.items())


def test_an_incomplete_operation_is_told_what_it_lacks() -> None:
    row = replace(OPS["ops.Exp"], op="Foo", text="keras.Foo(x size)|read_foo latin.Foo torch.foo|f")
    assert gaps_of_operation(row) == [
        "dialects that are known",
        "steps in readers/operations/reworks.py: ['read_foo']",
        "steps of functions that are known: ['f']",
        "a function of torch, or in layers/functional.py",
        "a function of NumPy, or in reference/",
    ]
    of_tensors = replace(OPS["ops.LogicalAnd"], text="keras.LogicalAnd torch.logical_and")
    assert gaps_of_operation(of_tensors) == [
        "|tensors behind its function of torch, which takes no number"
    ]
    unread = replace(OPS["ops.Exp"], text="", usual={})
    assert gaps_of_operation(unread) == ["a form in which Keras writes it"]
    odd = replace(OPS["ops.Exp"], text="keras.Exp(x size=extent)", usual={})
    assert gaps_of_operation(odd) == ["arguments or options ['extent']"]


# ---- circles (test_map has which part may import which) ---------------------------------------


def test_no_imports_go_round_in_a_circle() -> None:
    """Neither those of modules nor those of the packages and modules right below the root."""
    # (public names of the package are imported when they are asked for, from anywhere)
    imports = {name: modules_imported(file) - {name, PACKAGE.name} for name, file in NAMES.items()}
    parts: dict[str, set[str]] = {}
    for module, others in imports.items():
        part = part_in_name(module)
        parts.setdefault(part, set()).update({*map(part_in_name, others)} - {part})
    for graph in (imports, parts):
        TopologicalSorter(graph).prepare()  # an error that names the circle


# ---- mutants of one line ------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "old", "new", "tests"), MUTANTS)
def test_a_mutant_changes_what_is_there_and_is_for_tests_that_are(
    file: str, old: str, new: str, tests: str
) -> None:
    assert old in (PACKAGE / file).read_text("utf-8") and old != new
    path, _, name = tests.partition("::")
    place = Path(__file__).parents[1] / path
    assert place.exists()
    assert not name or f"def {name}(" in place.read_text("utf-8")
