"""Numbers that Python and the native library share: the same, and refused if unknown."""

from __future__ import annotations

import ctypes
import inspect
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import pytest
import torch
from built_kernels import COMPILER
from kernel_layers import native
from mutations import by_hand

import keras2torch_birnn as k2t
from keras2torch_birnn.rnn.cell_kind import CELL_KINDS
from keras2torch_birnn.rnn.native import codes, library, op, packing
from keras2torch_birnn.rnn.native.codes import RESULTS
from keras2torch_birnn.rnn.native.processors import COMMON
from keras2torch_birnn.schema.merge_modes import MERGE_MODES, MergeName

ROOT = Path(__file__).parents[2]
BATCH, TIME, FEATURES, UNITS = 3, 7, 5, 11
UNKNOWN = RESULTS["unknown code"]
PLAIN = codes.INSTRUCTION_SETS["plain"]
# No instruction set, two at once, and one that no processor has.
NO_SETS = (0, -1, 3, 1 << 40)


# ---- tables ------------------------------------------------------------------------------------


# By table, as codes.cpp prints them.
TABLES: Mapping[str, Mapping[str, int]] = {
    "kind": codes.KINDS,
    "gates": {name: kind.gates for name, kind in CELL_KINDS.items()},
    "states": {name: kind.states for name, kind in CELL_KINDS.items()},
    "activation": codes.ACTIVATIONS,
    "merge": {name: mode.native_code for name, mode in MERGE_MODES.items()},
    "result": codes.RESULTS,
    "operation": codes.OPERATIONS,
    "map": codes.MAPS,
    "reduction": codes.REDUCTIONS,
    "pooling": codes.POOLINGS,
    "number": codes.NUMBERS,
    "instruction set": {
        f"{precision} {name}": bit
        for precision, sets in (("float32", codes.INSTRUCTION_SETS), *codes.REDUCED.items())
        for name, bit in sets.items()
    },
    "bytes": {
        **{
            f"K2t{one.__name__}": ctypes.sizeof(one)
            for one in (library.Shape, library.Array, library.Weights, library.Gradient)
        },
        "K2tRun": library.RUN.size,
        "K2tProgram": library.PROGRAM.size,
    },
}


@pytest.mark.skipif(COMPILER is None, reason="no compiler here")
def test_the_kernel_has_every_number_of_pythons_tables_and_no_other(tmp_path: Path) -> None:
    source, program = ROOT / "tests" / "native" / "codes.cpp", tmp_path / "codes"
    command = [COMPILER, "-std=c++17", f"-I{library.FOLDER}", source, "-o", program]
    subprocess.run([*map(str, command)], check=True)
    listed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    found: dict[str, dict[str, int]] = {}
    for table, number, name in (line.split("\t") for line in listed.splitlines()):
        found.setdefault(table, {})[name] = int(number)
    assert found == TABLES


def test_every_list_of_merge_modes_has_the_same_ones() -> None:
    assert {*get_args(MergeName)} == {*MERGE_MODES}
    assert by_hand.MERGED.keys() == {*MERGE_MODES, None}


@pytest.mark.parametrize(
    ("page", "quote"),
    [("README.md", "`"), ("docs/architecture.md", "`"), ("docs/bidirectional.md", '`"')],
)
def test_pages_name_every_merge_mode_where_they_list_them(page: str, quote: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    lists = [line for line in text.splitlines() if "None" in line and f"{quote}concat" in line]
    assert lists
    assert not [line for line in lists for mode in MERGE_MODES if f"{quote}{mode}" not in line]


def test_the_modules_describe_every_merge_mode() -> None:
    described = inspect.getdoc(k2t.BiLSTM)
    assert described is not None
    (line,) = [line for line in described.splitlines() if "merge_mode: " in line]
    assert not [mode for mode in MERGE_MODES if f'"{mode}"' not in line]


@pytest.mark.skipif(COMPILER is None, reason="no compiler here")
def test_a_number_that_a_switch_lacks_ends_the_build(tmp_path: Path) -> None:
    for file in (*library.FOLDER.glob("*.h"), library.FOLDER / "isa_plain.cpp"):
        shutil.copy(file, tmp_path)
    header = tmp_path / "codes.h"
    begin = re.compile(
        r"^#define K2T_(KIND|ACTIVATION|MERGE|MAP|OPERATION|NUMBER)_CODES.CODE.", re.M
    )
    text, changed = begin.subn(r'\g<0> CODE(NEW_\1, "new")', header.read_text("utf-8"))
    header.write_text(text, "utf-8")
    command = [str(COMPILER), *COMMON, "-fsyntax-only", str(tmp_path / "isa_plain.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert changed == 6
    assert {name for line in errors for name in re.findall(r"NEW_\w+", line)} == {
        *("NEW_KIND", "NEW_ACTIVATION", "NEW_MERGE", "NEW_MAP", "NEW_OPERATION", "NEW_NUMBER")
    }


def test_what_the_kernel_answers_is_an_error_in_words() -> None:
    library.check_code(codes.RESULTS["done"])
    for result, error, words in (
        ("no memory", MemoryError, "no memory for the native kernel's scratch"),
        ("wrong length", ValueError, "a length is below 0 or above the number of steps"),
        ("unknown code", RuntimeError, "the native kernel does not know a code of this call"),
    ):
        with pytest.raises(error, match=words):
            library.check_code(codes.RESULTS[result])


# ---- calls with unknown codes ------------------------------------------------------------------


def weights_of(kind: str) -> list[torch.Tensor]:
    rows = codes.GATES[codes.KINDS[kind]] * UNITS
    sizes = ((rows, FEATURES), (rows, UNITS), (rows,), (rows,)) * 2
    return [torch.randn(size) for size in sizes]


class Call:
    """A run of two directions. Any of its codes can be another one."""

    def __init__(self, **changed: int) -> None:
        self.isa = changed.get("isa", PLAIN)
        packed = packing.pack(codes.KINDS["LSTM"], weights_of("LSTM"), PLAIN)
        self.weights = library.Weights.from_address(packed.address)
        self.weights.shape.kind = changed.get("kind", self.weights.shape.kind)
        self.weights.directions = changed.get("directions", 2)
        self.x = torch.randn(BATCH, TIME, FEATURES)
        self.out = torch.full((BATCH, TIME, 2 * UNITS), 7.5)
        self.codes = (
            changed.get("activation", codes.ACTIVATIONS["tanh"]),
            changed.get("recurrent_activation", codes.ACTIVATIONS["sigmoid"]),
            *(0, 0, changed.get("merge", MERGE_MODES["concat"].native_code)),
        )
        places = (self.x.data_ptr(), TIME * FEATURES, FEATURES, *[0] * 5, self.out.data_ptr())
        self.rest = (BATCH, TIME, 1, *places, *[0] * 7)
        self.alive = packed

    def run(self) -> int:
        call = library.RUN.pack(self.alive.address, *self.codes, *self.rest)
        return int(library.library().k2t_run(self.isa, call))

    def run_program(self) -> int:
        words = (self.alive.address, *self.codes, *self.rest, *[0] * 6)
        return run_words(self.isa, "recurrent", words)

    def run_back(self) -> int:
        call = library.RUN.pack(self.alive.address, *self.codes, *self.rest)
        task = library.Gradient()
        return int(library.library().k2t_gradient(self.isa, call, ctypes.byref(task)))


def run_words(isa: int, operation: str | int, words: Sequence[int]) -> int:
    """Run a program of one operation; its result."""
    code = operation if isinstance(operation, int) else codes.OPERATIONS[operation]
    program = (ctypes.c_int64 * (len(words) + 2))(code, len(words), *words)
    head = library.PROGRAM.pack(ctypes.addressof(program), len(program), 64, 1)
    return int(library.library().k2t_run_program(isa, head))


UNKNOWN_CODES = [
    *(("kind", code) for code in (-1, len(codes.KINDS))),
    *(
        (which, code)
        for which in ("activation", "recurrent_activation")
        for code in (-1, len(codes.ACTIVATIONS), 1 << 40)
    ),
    *(("merge", code) for code in (-1, len(MERGE_MODES), 1 << 40)),
    *(("directions", number) for number in (-1, 0, 3)),
    *(("isa", bit) for bit in NO_SETS),
]


@native
def test_the_calls_of_these_tests_are_right_but_for_the_code_that_they_change() -> None:
    wanted = Call()
    assert wanted.run() == RESULTS["done"]
    call = Call()
    call.x.copy_(wanted.x)
    call.alive = wanted.alive
    assert call.run_program() == RESULTS["done"]
    assert torch.equal(call.out, wanted.out)


@native
@pytest.mark.parametrize("way", ["run", "run_program"])
@pytest.mark.parametrize(("which", "code"), UNKNOWN_CODES)
def test_a_layer_with_an_unknown_code_is_refused_and_writes_nothing(
    which: str, code: int, way: str
) -> None:
    call = Call(**{which: code})
    assert getattr(call, way)() == UNKNOWN
    assert bool((call.out == 7.5).all())


@native
@pytest.mark.parametrize(
    ("which", "code"),
    [
        *((which, code) for which, code in UNKNOWN_CODES if which != "merge"),
        *(("isa", bit) for sets in codes.REDUCED.values() for bit in sets.values()),
        *(("activation", code) for code in codes.FALLING),
        *(("recurrent_activation", code) for code in codes.FALLING),
    ],
)
def test_a_gradient_with_an_unknown_code_is_refused(which: str, code: int) -> None:
    assert Call(**{which: code}).run_back() == UNKNOWN


@native
@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (len(codes.OPERATIONS), [0]),
        (-1, [0]),
        ("map", [codes.MAPS["activation"] + len(codes.ACTIVATIONS), 0, 1, 1, *[-1, 0] * 4]),
        ("map", [-1, 0, 1, 1, *[-1, 0] * 4]),
        ("reduce", [len(codes.REDUCTIONS), 0, -1, -2, 1, 1, 1, 1, 1, 1]),
        ("reduce", [-1, 0, -1, -2, 1, 1, 1, 1, 1, 1]),
        ("read", [len(codes.NUMBERS), 1, -1, -2]),
        ("read", [-1, 1, -1, -2]),
        ("pool", [*[1] * 10, 0, 0, len(codes.POOLINGS), 0, -1, *[1] * 4, -2, *[1] * 4]),
        ("pool", [*[1] * 10, 0, 0, -1, 0, -1, *[1] * 4, -2, *[1] * 4]),
    ],
)
def test_an_operation_with_an_unknown_code_is_refused(
    operation: str | int, words: list[int]
) -> None:
    assert run_words(PLAIN, operation, words) == UNKNOWN


@native
def test_a_program_runs_on_no_instruction_set_without_its_operations() -> None:
    words = [codes.NUMBERS["float32"], 1, -1, -2]
    assert run_words(PLAIN, "read", words) == RESULTS["done"]
    reduced = [bit for sets in codes.REDUCED.values() for bit in sets.values()]
    for bit in (*NO_SETS, *reduced):
        assert run_words(bit, "read", words) == UNKNOWN


WORDS = "the native kernel does not know a code of this call"


@native
@pytest.mark.parametrize(
    ("isa", "kind"), [*((isa, 0) for isa in NO_SETS), (PLAIN, -1), (PLAIN, len(codes.KINDS))]
)
def test_sizes_and_packing_for_an_unknown_code_are_an_error(isa: int, kind: int) -> None:
    shape, floats = library.Shape(kind, FEATURES, UNITS, 0), (ctypes.c_float * 4096)()
    found = library.library()
    asked: list[Callable[[], object]] = [
        lambda: found.k2t_packed_size(isa, shape),
        lambda: found.k2t_gradient_packed_size(isa, shape),
        lambda: found.k2t_pack(isa, shape, floats, floats, None, None, floats),
        lambda: found.k2t_gradient_pack(isa, shape, floats, floats, floats),
    ]
    if isa == PLAIN:
        asked.append(lambda: found.k2t_kept_parts(kind))
    else:
        asked.append(lambda: found.k2t_width(isa, UNITS))
        asked.append(lambda: library.fingerprint(isa, (library.Array * 4)()))
    for ask in asked:
        with pytest.raises(RuntimeError, match=WORDS):
            ask()


@native
def test_a_merge_mode_that_only_python_knows_is_no_average() -> None:
    x = torch.randn(BATCH, TIME, FEATURES)
    cell = [codes.KINDS["GRU"], codes.ACTIVATIONS["tanh"], codes.ACTIVATIONS["sigmoid"]]
    with pytest.raises(RuntimeError, match=WORDS):
        op.compute(x, weights_of("GRU"), None, (), cell, (0.0, 0.0), len(MERGE_MODES))
