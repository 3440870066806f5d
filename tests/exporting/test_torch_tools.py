"""Converted models through torch's exporters: any batch, any number of steps, any mask."""

from __future__ import annotations

import warnings
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
from keras2torch_birnn.exporting.torch_program import record_program

# Torch warns of its own: of its jit, which it calls itself, and of nn.LSTM.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The tensor attributes self.*_flat_weights:UserWarning"),
]
thorough = pytest.mark.thorough

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


MASKED_LOOP, MASKED_KERNELS = FIXTURES[3], FIXTURES[5]
# What ``make test`` runs.
SOME = (MASKED_LOOP, MASKED_KERNELS)


@pytest.mark.parametrize("file", rest_thorough(FIXTURES, SOME))
def test_an_export_runs_at_any_size(file: str) -> None:
    assert fixture_subject(file).open_time
    checked("export", file)


@pytest.mark.thorough
@pytest.mark.parametrize("file", SOME)
def test_a_strict_export_runs_at_any_size(file: str) -> None:
    check("strict", fixture_subject(file))


@pytest.mark.thorough
@pytest.mark.parametrize("file", SOME)
def test_a_compiled_graph_runs_at_any_size(file: str) -> None:
    check("compile", fixture_subject(file))


@pytest.mark.parametrize("file", rest_thorough(FIXTURES[1::4], SOME))
def test_torchs_onnx_runs_at_any_size(file: str) -> None:
    pytest.importorskip("onnxruntime")
    check("onnx", fixture_subject(file))


# ---- nodes --------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("file", SOME)
def test_the_number_of_nodes_does_not_depend_on_time(file: str) -> None:
    one = fixture_subject(file)
    longer = replace(one, inputs=resized(one, (3, one.steps + 18)))
    assert export("export", longer).nodes == checked("export", file).nodes


@pytest.mark.parametrize(
    ("file", "nodes"),
    [
        pytest.param(FIXTURES[0], {"aten.lstm.input": 1}, marks=thorough),
        pytest.param(FIXTURES[6], {"aten.lstm.input": 2}, marks=thorough),
        (MASKED_KERNELS, {"aten.lstm.input": 2, "scan": 2}),
        (MASKED_LOOP, {"scan": 2}),
    ],
)
def test_recurrent_layers_stay_nodes(file: str, nodes: dict[str, int]) -> None:
    assert dict(checked("export", file).recurrent()) == nodes


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
        rows = torch.export.Dim.DYNAMIC
        shapes = ({0: rows}, {0: rows}, {1: rows}, {1: rows})
        given = (x[:2], mask[:2], *(s[:, :2].contiguous() for s in hx))
        program = torch.export.export(Masked(), given, dynamic_shapes=shapes)
        assert "aten.lstm.input" in [str(node.target) for node in program.graph.nodes]
        found = program.module()(x, mask, *hx)
    torch.testing.assert_close(
        found, wanted, atol=1e-5 if dtype is torch.float32 else 1e-12, rtol=1e-5
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("cell", "masked"), [("LSTM", True), ("GRU", False)])
def test_a_graph_in_training_drops_as_the_model_does_at_any_size(cell: str, masked: bool) -> None:
    options = {"return_sequences": True, "dropout": 0.3, "recurrent_dropout": 0.4}
    halves = [rnn(cell, seed=seed, **options) for seed in (0, 1)]
    spec = many_layers({"bi": bi(*halves, "sum")}, {"bi": 1}, masked=masked)
    model = build_model(spec).train()
    inputs = [tuple(map(torch.from_numpy, inputs_of(spec, *n))) for n in ((2, 5), (3, 11), (1, 1))]
    graph = record_program(model, inputs[0], ((0, 1),) * len(inputs[0])).module()
    for given in inputs:
        found = []
        for one in (graph, model):
            torch.manual_seed(7)
            found.append(one(*given))
        torch.testing.assert_close(*found)
        assert not torch.allclose(graph(*given)[0], found[1][0])  # another draw


def test_a_trace_is_refused_with_what_to_do() -> None:
    wanted = r"torch\.jit does not trace converted.*; use torch\.export\.export or `k2t export`"
    jit: Any = torch.jit
    one, layer = fixture_subject(FIXTURES[0]), k2t.BiLSTM(3, 5)
    for model, given in ((one.model, one.inputs), (layer, (torch.randn(7, 2, 3),))):
        with warnings.catch_warnings(), pytest.raises(k2t.UsageError, match=wanted):
            warnings.simplefilter("ignore")  # torch's own: it is deprecated
            jit.trace(model, given)


def test_the_check_notices_another_number_at_another_size() -> None:
    one = fixture_subject(FIXTURES[0])

    def wrong(x: Tensor) -> Any:
        return one.model(x) + (len(x) == 1)

    with pytest.raises(AssertionError, match="batch 2: AssertionError"):
        compare(Exported(wrong), one)
