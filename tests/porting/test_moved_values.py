"""Values that are moved, clipped or scaled by numbers that are in no table are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from wrong_ports import (
    IDS,
    TWO,
    chain_of,
    compare_spec,
    compare_with,
    model_of,
    normalize_last,
    only_finding,
)

from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.porting.observing import PortRun, Seen

DENSE = ("Dense", {"units": 11, "activation": "tanh"}), ("Dense", {"units": 3})


def _before(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda right, x: right(change(x))


def _after(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    return lambda right, x: change(right(x))


def _between(x: Tensor) -> Tensor:
    low, high = x.amin((1, 2), keepdim=True), x.amax((1, 2), keepdim=True)
    return (x - low) / (high - low)


# What is changed: what Dense gives before its tanh, what the second Dense reads, and the first one
@pytest.mark.parametrize(
    ("layer", "wrong", "kind", "words"),
    [
        (1, _before(lambda y: y.clamp(-0.31, 0.37)), "extra", "at least -0.31 and at most 0.3"),
        (1, _before(lambda y: y.clamp(max=0.37)), "extra", "its output is clipped: at most 0."),
        (0, _after(lambda y: 1.37 * y), "scale", "its tanh reads is multiplied by 1.37"),
        (1, _before(lambda y: y.roll(1, 1)), "steps", "one step too late, the last one first"),
        (1, _before(lambda y: y.roll(1, -1)), "flipped", "is moved by one feature, the last"),
        (0, _before(lambda x: x[..., [3, 0, 4, 1, 2]]), "flipped", "order 3, 0, 4, 1, 2"),
        (0, _before(_between), "extra", "its input is brought to 0 to 1"),
        (0, _before(lambda x: x / x.abs().max()), "extra", "divided by the largest absolute"),
    ],
)
def test_values_are_named(layer: int, wrong: Callable[..., Any], kind: str, words: str) -> None:
    report = compare_with(chain_of(*DENSE), **{f"layer_{layer}": wrong})
    at = layer if kind in ("steps", "flipped") else 0
    assert words in only_finding(report, f"layer_{at}", kind).words


def test_bounds_and_orders_are_those_of_another_tensor() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double().numpy()
    moved, clipped = x[:, [2, 0, 1]], x.clip(-0.3, None)
    run = PortRun((), (Seen(x, ""), Seen(moved, ""), Seen(clipped, "")), 1e-9)
    assert list(run.orders(x)) == [(2, 0, 1)]
    ((low, high),) = run.bounds(x)
    assert low == pytest.approx(-0.3)
    assert high is None
    assert list(run.bounds(x[:1, :2])) == []


def test_a_normalization_behind_a_pooling_is_named() -> None:
    """With a negative gamma the largest value is no longer the largest one."""
    pooling = ("MaxPooling1D", {"pool_size": 2})
    spec = chain_of(("BatchNormalization", {}), pooling, ("GRU", {"units": 3}))
    right: Any = build_model(spec)
    report = compare_with(
        spec,
        layer_0=lambda _, x: x,
        layer_1=lambda pool, x: normalize_last(right.layer_0.to(x), pool(x)),
    )
    only_finding(report, "layer_0", "order")


WORDS = ("Embedding", {"input_dim": 13, "output_dim": 5, "mask_zero": True})
READ = (WORDS, ("LSTM", {"units": 3}))


class _Read(nn.Module):
    """A right port of ids that are changed before it reads them."""

    def __init__(self, right: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.right, self.change = right, change

    def forward(self, ids: Tensor) -> Any:
        return self.right(self.change(ids))


def _turned(ids: Tensor) -> Tensor:
    turned = ids.clone()
    for row in turned:
        row[row != 0] = row[row != 0].flip(0)
    return turned


@pytest.mark.parametrize("change", [lambda ids: ids.flip(1), _turned], ids=["all", "words"])
def test_reversed_ids_are_named(change: Callable[[Tensor], Tensor]) -> None:
    """The last state is the same wherever the padding is."""
    spec = chain_of(*READ, inputs=IDS)
    (finding,) = compare_spec(spec, _Read(build_model(spec), change)).findings
    assert (finding.layer, finding.words) == ("layer_0", "its ids come in reversed order")


def test_rows_that_are_shortened_are_named() -> None:
    def shortened(right: Any, ids: Tensor) -> Tensor:
        return functional.embedding(ids.long(), right.weight.clone(), max_norm=0.5)

    report = compare_with(chain_of(*READ, inputs=IDS), layer_0=shortened)
    assert "longer than 0.5" in only_finding(report, "layer_0", "max_norm").words


def test_initial_states_of_another_layer_are_named() -> None:
    whole = ("LSTM", {"units": 3, "return_sequences": True, "return_state": True})
    spec = model_of(
        (["a", "h", "c"], whole, "x"),
        (["b", "i", "d"], whole, "a"),
        ("y", ("LSTM", {"units": 3}), "z", {"initial_state": ["@i", "@d"]}),
        inputs=TWO,
    )

    def told_of(states: Callable[..., Any]) -> str:
        kept: dict[str, Any] = {}

        def keep(right: Any, *given: Any, **more: Any) -> Any:
            kept["first"] = right(*given, **more)
            return kept["first"]

        def start(right: Any, x: Tensor, initial_state: Any = None, **more: Any) -> Any:
            return right(x, initial_state=states(kept["first"], initial_state), **more)

        report = compare_with(spec, layer_0=keep, layer_2=start)
        return only_finding(report, "layer_2", "other state").words

    words = told_of(lambda first, _: list(first[1:]))
    assert words == "it starts with the last states of layer_0, Keras with others"
    words = told_of(lambda first, own: [first[0].mean(1), own[1]])
    assert words.startswith(
        "its initial state 1 is the mean of all steps of the output 1 of layer_0"
    )


class _Causal(nn.Module):
    """Attention of several heads to earlier steps, with a softmax over some axis."""

    def __init__(self, weights: dict[str, Any], axis: int) -> None:
        super().__init__()
        self.weights = {name: torch.tensor(array) for name, array in weights.items()}
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        w = {name: array.to(x) for name, array in self.weights.items()}
        q, k, v = (
            torch.einsum("btd,dnw->bntw", x, w[f"{name}/kernel"]) + w[f"{name}/bias"][:, None]
            for name in ("query", "key", "value")
        )
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -1e9)
        attended = scores.softmax(self.axis) @ v
        projected = torch.einsum("bntw,nwd->btd", attended, w["attention_output/kernel"])
        return projected + w["attention_output/bias"]


def test_a_formula_beside_a_causal_mask_is_named() -> None:
    heads = ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3})
    spec = model_of(("y", heads, ("x", "x"), {"use_causal_mask": True}))
    weights = dict(spec.graph.layer("layer_0").weights)
    assert compare_spec(spec, _Causal(weights, -1)).ok
    finding = only_finding(compare_spec(spec, _Causal(weights, -2)), "layer_0", "formula")
    assert finding.words.startswith("softmax over the queries")


def test_a_mistake_of_a_port_in_numpy_is_named_by_its_outputs() -> None:
    spec = chain_of(*DENSE)
    first, second = (
        {name: np.array(array) for name, array in spec.graph.layer(path).weights.items()}
        for path in ("layer_0", "layer_1")
    )

    class Port(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            hidden = np.tanh(x.numpy() @ first["kernel"] + first["bias"])
            return torch.from_numpy(hidden @ second["kernel"] + 2 * second["bias"])

    only_finding(compare_spec(spec, Port()), "layer_1", "bias doubled")
