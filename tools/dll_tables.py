"""Read what a DLL for Windows x86-64 exports and imports; print the exports as a .def file.

    python tools/dll_tables.py LIBRARY HEADER

It ends with an error if the exports are not the functions that the header marks with
``K2T_EXPORT``, or if another library is imported than those that every Windows has.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

# The system itself and its C library.
OF_WINDOWS = re.compile(r"(kernel32|ntdll|api-ms-win-crt-[a-z0-9-]+)\.dll", re.IGNORECASE)


class Image:
    """A file as the loader of Windows sees it: by addresses relative to its start."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        header = self.number("I", 0x3C) + 4
        sections, size = self.number("H", header + 2), self.number("H", header + 16)
        # Of PE32+, behind its 112 bytes: pairs of address and size.
        self.exports, self.imports = (self.number("I", header + 20 + 112 + 8 * i) for i in (0, 1))
        first = header + 20 + size
        self.sections: list[tuple[int, ...]] = [
            struct.unpack_from("<4I", data, first + 40 * i + 8) for i in range(sections)
        ]

    def number(self, kind: str, at: int) -> int:
        """Return a number at a place in the file."""
        found: int = struct.unpack_from(f"<{kind}", self.data, at)[0]
        return found

    def place(self, address: int) -> int:
        """Return where in the file an address is."""
        for size, start, _, offset in self.sections:
            if start <= address < start + size:
                return address - start + offset
        raise SystemExit(f"no section has address {address:#x}")

    def text(self, address: int) -> str:
        """Return the text at an address."""
        at = self.place(address)
        return self.data[at : self.data.index(b"\0", at)].decode("ascii")

    def exported(self) -> Iterator[str]:
        """Yield the names of the functions that others may call."""
        table = self.place(self.exports)
        count, names = self.number("I", table + 24), self.place(self.number("I", table + 32))
        for i in range(count):
            yield self.text(self.number("I", names + 4 * i))

    def imported(self) -> Iterator[str]:
        """Yield the names of the libraries that it needs."""
        at = self.place(self.imports)
        while name := self.number("I", at + 12):
            yield self.text(name)
            at += 20


def main(library: str, header: str) -> None:
    """Compare both tables, and print the first."""
    image = Image(Path(library).read_bytes())
    wanted = re.findall(r"^K2T_EXPORT .*?(k2t_\w+)\(", Path(header).read_text("utf-8"), re.M)
    found = sorted(image.exported())
    if found != sorted(wanted):
        raise SystemExit(f"{library} exports {found}, {header} has {sorted(wanted)}")
    if other := [name for name in image.imported() if not OF_WINDOWS.fullmatch(name)]:
        raise SystemExit(f"{library} needs {other}")
    print(f"LIBRARY {Path(library).name}", "EXPORTS", *found, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
