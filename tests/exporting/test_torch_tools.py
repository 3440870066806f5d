"""Converted models through torch's exporters: any batch, any number of steps, any mask."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from exported import inputs_of, many_layers
from sampling import rest_thorough
from specs import bi, rnn
from torch import Tensor
from torch_tools import Exported, check, compare, export, fixture_subject, resized

import keras2torch_birnn as k2t
from keras2torch_birnn.conversion import build_model
from keras2torch_birnn.exporting.source.helpers.padding import pad_same
from keras2torch_birnn.exporting.torch_program import record_program
from keras2torch_birnn.layers.pooling import Pooling
from keras2torch_birnn.rnn.engines.exported_loop import SCAN

# Torch warns of its own: of what a trace fixes (sizes that are compared in checks), and of nn.LSTM.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy:DeprecationWarning"),
]
thorough = pytest.mark.thorough
needs_scan = pytest.mark.skipif(SCAN is None, reason="torch before 2.10 fixes the number of steps")

# Every cell, with torch's kernel and without; merges; masks; models in models; several inputs.
FIXTURES = (
    "tf.keras-2.15.0/bi_lstm_concat_seq.h5",
    "tf.keras-2.15.0/bi_gru_after_mul_seq.h5",
    "keras-3.15.1/nobias_bi_gru_before.h5",
    "keras-2.2.4/mask_hard_sigmoid_gru.h5",
    "keras-2.2.4/mask_unroll_bi_seq.h5",
    "tf.keras-2.15.0/mask_stack_bi_dense.h5",
    "tf.keras-2.15.0/mask_bi_state.keras",
    "tf.keras-2.15.0/mask_bi_simplernn_seq.h5",
    "tf.keras-2.15.0/cells_bi_halves.h5",
    "tf.keras-2.15.0/conv_lstm_1d_mask_bi.h5",
    "tf.keras-2.15.0/attention_masks.keras",
    "keras-3.15.1/graph_nested_twice.keras",
    "keras-3.15.1/graph_seq2seq_bi.keras",
)


@cache
def checked(path: str, file: str) -> Exported:
    """Export a fixture by a path, and compare at all sizes; once."""
    return check(path, fixture_subject(file))


MASKED_LOOP, MASKED_KERNELS, SEVERAL_INPUTS = FIXTURES[3], FIXTURES[5], FIXTURES[12]
# What ``make test`` runs.
SOME = (MASKED_LOOP, MASKED_KERNELS)


@pytest.mark.parametrize("file", rest_thorough(FIXTURES, (*SOME, SEVERAL_INPUTS)))
def test_a_trace_runs_at_any_size(file: str) -> None:
    assert fixture_subject(file).open_time
    checked("trace", file)


@needs_scan
@pytest.mark.parametrize("file", rest_thorough(FIXTURES, SOME))
def test_an_export_runs_at_any_size(file: str) -> None:
    assert fixture_subject(file).open_time
    checked("export", file)


@pytest.mark.thorough
@needs_scan
@pytest.mark.parametrize("file", SOME)
def test_a_strict_export_runs_at_any_size(file: str) -> None:
    check("strict", fixture_subject(file))


@pytest.mark.thorough
@pytest.mark.parametrize("file", SOME)
def test_a_compiled_graph_runs_at_any_size(file: str) -> None:
    check("compile", fixture_subject(file))


@pytest.mark.parametrize("file", rest_thorough([*FIXTURES[1::4], SEVERAL_INPUTS], SOME))
def test_torchs_onnx_runs_at_any_size(file: str) -> None:
    pytest.importorskip("onnxruntime")
    check("onnx", fixture_subject(file))


# ---- nodes --------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["trace", pytest.param("export", marks=needs_scan)])
@pytest.mark.parametrize("file", SOME)
def test_the_number_of_nodes_does_not_depend_on_time(path: str, file: str) -> None:
    one = fixture_subject(file)
    longer = replace(one, inputs=resized(one, (3, one.steps + 18)))
    assert export(path, longer).nodes == checked(path, file).nodes


@pytest.mark.parametrize(
    ("path", "file", "nodes"),
    [
        pytest.param("trace", FIXTURES[0], {"aten::lstm": 1}, marks=thorough),
        ("trace", MASKED_KERNELS, {"aten::lstm": 2, "prim::Loop": 2}),
        ("trace", FIXTURES[7], {"aten::rnn_tanh": 2}),
        pytest.param("export", FIXTURES[0], {"aten.lstm.input": 1}, marks=[thorough, needs_scan]),
        pytest.param("export", FIXTURES[6], {"aten.lstm.input": 2}, marks=[thorough, needs_scan]),
        pytest.param("export", MASKED_KERNELS, {"aten.lstm.input": 2, "scan": 2}, marks=needs_scan),
        pytest.param("export", MASKED_LOOP, {"scan": 2}, marks=needs_scan),
    ],
)
def test_recurrent_layers_stay_nodes(path: str, file: str, nodes: dict[str, int]) -> None:
    assert dict(checked(path, file).recurrent()) == nodes


def test_a_fixed_number_of_steps_keeps_the_kernel() -> None:
    one = fixture_subject("tf.keras-2.15.0/bi_gru_after_mul_seq.h5")
    with torch.no_grad():
        program = torch.export.export(one.model, one.inputs)
    assert "aten.gru.input" in [str(node.target) for node in program.graph.nodes]


# ---- what a mask must not change ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cell_state_behind_any_padding_is_exact(dtype: torch.dtype) -> None:
    """NaN in the padding, states of the caller, rows without a step, weights that saturate."""
    torch.manual_seed(0)
    rnn = k2t.BiLSTM(3, 5, merge_mode="sum", batch_first=True, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.mul_(40)
    mask = torch.rand(5, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0], mask[1] = True, False
    x = torch.randn(5, 11, 3, dtype=dtype)
    x[~mask] = float("nan")
    hx = tuple(torch.randn(2, 5, 5, dtype=dtype) * 9 for _ in range(2))

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = rnn

        def forward(self, x: Tensor, mask: Tensor, h: Tensor, c: Tensor) -> Any:
            out, (h, c) = self.rnn(x, (h, c), mask=mask)
            return out, h, c

    with torch.no_grad():
        wanted = Masked()(x, mask, *hx)
        jit: Any = torch.jit
        traced = jit.trace(Masked(), (x[:2], mask[:2], *(s[:, :2] for s in hx)), check_trace=False)
        found = traced(x, mask, *hx)
    torch.testing.assert_close(
        found, wanted, atol=1e-5 if dtype is torch.float32 else 1e-12, rtol=1e-5
    )


def test_a_trace_has_the_gradients_of_the_model() -> None:
    one = fixture_subject("keras-2.2.4/mask_hard_sigmoid_gru.h5")
    jit: Any = torch.jit
    given = resized(one, (5, 9))
    found = []
    for model in (jit.trace(one.model, one.inputs, check_trace=False), one.model):
        one.model.zero_grad()
        model(*given).square().sum().backward()
        found.append([p.grad.clone() for p in one.model.parameters() if p.grad is not None])
    assert len(found[0]) > 4
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize(
    ("path", "cell", "masked"),
    [
        ("trace", "LSTM", False),
        ("trace", "LSTM", True),
        pytest.param("export", "LSTM", True, marks=[thorough, needs_scan]),
        pytest.param("export", "GRU", False, marks=[thorough, needs_scan]),
    ],
)
def test_a_graph_in_training_drops_as_the_model_does_at_any_size(
    path: str, cell: str, masked: bool
) -> None:
    options = {"return_sequences": True, "dropout": 0.3, "recurrent_dropout": 0.4}
    halves = [rnn(cell, seed=seed, **options) for seed in (0, 1)]
    spec = many_layers({"bi": bi(*halves, "sum")}, {"bi": 1}, masked=masked)
    model = build_model(spec).train()
    inputs = [tuple(map(torch.from_numpy, inputs_of(spec, *n))) for n in ((2, 5), (3, 11), (1, 1))]
    if path == "trace":
        jit: Any = torch.jit
        graph = jit.trace(model, inputs[0], check_trace=False)
    else:
        graph = record_program(model, inputs[0], ((0, 1),) * len(inputs[0])).module()
    for given in inputs:
        found = []
        for one in (graph, model):
            torch.manual_seed(7)
            found.append(one(*given))
        torch.testing.assert_close(*found)
        assert not torch.allclose(graph(*given)[0], found[1][0])  # another draw


def test_the_check_notices_another_number_at_another_size() -> None:
    one = fixture_subject(FIXTURES[0])

    def wrong(x: Tensor) -> Any:
        return one.model(x) + (len(x) == 1)

    with pytest.raises(AssertionError, match="batch 2: AssertionError"):
        compare(Exported(wrong), one)


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (5, 2), (2, 3)])
@pytest.mark.parametrize("steps", [7, 8])
def test_a_trace_pads_as_many_steps_as_each_length_needs(
    kind: str, size: int, stride: int, steps: int
) -> None:
    layer = Pooling(kind=kind, size=(size,), stride=(stride,), padding="same", channels_last=True)
    traced: Any = torch.jit.trace(layer, (torch.randn(2, steps, 3),))
    for length in (1, 4, 5, 6, 9, 12):
        x = torch.randn(2, length, 3)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("steps", [7, 8])
def test_a_trace_of_source_pads_as_many_steps_as_each_length_needs(steps: int) -> None:
    def pad(x: Tensor) -> Tensor:
        return pad_same(x, (5,), (2,))

    traced: Any = torch.jit.trace(pad, (torch.randn(2, 3, steps),))
    for length in (1, 4, 5, 6, 9):
        assert traced(torch.ones(2, 3, length)).shape[-1] == 2 * ((length + 1) // 2) + 3
