"""Names of files that Windows does not have: it opens a device for them, or another file."""

from __future__ import annotations

from pathlib import PurePath

_DEVICES = frozenset(
    (
        *("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"),
        *(f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"),
    )
)
_LETTERS = frozenset('<>:"|?*\\/')


def find_fault(path: PurePath) -> str:
    """Return what Windows cannot have in a path below a drive, in words; empty if nothing."""
    for name in path.parts[1:] if path.anchor else path.parts:
        if name in (".", ".."):
            continue
        if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
            return f"{name} is a device on Windows"
        if name.endswith((".", " ")):
            return f"Windows drops the end of {name!r}"
        found = next((one for one in name if one in _LETTERS or one < " "), None)
        if found is not None:
            return f"Windows has no {found!r} in names"
    return ""
