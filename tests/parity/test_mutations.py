"""The mutation law: every deliberate bug, one at a time, must break the parity with real Keras.

A mutation edits one expression of the package (``edit``) or wraps one entry of a table. Each names
the fixtures that must notice it; where no file of Keras can (units equal to the input's width), a
model is built here and the reference is the judge.
"""

from __future__ import annotations
import __future__

import functools
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from specs import (
    CELLS,
    KERAS3,
    MERGE_MODES,
    B,
    Fixture,
    T,
    bi,
    chain,
    dense,
    fixture,
    functional,
    layer,
    read_entry,
    rnn,
    values,
    with_options,
)
from torch import Tensor, nn

from keras2torch_birnn.conversion import build, flat
from keras2torch_birnn.functional import activations
from keras2torch_birnn.layers import interpolation, recurrent, registry
from keras2torch_birnn.readers.config import keras1
from keras2torch_birnn.reference import compute
from keras2torch_birnn.rnn import engines, loop, modules, parameters
from keras2torch_birnn.rnn.call import Asked
from keras2torch_birnn.rnn.engine_choice import Choice
from keras2torch_birnn.rnn.merge import MERGE
from keras2torch_birnn.spec import Array, Call, LayerSpec, ModelSpec, TensorRef, leaves
from keras2torch_birnn.verification import check_layers, close

ATOL, RTOL = 1e-5, 1e-4
EXACT = 1e-9

Patch = Callable[[pytest.MonkeyPatch], None]

K2, K231, TF, K3 = "keras-2.2.4", "keras-2.3.1", "tf.keras-2.15.0", "keras-3.15.1"


@dataclass(frozen=True)
class Mutation:
    """A deliberate bug and the files that must notice it.

    ``rereads``: the bug sits in a reader, so the files are read again. ``late``: it shows in a
    second call only, which the check per layer does not make.
    """

    name: str
    patch: Patch
    files: tuple[str, ...]
    rereads: bool = False
    late: bool = False


# ---- making mutations --------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def by_engines_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutated is Python; the native kernel is compared with the reference in test_native."""
    monkeypatch.setenv("K2T_ENGINE", "torch")


def edited(function: Any, old: str, new: str) -> Any:
    """The function's code with one expression replaced; the text must stand there once."""
    source = textwrap.dedent(inspect.getsource(function))
    source = source[source.index("def ") :]  # without decorators
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {function}"
    source = source.replace(old, new)
    cells = function.__code__.co_freevars  # ``__class__`` where the method calls super()
    name = function.__name__
    outer = source  # a function that calls itself finds itself in its module
    if cells:
        outer = f"def outer({', '.join(cells)}):\n{textwrap.indent(source, '    ')}"
        outer += f"\n    return {name}"
    namespace = dict(function.__globals__)
    flags = __future__.annotations.compiler_flag
    exec(compile(outer, f"<mutated {name}>", "exec", flags), namespace)
    return (namespace["outer"](*cells) if cells else namespace[name]).__code__


def edit(name: str, old: str, new: str) -> Patch:
    """Replace an expression in a function of the package, wherever it is used."""

    def patch(patching: pytest.MonkeyPatch) -> None:
        function = pkgutil.resolve_name(f"keras2torch_birnn.{name}")
        patching.setattr(function, "__code__", edited(function, old, new))

    return patch


def wrap(table: Any, key: str, wrapper: Callable[[Any], Any]) -> Patch:
    """Replace an entry of a dict, or an attribute."""

    def patch(patching: pytest.MonkeyPatch) -> None:
        if isinstance(table, Mapping):
            entries: Any = table  # a dict behind a type that offers no writing
            patching.setitem(entries, key, wrapper(entries[key]))
        else:
            patching.setattr(table, key, wrapper(getattr(table, key)))

    return patch


def put(table: Any, key: str, value: Any) -> Patch:
    return wrap(table, key, lambda _: value)


def crossing(cell: str, change: Callable[[LayerSpec, dict[str, Array]], dict[str, Array]]) -> Patch:
    """Change what one cell's weights become in torch."""
    return wrap(
        parameters.CROSSING, cell, lambda right: lambda spec: change(spec, dict(right(spec)))
    )


def swapped(a: int, b: int, gates: int) -> Callable[..., dict[str, Array]]:
    """Rows of gate a and b change places, in every parameter."""

    def change(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
        order = list(range(gates))
        order[a], order[b] = b, a
        return {
            name: np.concatenate([np.split(array, gates)[g] for g in order])
            for name, array in named.items()
        }

    return change


def untransposed(name: str) -> Callable[..., dict[str, Array]]:
    """Every gate's square block is transposed once more."""

    def change(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
        blocks = np.split(named[name], len(named[name]) // named["weight_hh"].shape[1])
        return {**named, name: np.concatenate([block.T for block in blocks])}

    return change


def without(name: str) -> Callable[..., dict[str, Array]]:
    """A bias becomes zeros."""
    return lambda _, named: {**named, name: np.zeros_like(named[name])}


def exchanged(_: LayerSpec, named: dict[str, Array]) -> dict[str, Array]:
    if "bias_hh" not in named:
        return named
    return {**named, "bias_ih": named["bias_hh"], "bias_hh": named["bias_ih"]}


def ruled(old: str, new: str) -> Patch:
    """One rule for masked steps becomes another."""

    def wrapper(right: Any) -> Any:
        def spread(*args: Any, rule: str, **more: Any) -> Any:
            return right(*args, rule=new if rule == old else rule, **more)

        return spread

    return wrap(engines, "spread", wrapper)


def merging(old: str | None, new: str | None) -> Patch:
    """One merge mode becomes another."""

    def wrapper(right: Any) -> Any:
        def plan(*args: Any) -> Any:
            found = right(*args)
            two = len(found.rules) == 2
            return replace(found, merge_mode=new) if two and found.merge_mode == old else found

        return plan

    return wrap(recurrent, "plan_of", wrapper)


def masking(class_name: str, flow: registry.MaskFlow) -> Patch:
    """A class does something else with masks."""
    return wrap(registry._converters, class_name, lambda right: replace(right, mask=lambda _: flow))


def both(*patches: Patch) -> Patch:
    def patch(patching: pytest.MonkeyPatch) -> None:
        for one in patches:
            one(patching)

    return patch


def by_the_loop() -> Patch:
    """Not a bug: no fused kernel, so that bugs of the loop show."""
    return put(modules, "torch_engine", lambda spec: Choice("loop", ""))


def fused(change: Callable[..., Any]) -> Patch:
    """Change what torch's kernel gives for a Bidirectional without mask: (call, x) -> result."""

    def wrapper(right: Any) -> Any:
        def run(layer: Any, asked: Asked) -> Any:
            def call(x: Tensor) -> Any:
                return right(layer, asked._replace(x=x, merge=None))

            plain = len(layer.weights) == 1 or asked.lengths is not None
            outputs, states = call(asked.x) if plain else change(call, asked.x)
            return engines.merged(outputs, asked.merge), states

        return run

    return wrap(engines.RUN, "fused", wrapper)


def flipped_half(call: Any, x: Tensor) -> Any:
    """The backward half comes in the order of its reading."""
    (ahead, back), final = call(x)
    return (ahead, back.flip(1)), final


def unflipped_reading(call: Any, x: Tensor) -> Any:
    """Both halves read forwards."""
    (ahead, _), final = call(x)
    (_, back), _ = call(x.flip(1))
    return (ahead, back.flip(1)), final


# ---- models that no file of Keras is -----------------------------------------------------------


def square(cell: str) -> LayerSpec:
    """Units equal to the input's width, so that a forgotten transpose fits."""
    options = {"return_sequences": True}
    return chain(bi(rnn(cell, 5, 5, **options), rnn(cell, 5, 5, seed=1, **options)))


def square_conv() -> LayerSpec:
    weights = {"kernel": values(5, 5, 5), "bias": values(5, seed=2)}
    config = {"filters": 5, "kernel_size": 5, "padding": "same"}
    return chain(layer("Conv1D", "conv", weights, **config))


def square_batch_norm() -> LayerSpec:
    """Channels on the second axis, as many as on the last."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    weights = {name: values(5, seed=i) for i, name in enumerate(names)}
    weights["moving_variance"] = weights["moving_variance"] ** 2
    # a window of 3 leaves 5 of the 7 steps
    return chain(
        layer(
            "Conv1D",
            "conv",
            {"kernel": values(3, 5, 5, seed=7)},
            filters=5,
            kernel_size=3,
            use_bias=False,
        ),
        layer("BatchNormalization", "norm", weights, axis=1),
    )


def started(cell: str) -> LayerSpec:
    """A Bidirectional whose first states are inputs 1, 2, ... of the model."""
    options = {"return_sequences": True}
    spec = bi(rnn(cell, 5, 5, **options), rnn(cell, 5, 5, seed=1, **options))
    states = 4 if cell == "LSTM" else 2
    names = ["x", *(f"s{i}" for i in range(states))]
    call = Call(
        "bi", 0, (TensorRef("x"),), {"initial_state": tuple(TensorRef(n) for n in names[1:])}
    )
    inputs = [layer("InputLayer", name) for name in names]
    return functional([*inputs, spec], [call], tuple(TensorRef(n) for n in names), TensorRef("bi"))


OWN: Mapping[str, Callable[[], LayerSpec]] = {
    **{f"square {cell}": functools.partial(square, cell) for cell in CELLS},
    **{f"started {cell}": functools.partial(started, cell) for cell in CELLS},
    "square Dense": lambda: chain(dense(5, 5)),
    "square Conv1D": square_conv,
    "square BatchNormalization": square_batch_norm,
    "gate biases": lambda: chain(rnn("GRU", 5, 5, recurrent_activation="sigmoid")),
    "ids without a mask": lambda: chain(
        layer("Embedding", "ids", {"embeddings": values(13, 5)}, input_dim=13, output_dim=5),
        rnn("LSTM", 7, 5),
    ),
    "softmax over time": lambda: chain(
        layer("Activation", "act", activation={"name": "softmax", "axis": 1})
    ),
    "pair that goes backwards": lambda: chain(
        bi(
            rnn("LSTM", 5, 5, go_backwards=True, return_sequences=True),
            with_options(rnn("GRU before", 11, 5, seed=1, return_sequences=True)),
        )
    ),
}


@functools.cache
def own(name: str) -> Fixture:
    """One of ``OWN`` in float32, with the reference's outputs."""
    root = OWN[name]()
    spec = ModelSpec(root, KERAS3)
    names = [ref.layer for ref in leaves(root.graph.inputs)] if root.graph else []
    inputs = [values(B, T, 5)]
    inputs += [values(B, 5, seed=i) for i in range(1, len(names))]
    if any(one.class_name == "Embedding" for one in root.walk()):
        inputs = [np.arange(B * T).reshape(B, T) * 3 % 13]  # two rows hold a zero
    single = tuple(x.astype(np.float32) for x in inputs)
    return Fixture(spec, (single,), (compute(spec, single).outputs,))


def read(file: str) -> Fixture:
    return own(file) if file in OWN else fixture(file)


# ---- the checks --------------------------------------------------------------------------------


def agrees_with_keras(case: Fixture) -> bool:
    """Whether the float32 model gives what Keras gave, call after call."""
    model = build(case.spec, dtype="float32")
    return all(same(given(model, inputs), wanted, ATOL, RTOL) for inputs, wanted in case.calls())


def agrees_layer_by_layer(case: Fixture) -> bool:
    """Whether every layer gives in float64 what the reference says, as ``verify`` asks."""
    inputs = case.inputs[0]
    trace = compute(case.spec, inputs, scans=True)
    found = check_layers(build(case.spec), case.spec, trace, inputs)
    assert found
    return all(layer.ok for layer in found)


def given(model: nn.Module, inputs: Sequence[Array]) -> list[Array]:
    with torch.no_grad():
        return [y.numpy() for y in flat(model(*map(torch.from_numpy, inputs)))]


def same(got: Sequence[Array], wanted: Sequence[Array], atol: float, rtol: float) -> bool:
    return len(got) == len(wanted) and all(
        close(a, b, atol, rtol) for a, b in zip(got, wanted, strict=True)
    )


# ---- the table ---------------------------------------------------------------------------------

BI = {
    "LSTM": f"{TF}/bi_lstm_concat_seq.h5",
    "GRU": f"{TF}/bi_gru_after_concat_seq.h5",
    "GRU before": f"{TF}/bi_gru_before_concat_seq.h5",
    "SimpleRNN": f"{TF}/bi_simplernn_concat_seq.h5",
}
MERGED = {
    "concat": (BI["LSTM"], f"{K3}/bi_lstm_concat_last.keras"),
    "sum": (f"{TF}/bi_lstm_sum_seq.h5", f"{K3}/bi_gru_before_sum_last.keras"),
    "mul": (f"{TF}/bi_gru_after_mul_seq.h5", f"{K3}/bi_gru_after_mul_last.keras"),
    "ave": (f"{TF}/bi_gru_before_ave_seq.h5", f"{K3}/bi_simplernn_ave_last.keras"),
    None: (f"{TF}/bi_lstm_none_seq.h5", f"{K2}/bi_lstm_none_last.h5"),
}
ZEROS = (f"{TF}/mask_bi_lstm_seq.h5", f"{K3}/mask_bi_gru_before_seq.h5")
UNREVERSED = (f"{TF}/mask_unroll_bi_seq.h5", f"{K3}/mask_unroll_bi_seq.h5")
PREVIOUS = (f"{TF}/mask_plain_lstm_seq.keras", f"{K231}/mask_bi_gru_before_seq.h5")
STATE = (f"{K2}/mask_bi_lstm_seq.h5", f"{K2}/mask_back_lstm_seq.h5")
# What was carried tells the previous state from the previous output.
CARRIED = {
    "previous_output": f"{TF}/stateful_mask.h5",
    "previous_state": f"{K2}/stateful_mask.h5",
}
LSTM_GATES, GRU_GATES = "ifgo", "rzn"

MUTATIONS: list[Mutation] = []


def mutation(
    name: str, patch: Patch, *files: str, rereads: bool = False, late: bool = False
) -> None:
    MUTATIONS.append(Mutation(name, patch, files, rereads, late))


# Gates, transposes, biases: the crossing from Keras' weights to torch's.
for a in range(4):
    for b in range(a + 1, 4):
        mutation(
            f"LSTM gates {LSTM_GATES[a]} and {LSTM_GATES[b]} exchanged",
            crossing("LSTM", swapped(a, b, 4)),
            BI["LSTM"],
            f"{K2}/plain_lstm_back_seq.h5",
            f"{K3}/hard_sigmoid_bi_lstm.h5",
        )
for a in range(3):
    for b in range(a + 1, 3):
        mutation(
            f"GRU gates {GRU_GATES[a]} and {GRU_GATES[b]} exchanged",
            crossing("GRU", swapped(a, b, 3)),
            BI["GRU"],
            BI["GRU before"],
            f"{K2}/mask_bi_gru_before_seq.h5",
        )
for cell in ("LSTM", "GRU", "SimpleRNN"):
    mutation(
        f"{cell} weight_hh not transposed",
        crossing(cell, untransposed("weight_hh")),
        BI[cell],
        f"square {cell}",
        *([BI["GRU before"]] if cell == "GRU" else []),
    )
    mutation(
        f"{cell} weight_ih not transposed",
        crossing(cell, untransposed("weight_ih")),
        f"square {cell}",
        *(["square GRU before"] if cell == "GRU" else []),
    )
    mutation(
        f"{cell} input bias forgotten",
        crossing(cell, without("bias_ih")),
        BI[cell],
        *([BI["GRU before"]] if cell == "GRU" else []),
    )
mutation(
    "SimpleRNN recurrent kernel without its .T",
    edit("rnn.parameters:_plain", 'weights["recurrent_kernel"].T', 'weights["recurrent_kernel"]'),
    BI["SimpleRNN"],
)
mutation("GRU bias rows exchanged", crossing("GRU", exchanged), BI["GRU"], "gate biases")
mutation("GRU recurrent bias forgotten", crossing("GRU", without("bias_hh")), BI["GRU"])
mutation(
    "GRU recurrent bias added to the input's",
    crossing(
        "GRU",
        lambda _, n: {**n, "bias_ih": n["bias_ih"] + n["bias_hh"], "bias_hh": 0 * n["bias_hh"]},
    ),
    BI["GRU"],
)
mutation(
    "Dense kernel not transposed",
    edit("layers.dense:dense", "kernel.T", "kernel"),
    "square Dense",
)
mutation(
    "Conv1D channels exchanged",
    edit("layers.convolution:channels_ahead", "(-1, -2,", "(-2, -1,"),
    "square Conv1D",
)
mutation(
    "Conv1D kernel turned round in time",
    edit("layers.convolution:channels_ahead", "kernel.transpose", "kernel[::-1].transpose"),
    f"{TF}/conv.keras",
    "square Conv1D",
)

# Directions.
mutation(
    "forward and backward weights exchanged",
    edit("rnn.modules:torch_module", '("", "_reverse")', '("_reverse", "")[2 - len(halves) :]'),
    *BI.values(),
)
mutation(
    "halves of a pair exchanged",
    edit(
        "layers.recurrent:bidirectional",
        '(plain(layer.parts["forward_layer"]), plain(layer.parts["backward_layer"]))',
        '(plain(layer.parts["backward_layer"]), plain(layer.parts["forward_layer"]))',
    ),
    f"{TF}/backward_class.h5",
    f"{K3}/backward_units.keras",
)
mutation(
    "loop: the backward half reads forwards",
    edit("rnn.engines:_run_loops", "read = reverse(x, lengths) if d else x", "read = x"),
    f"{K2}/hard_sigmoid_stack.h5",
    f"{TF}/hard_sigmoid_bi_lstm.h5",
    f"{K2}/mask_bi_gru_before_seq.h5",
)
mutation(
    "loop: the backward half is not turned back",
    edit("rnn.engines:_run_loops", "reverse(out, lengths) if d else out", "out"),
    f"{K2}/hard_sigmoid_stack.h5",
    f"{TF}/hard_sigmoid_bi_gru_after.h5",
    f"{K2}/mask_bi_gru_before_seq.h5",
)
mutation(
    "pair: the backward half reads forwards",
    edit("rnn.modules:BidirectionalPair.run_sequence", "Asked(reverse(x, lengths)", "Asked(x"),
    f"{TF}/backward_class.h5",
    f"{K3}/backward_mask.h5",
)
mutation(
    "pair: the backward half is not turned back",
    edit("rnn.modules:BidirectionalPair.run_sequence", "reverse(back, lengths)", "back"),
    f"{TF}/backward_class.h5",
    f"{K3}/backward_mask.h5",
    "pair that goes backwards",
)
for cell in ("LSTM", "GRU", "SimpleRNN"):
    mutation(f"fused {cell}: outputs turned once more", fused(flipped_half), BI[cell])
    mutation(f"fused {cell}: both halves read forwards", fused(unflipped_reading), BI[cell])
mutation(
    "valid steps turned round together with the padding",
    edit("rnn.masks:reverse", "if lengths is None:", "if True:"),
    f"{K2}/mask_bi_gru_before_seq.h5",
    f"{TF}/backward_mask.h5",
)
mutation(
    "last step of the backward half taken at the end",
    edit("rnn.modules:recurrent_forward", "-1 if d == 0 else 0", "-1"),
    f"{K3}/bi_lstm_concat_last.keras",
    f"{TF}/bi_simplernn_ave_last.keras",
    f"{K2}/bi_lstm_none_last.h5",
    f"{K3}/backward_class_last.keras",
    f"{K231}/mask_bi_lstm_last.h5",
)
mutation(
    "last step of the forward half taken at the start",
    edit("rnn.modules:recurrent_forward", "-1 if d == 0 else 0", "0"),
    f"{K3}/bi_lstm_concat_last.keras",
    f"{TF}/plain_lstm_last.keras",
)
mutation(
    "go_backwards ignored",
    edit("rnn.modules:recurrent_forward", "if plan.against_time:", "if False:"),
    f"{K2}/plain_lstm_back_seq.h5",
    f"{K3}/plain_simplernn_back_last.h5",
    f"{TF}/bi_of_go_backwards.h5",
    f"{K3}/mask_back_lstm_seq.h5",
    "pair that goes backwards",
)
mutation(
    "go_backwards without turning the mask",
    edit("rnn.modules:recurrent_forward", "mask.flip(1)", "mask"),
    f"{K2}/mask_back_lstm_seq.h5",
    f"{TF}/mask_bi_of_go_backwards.h5",
)

# Merging.
for old in MERGE_MODES:
    for new in MERGE_MODES:
        if new != old:
            mutation(f"merge_mode {old} becomes {new}", merging(old, new), *MERGED[old])
mutation(
    "concat puts the backward half first",
    both(
        put(MERGE, "concat", lambda a, b: torch.cat((b, a), dim=-1)),
        edit("rnn.engines:run_kernel", 'merge == "concat"', "False"),
    ),
    *BI.values(),
)

# Masks.
NOTICES = {
    "zeros": ZEROS,
    "zeros_unreversed": UNREVERSED,
    "previous_output": PREVIOUS,
    "previous_state": STATE,
}
for rule, files in NOTICES.items():
    for other in NOTICES:
        same_state = {rule, other} == {"previous_output", "previous_state"}
        if other != rule:
            mutation(
                f"masked_output {rule} becomes {other}",
                ruled(rule, other),
                *([CARRIED[rule]] if same_state else files),
                late=same_state,
            )
mutation(
    "previous counts against the direction of reading",
    edit("rnn.masks:spread", "seen - mask.long() if backward else seen - 1", "seen - 1"),
    f"{K2}/mask_bi_lstm_seq.h5",
    f"{K231}/mask_bi_gru_before_seq.h5",
)
mutation(
    "the masked steps run and the valid ones do not",
    edit("rnn.masks:compact", "torch.argsort(~mask", "torch.argsort(mask.to(torch.uint8)"),
    *ZEROS,
)
mutation(
    "an empty row loses its state",
    edit(
        "rnn.engines:run_kernel",
        "empty = lengths[order] == 0",
        "empty = lengths[order] < 0",
    ),
    f"{TF}/mask_bi_state.keras",
    f"{K3}/mask_bi_state.keras",
)
mutation(
    "recurrent layers take no mask",
    both(*(masking(name, registry.SAME) for name in ("Bidirectional", "LSTM", "GRU", "SimpleRNN"))),
    f"{TF}/mask_bi_lstm_last.keras",
    f"{K2}/mask_stack_plain.h5",
    f"{K3}/chain_masked.keras",
)
mutation(
    "recurrent layers hand no mask on",
    both(*(masking(name, registry.USES) for name in ("Bidirectional", "LSTM", "GRU", "SimpleRNN"))),
    f"{TF}/mask_stack_plain.keras",
    f"{K2}/mask_stack_bi_dense.h5",
)
mutation(
    "Embedding makes no mask",
    edit("layers.embedding:_embedding_mask", 'layer.config["mask_zero"]', "False"),
    f"{K2}/mask_bi_lstm_seq.h5",
    f"{K3}/mask_average_pool_direct.h5",
)
mutation(
    "Embedding masks although mask_zero is off",
    edit("layers.embedding:_embedding_mask", 'layer.config["mask_zero"]', "True"),
    "ids without a mask",
)
mutation(
    "Masking makes no mask",
    masking("Masking", registry.SAME),
    f"{K2}/masking_zero_bi_lstm_seq.h5",
    f"{K3}/masking_big_bi_simplernn_seq.h5",
)
mutation(
    "Masking leaves masked steps as they are",
    edit("layers.masking:Masking.forward", "x * differs", "x + 0 * differs"),
    f"{K2}/masking_alone.h5",
)
mutation(
    "Masking masks a step by a single feature",
    edit("layers.masking:differs", ".any(dim=-1)", ".all(dim=-1)"),
    f"{K2}/masking_alone.h5",
    f"{TF}/masking_big_bi_simplernn_seq.h5",
)
mutation(
    "GlobalAveragePooling1D ignores its mask",
    edit("layers.pooling:GlobalPooling.forward", "if mask is None:", "if True:"),
    f"{K2}/mask_average_pool.h5",
    f"{K3}/mask_average_pool_direct.h5",
)
mutation(
    "GlobalMaxPooling1D uses a mask",
    both(
        masking("GlobalMaxPooling1D", registry.USES),
        edit(
            "layers.pooling:GlobalPooling.forward",
            "return x.amax(",
            "return (x if mask is None else x.masked_fill(~mask[..., None], -1e9)).amax(",
        ),
    ),
    f"{K3}/mask_max_pool.h5",
)
for name in ("Dense", "Activation", "BatchNormalization", "LeakyReLU", "SpatialDropout1D"):
    mutation(
        f"{name} stops the mask",
        masking(name, registry.NONE),
        f"{K2}/mask_through.h5",
        f"{K3}/mask_through.keras",
    )
mutation(
    "LayerNormalization stops the mask",
    masking("LayerNormalization", registry.NONE),
    f"{TF}/mask_through_layernorm.h5",
)
mutation(
    "TimeDistributed stops the mask",
    masking("TimeDistributed", registry.NONE),
    f"{K2}/mask_td_dense.h5",
    f"{K3}/mask_td_dense.h5",
)
mutation(
    "a step of TimeDistributed counts only if all in it does",
    edit("layers.time_distributed:step_counts", ".any(dim=2)", ".all(dim=2)"),
    f"{TF}/mask_td_bi.h5",
    f"{K2}/mask_td_bi.h5",
)

# Meanings that changed between versions.
mutation(
    "hard_sigmoid 0.2 becomes 1/6",
    put(activations.FUNCTIONS, "hard_sigmoid_0.2", activations.hard_sigmoid_1_6),
    f"{K2}/hard_sigmoid_stack.h5",
    f"{TF}/hard_sigmoid_bi_lstm.h5",
    f"{TF}/hard_sigmoid_bi_gru_after.h5",
)
mutation(
    "hard_sigmoid 1/6 becomes 0.2",
    put(activations.FUNCTIONS, "hard_sigmoid_1/6", activations.hard_sigmoid_0_2),
    f"{K3}/hard_sigmoid_bi_lstm.h5",
    f"{K3}/hard_sigmoid_bi_gru_before.h5",
)
mutation(
    "reset_after becomes reset before",
    both(by_the_loop(), put(loop.STEPS, "GRU", loop.gru_before_step)),
    BI["GRU"],
    f"{TF}/mask_bi_gru_after_last.keras",
)
mutation(
    "reset before becomes reset_after",
    put(loop.STEPS, "GRU before", loop.gru_after_step),
    BI["GRU before"],
    f"{K2}/nobias_stack.h5",
)
mutation(
    "cuDNN input kernel not reinterpreted",
    edit("readers.weights.layouts:from_cudnn", "k.reshape(units, -1).T", "k"),
    f"{K2}/cudnnlstm_bi.h5",
    f"{TF}/cudnngru_plain.h5",
    rereads=True,
)
mutation(
    "cuDNN recurrent kernel not transposed",
    edit("readers.weights.layouts:from_cudnn", "[k.T for k in recurrent]", "recurrent"),
    f"{K2}/cudnnlstm_plain.h5",
    f"{TF}/cudnngru_bi.h5",
    rereads=True,
)
mutation(
    "cuDNN second LSTM bias forgotten",
    edit("readers.weights.layouts:from_cudnn", "biases.sum(axis=0)", "biases[0]"),
    f"{K2}/cudnnlstm_bi.h5",
    rereads=True,
)
mutation(
    "cuDNN GRU biases exchanged",
    edit(
        "readers.weights.layouts:from_cudnn",
        'layer.class_name == "LSTM" else biases',
        "False else biases[::-1]",
    ),
    f"{K2}/cudnngru_bi.h5",
    rereads=True,
)

# States.
for cell in CELLS:
    mutation(
        f"initial_state of {cell} dropped",
        edit("rnn.modules:recurrent_forward", "if initial_state is not None:", "if False:"),
        f"started {cell}",
    )
    mutation(
        f"initial_state of {cell} given to the other half",
        edit(
            "rnn.modules:recurrent_forward",
            "tuple(initial_state[i * each : (i + 1) * each])",
            "tuple(initial_state[(1 - i) * each : (2 - i) * each])",
        ),
        f"started {cell}",
    )
mutation(
    "stateful layers carry nothing",
    edit(
        "rnn.modules:recurrent_forward",
        "_carried(module, len(x)) if plan.stateful else None",
        "None",
    ),
    f"{K2}/stateful_plain.h5",
    f"{TF}/stateful_bi_lstm.keras",
    f"{K3}/stateful_bi_gru.h5",
    f"{TF}/stateful_mask.h5",
    late=True,
)
mutation(
    "states returned backward first",
    edit(
        "rnn.modules:recurrent_forward",
        "for state in states for s in state",
        "for state in states[::-1] for s in state",
    ),
    f"{K2}/state_bi_lstm_none_seq.h5",
    f"{K3}/state_bi_lstm_last_sum.keras",
)
mutation(
    "c returned before h",
    edit(
        "rnn.modules:recurrent_forward",
        "for state in states for s in state",
        "for state in states for s in state[::-1]",
    ),
    f"{K2}/state_lstm_seq.h5",
    f"{K3}/state_lstm_back_last.keras",
)

# The loop's equations, where a fused kernel usually runs.
mutation(
    "LSTM output gate forgotten",
    both(by_the_loop(), edit("rnn.loop:lstm_step", "sigma(o) * act(c)", "act(c)")),
    BI["LSTM"],
)
mutation(
    "LSTM output without its activation",
    both(by_the_loop(), edit("rnn.loop:lstm_step", "sigma(o) * act(c)", "sigma(o) * c")),
    BI["LSTM"],
)
for step, cell in (("gru_after_step", "GRU"), ("gru_before_step", "GRU before")):
    mutation(
        f"{cell}: update gate turned round",
        both(by_the_loop(), edit(f"rnn.loop:{step}", "z * h + (1 - z) * n", "z * n + (1 - z) * h")),
        BI[cell],
    )
mutation(
    "recurrent activation is the other activation",
    edit("rnn.modules:_cell", "activation(gate)", 'activation("tanh")'),
    f"{TF}/hard_sigmoid_bi_lstm.h5",
    BI["GRU before"],
)

# Layers around.
mutation(
    "BatchNormalization with torch's epsilon",
    edit("layers.normalization:batch_normalization", 'config["epsilon"]', "1e-5"),
    f"{K2}/batchnorm.h5",
    f"{K3}/batchnorm.keras",
)
mutation(
    "BatchNormalization with mean and variance exchanged",
    edit(
        "layers.normalization:batch_normalization",
        'weights["moving_mean"]).data',
        'weights["moving_variance"]).data',
    ),
    f"{TF}/batchnorm.keras",
)
mutation(
    "BatchNormalization normalises the batch",
    edit(
        "layers.normalization:BatchNorm.forward",
        'self.training and self.rule.by != "moving averages"',
        "True",
    ),
    f"{K2}/batchnorm.h5",
)
mutation(
    "BatchNormalization on the last axis whatever the axis",
    edit(
        "layers.normalization:BatchNorm.forward",
        "input.movedim(self.axis, 1)",
        "input.movedim(-1, 1)",
    ),
    "square BatchNormalization",
)
mutation(
    "LayerNormalization with torch's epsilon",
    edit("layers.normalization:layer_normalization", 'eps=config["epsilon"]', "eps=1e-5"),
    f"{TF}/layernorm.keras",
)
mutation(
    "LayerNormalization without both parameters with torch's epsilon",
    edit(
        "layers.normalization:layer_normalization",
        'gamma, beta, config["epsilon"], centers',
        "gamma, beta, 1e-5, centers",
    ),
    f"{TF}/layernorm.keras",
    f"{K3}/layernorm_axes.h5",
    f"{K3}/layernorm_rms.keras",
)
mutation(
    "rms_scaling takes the mean away",
    edit("layers.normalization:layer_normalization", 'not config["rms_scaling"]', "True"),
    f"{K3}/layernorm_rms.keras",
)
mutation(
    "Softmax over the last axis whatever the axis",
    edit("layers.activation:softmax", 'layer.config["axis"]', "(-1,)"),
    f"{K3}/softmax_axis1.keras",
)
mutation(
    "softmax activation over the last axis whatever the axis",
    edit("functional.activations:softmax", "dim=axis", "dim=-1"),
    "softmax over time",
)
mutation(
    "padding same with the odd zero in front",
    edit(
        "layers.convolution:same_padding",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
    ),
    f"{K2}/conv_same.h5",
    f"{K3}/pool.keras",
)
mutation(
    "padding causal behind",
    edit("layers.convolution:convolve", "(extent - 1, 0)", "(0, extent - 1)"),
    f"{K2}/conv_causal_dilated.h5",
    f"{TF}/conv.keras",
)
mutation(
    "padding causal dropped",
    edit("layers.convolution:convolve", '== "causal"', '== "never"'),
    f"{K2}/conv_causal_dilated.h5",
    f"{TF}/conv.keras",
)
mutation(
    "padding causal without dilation",
    edit("layers.convolution:extents", "(size - 1) * d + 1", "size"),
    f"{K2}/conv_causal_dilated.h5",
)
mutation(
    "depthwise kernels by multiplier, then channel",
    edit("layers.convolution:_depthwise", "(-2, -1,", "(-1, -2,"),
    f"{TF}/around_depthwise1.h5",
    f"{K2}/around_separable2.h5",
)
mutation(
    "transposed convolution cut in front as much as behind",
    edit(
        "layers.convolution:TransposedConvolution.convolve",
        "same_padding(length, extent, stride)[0]",
        "same_padding(length, extent, stride)[1]",
    ),
    f"{TF}/around_transposed1.keras",
    f"{K2}/around_transposed2.h5",
)
mutation(
    "Cropping behind and in front exchanged",
    edit("layers.resizing:cropping", "(-before, -after)", "(-after, -before)"),
    f"{K2}/around_margins2.h5",
)
mutation(
    "bilinear from corner to corner",
    edit("layers.resizing:UpSampling.forward", "align_corners=False", "align_corners=True"),
    f"{TF}/around_bilinear.h5",
)
mutation(
    "Normalization divides by the variance",
    edit("layers.preprocessing:Normalization.forward", "self.variance.sqrt()", "self.variance"),
    f"{TF}/around_normalization.h5",
    f"{K3}/around_normalization_given.h5",
)
mutation(
    "CategoryEncoding does not count",
    edit("layers.preprocessing:encode", 'mode == "multi_hot"', 'mode != "one_hot"'),
    f"{TF}/around_count.h5",
)
mutation(
    "ids count as often as they come, whatever their weights",
    edit(
        "layers.preprocessing:encode",
        "weights.to(tokens.dtype).unsqueeze(-1)",
        "tokens.new_ones(())",
    ),
    f"{TF}/count_weights.h5",
    f"{K3}/count_weights.keras",
)
mutation(
    "EinsumDense without its activation",
    edit("layers.dense:EinsumDense.forward", "self.activation(", "("),
    f"{TF}/einsum_variable.h5",
    f"{K3}/einsum.keras",
)
mutation(
    "EinsumDense without its bias",
    edit("layers.dense:EinsumDense.forward", "y if self.bias is None else y + self.bias", "y"),
    f"{TF}/einsum.h5",
    f"{K3}/einsum_variable.h5",
)
mutation(
    "attention of planes over the other axis",
    edit(
        "layers.attention:Attention.scores",
        "key.transpose(-1, -2)",
        "key.transpose(-1, -2).flip(1)",
    ),
    f"{TF}/attention_planes.keras",
    f"{K3}/attention_planes.keras",
)
mutation(
    "windows of their own padded as TensorFlow pads",
    edit("schema.local:places", "size_ // 2 if", "(size_ - 1) // 2 if"),
    "tf-2.1.4/local_2_same.h5",
    f"{TF}/local2_3_same.h5",
)
mutation(
    "windows of their own without stride",
    edit("layers.local:_steps", "* axis.stride - axis.front", "- axis.front"),
    f"{TF}/local_2_valid.keras",
    "tf-2.1.4/local_2_same.h5",
)
mutation(
    "the bias of LocallyConnected in channels_first as it ought to be",
    edit("layers.local:locally_connected", "if not last:", "if False:"),
    f"{TF}/local2_first.h5",
    f"{K2}/local2_first.h5",
    "keras-1.2.2/local2_th.h5",
)
mutation(
    "a minus is no character to FarmHash64",
    edit("layers.hashing:digits", "length = count + negative", "length = count + 0 * negative"),
    f"{TF}/hashing.keras",
    f"{K3}/hashing.h5",
)
mutation(
    "remainders of hashes with their sign",
    edit(
        "layers.hashing:remainder",
        "((_right(x, 1) % divisor) * 2 + (x & 1)) % divisor",
        "x % divisor",
    ),
    f"{TF}/hashing.keras",
    "tf.keras-2.4.0/hashing.h5",
)
mutation(
    "numbers looked up in the order of their size",
    edit(
        "layers.preprocessing:IntegerLookup.__init__",
        "order + first",
        "torch.arange(len(words)) + first",
    ),
    f"{TF}/lookup.keras",
    f"{K3}/lookup.keras",
)
mutation(
    "all numbers that are not in the list have the first index",
    edit("layers.preprocessing:IntegerLookup.forward", "torch.remainder(x, self.others)", "0 * x"),
    f"{TF}/lookup.h5",
)
mutation(
    "AveragePooling1D counts the padding",
    edit("layers.pooling:Pooling.forward", "if any(any(pair) for pair in around):", "if False:"),
    f"{K2}/pool.h5",
)
mutation(
    "MaxPooling1D pads with zeros",
    edit("layers.pooling:Pooling.forward", "value=-torch.inf", "value=0.0"),
    f"{K2}/pool.h5",
)
mutation(
    "pool stride ignored",
    edit(
        "layers.pooling:_windows", 'config["strides"] or config["pool_size"]', 'config["pool_size"]'
    ),
    f"{K2}/pool.h5",
)
mutation(
    "Flatten ignores channels_first",
    edit("layers.reshaping:Flatten.forward", "self.channels_first and", "False and"),
    f"{TF}/flatten_channels_first.h5",
)
mutation(
    "LeakyReLU with torch's slope",
    edit("layers.activation:leaky_relu", 'layer.config["negative_slope"]', "0.01"),
    f"{K2}/activation_layers.h5",
    f"{K3}/relu_layer_default.keras",
)
mutation(
    "PReLU with its sign turned",
    edit("layers.activation:PReLU.forward", "- self.weight", "+ self.weight"),
    f"{K2}/activation_layers.h5",
)
mutation(
    "ReLU without its options",
    edit(
        "layers.activation:relu",
        'return Activation({"name": "relu", **options})',
        "return nn.ReLU()",
    ),
    f"{K2}/relu_layer.h5",
)
mutation(
    "gates of a ConvLSTM in another order",
    edit("layers.conv_lstm:ConvLSTM._step", "i, f, g, o = ", "i, g, f, o = "),
    f"{K2}/conv_lstm_2d.h5",
    f"{K3}/conv_lstm_2d_bi.h5",
)
mutation(
    "state of a ConvLSTM dilated like its input",
    edit(
        "layers.conv_lstm:ConvLSTM._step",
        '"dilation": ones',
        '"dilation": self.inner["dilation"]',
    ),
    f"{K2}/conv_lstm_2d_windows.h5",
)
mutation(
    "ConvLSTM without its bias",
    edit("layers.conv_lstm:ConvLSTM._input_product", "if self.bias is not None:", "if False:"),
    f"{TF}/conv_lstm_2d.h5",
)
mutation(
    "ConvLSTM that gives its cell's state",
    edit("layers.conv_lstm:ConvLSTM.run_sequence", "outputs.append(h)", "outputs.append(c)"),
    f"{TF}/conv_lstm_2d_mask.h5",
)
mutation(
    "states of a stack from the last cell on",
    edit("schema.cells:states_of", "reversed(pairs) if last_first else pairs", "reversed(pairs)"),
    f"{K2}/stacked_states.h5",
)
mutation(
    "states of a stack of Keras 2.1 from the first cell on",
    edit(
        "readers.config.generations:generation_of",
        'else "last cell first"',
        'else "first cell first"',
    ),
    "keras-2.1.6/stacked_bi_states.h5",
    rereads=True,
)
mutation(
    "masked steps of a stack of Keras 2.2.4 show its last state",
    edit(
        "readers.config.cells:infer_stack_mask_rule",
        '"previous_first_state" if',
        '"previous_state" if',
    ),
    f"{K2}/stacked_mask_last.h5",
    rereads=True,
)
mutation(
    "masked steps of a ConvLSTM of tf.keras give zeros",
    edit("readers.config.generations:generation_of", 'conv_lstm="previous_output"', 'conv_lstm=""'),
    f"{TF}/conv_lstm_2d_mask_bi.h5",
    rereads=True,
)
mutation(
    "cells of a frozen half by position",
    edit("readers.weights.legacy:_group_by_half", "if once and", "if False and"),
    f"{K2}/stacked_frozen.h5",
    rereads=True,
)
mutation(
    "cells of a stack by position",
    edit("readers.weights.legacy:_pair_by_number", "if not all(", "if True or not all("),
    f"{K2}/stacked_frozen_cell.h5",
    rereads=True,
)
mutation(
    "inputs of an int8 Dense as they are",
    edit("layers.dense:QuantizedDense.forward", ".round()", ""),
    f"{K3}/quantized.keras",
)
mutation(
    "int8 Embedding without its scale",
    edit(
        "layers.embedding:QuantizedEmbedding.forward", " / self.scale[input.long()][..., None]", ""
    ),
    f"{K3}/quantized_weights.keras",
)


# Whole models inside TimeDistributed; merging and planes of Keras 1; attention over other axes.
mutation(
    "no mask enters a model inside TimeDistributed",
    edit("layers.time_distributed:mask_enters", 'rule != "passes by" and', "False and"),
    f"{TF}/td_model_words.h5",
    f"{K2}/td_model_words.h5",
    f"{K3}/td_model_words.h5",
)
mutation(
    "the mask inside TimeDistributed does not come out",
    edit("layers.graph:_Emitter.steps", "return node, after", "return node, None"),
    f"{TF}/td_model_words.h5",
    f"{K2}/td_model_words.h5",
)
mutation(
    "a mask enters TimeDistributed where the batch is fixed",
    edit("layers.time_distributed:_fixed", "isinstance(layer.input_shape[0], int)", "False"),
    "keras-2.3.1/td_fixed_words.h5",
    "tf-2.0.4/td_fixed_inside.h5",
)
mutation(
    "steps of TimeDistributed unfold the other way round",
    edit(
        "layers.time_distributed:unfold_steps",
        "y.reshape(*like.shape[:2], *y.shape[1:])",
        "y.reshape(*like.shape[1::-1], *y.shape[1:]).transpose(0, 1)",
    ),
    f"{TF}/td_model_inside.h5",
    f"{K3}/td_td_model.h5",
)
mutation(
    "a mask leaves a branch of a Merge",
    edit("readers.config.keras1_merge:_makes_mask", "begins or any", "False and any"),
    "keras-1.2.2/merge_first_masked.h5",
    rereads=True,
)
mutation(
    "kernels of channels_first planes are mirrored",
    edit("readers.config.keras1:_join", "n: w.transpose(", "n: w[..., ::-1].transpose("),
    "keras-1.2.2/cube_th.h5",
    "keras-1.2.2/plane_conv_first.h5",
    "keras-1.2.2/plane_separable_first.h5",
    rereads=True,
)
mutation(
    "rows and columns of a padding change places",
    edit(
        "readers.config.keras1:_around", "[padding[:2], padding[2:]]", "[padding[2:], padding[:2]]"
    ),
    "keras-1.2.2/plane_around_tf.h5",
    "keras-1.2.2/plane_around_th.h5",
    rereads=True,
)
mutation(
    "gates of a convolutional LSTM in the order of the file",
    put(keras1._FUSED, "ConvLSTM2D", "icfo"),
    "keras-1.2.2/plane_lstm_tf.h5",
    "keras-1.2.2/plane_lstm_th_bi.h5",
    rereads=True,
)
mutation(
    "a deconvolution starts where its own length does",
    edit(
        "layers.convolution:TransposedConvolution.convolve",
        "same_padding(length, extent, stride)[0]",
        "same_padding(x.shape[2 + axis] * stride, extent, stride)[0]",
    ),
    "keras-1.2.2/plane_deconvolution_same_tf.h5",
    "keras-1.2.2/plane_deconvolution_same_th.h5",
)
mutation(
    "a highway carries what it should let through",
    edit("layers.dense:Highway.forward", "(1 - gate) * x", "gate * x"),
    "keras-1.2.2/highway_maxout.h5",
    "keras-2.2.4/highway_maxout.h5",
)
mutation(
    "the smallest of several products",
    edit("layers.dense:Maxout.forward", ".amax(dim=1)", ".amin(dim=1)"),
    "keras-1.2.2/highway_maxout.h5",
    "keras-2.2.4/highway_maxout.h5",
)
mutation(
    "a maxout's features and units change places",
    edit("layers.dense:maxout", "kernel.transpose(0, 2, 1)", "kernel.transpose(2, 0, 1)"),
    "keras-1.2.2/highway_maxout.h5",
    "keras-2.3.1/highway_maxout.h5",
)
mutation(
    "a cosine over one length only",
    edit("layers.merging:Cosine.forward", "(y * y).sum(dim=1)", "(x * x).sum(dim=1)"),
    "keras-1.2.2/merge_first_cosine.h5",
    "keras-1.2.2/merge_cosine.h5",
)
mutation(
    "masks stay in the branches of a Merge of Keras 2",
    edit("readers.config.keras1_merge:_Writer._branch", "self.masks_stay and", "True and"),
    "keras-2.0.8/merge_legacy_masked.h5",
    rereads=True,
)
mutation(
    "the middles of pixels on each other in TensorFlow 1",
    edit("layers.interpolation:weights", "0.0 if corners else 0.5", "0.5"),
    "keras-2.2.4/around_bilinear_corners.h5",
    "keras-2.3.1/around_bilinear_corners.h5",
)
mutation(
    "a cubic that is not read from a table",
    edit("layers.interpolation:_bicubic", "(d * _TABLE).round() / _TABLE", "d"),
    f"{TF}/around_resized_bicubic.h5",
)
mutation(
    "every kernel Mitchell's",
    put(interpolation.KERNELS, "lanczos3", interpolation.KERNELS["mitchellcubic"]),
    f"{TF}/around_resized_lanczos3.h5",
    f"{K3}/around_resized_lanczos3.h5",
)
mutation(
    "areas as they would be without rounding",
    put(
        interpolation,
        "_areas",
        lambda like, size, factor: torch.eye(size, dtype=like.dtype).repeat_interleave(
            factor, dim=0
        ),
    ),
    f"{TF}/around_resized_far.h5",
)
mutation(
    "no weight outside is made up for",
    edit("layers.interpolation:weights", "rows / rows.sum(dim=1, keepdim=True)", "rows"),
    f"{TF}/around_resized_gaussian.h5",
    f"{TF}/around_resized_mitchellcubic.h5",
)
mutation(
    "attention over all axes",
    edit("layers.attention:MultiHeadAttention._over_axes", "self.plan.axes", "None"),
    f"{TF}/heads_axes.keras",
    f"{K3}/heads_axes.keras",
)


# ---- the law -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name.replace(" ", "-"))
def test_a_mutation_breaks_the_parity(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unmutated every file passes; mutated every file fails, by both checks."""
    assert mutation.files
    for file in mutation.files:
        assert_right(file)
    mutation.patch(monkeypatch)
    for file in mutation.files:
        case = read(file)
        if mutation.rereads:
            case = replace(case, spec=read_entry(file))
        assert not agrees_with_keras(case), f"{file} does not notice"
        if not (mutation.late or mutation.rereads):
            assert not agrees_layer_by_layer(case), f"{file}: verify does not notice"


@functools.cache
def assert_right(file: str) -> None:
    assert agrees_with_keras(read(file))
    assert agrees_layer_by_layer(read(file))


def test_the_names_of_the_mutations_differ() -> None:
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
