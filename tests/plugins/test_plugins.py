"""Plugins against real Keras: the same numbers, mutations, and the mask protocol."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import k2t
from plugin_files import (
    ATOL,
    CENTER,
    ENTRIES,
    EXACT,
    EXAMPLES,
    FAR,
    FEATURES,
    FIXTURES,
    PASSIVE,
    RTOL,
    USERS,
    differ,
    plugin_of,
    read,
    read_arrays,
    run,
    self_attention,
    unregister_all,
    write_plugin,
)

import keras2torch_birnn
from keras2torch_birnn.errors import PluginError
from keras2torch_birnn.golden import reference_covers
from keras2torch_birnn.plugins import SHIPPED, load_plugins
from keras2torch_birnn.reference import compute
from keras2torch_birnn.schema import custom_layers as shipped
from keras2torch_birnn.schema.custom_layers import REGISTERED

EDITIONS = ("0.45", "0.46", "0.51")

# ---- against real Keras ------------------------------------------------------------------------


@pytest.mark.sampled(FEATURES)
@pytest.mark.parametrize("file", [file for file in ENTRIES if "stateful" not in file])
def test_a_plugin_gives_what_the_original_gave(file: str) -> None:
    """Keras against float32 torch and the reference; float64 torch against the reference."""
    load_plugins([plugin_of(file)])
    spec, (x, wanted) = read(file), read_arrays(file)
    assert not differ(run(spec, x), wanted, ATOL, RTOL)
    for output in (y for y in wanted if "viterbi" in file or y.dtype.kind == "i"):
        got = next(g for g in run(spec, x) if g.shape == output.shape and g.dtype == output.dtype)
        assert np.array_equal(got, output)
    if not reference_covers(spec):
        return
    exact = list(compute(spec, (x,)).outputs)
    atol = FAR if file.startswith(("self-attention-0.46", "self-attention-0.51")) else ATOL
    assert not differ(exact, wanted, atol, RTOL)
    assert not differ(run(spec, x, "float64"), exact, EXACT, EXACT)


def test_the_files_are_those_of_the_manifest() -> None:
    for file, entry in ENTRIES.items():
        for key in filter(entry.get, ("file", "npz", "config")):
            found = hashlib.sha256((FIXTURES / entry[key]).read_bytes()).hexdigest()
            assert found == entry[f"{key}_sha256"], file


def test_every_plugin_of_the_project_is_compared_and_takes_what_it_says() -> None:
    compared = {plugin_of(file) for file in ENTRIES}
    files = {name: str(EXAMPLES / Path(name).name) for name in shipped.EXAMPLES}
    named = {*SHIPPED, str(USERS), *files.values(), *map(str, map(self_attention, EDITIONS))}
    assert compared == named - {files["examples/plugins/keras_self_attention.py"]}
    for name, plugin in {**SHIPPED, **shipped.EXAMPLES}.items():
        unregister_all()
        load_plugins([files.get(name, name)])
        assert set(REGISTERED.layers) == set(REGISTERED.equations) == set(plugin.classes)


# ---- the mask protocol -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "shown", "later"),
    [
        ('"uses"', "uses it", ""),
        ('"uses and passes"', "uses it", "uses it"),
        ('"passes"', "passes it on", "uses it"),
        ('"drops"', "drops it", ""),
        ("lambda layer: 'drops'", "drops it", ""),
        ('k2t.MaskFlow(takes=True, after="first")', "uses it", "uses it"),
    ],
)
def test_a_plugin_says_what_goes_on_with_a_mask(
    rule: str, shown: str, later: str, tmp_path: Path
) -> None:
    file = write_plugin(tmp_path, PASSIVE.format(mask=f", mask={rule}"))
    rows = keras2torch_birnn.inspect(CENTER, plugins=[file]).rows
    masks = [row.mask for row in rows if row.class_name in ("CenterSteps", "Bidirectional")]
    assert masks == ["uses it", shown, later]
    model = keras2torch_birnn.convert(CENTER, plugins=[file])
    model(torch.tensor([[3, 4, 0, 0, 0, 0, 0]]))
    own = next(m for m in model.modules() if type(m).__name__ == "Mine")
    assert (own.seen is not None) == (shown == "uses it")


def test_a_mask_into_a_layer_that_says_nothing_is_refused(tmp_path: Path) -> None:
    file = write_plugin(tmp_path, PASSIVE.format(mask=""))
    done = k2t("convert", CENTER, tmp_path / "out.pt", "--plugin", file)
    assert done.code == 4
    assert "plugin for CenterSteps does not say what it does with one; say mask=" in done.err
    assert '"uses and passes"' in done.err


def test_an_unknown_word_for_a_mask_is_refused(tmp_path: Path) -> None:
    file = write_plugin(tmp_path, PASSIVE.format(mask=", mask='ignores'"))
    with pytest.raises(PluginError, match="mask='ignores'; one of uses, uses and passes, passes"):
        keras2torch_birnn.convert(CENTER, plugins=[file])
