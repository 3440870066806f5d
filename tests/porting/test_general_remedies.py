"""Rules of the diagnosis that hold for every port: what counts as evidence, what is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_ports import Sentiment, SentimentPacked
from torch import Tensor, nn
from wrong_ports import only_finding

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.changes import Change, LayerCall, Maker
from keras2torch_birnn.porting.kept_results import KeptResults
from keras2torch_birnn.porting.moments import standardize
from keras2torch_birnn.porting.normalization_changes import group_norm_changes
from keras2torch_birnn.porting.observing import observe
from keras2torch_birnn.porting.recurrent_changes import _row_times
from keras2torch_birnn.porting.scoring import are_values_of, same_values, tells
from keras2torch_birnn.porting.trials import Search
from keras2torch_birnn.porting.window_changes import _in_turn
from keras2torch_birnn.porting.wiring_changes import _ends_of, _masked_as
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference import EQUATIONS
from keras2torch_birnn.spec import LayerSpec


class _NanOnEmpty(Sentiment):
    """A right port, but for rows without a word."""

    def forward(self, ids: Tensor) -> Tensor:
        empty = (ids == 0).all(dim=1, keepdim=True)
        return torch.where(empty, torch.nan, super().forward(ids))


class _Sorted(SentimentPacked):
    """Rows sorted by their lengths, and not put back."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        order = torch.sort(lengths, descending=True, stable=True).indices
        return super().forward(ids[order], lengths[order])


def test_nan_in_a_row_of_padding_alone_is_told_where_it_begins() -> None:
    report = k2t.compare(_NanOnEmpty.source, _NanOnEmpty())
    finding = only_finding(report, "dense_1", "NaN")
    assert not report.ok
    assert finding.rows == "rows of padding alone"
    assert finding.words == "gives NaN first"


@pytest.mark.thorough
def test_rows_that_stay_sorted_are_named_at_the_layer_that_is_packed() -> None:
    report = k2t.compare(_Sorted.source, _Sorted())
    assert not report.ok
    assert next((one.layer, one.kind) for one in report.findings) == ("bidirectional", "rows")
    assert {one.kind for one in report.findings} <= {"rows", "padding side"}


@pytest.mark.parametrize("axes", [0, 1, -1, (0, 1), None])
def test_one_value_is_not_standardized(axes: int | tuple[int, ...] | None) -> None:
    """NumPy would warn of it on stderr."""
    with pytest.raises(ValueError, match="too few values"):
        standardize(axes, np.ones((1, 1, 1)), free=1)


def test_a_missing_row_of_a_gru_bias_is_a_change_of_that_row_alone() -> None:
    bias = np.arange(1.0, 15.0).reshape(2, 7)
    (without_input, without_recurrent) = (_row_times(0, row, bias) for row in range(2))
    assert np.array_equal(without_input, [0 * bias[0], bias[1]])
    assert np.array_equal(without_recurrent, [bias[0], 0 * bias[1]])


def test_last_states_of_another_layer_are_where_its_halves_end() -> None:
    """The forward half ends at the last step that counts, the backward half at the first one."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=(3, 7, 10))
    valid = np.ones((3, 7), bool)
    valid[1, :2] = valid[2, 5:] = False
    layers, masks = {"below": y, "full": y}, {"below": valid, "full": None}
    context: Any = SimpleNamespace(layers=layers, masks=masks)
    layer: Any = None
    for path, last, first in (("below", (6, 6, 4), (0, 2, 0)), ("full", (6, 6, 6), (0, 0, 0))):
        call = LayerCall(lambda *_: (0 * y[:, 0], None), layer, y, None, context)
        found, mask = _ends_of(path, call)
        rows = range(3)
        wanted = [np.r_[y[row, last[row], :5], y[row, first[row], 5:]] for row in rows]
        assert np.array_equal(found, wanted)
        assert mask is None


def test_a_mask_is_given_where_none_arrives_in_keras() -> None:
    mask = np.arange(7) < np.array([[7], [2], [5]])
    context: Any = SimpleNamespace(masks={"words": mask, "letters": None}, aside=lambda: None)
    layer: Any = None
    read = partial(_masked_as, "words", "ids", "")

    def call(x: Any, given: Any) -> LayerCall:
        return LayerCall(lambda _, x, given, __: (given, "Keras' mask"), layer, x, given, context)

    x = np.zeros((3, 7, 5))
    for none in (None, np.ones_like(mask)):
        used, out_mask = read(call(x, none))
        assert used is mask
        assert out_mask == "Keras' mask"
    with pytest.raises(ValueError, match="another one arrives"):
        read(call(x, mask))
    with pytest.raises(ValueError, match="several may arrive"):
        read(call((x, x), (None, None)))


def test_weights_from_before_training_are_tried_in_one_order() -> None:
    """The first one is told of those that explain a port equally well."""
    weights = {name: np.ones(3) for name in ("beta", "gamma")}
    layer: Any = SimpleNamespace(class_name="Norm", config={"groups": 4}, weights=weights)
    kinds = [one.words for one in group_norm_changes(Maker("norm", layer)) if "loaded" in one.kind]
    assert kinds == ["gamma is 1, as before training", "beta is 0, as before training"]


def test_another_number_of_groups_is_tried() -> None:
    layer: Any = SimpleNamespace(class_name="Norm", config={"groups": 4}, weights={})
    words = [one.words for one in group_norm_changes(Maker("norm", layer))]
    assert "it has 3 groups, Keras has 4 groups" in words
    assert "it has 4 groups, Keras has 4 groups" not in words


def test_a_change_without_which_all_is_explained_is_dropped() -> None:
    """A right port had these values on its way; they were blamed before the others were known."""
    on_the_way, other = Change("activation", "gate", "", {}), Change("direction", "bi", "", {})
    search: Any = SimpleNamespace(found=[on_the_way, other], earlier=())
    search.explained_by = lambda some: some == [other]
    assert Search._drop_misleading(search)
    assert search.found == [other]
    assert not Search._drop_misleading(search)


def test_that_explanation_is_likelier_with_which_more_layers_are_right() -> None:
    right = {"few": {"dense"}, "many": {"dense", "permute", "reshape"}}
    search: Any = SimpleNamespace(found=[], right=set(), unexplained=[], layers={}, later={})
    search.compute = lambda some: SimpleNamespace(layers=right[some[0].words])
    search.computed = lambda path, trace: path in trace.layers
    search.first_wrong = partial(Search.first_wrong, search)
    few, many = (Search._outlook(search, [Change("axes", "dense", one, {})]) for one in right)
    assert many > few
    assert search.found == []


class _Shares(nn.Module):
    """The shares of scores of which -1e9 is taken where a mask is set, as people write it."""

    def forward(self, scores: Tensor) -> Any:
        taken = torch.full_like(scores, -1e9)
        summed = scores + 0
        summed += taken
        return (scores + taken).softmax(-1), summed.softmax(-1)


def test_scores_that_are_all_masked_have_equal_shares_as_in_float32() -> None:
    scores = np.arange(5.0)[None]
    run = observe(_Shares(), [scores], torch.float64, 1e-6)
    for shares in run.outputs:
        assert np.array_equal(shares, np.full((1, 5), 0.2))


def test_channels_that_take_turns_are_those_of_one_group_after_another() -> None:
    assert _in_turn(2, np.arange(6)).tolist() == [0, 2, 4, 1, 3, 5]
    assert _in_turn(3, _in_turn(2, np.arange(6))).tolist() == [0, 1, 2, 3, 4, 5]


def test_values_that_a_port_has_in_another_shape_confirm_nothing() -> None:
    """A Flatten hands on what it is given, whichever layer that came from."""
    y = np.random.default_rng(5).normal(size=(3, 7, 2))
    trace: Any = SimpleNamespace(layers={"flatten": y.reshape(3, 14)})
    assert same_values(y, trace.layers["flatten"])
    assert are_values_of(["flatten"], y, trace)
    assert not are_values_of(["flatten"], y[:, ::-1], trace)


@pytest.mark.parametrize(
    ("values", "telling"),
    [([0.0, 0, 0], False), ([0.0, 1, 1, 0], False), ([0.2, 0.3], True), ([0.2, 0.3, 0.5], True)],
)
def test_zeros_and_masks_tell_nothing(values: list[float], telling: bool) -> None:
    assert tells(np.array(values)) == telling


@pytest.fixture(scope="module")
def dense() -> tuple[LayerSpec, LayerSpec]:
    """Return a model, and a Dense of it."""
    root = read_model(Sentiment.source).root
    return root, next(one for one in root.walk() if one.class_name == "Dense")


def test_a_result_is_taken_over_only_for_the_same_options_of_the_call(dense: Any) -> None:
    """One layer may be called twice on the same input, once with other options."""
    root, layer = dense
    calls: list[bool] = []

    def equation(_: Any, inputs: Any, mask: Any, context: Any) -> Any:
        calls.append(context.call_options["reverse"])
        return inputs, mask

    run = KeptResults(root)._kept(equation, note=False)
    context: Any = SimpleNamespace(states=None, initial_state=None, path="dense")
    for reverse in (True, False, True, False):
        context.call_options = {"reverse": reverse}
        run(layer, np.ones((2, 3)), None, context)
    assert calls == [True, False]


def test_a_result_is_taken_over_from_any_earlier_call_of_a_layer_like_this(dense: Any) -> None:
    """Not of one with other options, weights or arrays, and never where states are carried."""
    root, layer = dense
    wider = replace(layer, config={**layer.config, "units": 2 * layer.config["units"]})
    copied = {name: np.array(array) for name, array in layer.weights.items()}
    own = replace(layer, weights=copied)
    alike = replace(layer, config={**layer.config}, weights={**layer.weights})
    calls: list[Any] = []

    def equation(some: Any, inputs: Any, mask: Any, context: Any) -> Any:
        calls.append(some)
        return inputs, mask

    run = KeptResults(root)._kept(equation, note=True)
    context: Any = SimpleNamespace(states=None, initial_state=None, path="dense", call_options={})
    for some in (layer, wider, own, alike, wider, layer):
        run(some, np.ones((2, 3)), None, context)
    assert calls == [layer, wider, own]
    for array in (np.zeros((2, 3)), np.ones((3, 2)), np.ones((2, 3), np.float32)):
        run(layer, array, None, context)
    context.states = {}
    run(layer, np.ones((2, 3)), None, context)
    assert calls[3:] == [layer] * 4


def test_what_calls_other_layers_is_computed_each_time() -> None:
    """The layers inside of it may give something else though its input is the same."""
    kept = KeptResults(read_model(Sentiment.source).root)
    equations = kept.equations(note=True)
    assert equations["Bidirectional"] is EQUATIONS["Bidirectional"]
    assert equations["Dense"] is not EQUATIONS["Dense"]
