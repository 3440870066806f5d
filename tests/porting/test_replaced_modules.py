"""Ports that are right but for one module: what is in its place is named."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from specs import FIXTURES
from torch import Tensor, nn
from torch.nn import functional
from wrong_ports import (
    Wrong,
    compare_with,
    normalize_last,
    only_finding,
    port_of,
    told,
    torchs_lstm,
)

import keras2torch_birnn as k2t
from keras2torch_birnn.porting.batches import batches
from keras2torch_birnn.readers import read_model

FOLDER = FIXTURES / "tf.keras-2.15.0"


# ---- what the port computes instead --------------------------------------------------------------


def layer_norm(variance: Callable[[Tensor], Tensor], axes: tuple[int, ...] = (-1,)) -> Wrong:
    def run(right: Any, x: Tensor) -> Tensor:
        centered = x - x.mean(axes, keepdim=True)
        return centered / torch.sqrt(variance(x) + right.eps) * right.weight

    return run


def by_deviation(right: Any, x: Tensor) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / (x.std(-1, keepdim=True) + right.eps) * right.weight


def convolution(dilation: int, before: int, after: int, mode: str = "constant") -> Wrong:
    def run(right: Any, x: Tensor) -> Tensor:
        padded = functional.pad(x.mT, (before, after), mode=mode)
        return functional.conv1d(padded, right.weight, right.bias, dilation=dilation).mT

    return run


def averaged_with_zeros(_: Any, x: Tensor) -> Tensor:
    return functional.avg_pool1d(functional.pad(x.mT, (0, 1)), 3, 2).mT


def averaged_from_the_start(_: Any, x: Tensor) -> Tensor:
    """Pad rows in front where Keras pads them behind; columns need no padding."""
    image = x.movedim(-1, 1)
    padded, ones = (functional.pad(y, (0, 0, 1, 0)) for y in (image, torch.ones_like(image)))
    means = functional.avg_pool2d(padded, (2, 3)) / functional.avg_pool2d(ones, (2, 3))
    return means.movedim(1, -1)


def averaged_to_the_end(right: Any, x: Tensor) -> Tensor:
    return torch.cat([right(x), x[:, -1:]], 1)


def one_late(right: Any, ids: Tensor) -> Tensor:
    return right(functional.pad(ids, (1, -1)))


def starting(h: float, c: float) -> Wrong:
    def run(right: Any, x: Tensor) -> Tensor:
        states = [torch.full((len(x), right.hidden_size), value) for value in (h, c)]
        return right(x, initial_state=tuple(states))

    return run


def twice(right: Any, x: Tensor) -> Tensor:
    return right(right(x))


def zeros(right: Any, *args: Any) -> Any:
    return torch.zeros_like(right(*args))


def halves_exchanged(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    return right(x, mask=mask).roll(right.hidden_size, -1)


def attend(right: Any, query: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Compute attention in two heads without masks."""
    scores, v = project(right, query, value)
    return join(right, scores.softmax(-1), v)


def project(right: Any, query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of two heads (B, N, Q, K), and their values (B, K, N, W)."""
    q, k, v = (
        functional.linear(x, one.weight, one.bias).reshape(*x.shape[:2], 2, -1)
        for x, one in ((query, right.query), (value, right.key), (value, right.value))
    )
    return torch.einsum("bqnw,bknw->bnqk", q, k) / q.shape[-1] ** 0.5, v


def join(right: Any, shares: Tensor, v: Tensor) -> Tensor:
    y = torch.einsum("bnqk,bknw->bqnw", shares, v).flatten(2)
    return functional.linear(y, right.attention_output.weight, right.attention_output.bias)


def late_in_one_half(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Use the mask in the backward half alone."""
    forward, _ = right(x).chunk(2, -1)
    _, backward = right(x, mask=mask).chunk(2, -1)
    return torch.cat([forward, backward], -1)


def sorted_rows(right: Any, x: Tensor, mask: Tensor) -> Tensor:
    """Read the longest rows first, and leave them there."""
    order = mask.sum(1).argsort(descending=True, stable=True)
    return right(x[order], mask=mask[order])


def viewed_states(right: Any, x: Tensor, *given: Any, **more: Any) -> Tensor:
    """View h_n (2, B, H) as (B, 2 H)."""
    halves = right(x, *given, **more).chunk(2, -1)
    return torch.stack(halves).reshape(len(x), -1)


def filters_first(right: Any, x: Tensor) -> Tensor:
    """Give the channels between both kernels filter by filter."""
    y = right.depthwise(x)
    moved = y.unflatten(-1, (x.shape[-1], -1)).mT.flatten(-2)
    return right.pointwise(moved)


def filters_written_first(right: Any, x: Tensor) -> Tensor:
    """Take the kernel for one whose filters come first."""
    with torch.no_grad():
        kernel = right.depthwise.weight  # (channels * filters, 1, K)
        moved = kernel.unflatten(0, (x.shape[-1], -1)).transpose(0, 1).flatten(0, 1)
        right.depthwise.weight = nn.Parameter(moved)
    y: Tensor = right(x)
    with torch.no_grad():
        right.depthwise.weight = nn.Parameter(kernel)
    return y


def with_positions(right: Any, ids: Tensor) -> Tensor:
    """Add a position encoding."""
    x: Tensor = right(ids)
    steps, width = torch.arange(x.shape[1]), torch.arange(x.shape[2])
    return x + torch.sin(steps[:, None] / (1 + width)).to(x)


def in_bfloat16(right: Any, x: Tensor) -> Tensor:
    """Compute a layer in bfloat16 throughout."""
    half = deepcopy(right).to(torch.bfloat16)
    y: Tensor = half(x.to(torch.bfloat16)).to(x.dtype)
    return y


def on_weights(change: Callable[[Tensor], Tensor], *names: str) -> Wrong:
    """Compute with other weights: those of these names, at any depth."""

    def run(right: Any, *given: Any, **more: Any) -> Any:
        other = deepcopy(right)
        with torch.no_grad():
            for name, weight in other.named_parameters():
                if name.rpartition(".")[2] in names:
                    weight.copy_(change(weight))
        return other(*given, **more)

    return run


def exchanged_gates(right: Any, x: Tensor) -> Any:
    """Exchange f and the new values."""

    def exchanged(w: Tensor) -> Tensor:
        i, f, new, o = w.chunk(4)
        return torch.cat([i, new, f, o])

    return on_weights(exchanged, "weight_ih", "weight_hh", "bias")(right, x)


def in_call(number: int, wrong: Wrong) -> Wrong:
    """Make a mistake in this call alone, of two in each run."""
    calls: list[Any] = []

    def run(right: Any, *given: Any, **more: Any) -> Any:
        calls.append(right)
        at = (len(calls) - 1) % 2 == number
        return wrong(right, *given, **more) if at else right(*given, **more)

    return run


def additive(activation: Callable[[Tensor], Tensor]) -> Wrong:
    """Attend by sums of query and key without masks."""

    def run(right: Any, given: Any, **_: Any) -> Tensor:
        query, value = given[:2]
        sums = activation(query[:, :, None] + value[:, None])
        scale = next(iter(right.parameters()), torch.ones(()))
        return (sums * scale).sum(-1).softmax(-1) @ value

    return run


def masked_after(right: Any, query: Tensor, value: Tensor, **masks: Any) -> Tensor:
    """Set the shares of padding to zero after the softmax."""
    given = masks["mask"]
    valid = (given[1] if isinstance(given, tuple | list) else given).to(value)
    scores, v = project(right, query, value)
    return join(right, scores.softmax(-1) * valid[:, None, None], v)


def one_higher(right: Any, ids: Tensor, **more: Any) -> Any:
    return right((ids + 1).clamp(max=right.weight.shape[0] - 1), **more)


def by_features(right: Any, x: Tensor) -> Tensor:
    """Normalize (B, C, T) as LayerNorm does, with the weights of a BatchNorm."""
    y = functional.layer_norm(x.mT, x.mT.shape[-1:], right.weight, right.bias, right.eps)
    return y.mT


def in_groups(count: int) -> Wrong:
    def run(right: Any, x: Tensor) -> Tensor:
        return normalize_last(
            lambda y: functional.group_norm(y, count, right.weight, right.bias, right.eps), x
        )

    return run


def in_groups_of_each_step(right: Any, x: Tensor) -> Tensor:
    steps = x.flatten(0, 1)
    y = functional.group_norm(steps, right.groups, right.weight, right.bias, right.eps)
    return y.view(x.shape)


def with_one_weight(name: str, factor: float) -> Wrong:
    """Multiply the tensors of one module inside."""

    def run(right: Any, *given: Any, **more: Any) -> Any:
        other = deepcopy(right)
        with torch.no_grad():
            for tensor in other.get_submodule(name).parameters():
                tensor.mul_(factor)
        return other(*given, **more)

    return run


def averaged_heads(right: Any, *given: Any, **more: Any) -> Any:
    bias = right.attention_output.bias
    y: Tensor = right(*given, **more) - bias
    return y / right.plan.heads + bias


def handing_on(right: Any, x: Tensor) -> Tensor:
    """Start the backward half where the forward half ends."""
    lstm = torchs_lstm(right, x)
    _, ends = lstm(x)
    y, _ = lstm(x, tuple(torch.stack([0 * end[0], end[0]]) for end in ends))
    return y


def early_state(right: Any, x: Tensor) -> Tensor:
    """Pad the state of a ConvLSTM with an even kernel in front."""
    h = c = x.new_zeros(len(x), right.weight_hh.shape[1], x.shape[2])
    outputs = []
    for step in x.unbind(1):
        given = functional.conv1d(functional.pad(step.mT, (0, 1)), right.weight_ih, right.bias)
        z = given + functional.conv1d(functional.pad(h, (1, 0)), right.weight_hh)
        i, f, new, o = z.chunk(4, 1)
        gate = right.recurrent_activation
        c = gate(f) * c + gate(i) * right.activation(new)
        h = gate(o) * right.activation(c)
        outputs.append(h.mT)
    return torch.stack(outputs, 1)


def without_mean(right: Any, x: Tensor) -> Any:
    return right(x - x.mean(-1, keepdim=True))


VARIANCE = layer_norm(lambda x: x.var(-1, keepdim=True))
OVER_STEPS = layer_norm(lambda x: x.var((1, 2), keepdim=True, unbiased=False), (1, 2))
NORM, CONV, POOL = "layer_normalization_1", "conv1d", "global_average_pooling1d"
BI, HEADS = "bidirectional", FOLDER / "arch_multi_head.h5"
WORDS = FOLDER / "arch_toxic.keras"
NORMS = FOLDER / "layernorm.keras"
POOLS, IMAGE_POOLS = FOLDER / "pool.keras", FOLDER / "around_pool2.h5"
CROSS = FOLDER / "heads_cross.keras"
SEPARABLE = FOLDER / "around_separable1.keras"
SLOPES, PAIR = FOLDER / "prelu_negative.h5", FOLDER / "arch_siamese.h5"
IMAGES = FIXTURES / "keras-2.2.4/around_conv2_first.h5"
BAHDANAU = FIXTURES / "keras-3.15.1/arch_seq2seq_bahdanau.h5"
GROUPS = FIXTURES / "keras-3.15.1/around_groupnorm.h5"
SQUARES = FIXTURES / "keras-3.15.1/around_rmsnorm.h5"
JOINT, LAST = FOLDER / "arch_joint.h5", FOLDER / "plain_lstm_last.keras"
JOINED, RESCALED = FOLDER / "bi_lstm_concat_seq.h5", FOLDER / "around_rescaling.keras"
DILATED = FOLDER / "conv_causal_dilated.h5"
ROWS: tuple[tuple[Path, str, Wrong, str, str], ...] = (
    (NORMS, NORM, VARIANCE, "formula", "divides by n - 1"),
    (NORMS, NORM, by_deviation, "formula", "torch.std"),
    (NORMS, NORM, OVER_STEPS, "axis", "over all axes but the batch"),
    (FOLDER / "softmax_layer.h5", "softmax", lambda _, x: x.softmax(0), "axis", "over the batch"),
    (FOLDER / "softmax_layer.h5", "softmax", lambda _, x: x.sigmoid(), "activation", "sigmoid"),
    (DILATED, CONV, convolution(1, 2, 0), "dilation", "its dilation is 1, Keras has 2"),
    (DILATED, CONV, convolution(2, 1, 3), "convolution padding", "it pads 1 step in front"),
    (DILATED, CONV, convolution(2, 4, 0, "replicate"), "convolution padding", "replicate"),
    (POOLS, "average_pooling1d_1", averaged_with_zeros, "pooling padding", "zeros of its padding"),
    (IMAGE_POOLS, "average_pooling2d", averaged_from_the_start, "pooling padding", "pads in front"),
    (POOLS, "average_pooling1d", averaged_to_the_end, "pooling padding", "not full counts, too"),
    (LAST, "lstm", starting(1.0, 0.0), "initial state", "h of ones"),
    (LAST, "lstm", lambda right, x: right(x[:, :-1]), "last state", "last step but one"),
    (
        FOLDER / "graph_seq2seq.h5",
        "lstm_1",
        lambda right, x, initial_state, mask: right(
            x, initial_state=(initial_state[0], torch.zeros_like(initial_state[1])), mask=mask
        ),
        "initial state",
        "c is not used",
    ),
    (DILATED, CONV, lambda right, x: right(x / 255), "extra", "input is multiplied by 0.00392157"),
    (NORMS, "layer_normalization_1", twice, "extra", "it is applied twice"),
    (HEADS, "multi_head_attention", attend, "mask missing", "padding is attended to"),
    (HEADS, BI, late_in_one_half, "mask missing", "forward half"),
    (FOLDER / "mask_bi_lstm_seq.h5", BI, sorted_rows, "rows", "sorted by their lengths"),
    (
        RESCALED,
        "rescaling",
        lambda right, x: right(x) - right(0 * x),
        "formula",
        "computes x scale",
    ),
    (
        FOLDER / "mask_repeat.h5",
        "repeat_vector",
        lambda right, x: x.repeat_interleave(right.n, 1).view(len(x), right.n, -1),
        "repeated",
        "each feature is repeated",
    ),
    (NORMS, NORM, lambda right, x: right(x).half().to(x.dtype), "extra", "float16"),
    (SEPARABLE, "separable_conv1d_1", filters_first, "axes", "come filter by filter"),
    (SEPARABLE, "separable_conv1d_1", filters_written_first, "axes", "the filter before the"),
    (FOLDER / "conv_same.h5", "conv1d", in_bfloat16, "extra", "it is rounded to bfloat16"),
    (
        FIXTURES / "tf_keras-2.21.0/arch_siamese_cosine.keras",
        "dot",
        lambda _, pair: (pair[0] * pair[1]).sum(-1, keepdim=True),
        "normalize",
        "it does not normalize its inputs",
    ),
    (WORDS, "embedding", with_positions, "extra", "the same values are added to its output"),
    (DILATED, CONV, convolution(4, 8, 0), "dilation", "its dilation is 4, Keras has 2"),
    (NORMS, NORM, lambda right, x: 0.7 * right(x) + 0.3, "extra", "0.7 and 0.3 is added"),
    (WORDS, "embedding", one_late, "steps", "its ids come one step too late"),
    (WORDS, "global_max_pooling1d", zeros, "left out", "zeros are"),
    (SLOPES, "p_re_lu", on_weights(lambda w: 0 * w + 0.25, "weight"), "slope", "0.25"),
    (IMAGES, "conv2d_1", on_weights(lambda w: w.flip(-1, -2), "weight"), "direction", "both axes"),
    (GROUPS, "group_normalization", in_groups(2), "groups", "2 groups"),
    (GROUPS, "group_normalization", in_groups_of_each_step, "axis", "variance of each step"),
    (
        CROSS,
        "multi_head_attention",
        with_one_weight("query", (5 / 7) ** 0.5),
        "scale",
        "the root of value_dim",
    ),
    (CROSS, "multi_head_attention", averaged_heads, "projection", "the heads are averaged"),
    (JOINED, BI, handing_on, "initial state", "starts with the last states of the forward half"),
    (
        FOLDER / "conv_lstm_1d.h5",
        "conv_lstm1d",
        early_state,
        "convolution padding",
        "the recurrent kernel of an even size is padded at the other side",
    ),
    (SQUARES, "rms_normalization", without_mean, "formula", "the mean is subtracted"),
    (HEADS, "multi_head_attention", masked_after, "formula", "0 after the softmax"),
    (FOLDER / "conv_lstm_2d.h5", "conv_lstm2d_1", exchanged_gates, "gate order", "igfo"),
    (BAHDANAU, "additive_attention", additive(torch.relu), "formula", "relu instead of the tanh"),
    (FOLDER / "batchnorm.keras", "batch_normalization", by_features, "formula", "LayerNorm"),
)


@pytest.mark.sampled({row: [row[3]] for row in ROWS})
@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row[0].stem}: {row[3]}, {row[4]}".replace(" ", "_")
)
def test_what_stands_in_a_modules_place_is_named(row: tuple[Path, str, Wrong, str, str]) -> None:
    source, name, wrong, kind, words = row
    report = compare_with(source, **{name: wrong})
    assert words in only_finding(report, name, kind).words


def test_a_mistake_in_one_call_of_a_layer_is_told_of_that_call() -> None:
    report = compare_with(PAIR, embedding=in_call(1, one_higher))
    finding = only_finding(report, "embedding#1", "ids")
    assert finding.words == "in call 2 alone: the ids are one too high"


class LateBias(nn.Module):
    """A port that adds the bias of its last layer to what the activation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.right = k2t.convert(WORDS)
        last: Any = self.right.get_submodule("dense")
        self.bias, last.bias = last.bias, nn.Parameter(0 * last.bias)

    def forward(self, words: Tensor) -> Any:
        return self.right(words) + self.bias


def test_a_bias_behind_the_activation_is_named() -> None:
    finding = only_finding(k2t.compare(WORDS, LateBias()), "dense", "bias")
    assert "added after the activation" in finding.words


@pytest.mark.thorough
def test_a_value_on_the_way_to_an_unknown_mistake_is_not_blamed() -> None:
    """Without its bias the layer gives what the port computes before it goes on otherwise."""

    def bent(right: Any, x: Tensor) -> Tensor:
        product = functional.linear(x, right.weight)
        return product + 0.3 * product.sin() + right.bias

    (finding, *_) = compare_with(FOLDER / "batchnorm.keras", dense=bent).findings
    assert (finding.layer, finding.kind) == ("dense", "unexplained")


def test_a_difference_at_large_values_alone_is_found() -> None:
    source = FIXTURES / "keras-2.2.4/around_transposed2.h5"
    report = compare_with(source, conv2d_transpose_1=lambda right, x: right(x).clamp(max=6))
    (finding,) = report.findings
    assert (finding.layer, finding.rows) == ("conv2d_transpose_1", "large values")
    assert "relu6" in finding.words


def test_a_mistake_inside_a_model_for_each_step_is_named() -> None:
    path = "time_distributed.layer.bidirectional"
    source = FOLDER / "td_model_sequences.h5"
    (finding,) = compare_with(source, **{path: halves_exchanged}).findings
    assert finding.kind == "merge order"
    assert finding.layer.endswith("/bidirectional")


def test_halves_that_are_kept_apart_are_looked_at_one_by_one() -> None:
    def turned(right: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        forward, backward = right(x)
        return forward, backward.flip(1)

    report = compare_with(FOLDER / "bi_gru_after_none_seq.h5", bidirectional=turned)
    only_finding(report, "bidirectional", "direction")


@pytest.mark.thorough
def test_a_sum_on_the_way_to_another_mean_is_no_mistake_that_is_named() -> None:
    """The port computes the sum, and the maximum of another layer; it goes on with neither."""
    report = compare_with(WORDS, global_average_pooling1d=lambda _, x: x.sum(1) / 3.7)
    assert [one.layer for one in report.findings] == [POOL], "\n".join(report.lines())
    assert report.findings[0].kind in ("unexplained", "extra")


@pytest.mark.thorough
def test_a_normalizer_may_come_behind_a_merge_where_keras_has_it_before() -> None:
    source = FOLDER / "graph_residual.h5"
    norm = k2t.convert(source).get_submodule("batch_normalization").double().eval()
    report = compare_with(
        source,
        batch_normalization=lambda _, x, **__: x,
        add_1=lambda right, x, **given: normalize_last(norm, right(x, **given)),
    )
    assert "it comes after add_1" in only_finding(report, "batch_normalization", "order").words


def test_padding_that_keras_reads_as_data_is_named() -> None:
    seen: list[Tensor] = []

    def remember(right: Any, ids: Tensor) -> Tensor:
        seen[:] = [ids != 0]
        return right(ids)

    report = compare_with(
        WORDS, embedding=remember, bidirectional=lambda right, x: right(x, mask=seen[0])
    )
    finding = only_finding(report, "embedding", "mask rule")
    assert "id 0 is left out as padding" in finding.words


@pytest.mark.thorough
def test_two_that_give_the_same_are_told_apart_by_what_follows() -> None:
    """A normalizer that is left out gives what one gives that comes one layer later."""
    source = FOLDER / "arch_sound_events.keras"
    late = k2t.convert(source).get_submodule("batch_normalization")
    report = compare_with(
        source,
        batch_normalization=lambda _, x: x,
        activation=lambda right, x: normalize_last(late.to(x.dtype).eval(), right(x)),
        max_pooling2d=lambda _, x: x[:, :, :10].unflatten(2, (2, 5)).mean(3),
    )
    found = [("batch_normalization", "order"), ("max_pooling2d", "other operation")]
    assert told(report) == found, "\n".join(report.lines())


class StepByStep(nn.Module):
    """A loop over the steps, with all layers in it; the bias of its Dense is missing."""

    source = FOLDER / "batchnorm.keras"

    def __init__(self) -> None:
        super().__init__()
        self.right = k2t.convert(self.source)
        self.cell = nn.LSTMCell(3, 5)
        given = self.right.get_submodule("lstm").state_dict()
        self.cell.load_state_dict({name.removesuffix("_l0"): v for name, v in given.items()})

    def forward(self, x: Tensor) -> Tensor:
        first, then, last = (
            self.right.get_submodule(f"batch_normalization{end}") for end in ("_2", "", "_1")
        )
        states = None
        outputs = []
        for step in normalize_last(first, x).unbind(1):
            states = self.cell(step, states)
            normal = normalize_last(then, states[0][:, None])
            outputs.append(normal @ self.right.get_parameter("dense.weight").mT)
        return normalize_last(last, torch.cat(outputs, 1))


def test_layers_that_are_computed_step_by_step_alone_are_right() -> None:
    only_finding(k2t.compare(StepByStep.source, StepByStep()), "dense", "bias missing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f, _: f + 1, "the part of f has 1 added to it, as a forget bias"),
        (lambda f, _: 2 * f, "the part of f is doubled"),
        (lambda f, _: 0 * f, "the part of f is all zeros"),
        (lambda f, _: -f, "the part of f has the wrong sign"),
        (lambda _, i: i, "the part of f is that of i"),
    ],
)
def test_one_gates_part_of_a_tensor_is_named(
    change: Callable[[Tensor, Tensor], Tensor], words: str
) -> None:
    port = k2t.convert(LAST)
    bias = port.get_parameter("lstm.bias_ih_l0")
    units = len(bias) // 4
    with torch.no_grad():
        bias[units : 2 * units] = change(bias[units : 2 * units], bias[:units])
    report = k2t.compare(LAST, port)
    assert words in only_finding(report, "lstm", "weights: gate").words


def test_values_at_padded_steps_alone_are_told_as_such() -> None:
    def marked(right: Any, x: Tensor, mask: Tensor) -> Tensor:
        return right(x, mask=mask).masked_fill(~mask[..., None], 7)

    report = compare_with(FOLDER / "mask_bi_lstm_seq.h5", bidirectional=marked)
    (finding,) = report.findings
    assert finding.words.endswith("(at masked steps of the outputs alone)")
    assert report.max_abs_error < 1e-12
    *_, note = report.notes
    assert note.startswith(
        "at masked steps, which do not count, output 1 differs from Keras' (rows "
    )


@pytest.mark.thorough
def test_a_mistake_is_named_at_the_second_of_two_layers_that_are_one_in_the_port() -> None:
    """A normalization that is folded into the layer before it, whose output is never computed."""
    source = FOLDER / "batchnorm.keras"
    norm = k2t.convert(source).get_submodule("batch_normalization_1").double()

    def folded(right: Any, x: Tensor) -> Tensor:
        factor = norm.weight / torch.sqrt(norm.running_var + 1e-5)
        bias = (right.bias - norm.running_mean) * factor
        return functional.linear(x, right.weight * factor[:, None], bias)

    report = compare_with(source, dense=folded, batch_normalization_1=lambda _, x: x)
    only_finding(report, "batch_normalization_1", "epsilon")


class Keeping(nn.Module):
    """A port that keeps the states of its first call."""

    source = LAST

    def __init__(self) -> None:
        super().__init__()
        self.port = port_of(self.source, lstm=self.run)
        self.kept: Any = None

    def run(self, right: Any, x: Tensor) -> Any:
        y, self.kept = torchs_lstm(right, x)(x, self.kept)
        return y[:, -1]

    def forward(self, x: Tensor) -> Any:
        return self.port(x)


def test_states_that_are_kept_from_call_to_call_are_named() -> None:
    (finding,) = k2t.compare(Keeping.source, Keeping()).findings
    assert (finding.layer, finding.rows) == ("lstm", "a second call")
    assert finding.words == (
        "its states are kept from call to call, Keras starts each call with zeros"
    )


class Dropping(nn.Module):
    """A port of a stateful model that drops the states."""

    source = FOLDER / "stateful_bi_lstm.keras"

    def __init__(self) -> None:
        super().__init__()
        self.port = k2t.convert(self.source)

    def forward(self, x: Tensor) -> Any:
        k2t.reset_states(self.port)
        return self.port(x)


def test_states_that_keras_keeps_from_call_to_call_have_to_be_kept() -> None:
    assert k2t.compare(Dropping.source, k2t.convert(Dropping.source)).ok
    report = k2t.compare(Dropping.source, Dropping())
    assert {one.kind for one in report.findings} == {"kept state"}, "\n".join(report.lines())
    assert all("not kept from call to call" in one.words for one in report.findings)


@pytest.mark.thorough
def test_states_of_all_steps_viewed_wrongly_are_named() -> None:
    """A port calls a layer for each step once, on all steps: rows of other steps are mixed, too."""
    source = FOLDER / "arch_hierarchy.keras"
    name = "time_distributed.layer.bidirectional"
    (finding,) = compare_with(source, **{name: viewed_states}).findings
    assert finding.layer == "time_distributed/model/bidirectional"
    assert "h_n (2, B, H) is viewed as (B, 2 H)" in finding.words


@pytest.mark.thorough
def test_a_port_that_gives_nan_is_judged() -> None:
    source = FOLDER / "batchnorm.keras"
    port = k2t.convert(source)
    norm = port.get_submodule("batch_normalization_1")
    norm.running_mean, norm.running_var = norm.running_var, norm.running_mean
    report = k2t.compare(source, port)
    (finding,) = report.findings
    assert finding.layer == "batch_normalization_1"
    assert finding.words == "the moving mean and the moving variance are exchanged"
    assert finding.where.endswith("where it is NaN")
    root = compare_with(source, dense=lambda right, x: (right(x) - 1.3).sqrt())
    assert "gives NaN, and no known mistake explains why" in [one.words for one in root.findings]


def test_weights_in_half_precision_are_called_that() -> None:
    port = k2t.convert(NORMS)
    with torch.no_grad():
        weight = port.get_parameter(f"{NORM}.weight")
        weight.copy_(weight.half())
    (finding,) = k2t.compare(NORMS, port).findings
    assert "half precision (float16)" in finding.words


def test_outputs_in_another_order_are_told_once() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.right = k2t.convert(JOINT)

        def forward(self, words: Tensor) -> Any:
            return self.right(words)[::-1]

    (finding,) = k2t.compare(JOINT, Turned()).findings
    assert (finding.layer, finding.words) == ("the outputs", "the outputs come in the order 2, 1")


def test_a_step_axis_of_a_declared_size_is_kept() -> None:
    """A right port may count on it, as a pooling of just so many steps does."""
    source = FOLDER / "arch_sound_events.keras"
    declared = [layer.config["shape"] for layer in read_model(source).input_layers()]
    drawn = batches(read_model(source), None)
    assert [x.shape[1:] for x in drawn[0].arrays] == [shape[1:] for shape in declared]


def test_a_pooling_of_just_the_declared_steps_is_right() -> None:
    """13 words less 2 for the convolution."""
    report = compare_with(
        WORDS, global_max_pooling1d=lambda _, x: functional.max_pool1d(x.mT, 11).squeeze(-1)
    )
    assert report.ok, "\n".join(report.lines())


def test_padded_rows_are_of_several_lengths_in_no_order() -> None:
    _, *padded, again = batches(read_model(FOLDER / "mask_bi_lstm_seq.h5"), None)
    assert len(padded) == 2
    assert again.calls == 2
    for batch in padded:
        counts = (batch.arrays[0] != 0).sum(axis=1).tolist()
        assert min(counts) > 0
        assert len(set(counts)) > 2
        assert counts not in (sorted(counts), sorted(counts, reverse=True))
