"""Any layer, called in any way that torch has for its own: the numbers of the loop in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_layers import assert_close, native
from sampling import examples
from seen_operators import SeenOperators
from torch import Tensor, nn
from torch.autograd import forward_ad, functional
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import keras2torch_birnn as k2t
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.schema.merge_modes import MERGE_MODES

LAYERS: Mapping[str, Any] = {"LSTM": k2t.BiLSTM, "GRU": k2t.BiGRU, "SimpleRNN": k2t.BiRNN}
# Of the largest number. Sums of float32 products in another order than float64's, squared twice.
TOLERANCE = 1e-4

Weights = dict[str, Tensor]
# (weights, x, mask, states) -> outputs and final states
Model = Callable[[Weights, Tensor, Tensor | None, tuple[Tensor, ...]], list[Tensor]]


class Inputs(NamedTuple):
    weights: Weights
    x: Tensor
    mask: Tensor | None
    states: tuple[Tensor, ...]

    def numbers(self) -> list[Tensor]:
        """All that may have a gradient."""
        return [self.x, *self.states, *self.weights.values()]

    def with_numbers(self, numbers: Sequence[Tensor]) -> Inputs:
        end = 1 + len(self.states)
        weights = dict(zip(self.weights, numbers[end:], strict=True))
        return Inputs(weights, numbers[0], self.mask, tuple(numbers[1:end]))

    def to(self, dtype: torch.dtype) -> Inputs:
        return self.with_numbers([t.to(dtype) for t in self.numbers()])

    def leaves(self) -> Inputs:
        return self.with_numbers([t.detach().clone().requires_grad_() for t in self.numbers()])


def flat(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in flat(part)]


def loss(result: Sequence[Tensor]) -> Tensor:
    return torch.stack([r.square().sum() for r in result]).sum()


# ---- one number, many tensors that hold it ------------------------------------------------------


class Named(Tensor):
    """A subclass with memory."""


def conjugate(t: Tensor) -> Tensor:
    return torch.complex(torch.zeros_like(t), -t).conj().imag


DISGUISES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda t: t,
    "negated": lambda t: torch._neg_view(-t),
    "conjugated": conjugate,
    "strided": lambda t: torch.stack((t, t + 1), dim=-1)[..., 0],
    "turned": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "subclass": lambda t: t.as_subclass(Named),
}


def model_of(module: nn.Module, disguises: Mapping[str, str]) -> Model:
    """The module as a function, which gets its inputs in disguise."""

    def call(
        weights: Weights, x: Tensor, mask: Tensor | None, states: tuple[Tensor, ...]
    ) -> list[Tensor]:
        of_x, of_states, of_weights = (
            DISGUISES[disguises.get(name, "none")] for name in ("x", "states", "weights")
        )
        hx: Any = tuple(of_states(s) for s in states)
        hx = None if not hx else hx if len(hx) == 2 else hx[0]
        given = {name: of_weights(w) for name, w in weights.items()}
        result = functional_call(module, given, (of_x(x), hx), {"mask": mask})
        return [t.as_subclass(Tensor) for t in flat(result)]

    return call


# ---- ways to call, and each by plain means ------------------------------------------------------


def forward(model: Model, given: Inputs) -> list[Tensor]:
    return model(*given)


def without_gradients(model: Model, given: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return model(*given)


def in_inference_mode(model: Model, given: Inputs) -> list[Tensor]:
    with torch.inference_mode():
        return [t.clone() for t in model(*given)]


def backward(model: Model, given: Inputs) -> list[Tensor]:
    given = given.leaves()
    result = model(*given)
    return [*result, *torch.autograd.grad(loss(result), given.numbers())]


def in_a_checkpoint(model: Model, given: Inputs) -> list[Tensor]:
    given = given.leaves()

    def again(*numbers: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(*given.with_numbers(numbers)))

    result: Any = checkpoint(again, *given.numbers(), use_reentrant=False)
    return [*result, *torch.autograd.grad(loss(result), given.numbers())]


def with_tensors_saved_elsewhere(model: Model, given: Inputs) -> list[Tensor]:
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone):
        return backward(model, given)


def under_a_mode(model: Model, given: Inputs) -> list[Tensor]:
    with SeenOperators():
        return backward(model, given)


def twice(model: Model, given: Inputs) -> list[Tensor]:
    given = given.leaves()
    first = torch.autograd.grad(loss(model(*given)), given.numbers(), create_graph=True)
    return [*first, *torch.autograd.grad(loss(first), given.numbers())]


def several(given: Inputs, result: Sequence[Tensor]) -> Tensor:
    return torch.stack([result[0] * 0 + k for k in (1.0, -2.0, 0.5)]).detach()


def by_a_batch_of_gradients(model: Model, given: Inputs) -> list[Tensor]:
    given = given.leaves()
    result = model(*given)
    many = several(given, result)
    return list(torch.autograd.grad(result[0], given.numbers(), many, is_grads_batched=True))


def one_gradient_after_the_other(model: Model, given: Inputs) -> list[Tensor]:
    given = given.leaves()
    result = model(*given)
    found = [
        torch.autograd.grad(result[0], given.numbers(), one, retain_graph=True)
        for one in several(given, result)
    ]
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def jacobian(vectorize: bool) -> Callable[[Model, Inputs], list[Tensor]]:
    def compute(model: Model, given: Inputs) -> list[Tensor]:
        def of_x(x: Tensor) -> Tensor:
            return model(given.weights, x, given.mask, given.states)[0]

        return [functional.jacobian(of_x, given.x, vectorize=vectorize)]

    return compute


def hessian(vectorize: bool) -> Callable[[Model, Inputs], list[Tensor]]:
    def compute(model: Model, given: Inputs) -> list[Tensor]:
        def of_x(x: Tensor) -> Tensor:
            return loss(model(given.weights, x, given.mask, given.states))

        return [functional.hessian(of_x, given.x, vectorize=vectorize)]

    return compute


def directions(given: Inputs) -> list[Tensor]:
    return [
        torch.sin(torch.arange(t.numel(), dtype=t.dtype)).view(t.shape) for t in given.numbers()
    ]


def by_duals(model: Model, given: Inputs) -> list[Tensor]:
    with forward_ad.dual_level():
        numbers = [
            forward_ad.make_dual(t, d)
            for t, d in zip(given.numbers(), directions(given), strict=True)
        ]
        return tangents(model(*given.with_numbers(numbers)))


def by_duals_of_weights_alone(model: Model, given: Inputs) -> list[Tensor]:
    with forward_ad.dual_level(), torch.no_grad():
        weights = {
            name: forward_ad.make_dual(w, torch.ones_like(w)) for name, w in given.weights.items()
        }
        return tangents(model(weights, *given[1:]))


def tangents(result: Sequence[Tensor]) -> list[Tensor]:
    unpacked = [forward_ad.unpack_dual(r) for r in result]
    return [t for pair in unpacked for t in (pair.primal, pair.tangent)]


def by_func_jvp(model: Model, given: Inputs) -> list[Tensor]:
    def of_numbers(*numbers: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(*given.with_numbers(numbers)))

    result, slopes = jvp(of_numbers, tuple(given.numbers()), tuple(directions(given)))
    return [t for pair in zip(result, slopes, strict=True) for t in pair]


def by_two_backwards(only_weights: bool) -> Callable[[Model, Inputs], list[Tensor]]:
    def compute(model: Model, given: Inputs) -> list[Tensor]:
        def of_numbers(*numbers: Tensor) -> tuple[Tensor, ...]:
            return tuple(model(*given.with_numbers(numbers)))

        along = directions(given)
        if only_weights:
            others = 1 + len(given.states)
            along = [
                torch.zeros_like(d) if i < others else torch.ones_like(d)
                for i, d in enumerate(along)
            ]
        result, slopes = functional.jvp(of_numbers, tuple(given.numbers()), tuple(along))
        return [t for pair in zip(result, slopes, strict=True) for t in pair]

    return compute


def in_two_versions(given: Inputs) -> tuple[Tensor, Tensor | None]:
    masks = None if given.mask is None else torch.stack((given.mask, given.mask.flip(0)))
    return torch.stack((given.x, given.x * 0.5)), masks


def mapped(model: Model, given: Inputs) -> list[Tensor]:
    x, mask = in_two_versions(given)
    dims = (None, 0, None if mask is None else 0, None)
    return list(vmap(lambda *one: tuple(model(*one)), dims)(given.weights, x, mask, given.states))


def one_by_one(model: Model, given: Inputs) -> list[Tensor]:
    x, masks = in_two_versions(given)
    found = [
        model(given.weights, x[k], None if masks is None else masks[k], given.states)
        for k in range(2)
    ]
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


def mapped_gradients(model: Model, given: Inputs) -> list[Tensor]:
    x, mask = in_two_versions(given)

    def of_weights(weights: Weights, x: Tensor, mask: Tensor | None) -> Tensor:
        return loss(model(weights, x, mask, given.states))

    dims = (None, 0, None if mask is None else 0)
    return list(vmap(grad(of_weights), dims)(given.weights, x, mask).values())


def gradients_one_by_one(model: Model, given: Inputs) -> list[Tensor]:
    x, masks = in_two_versions(given)
    given, found = given.leaves(), []
    for k in range(2):
        mask = None if masks is None else masks[k]
        result = model(given.weights, x[k], mask, given.states)
        found.append(torch.autograd.grad(loss(result), list(given.weights.values())))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


class Way(NamedTuple):
    """A way to call a model, and the same by plain means.

    native: whether the kernel may take part. by_torch: it asks for gradients of gradients, or for
    batches of them, which the kernel refuses: the engine is torch's.
    """

    call: Callable[[Model, Inputs], list[Tensor]]
    plain: Callable[[Model, Inputs], list[Tensor]]
    native: bool = True
    by_torch: bool = False


WAYS: Mapping[str, Way] = {
    "forward": Way(forward, forward),
    "no_grad": Way(without_gradients, forward),
    "inference_mode": Way(in_inference_mode, forward),
    "backward": Way(backward, backward),
    "checkpoint": Way(in_a_checkpoint, backward),
    "saved tensors": Way(with_tensors_saved_elsewhere, backward),
    "dispatch mode": Way(under_a_mode, backward, native=False),
    "double backward": Way(twice, twice, by_torch=True),
    "is_grads_batched": Way(by_a_batch_of_gradients, one_gradient_after_the_other, by_torch=True),
    "jacobian": Way(jacobian(vectorize=True), jacobian(vectorize=False), by_torch=True),
    "hessian": Way(hessian(vectorize=True), hessian(vectorize=False), by_torch=True),
    "duals": Way(by_duals, by_two_backwards(only_weights=False), native=False),
    "duals of weights": Way(
        by_duals_of_weights_alone, by_two_backwards(only_weights=True), native=False
    ),
    "func.jvp": Way(by_func_jvp, by_two_backwards(only_weights=False), native=False),
    "vmap": Way(mapped, one_by_one, native=False),
    "per-sample gradients": Way(mapped_gradients, gradients_one_by_one, native=False),
}
PLAIN = {"none", "strided", "turned"}

MASKS: Mapping[str, Callable[[int, int], Tensor | None]] = {
    "none": lambda batch, time: None,
    "right": lambda batch, time: torch.arange(time) <= torch.arange(batch)[:, None] % time,
    "left": lambda batch, time: torch.arange(time) >= torch.arange(batch)[:, None] % time,
    "gaps": lambda batch, time: (torch.arange(time) + torch.arange(batch)[:, None]) % 3 != 1,
    "an empty row": lambda batch, time: torch.arange(time) < torch.arange(batch)[:, None] * 2,
    "nothing": lambda batch, time: torch.zeros(batch, time, dtype=torch.bool),
}


# Options that a class does not have.
LACKING: Mapping[str, tuple[str, ...]] = {
    "LSTM": ("reset_after",),
    "GRU": (),
    "SimpleRNN": ("reset_after", "recurrent_activation"),
}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    disguised = st.sampled_from(list(DISGUISES))
    return {
        "cell": draw(st.sampled_from(list(LAYERS))),
        "options": {
            "activation": draw(st.sampled_from(("tanh", "tanh", "relu", "softsign", "silu"))),
            "recurrent_activation": draw(st.sampled_from(("sigmoid", "hard_sigmoid_0.2"))),
            "reset_after": draw(st.booleans()),
            "num_layers": draw(st.sampled_from((1, 1, 2))),
            "bias": draw(st.booleans()),
            "merge_mode": draw(st.sampled_from(list(MERGE_MODES))),
            "engine": draw(st.sampled_from((None, None, "torch", "loop", "native"))),
        },
        "sizes": [draw(st.sampled_from(sizes)) for sizes in ((2, 3), (3, 5), (1, 5), (3, 7, 16))],
        "mask": draw(st.sampled_from(list(MASKS))),
        "garbage": draw(st.sampled_from((0.0, float("nan"), float("inf")))),
        "states": draw(st.booleans()),
        "training": draw(st.booleans()),
        "disguises": {name: draw(disguised) for name in ("x", "states", "weights")},
        "way": draw(st.sampled_from(list(WAYS))),
        "seed": draw(st.integers(0, 9)),
    }


def built(case: Mapping[str, Any]) -> tuple[nn.Module, nn.Module, Inputs]:
    """A layer, its reference in float64, and what both are given."""
    batch, time, features, units = case["sizes"]
    torch.manual_seed(case["seed"])
    lacking = LACKING[case["cell"]]
    options = {name: value for name, value in case["options"].items() if name not in lacking}
    module = LAYERS[case["cell"]](features, units, batch_first=True, **options)
    module.train(case["training"])
    reference = deepcopy(module).double()
    reference.engine = "loop"
    count = (2 if case["cell"] == "LSTM" else 1) if case["states"] else 0
    number = 2 * case["options"]["num_layers"]
    states = tuple(torch.randn(number, batch, units) for _ in range(count))
    weights = {name: w.detach().clone() for name, w in module.named_parameters()}
    mask = MASKS[case["mask"]](batch, time)
    return module, reference, Inputs(weights, torch.randn(batch, time, features), mask, states)


@native
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet impl")
@settings(max_examples=examples(80), deadline=None)
@given(case=cases())
def test_every_way_to_call_a_layer_gives_the_numbers_of_the_loop(case: dict[str, Any]) -> None:
    module, reference, given = built(case)
    way, disguises = WAYS[case["way"]], case["disguises"]
    wanted = way.plain(model_of(reference, {}), given.to(torch.float64))
    if given.mask is not None and way.call not in (mapped, mapped_gradients):
        given = given._replace(x=given.x.masked_fill(~given.mask[..., None], case["garbage"]))
    if way.call in (mapped, mapped_gradients):  # torch cannot map a lazy negation
        disguises = {}
    if way.by_torch:
        module.engine = "torch"
    plain = way.native and PLAIN.issuperset(disguises.values())
    try:
        got = way.call(model_of(module, disguises), given)
    except UsageError as error:
        assert case["options"]["engine"] == "native"
        assert "plain tensor" in str(error)
        assert not plain
    else:
        assert_close(got, wanted, TOLERANCE)
