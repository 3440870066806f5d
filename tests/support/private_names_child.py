"""Convert a model and call it in many ways, as if torch lacked names that are not public.

Run by ``tests/package/test_torch_private.py``: ``MODEL NPZ NAME,NAME...``. Each group of names is
taken away in a fork of its own, since importing torch takes longer than all the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch

from keras2torch_birnn.rnn import torch_private


def take_away(names: Sequence[str]) -> Any:
    """Return the package, imported without the names."""
    for name in names:
        row = torch_private.PRIVATE[name]
        cast(Any, torch_private.PRIVATE)[name] = row._replace(path="no_such_name")
    return import_module("keras2torch_birnn")


def check_model(k2t: Any, source: str, recorded: str) -> None:
    """Compare outputs with what Keras recorded; a recorded program would run from the third on."""
    model = k2t.convert(source)
    arrays = np.load(recorded)
    x = torch.from_numpy(arrays["in_0"])
    with torch.no_grad():
        for _ in range(4):
            np.testing.assert_allclose(model(x).numpy(), arrays["out_0"], atol=1e-5, rtol=1e-4)
    model(x).sum().backward()


def check_layers(k2t: Any) -> None:
    """Compare transforms and derivatives with plain calls."""
    rnn = k2t.BiGRU(5, 7, 2, merge_mode="mul", reset_after=False).eval().requires_grad_(False)
    x = torch.randn(11, 3, 5)
    with torch.inference_mode():
        plain = rnn(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(lambda row: rnn(row)[0], 1, 1)(x), plain)
    _, tangent = torch.func.jvp(lambda z: rnn(z)[0], (x,), (torch.ones_like(x),))
    assert torch.isfinite(tangent).all()


def check_without(names: Sequence[str], source: str, recorded: str) -> None:
    """Make all checks without the names."""
    package = take_away(names)
    check_model(package, source, recorded)
    check_layers(package)
    print("equal without", *names, flush=True)


def load_late_parts() -> None:
    """Let torch load once, before the forks, what it loads where it is first used."""
    x, module = torch.ones(3, 5), torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh())
    torch.vmap(module)(x)
    torch.func.jvp(module, (x,), (x,))
    module(x).sum().backward()


if __name__ == "__main__":
    load_late_parts()
    for group in sys.argv[3:]:
        if not os.fork():
            check_without(group.split(","), *sys.argv[1:3])
            break
        os.wait()
