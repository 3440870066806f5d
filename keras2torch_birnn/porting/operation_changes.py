"""Known mistakes with the options of single operations, as changes to try."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras2torch_birnn.porting.changes import Change, Maker, configured

# Axes that are tried
_AXES = (-1, 0, 1, 2)


def option_changes(maker: Maker) -> Iterator[Change]:
    """Yield other axes, numbers that are one off or negated, and switches the other way round."""
    for name, own in maker.config.items():
        if name == "trainable":
            continue
        kind = "axis" if name in ("axis", "axes") else "option"
        for other in _others_of(name, own):
            words = f"its {name} is {_shown(other)}, Keras has {_shown(own)}"
            yield maker.change(kind, words, configured(**{name: other}))


def _others_of(name: str, own: Any) -> Iterator[Any]:
    if isinstance(own, bool):
        yield not own
    elif isinstance(own, tuple) and len(own) == 1:
        yield from ((other,) for other in _others_of(name, own[0]))
    elif not isinstance(own, int):
        return
    elif name in ("axis", "axes"):
        yield from (axis for axis in _AXES if axis != own)
    else:
        yield from dict.fromkeys((own + 1, own - 1, -own))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
