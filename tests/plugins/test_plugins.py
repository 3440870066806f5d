"""Plugins against real Keras: the same numbers, mutations, and the mask protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from keras2torch_birnn.schema import shipped
from keras2torch_birnn.schema.custom_layers import REGISTERED
from keras2torch_birnn.spec import LayerSpec

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


# ---- mutations: a wrong version fails ----------------------------------------------------------


Change = Callable[[LayerSpec], LayerSpec]


def turned(name: str) -> Change:
    return lambda one: replace(one, weights={**one.weights, name: one.weights[name].T.copy()})


def swapped(first: str, second: str) -> Change:
    def swap(one: LayerSpec) -> LayerSpec:
        exchanged = {first: one.weights[second], second: one.weights[first]}
        return replace(one, weights={**one.weights, **exchanged})

    return swap


def with_option(**options: Any) -> Change:
    return lambda one: replace(one, config={**one.config, **options})


CHAIN, BOUNDARIES = turned("chain_kernel"), swapped("left_boundary", "right_boundary")
MUTANTS: Mapping[str, tuple[str, Change]] = {
    "chain turned": ("keras-2.2.4/contrib_viterbi.h5", CHAIN),
    "chain turned, marginal": ("keras-2.2.4/contrib_marginal.h5", CHAIN),
    "boundaries swapped": ("keras-2.2.4/contrib_viterbi_unmasked.h5", BOUNDARIES),
    "chain turned, addons": ("tf.keras-2.15.0/addons_plain.h5", CHAIN),
    "boundaries swapped, addons": ("tf.keras-2.15.0/addons_plain.h5", BOUNDARIES),
    "who asks is asked": (
        "self-attention-0.51/self_attention_additive.h5",
        swapped("Add_Wt", "Add_Wx"),
    ),
    "product turned": ("self-attention-0.45/self_attention_multiplicative.h5", turned("Mul_Wa")),
    "window to one side": (
        "self-attention-0.51/self_attention_additive_local.h5",
        with_option(history_only=True),
    ),
    "window off by one": (
        "self-attention-0.45/self_attention_multiplicative_local.h5",
        with_option(attention_width=5),
    ),
    "scale and shift swapped": ("tf.keras-2.15.0/center.h5", swapped("scale", "shift")),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_version_is_seen(name: str) -> None:
    file, change = MUTANTS[name]
    load_plugins([plugin_of(file)])
    spec, (x, wanted) = read(file), read_arrays(file)
    graph = spec.graph
    layers = tuple(
        change(one) if one.class_name in REGISTERED.layers else one for one in graph.layers
    )
    assert any(new is not old for new, old in zip(layers, graph.layers, strict=True))
    wrong = replace(spec, root=replace(spec.root, graph=replace(graph, layers=layers)))
    assert differ(run(wrong, x), wanted, 1e-3, 1e-3)
    assert differ(list(compute(wrong, (x,)).outputs), wanted, 1e-3, 1e-3)


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("self-attention-0.45/self_attention_additive.h5", "0.46"),
        ("self-attention-0.46/self_attention_additive_local.h5", "0.51"),
        ("self-attention-0.51/self_attention_history_local.h5", "0.46"),
    ],
)
def test_another_edition_gives_other_numbers(file: str, other: str) -> None:
    load_plugins([self_attention(other)])
    x, wanted = read_arrays(file)
    assert differ(run(read(file), x), wanted, 1e-3, 1e-3)


@pytest.mark.parametrize(
    "file",
    [
        "keras-2.2.4/average.h5",
        "keras-2.2.4/contrib_viterbi.h5",
        "tf.keras-2.15.0/addons_tags.h5",
        "self-attention-0.45/weighted_attention.h5",
        "tf.keras-2.15.0/center.h5",
    ],
)
def test_the_mask_matters(file: str) -> None:
    load_plugins([plugin_of(file)])
    for name, own in list(REGISTERED.layers.items()):
        REGISTERED.layers[name] = replace(own, mask="drops")
    x, wanted = read_arrays(file)
    assert differ(run(read(file), x), wanted, 1e-3, 1e-3)


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
