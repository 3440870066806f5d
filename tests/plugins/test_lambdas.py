"""Lambda layers supplied by a plugin."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import changed_layer, k2t
from plugin_files import (
    ATOL,
    LAMBDAS,
    RTOL,
    USERS,
    differ,
    read,
    read_arrays,
    read_with_users,
    run,
    unregister_all,
    write_plugin,
)
from specs import chain

import keras2torch_birnn
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.readers.config.custom_layers import check_names
from keras2torch_birnn.readers.config.generations import generation_of
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.input_files import objects_in
from keras2torch_birnn.schema.custom_layers import supplies
from keras2torch_birnn.spec import LayerSpec


def test_a_refused_lambda_tells_how_to_supply_it() -> None:
    done = k2t("inspect", LAMBDAS)
    assert done.code == 4
    lines = [line for line in done.err.splitlines() if "error" in line]
    assert len(lines) == 3
    assert all("Lambda layer holds Python code, which k2t never runs" in line for line in lines)
    assert all("@k2t.supplies(its name)" in line for line in lines)


LAMBDA_PLUGIN = """
k2t.supplies("stretch")(lambda x, by, plus: x * by + plus)
k2t.supplies("kept")(lambda x, mask=None: x * mask.unsqueeze(-1) + 0.25)

class Last(nn.Module):
    def forward(self, x):
        return x[:, {step}]

k2t.supplies("last"{mask})(Last())
"""


def test_a_lambda_may_be_a_function_or_a_module(tmp_path: Path) -> None:
    x, wanted = read_arrays("keras-2.2.4/lambdas.h5")
    for step, right in ((-1, True), (-2, False)):
        unregister_all()
        load_plugins([write_plugin(tmp_path, LAMBDA_PLUGIN.format(step=step, mask=""))])
        assert differ(run(read("keras-2.2.4/lambdas.h5"), x), wanted, ATOL, RTOL) != right


@pytest.mark.parametrize("word", ["passes", "drops"])
def test_a_lambda_may_say_what_goes_on_with_a_mask(word: str, tmp_path: Path) -> None:
    file = write_plugin(tmp_path, LAMBDA_PLUGIN.format(step=-1, mask=f', mask="{word}"'))
    found = keras2torch_birnn.inspect(LAMBDAS, plugins=[file])
    assert not found.problems
    masks = {row.path: row.mask for row in found.rows}
    assert (masks["kept"], masks["stretch"]) == ("uses it", "")


def test_a_shape_that_the_file_tells_is_checked(tmp_path: Path) -> None:
    file = changed_layer(LAMBDAS, tmp_path / "model.h5", "last", output_shape=[11])
    with pytest.raises(keras2torch_birnn.K2TError):
        keras2torch_birnn.convert(file, plugins=[USERS])


def test_a_lambda_that_makes_a_mask_has_to_say_so(tmp_path: Path) -> None:
    file = changed_layer(LAMBDAS, tmp_path / "model.h5", "kept", mask=["code", None, None])
    done = k2t("convert", file, tmp_path / "out.pt", "--plugin", USERS)
    assert done.code == 4
    assert "plugin for Lambda does not say what it does with one" in done.err


def test_a_name_of_two_lambdas_is_refused_until_each_has_its_path() -> None:
    inner = chain(LayerSpec("Lambda", "cut", {}, path=("inner", "cut")), name="inner")
    root = chain(LayerSpec("Lambda", "cut", {}, path=("cut",)), inner)
    supplies("cut")(torch.tanh)
    parsing = Parsing(generation_of("3.15.1"))
    check_names(root, parsing)
    assert str(parsing.problems[0]) == (
        "cut: 2 Lambda layers are called cut; supply each by its path: cut, inner/cut"
    )
    supplies("inner/cut")(torch.relu)
    check_names(root, again := Parsing(generation_of("3.15.1")))
    assert not again.problems


def test_the_code_of_a_supplied_lambda_stays_out_of_the_result(tmp_path: Path) -> None:
    text = read_with_users("keras-2.2.4/lambdas.h5").kept.architecture
    lambdas = [one for one in objects_in(json.loads(text)) if one.get("class_name") == "Lambda"]
    assert lambdas
    assert all(one["config"]["function"] is None for one in lambdas)
    assert '"by":1.5' in text
