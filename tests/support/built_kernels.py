"""Programs of ``tests/native`` with a kernel of their own, compiled with other flags.

Only the instruction sets that are to run are compiled, which takes most of the time.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from platform import machine, system

from keras2torch_birnn.rnn.native.library import FOLDER
from keras2torch_birnn.rnn.native.processors import COMMON, INSTRUCTION_SETS, flags_of

NATIVE_TESTS = Path(__file__).parents[1] / "native"
COMPILER = shutil.which("c++")
# The numbers of the bits of k2t_instruction_sets(), by the kernels' names in C++.
NUMBERS = {
    f"{precision}_{one.file}": number
    for one in INSTRUCTION_SETS
    for precision, number in one.kernels.items()
}
TABLE = re.compile(r"^const K2tKernel k2t_(\w+) = [^;]*;", re.MULTILINE)


def empty_tables(text: str, sets: int) -> str:
    """Return a source with empty tables for the sets that do not run; nothing else if none does."""

    def fill(table: re.Match[str]) -> str:
        return table[0] if sets >> NUMBERS[table[1]] & 1 else f"const K2tKernel k2t_{table[1]}{{}};"

    tables = [*TABLE.finditer(text)]
    filled = [fill(table) for table in tables]
    if tables and not any(" = " in table for table in filled):
        return "\n".join(['#include "isa.h"', *filled, ""])
    return TABLE.sub(fill, text)


def kernel_sources(folder: Path, sets: int) -> Iterator[tuple[Path, list[str]]]:
    """Return the kernel's files, each with its flags; for sets that do not run, empty tables."""
    for source in sorted(FOLDER.glob("*.cpp")):
        flags, optional = flags_of(source.name, machine=machine(), system=system())
        text = source.read_text("utf-8")
        needed = empty_tables(text, sets)
        if needed != text:
            source = folder / source.name
            source.write_text(needed, "utf-8")
        yield source, flags + optional


def build_program(main: Path, folder: Path, flags: Sequence[str], sets: int) -> Path:
    """Compile and link a program and the kernel with these flags, for these instruction sets."""
    options = [str(COMPILER), *COMMON, f"-I{FOLDER}", "-DK2T_SOURCE_HASH=0", *flags]
    objects = []
    for source, own in [*kernel_sources(folder, sets), (main, [])]:
        objects.append(folder / f"{source.stem}.o")
        command = [*options, *own, "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True)
    program = folder / main.stem
    subprocess.run([*options, *objects, "-o", program], check=True)
    return program
