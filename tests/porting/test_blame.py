"""A right part is not blamed: what is told is needed, and does harm of its own."""

from __future__ import annotations

from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import pytest
import torch
from sampling import rest_thorough
from torch import Tensor, nn
from wrong_ports import (
    FLOATS,
    TWO,
    Plus,
    adding,
    chain_of,
    compare_spec,
    comparison_of,
    model_of,
    only_finding,
    port_of,
    told,
)

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.porting.changes import Change, followed_by
from keras2torch_birnn.porting.explaining import list_findings
from keras2torch_birnn.porting.near_values import near_changes
from keras2torch_birnn.porting.right_tensors import find_leaves
from keras2torch_birnn.porting.trials import Search, Unexplained
from keras2torch_birnn.spec import ModelSpec

MASKED = (("Masking", {}), ("Dense", {"units": 3}), ("GlobalAveragePooling1D", {}))


def _search(spec: ModelSpec, port: nn.Module, rows: str = "") -> Search:
    comparison = comparison_of(spec, port)
    batch = next(one for one in batches(spec, None) if one.name == rows or not rows)
    run: Any = comparison._run(batch, first=True)
    return comparison._search(batch, run)


def test_what_does_no_harm_alone_is_not_told_beside_what_does() -> None:
    """Other values at masked steps, which reach the outputs only by way of another mistake."""
    spec = chain_of(*MASKED)
    search = _search(spec, build_model(spec), "rows padded at the end")
    masked = ~np.any(np.asarray(search.inputs[0]) != 0, axis=-1, keepdims=True)
    harmless, other = adding("layer_1", "Dense", 1.0 * masked), adding("layer_1", "Dense", 1.0)
    search.found += [other, harmless]
    assert [one.layer for one in list_findings(search, [other], "", [])] == []
    assert len(list(list_findings(search, [], "", []))) == 1


def test_the_fewest_changes_that_are_enough_are_kept() -> None:
    """Three of four undo each other, of which no two do."""
    spec = chain_of(*[("Dense", {"units": 5})] * 4)
    search = _search(spec, nn.Sequential(build_model(spec), Plus(0.5)))
    changes = [adding("layer_3", "Dense", more) for more in (1.5, -0.7, -0.8, 0.5)]
    search.found += changes
    search.unexplained.append(Unexplained("layer_1", np.zeros(1), None))
    search._drop_needless()
    assert search.found == changes[3:]
    assert search.unexplained == []


def test_of_layers_that_are_not_explained_the_first_is_told() -> None:
    spec = chain_of(*[("Dense", {"units": 5})] * 3)
    search = _search(spec, build_model(spec))
    search.unexplained += [Unexplained(f"layer_{n}", np.zeros(1), None) for n in (1, 0, 2)]
    (finding,) = list_findings(search, [], "", [])
    assert finding.layer == "layer_0"


class _Doubled(nn.Module):
    """A Dense that is doubled, and zero where nothing counts."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.dense: Any = build_model(spec).get_submodule("layer_1")

    def forward(self, x: Tensor) -> Tensor:
        counts = (x != 0).any(-1, keepdim=True)
        return (2 * self.dense(x) * counts).sum(1) / counts.sum(1)


def test_values_where_nothing_counts_are_those_of_a_port_with_what_was_found() -> None:
    spec = chain_of(*MASKED)
    search = _search(spec, _Doubled(spec), "rows padded at the end")
    doubled = Change(
        "", "layer_1", "", {("layer_1", "Dense"): followed_by(partial(np.multiply, 2))}
    )
    (padding,) = [one for one in search.padding([doubled]) if one.layer == "layer_1"]
    found = search.compute([doubled, padding])
    assert found is not None
    masked = ~np.any(np.asarray(search.inputs[0]) != 0, axis=-1)
    assert not np.asarray(found.layers["layer_1"])[masked].any()


def test_a_small_tensor_is_told_where_it_is_rounded_to_half_precision() -> None:
    (leaf,) = find_leaves(chain_of(("Dense", {"units": 1})))
    right = np.asarray(leaf.layer.weights["bias"], np.float32).astype(np.float64)
    np.asarray(leaf.layer.weights["bias"])[...] = right
    half = right.astype(np.float16).astype(np.float64)
    (change,) = near_changes({"b": half}, [leaf])
    assert "half precision (float16)" in change.words
    assert list(near_changes({"b": right + 1e-3 * right}, [leaf])) == []
    assert list(near_changes({"b": half, "own": right}, [leaf])) == []


class _Towers(nn.Module):
    """A Dense that is called twice, of which the second call has weights of its own."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.shared: Any = build_model(spec).get_submodule("d")
        self.own = nn.Linear(5, 3)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.shared(x) + self.own(z)


def test_a_tower_that_is_not_shared_is_named_in_its_call() -> None:
    calls = ("a", "d", "x"), ("b", "d", "z"), ("y", ("Add", {}), ["a", "b"])
    spec = model_of(*calls, inputs=TWO, d=("Dense", {"units": 3}))
    finding = only_finding(compare_spec(spec, _Towers(spec)), "d", "weights: other values")
    assert finding.words == "in call 2 alone: it has other weights than the file's, those of own"


class _Decoder(nn.Module):
    """Attention by the state before each step of the decoder, the initial one first."""

    def __init__(self, spec: ModelSpec, *, with_zeros: bool) -> None:
        super().__init__()
        self.whole: Any = build_model(spec)
        self.with_zeros = with_zeros

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        layers = dict(self.whole.named_modules())
        memory, h = layers["layer_0"](x)
        steps = layers["layer_1"](z, initial_state=(h,))
        first = 0 * h if self.with_zeros else h
        query = torch.cat([first[:, None], steps[:, :-1]], 1)
        y: Tensor = torch.softmax(query @ memory.mT, -1) @ memory
        return y


@pytest.mark.parametrize(
    ("with_zeros", "kind", "words"),
    [
        (False, "other input", "its input 1 is the state of layer_1 before each step"),
        (True, "steps", "the steps of its first input come one step too late"),
    ],
)
def test_attention_by_the_state_before_each_step_is_named(
    with_zeros: bool, kind: str, words: str
) -> None:
    gru = {"units": 3, "return_sequences": True}
    spec = model_of(
        (["m", "h"], ("GRU", {**gru, "return_state": True}), "x"),
        ("d", ("GRU", gru), "z", {"initial_state": ["@h"]}),
        ("a", ("Attention", {}), ["d", "m"]),
        inputs=[*FLOATS, ("z", "float", (6, 5))],
    )
    report = compare_spec(spec, _Decoder(spec, with_zeros=with_zeros))
    assert only_finding(report, "layer_2", kind).words.startswith(words)


class _Pooled(nn.Module):
    """Attention over steps by a softmax that leaves padding out, at once or afterwards."""

    def __init__(self, spec: ModelSpec, *, afterwards: bool) -> None:
        super().__init__()
        self.scores: Any = build_model(spec).get_submodule("layer_1")
        self.afterwards = afterwards

    def forward(self, x: Tensor) -> Tensor:
        counts = (x != 0).any(-1)
        scores = self.scores(x).flatten(1)
        if self.afterwards:
            shares = scores.softmax(1) * counts
            shares = shares / shares.sum(1, keepdim=True)
        else:
            shares = scores.masked_fill(~counts, -1e9).softmax(1)
        return (shares[..., None] * x).sum(1)


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_softmax_by_a_mask_that_keras_lost_is_named(*, afterwards: bool) -> None:
    spec = model_of(
        ("m", ("Masking", {}), "x"),
        ("s", ("Dense", {"units": 1}), "m"),
        ("f", ("Flatten", {}), "s"),
        ("a", ("Activation", {"activation": "softmax"}), "f"),
        ("r", ("Reshape", {"target_shape": (7, 1)}), "a"),
        ("d", ("Dot", {"axes": (1, 1)}), ["r", "x"]),
        ("y", ("Flatten", {}), "d"),
    )
    report = compare_spec(spec, _Pooled(spec, afterwards=afterwards))
    assert only_finding(report, "layer_3", "other mask").words == (
        "padding is left out of the softmax, by the mask of layer_0; Keras does not do that here"
    )


class _Scored(nn.Module):
    """Scores of each word of a text for each word of another; padding of the second is left out."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.words: Any = build_model(spec).get_submodule("words")

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x, y = (self.words(one.long()) for one in (a, b))
        x, y = (one if isinstance(one, Tensor) else one[0] for one in (x, y))
        scores = (x @ y.mT).masked_fill((b == 0)[:, None], -1e9)
        return scores.softmax(2) @ y


def test_a_softmax_by_the_mask_of_its_own_axis_is_named() -> None:
    """The scores (B, 7, 11) have a mask of the 11 keys in the port, and none in Keras."""
    spec = model_of(
        ("x", "words", "a"),
        ("y", "words", "b"),
        ("s", ("Dot", {"axes": (2, 2)}), ["x", "y"]),
        ("w", ("Softmax", {"axis": 2}), "s"),
        ("z", ("Dot", {"axes": (2, 1)}), ["w", "y"]),
        inputs=[("a", "ids", (7,)), ("b", "ids", (11,))],
        version="2.10.0",
        words=("Embedding", {"input_dim": 13, "output_dim": 3, "mask_zero": True}),
    )
    finding = only_finding(compare_spec(spec, _Scored(spec)), "layer_3", "other mask")
    assert "(along its own axis), by the mask of " in finding.words


class _Joined(nn.Module):
    """Two inputs as one batch of more rows."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        steps = torch.cat([x, y]).tanh().sigmoid().square()
        return torch.cat((steps.amax(1) * steps.amin(1)).chunk(2), -1)


@pytest.mark.thorough
def test_calls_that_are_one_in_the_port_are_not_blamed() -> None:
    tower = [
        step
        for name in "xz"
        for step in (
            (f"{name}1", ("Activation", {"activation": "tanh"}), name),
            (f"{name}2", ("Activation", {"activation": "sigmoid"}), f"{name}1"),
            (f"{name}3", ("Multiply", {}), [f"{name}2", f"{name}2"]),
            (f"{name}4", ("GlobalAveragePooling1D", {}), f"{name}3"),
        )
    ]
    spec = model_of(*tower, ("y", ("Concatenate", {}), ["x4", "z4"]), inputs=TWO)
    report = _compare_with_few_trials(spec, _Joined())
    assert told(report) == [(f"layer_{one}", "unexplained") for one in (3, 7)], report.lines()


class _Cut(nn.Module):
    """The first steps alone are read, where Keras takes them from what it has computed of all."""

    def __init__(self, spec: ModelSpec, steps: int, more: Tensor) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        names = [one for one in ("layer_0", "layer_1", "layer_2", "layer_3") if hasattr(whole, one)]
        places = (names[0], names[1], names[-1])
        self.layers = nn.ModuleList(whole.get_submodule(one) for one in places)
        self.steps, self.more = steps, more

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        y: Tensor = last(second(first(x[:, : self.steps])) + self.more)
        return y


@pytest.mark.parametrize(
    ("cropped", "more"), rest_thorough([(True, 0.0), (False, 0.0), (True, 0.25)], [(True, 0.0)])
)
def test_a_layer_that_is_given_a_part_of_the_steps_is_not_blamed(
    *, cropped: bool, more: float
) -> None:
    """``more``: a further mistake, in the same place, so that nothing explains what follows."""
    half = "GRU", {"units": 3, "return_sequences": cropped}
    cropping = [("Cropping1D", {"cropping": (0, 2)})] if cropped else []
    both = ("Bidirectional", {"layer": half})
    spec = chain_of(("Dense", {"units": 2}), both, *cropping, ("Dense", {"units": 11}))
    report = _compare_with_few_trials(spec, _Cut(spec, 5, more * torch.arange(6)))
    (finding,) = report.findings
    if more:
        assert (finding.layer, finding.kind) == ("layer_1", "unexplained"), report.lines()
        return
    assert finding.kind == "steps"
    assert (finding.layer, finding.words) == (
        ("layer_2", "its steps are cut off before layer_0 already, Keras does it here")
        if cropped
        else ("layer_0", "the first 5 of 7 steps alone are used from here on")
    )


class _Padded(nn.Module):
    """More steps are read than Keras has."""

    def __init__(self, spec: ModelSpec, front: int, back: int) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        self.layers = nn.Sequential(*(whole.get_submodule(f"layer_{n}") for n in range(3)))
        self.ends = (0, 0, front, back)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(nn.functional.pad(x, self.ends, value=0.5))
        return y


@pytest.mark.parametrize("front", [0, 2])
def test_steps_that_are_added_to_the_input_are_told_where_they_are_added(front: int) -> None:
    """The layer behind has the right values of all steps that Keras has."""
    both = ("Bidirectional", {"layer": ("GRU", {"units": 3})})
    spec = chain_of(("Dense", {"units": 2}), both, ("Dense", {"units": 11}))
    report = compare_spec(spec, _Padded(spec, front, 2 - front))
    where = "in front of" if front else "behind"
    assert (
        only_finding(report, "layer_0", "steps").words
        == f"2 steps of 0.5 {where} its input are read, too"
    )


class _Longer(nn.Module):
    """A convolution with windows of its own at the end of the rows."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        self.layers = nn.ModuleList(map(whole.get_submodule, ("layer_0", "layer_2", "layer_3")))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        y = first(torch.cat([x, x[:, :1] * x[:, 2:3]], 1))
        z: Tensor = last(second(y.tanh()))
        return z


@pytest.mark.thorough
def test_a_layer_is_blamed_of_which_the_port_has_more_windows() -> None:
    """The layers behind it are right in all steps that Keras has, too."""
    spec = chain_of(
        ("Conv1D", {"filters": 2, "kernel_size": 3}),
        ("Activation", {"activation": "tanh"}),
        ("Bidirectional", {"layer": ("GRU", {"units": 3})}),
        ("Dense", {"units": 11}),
    )
    only_finding(_compare_with_few_trials(spec, _Longer(spec)), "layer_0", "unexplained")


def _compare_with_few_trials(spec: ModelSpec, port: nn.Module, together: int = 0) -> Any:
    """Compare a port that nothing explains: mistakes are tried together only so often."""
    comparison = comparison_of(spec, port)
    comparison.together = repeat(None, together)
    report = comparison.report(batches(spec, None), None)
    assert list(comparison.together) == []
    return report


def test_mistakes_are_tried_together_only_so_often_in_one_comparison() -> None:
    spec = chain_of(("Dense", {"units": 2}), ("Dense", {"units": 11}))
    port = port_of(spec, layer_0=lambda right, x: right(x) * x[..., :2])
    finding = only_finding(_compare_with_few_trials(spec, port, 7), "layer_1", "unexplained")
    assert "no known mistake explains how" in finding.words


class _Ends(nn.Module):
    """The last states of both halves, where Keras has an attention over all steps."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        whole: Any = build_model(spec)
        self.steps, self.end = whole.get_submodule("layer_0"), whole.get_submodule("layer_7")

    def forward(self, x: Tensor) -> Tensor:
        y = self.steps(x)
        z: Tensor = self.end(torch.cat([y[:, -1, :3], y[:, 0, 3:]], -1))
        return z


@pytest.mark.thorough
def test_what_stands_for_several_layers_is_named_where_the_port_goes_on() -> None:
    half = ("LSTM", {"units": 3, "return_sequences": True})
    spec = model_of(
        ("b", ("Bidirectional", {"layer": half}), "x"),
        ("s", ("Dense", {"units": 1}), "b"),
        ("f", ("Flatten", {}), "s"),
        ("a", ("Activation", {"activation": "softmax"}), "f"),
        ("r", ("Reshape", {"target_shape": (7, 1)}), "a"),
        ("d", ("Dot", {"axes": (1, 1)}), ["r", "b"]),
        ("g", ("Flatten", {}), "d"),
        ("y", ("Dense", {"units": 11}), "g"),
    )
    finding = only_finding(compare_spec(spec, _Ends(spec)), "layer_6", "other layer")
    assert finding.words == "the last states (h_n) of layer_0 are in its place"
