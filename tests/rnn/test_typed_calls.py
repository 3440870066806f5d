"""A type checker of a user's script finds mistakes in calls of BiLSTM, BiGRU and BiRNN."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Each wrong line names the error that is expected of it.
SCRIPT = """
import torch
from torch.nn.utils.rnn import pack_sequence
import keras2torch_birnn as k2t

x, mask = torch.randn(11, 3, 5), torch.ones(11, 3, dtype=torch.bool)
lstm = k2t.BiLSTM(5, 7, num_layers=2, merge_mode="sum", engine="loop")
gru = k2t.BiGRU(5, 7, 2, merge_mode=["mul", None])
output, (h_n, c_n) = lstm(x, mask=mask)
(forward, backward), last = gru(x, torch.zeros(4, 3, 7))
packed, _ = k2t.BiRNN(5, 7)(pack_sequence([x[:, 0]]))

k2t.BiLSTM(5, 7, merge_mode="add")  # arg-type
k2t.BiGRU(5, 7, 2, merge_mode=["sum", "avg"])  # list-item
k2t.BiRNN(5, 7, engine="fast")  # arg-type
k2t.BiRNN(5, 7, merge="sum")  # call-arg
lstm(x, None, mask)  # call-overload
lstm(x, masks=mask)  # call-overload
lstm(x, hx=5)  # call-overload
output, h_n, c_n = lstm(x)  # misc
"""
# The types of torch take a minute to read; those of this package are all that is asked for here.
SETTINGS = """
[mypy]
strict = true
mypy_path = {root}
[mypy-torch.*,numpy.*,keras2torch_birnn.*]
follow_imports = skip
[mypy-keras2torch_birnn,{modules}]
follow_imports = silent
"""
IN_RNN = ("bidirectional", "bidirectional_stack", "checks", "engines")
READ = ("schema.merge_modes", *(f"rnn.{name}" for name in IN_RNN))


@pytest.mark.thorough
def test_mypy_finds_wrong_arguments_of_a_users_script(tmp_path: Path) -> None:
    api: Any = pytest.importorskip("mypy.api")
    script, settings = tmp_path / "script.py", tmp_path / "mypy.ini"
    script.write_text(SCRIPT)
    modules = ",".join(f"keras2torch_birnn.{name}" for name in READ)
    settings.write_text(SETTINGS.format(root=Path(__file__).parents[2], modules=modules))
    options = ("--config-file", str(settings), "--cache-dir", str(tmp_path / "cache"))
    out, errors, _ = api.run([*options, str(script)])
    assert errors == ""
    found = re.findall(r"script\.py:(\d+): error: .*\[([\w-]+)\]$", out, re.MULTILINE)
    lines = enumerate(SCRIPT.splitlines(), 1)
    wanted = [(str(n), line.partition("  # ")[2]) for n, line in lines if "  # " in line]
    assert list(dict.fromkeys(found)) == wanted, out


PYRIGHT_SCRIPT = """
from typing_extensions import assert_type
import torch
from torch import Tensor, fx
from torch.nn.utils.rnn import pack_sequence
import keras2torch_birnn as k2t

x = torch.randn(11, 3, 5)
output, (h_n, c_n) = k2t.BiLSTM(5, 7, merge_mode="sum", device="cpu")(x, lengths=[11, 5, 2])
assert_type(output, Tensor)
assert_type(c_n, Tensor)
(forward, backward), h_n = k2t.BiGRU(5, 7, merge_mode=None)(x)
assert_type(h_n, Tensor)
packed, h_n = k2t.BiRNN(5, 7)(pack_sequence([x[:, 0]]))
model = k2t.convert("model.h5")
assert_type(model, fx.GraphModule)
k2t.save(model, "model.pt")
assert_type(k2t.load("model.pt", device="cpu"), fx.GraphModule)
assert_type(k2t.verify("model.h5", "model.pt").ok, bool)
k2t.write_back(model, "model.h5", "new.h5", optimizer="keep")
optimizer = k2t.training("model.h5").optimizer
assert_type(optimizer.step(), None)
assert_type(k2t.BiLSTM(5, 7).forward(x)[1], Tensor | tuple[Tensor, ...])
k2t.verify("model.h5", "model.pt", inputs={"x": x, "ids": [[5, 2]]})
k2t.equation("Mine", initial_state=lambda cell, rows: [cell.weights["start"][:rows]])

@k2t.converts("Twice", output=lambda config, shape: (*shape[:2], config["units"]))
def twice(layer: k2t.LayerSpec) -> torch.nn.Module:
    shape = layer.input_shape
    assert isinstance(shape, tuple) and isinstance(shape[-1], int)
    assert_type(shape[-1], int)
    return torch.nn.Linear(shape[-1], layer.config["units"])

@k2t.converts("Thrice", output=lambda config: (3,))  # reportArgumentType
def thrice(layer: k2t.LayerSpec) -> torch.nn.Module:
    layer.output_shape.rank  # reportAttributeAccessIssue
    return torch.nn.Linear(layer.input_shape[-1], 3)  # reportArgumentType

k2t.BiLSTM(5, 7, merge_mode="avg")  # reportArgumentType
k2t.BiLSTM(5, 7, device=3.5)  # reportArgumentType
output.shapes  # reportAttributeAccessIssue
k2t.convrt("model.h5")  # reportAttributeAccessIssue
k2t.load("model.pt", devices="cpu")  # reportCallIssue
k2t.write_back(model, "model.h5", "new.h5", optimizer=3)  # reportArgumentType
k2t.verify("model.h5", "model.pt", inputs=[object()])  # reportArgumentType
k2t.compare("model.h5", model, inputs=3)  # reportArgumentType
k2t.equation("Mine", initial_state=lambda cell, rows: rows)  # reportArgumentType
optimizer.step(3)  # reportCallIssue
"""


@pytest.mark.thorough
@pytest.mark.skipif(find_spec("basedpyright") is None, reason="basedpyright is not installed")
def test_pyright_finds_wrong_arguments_of_a_users_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(PYRIGHT_SCRIPT)
    root = str(Path(__file__).parents[2])
    settings = {
        "typeCheckingMode": "standard",
        "extraPaths": [root],
        "reportUnusedExpression": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = (sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable)
    done = subprocess.run(
        [*command, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = enumerate(PYRIGHT_SCRIPT.splitlines())
    wanted = [(n, line.partition("  # ")[2]) for n, line in lines if "  # " in line]
    first: dict[int, str] = {}  # of a line: of an overloaded function it may have two
    for one in found:
        first.setdefault(one["range"]["start"]["line"], one["rule"])
    assert list(first.items()) == wanted, found
