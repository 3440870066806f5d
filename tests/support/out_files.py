"""OUT of Keras files, and changes inside of OUT."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import keras2torch_birnn as k2t


def write_out(source: Path, folder: Path, config: Path | None = None) -> Path:
    """Convert a Keras file; return OUT."""
    out = folder / "out.pt"
    k2t.save(k2t.convert(source, config=config), out)
    return out


def change_text(content: dict[str, Any], key: str, change: Callable[[Any], object]) -> None:
    """Change one of the texts in what OUT holds, as parsed JSON."""
    text = json.loads(content[key])
    change(text)
    content[key] = json.dumps(text)


@contextmanager
def changing(out: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Hand out what OUT holds and its parsed texts; write into OUT what became of them."""
    content = torch.load(out, weights_only=True)
    texts = {key: json.loads(content[key]) for key in ("architecture", "facts")}
    yield content, texts
    content |= {key: json.dumps(text) for key, text in texts.items()}
    torch.save(content, out)
