"""Attribute names for Keras layers that Python and torch allow, and fx for its nodes."""

from __future__ import annotations

import keyword
import re
from collections import Counter
from collections.abc import Sequence

from torch import fx, nn

# Names that torch's modules and fx's graph modules use themselves.
_TAKEN = frozenset((*dir(nn.Module()), *dir(fx.GraphModule), "meta"))


def attribute_names(names: Sequence[str]) -> dict[str, str]:
    """Map Keras layer names to unique attribute names, unchanged where Python and torch allow it.

    A name that is taken gets an underscore, then a number. Numbers are counted for every base, so
    the work is linear in the number of names, also where a file's names are made to collide.
    """
    out: dict[str, str] = {}
    used: set[str] = set()
    times: Counter[str] = Counter()
    for name in names:
        base = plain = _plain(name)
        while plain in used or not _free(plain):
            times[base] += 1
            plain = f"{base}_" if times[base] == 1 else f"{base}_{times[base]}"
        used.add(plain)
        out[name] = plain
    return out


def _plain(name: str) -> str:
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    if not plain or plain[0].isdigit() or plain.startswith("_"):
        return f"layer_{plain.lstrip('_')}"
    return plain


def _free(name: str) -> bool:
    # fx writes names in lower case, and "self" is the module.
    return name not in _TAKEN and not keyword.iskeyword(name) and name.lower() != "self"
