"""``k2t plugin new``: the stubs have a file's options and weights, and work when filled in."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import STACK_H5, STACK_KERAS, changed_config, changed_layer, k2t, layer
from plugin_files import (
    ATOL,
    CENTER,
    FIXTURES,
    LAMBDAS,
    RTOL,
    USERS,
    differ,
    read_arrays,
    unregister_all,
)
from torch_runs import outputs_of

import keras2torch_birnn
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.plugins.stubs import write_plugin
from keras2torch_birnn.schema.custom_layers import REGISTERED

KERAS3 = FIXTURES / "keras-3.15.1"
ATTENTION = FIXTURES / "self-attention-0.51" / "self_attention_additive.h5"
CELL = FIXTURES / "keras-2.2.4" / "cell_bi_sum.h5"
# What the class computes, in place of the line that raises.
CENTERED = """
        if mask is None:
            mean = x.mean(1, keepdim=True)
        else:
            kept = mask.unsqueeze(-1).to(x.dtype)
            mean = (x * kept).sum(1, keepdim=True) / (kept.sum(1, keepdim=True) + 1)
        return (x - mean) * self.{scale} * self.power + self.{shift}
"""
HOSTILE = 'x"""\'); import os; os.system("true") #\n\\'


def fill(text: str, scale: str, shift: str) -> str:
    """Fill in the stub of CenterSteps, as its author would."""
    start = text.index("        raise NotImplementedError")
    end = text.index("\n", start)
    text = text[:start] + CENTERED.format(scale=scale, shift=shift).strip("\n") + text[end:]
    text = text.replace("x: torch.Tensor)", "x, mask=None)")
    return text.replace('    "CenterSteps",', '    "CenterSteps",\n    mask="uses and passes",')


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("tf.keras-2.15.0/center.h5", ("scale", "shift")),
        ("keras-3.15.1/center.keras", ("weight_0", "weight_1")),
    ],
)
def test_a_stub_that_is_filled_in_gives_keras_numbers(
    file: str, names: tuple[str, str], tmp_path: Path
) -> None:
    made = write_plugin(FIXTURES / file)
    assert (made.names, made.notes) == (("CenterSteps",), ())
    assert '        # 0.5\n        self.power = layer.config["power"]' in made.text
    for name in names:
        assert f'self.{name} = nn.Parameter(torch.tensor(layer.weights["{name}"]))' in made.text
    plugin = tmp_path / "mine.py"
    plugin.write_text(fill(made.text, *names))
    model = keras2torch_birnn.convert(FIXTURES / file, plugins=[plugin])
    x, wanted = read_arrays(file)
    found = outputs_of(model, x)
    assert not differ(found, wanted, ATOL, RTOL)
    assert not np.allclose(found[0], 0)


def test_an_empty_stub_names_what_is_to_be_written(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    text = write_plugin(CENTER).text
    plugin.write_text(text.replace('    "CenterSteps",', '    "CenterSteps", mask="drops",'))
    done = k2t("convert", CENTER, tmp_path / "out.pt", "--plugin", plugin)
    assert done.code == 2
    assert "NotImplementedError: call() of CenterSteps (mine.py:" in done.err


def test_a_cell_has_the_size_of_its_state() -> None:
    text = write_plugin(CELL).text
    assert '    "PairCell",\n    state_size="units",\n)' in text
    assert "# state_size=: as cell.state_size in Keras; forward returns y and the states." in text
    assert "        self, x: torch.Tensor, states: tuple[torch.Tensor, ...]\n    ) -> " in text
    assert 'raise NotImplementedError("one step of PairCell")' in text
    # Two cells of one Bidirectional: which weight is whose only the plugin can say.
    first, second = (part.split("@k2t")[0] for part in text.split("near the layer:")[1:])
    assert (first.count("#     bidirectional_1/"), first.count("\n")) == (12, 13)
    assert (second.count("#     bidirectional_2/"), second.count("\n")) == (4, 5)
    ast.parse(text)


@pytest.mark.parametrize(
    "file",
    [CENTER, CELL, LAMBDAS, KERAS3 / "gated.keras", KERAS3 / "nested.keras", ATTENTION],
    ids=lambda file: file.name,
)
def test_a_stub_is_as_linters_want_it(file: Path, tmp_path: Path) -> None:
    """With their defaults: imports in order and used, 88 columns, all functions typed."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(write_plugin(file).text)
    for command in (("check", "--extend-select=I"), ("format", "--check")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", plugin],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout
    for made in ast.walk(ast.parse(plugin.read_text())):
        if isinstance(made, ast.FunctionDef):
            untyped = [one.arg for one in made.args.args if one.annotation is None]
            assert (untyped in ([], ["self"]), made.returns is not None) == (True, True)


def test_lambdas_are_supplied_by_name() -> None:
    made = write_plugin(LAMBDAS)
    assert made.names == ("kept", "stretch", "last")
    assert made.text.count("# Its arguments, by name") == 1
    assert (
        '# Its arguments, by name: {"by": 1.5, "plus": -0.5}\n@k2t.supplies("stretch")' in made.text
    )
    for name in made.names:
        assert f'@k2t.supplies("{name}")\ndef compute_{name}(x: torch.Tensor)' in made.text
    ast.parse(made.text)


def test_weights_of_layers_inside_are_named_with_their_place() -> None:
    text = write_plugin(KERAS3 / "gated.keras").text
    listed = text.partition("near the layer:\n")[2]
    assert listed.splitlines()[:3] == [
        "#     layers/gated_steps/vars/0",
        "#     layers/gated_steps/gate/vars/0",
        "#     layers/gated_steps/gate/vars/1",
    ]
    names = '"weight_0",\n        "gate/weight_0",\n        "gate/weight_1",'
    assert f"    weights=(\n        {names}\n    )," in text
    text = write_plugin(KERAS3 / "gated.h5").text
    assert '        "level",\n        "gate/kernel",\n        "gate/bias",' in text


def test_a_class_with_a_plugin_gets_no_stub_and_the_registry_is_left_as_it_was() -> None:
    with pytest.raises(UsageError, match="every layer has a converter; no plugin is needed"):
        write_plugin(CENTER, plugins=[USERS])
    before = dict(REGISTERED.layers)
    unregister_all()
    write_plugin(CENTER)
    assert before
    assert REGISTERED.layers == REGISTERED.lambdas == {}


def test_the_command_prints_the_plugin() -> None:
    done = k2t("plugin", "new", CENTER)
    assert (done.code, done.err) == (0, "")
    assert done.out == write_plugin(CENTER).text
    found = json.loads(k2t("plugin", "new", CENTER, "--json").out)
    ended = {"schema": 1, "ok": True, "exit": 0}
    assert found == {**ended, "plugin": done.out, "names": ["CenterSteps"], "notes": []}


def test_the_command_refuses_what_needs_no_plugin(tmp_path: Path) -> None:
    done = k2t("plugin", "new", STACK_H5)
    assert done.code == 2
    assert f"{STACK_H5}: every layer has a converter; no plugin is needed" in done.err

    other = changed_layer(STACK_KERAS, tmp_path / "other.keras", "dense", activation="abacus")
    assert k2t("plugin", "new", other).code == 4


def test_other_refusals_are_noted_beside_the_stub(tmp_path: Path) -> None:
    wrong = changed_layer(CENTER, tmp_path / "wrong.h5", "bidirectional_1", merge_mode="max")
    done = k2t("plugin", "new", wrong)
    assert done.code == 0
    assert "k2t: note: also not supported: bidirectional_1: " in done.err
    assert "class CenterSteps(nn.Module):" in done.out


def test_a_refused_class_names_the_command(tmp_path: Path) -> None:
    done = k2t("convert", CENTER, tmp_path / "out.pt")
    assert done.code == 4
    assert "for a layer of your own begin with k2t plugin new MODEL > my_layers.py" in done.err
    cell = k2t("convert", CELL, tmp_path / "out.pt")
    assert "state_size=...): k2t plugin new MODEL > my_layers.py" in cell.err


def test_no_text_of_a_file_becomes_code(tmp_path: Path) -> None:
    """Names, options and values that would end a literal or a comment, if they could."""

    def change(model: dict[str, Any]) -> None:
        entry = layer(model, "dense")
        entry["class_name"] = entry["registered_name"] = f"nn{HOSTILE}"
        entry["module"] = None
        entry["config"] |= {HOSTILE: HOSTILE, "forward": 7, "class": [HOSTILE], "é": "ü"}
        entry["config"]["name"] = entry["name"] = f"a{HOSTILE}"
        other = layer(model, "bidirectional")
        other["class_name"], other["module"] = "Lambda", "keras.layers"
        other["config"]["arguments"] = {HOSTILE: HOSTILE}

    file = changed_config(STACK_KERAS, tmp_path / "wrong.keras", change)
    text = write_plugin(file).text
    tree = ast.parse(text)
    text.encode("ascii")
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    assert imports == tree.body[:3]
    called = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    allowed = "super super().__init__ nn.Parameter torch.tensor NotImplementedError k2t.converts"
    made = {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    assert called <= {*allowed.split(), "k2t.supplies", *made}
    assert not made & {"nn", "torch", "k2t"}
    texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert f"nn{HOSTILE}" in texts
