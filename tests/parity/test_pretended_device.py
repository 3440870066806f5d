"""Every class on a pretended CUDA device: no tensor is left behind, and the host hardly waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pretended_device import PretendedDevice, PretendedTensor, pretended_device
from sampling import rest_thorough
from specs import ENTRIES, fixture
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import keras2torch_birnn as k2t
from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.running import flat
from keras2torch_birnn.rnn.engines import torch_kernel
from keras2torch_birnn.schema import CELLS, LAYERS, OPS
from keras2torch_birnn.spec import Array

# Files that together have every class, what makes numbers on the device (resizing), and one mask
# behind layers that join what has it (reader, residual).
ONE_PER_CLASS = """
    keras-2.2.4/around_bilinear_corners.h5
    tf.keras-2.4.0/resizing_nearest.h5
    keras-1.2.2/conv_valid_same.h5
    keras-1.2.2/cube_global_tf.h5
    keras-1.2.2/cube_tf.h5
    keras-1.2.2/merge_first_masked.h5
    keras-2.0.8/merge_legacy.h5
    keras-2.2.4/around_conv2_first.h5
    keras-2.2.4/around_transposed2.h5
    keras-2.2.4/conv_lstm_2d_bi.h5
    keras-3.15.1/around_rescaling.keras
    keras-3.15.1/around_depthwise2_first.keras
    keras-3.15.1/around_mask_rmsnorm.keras
    keras-3.15.1/arch_residual.weights.h5
    keras-3.15.1/arch_seq2seq_attention.weights.h5
    keras-3.15.1/augmented.keras
    keras-3.15.1/augmented_old_file.h5
    keras-3.15.1/ops_reduce.keras
    keras-3.15.1/ops_rest.keras
    keras-3.15.1/ops_shapes.keras
    keras-3.15.1/ops_sinc.keras
    keras-3.15.1/ops_values.keras
    tf-2.2.3/ops_node_values.h5
    tf.keras-2.15.0/activation_layers.keras
    tf.keras-2.15.0/arch_reader.h5
    tf.keras-2.15.0/around_count.h5
    tf.keras-2.15.0/around_groupnorm2.h5
    tf.keras-2.15.0/around_mask_dropped.h5
    tf.keras-2.15.0/around_mask_normalization.keras
    tf.keras-2.15.0/around_mask_transposed.keras
    tf.keras-2.15.0/attention_causal.keras
    tf.keras-2.15.0/conv_lstm_1d.h5
    tf.keras-2.15.0/conv_lstm_3d.keras
    tf.keras-2.15.0/dropout_cubes.keras
    tf.keras-2.15.0/identities.keras
    tf.keras-2.15.0/merge_values.keras
    tf.keras-2.15.0/shapes.keras
    tf.keras-2.15.0/softmax_layer.h5
    tf.keras-2.15.0/thresholded_relu.h5
    tf.keras-2.4.0/augmented.h5
    tf.keras-2.4.0/cube_margins.h5
    tf.keras-2.4.0/cube_transposed.h5
    tf.keras-2.4.0/stacked_mask_bi.h5
    tf_keras-2.21.0/arch_deep_speech_2d.keras
    tf_keras-2.21.0/arch_multi_head.weights.h5
    tf_keras-2.21.0/dtypes_whole.h5
    tf_keras-2.21.0/einsum.keras
    tf_keras-2.21.0/ops_tf_sizes.keras
""".split()
# ... or all there are, in some minutes.
FORWARD = [*ENTRIES] if "K2T_ALL_FIXTURES" in os.environ else ONE_PER_CLASS
# Gradients of cells, masks and merges that have an engine of their own; all others: thorough.
GRADIENTS = ("mask", "cell", "merge", "conv_lstm")


def tensors(inputs: Sequence[Array], model: nn.Module) -> list[Tensor]:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    given = [torch.from_numpy(x) for x in inputs]
    return [x.to(dtype) if x.is_floating_point() else x for x in given]


def numbers(outputs: Any) -> list[Tensor]:
    found = flat(outputs)
    assert all(isinstance(y, PretendedTensor) for y in found)
    return [y.held for y in found]


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Note the lengths of every masked call of torch's kernel, for which the host waits once."""
    seen: list[Tensor] = []
    sort = torch_kernel._sort
    monkeypatch.setattr(
        torch_kernel, "_sort", lambda lengths: (seen.append(lengths), sort(lengths))[1]
    )
    return seen


def assert_ready(device: PretendedDevice, waits: int = 1, copies: int = 0) -> None:
    """Nothing is left on the host, copied or waited for no more often than that."""
    assert device.mismatches == []
    assert len(device.copies) == copies
    assert {*device.reads} <= {"_to_copy", "to"}
    assert len(device.reads) <= waits


@pytest.mark.every(4)
@pytest.mark.parametrize("file", FORWARD)
def test_a_model_computes_on_the_device_what_keras_gave(file: str, packed: list[Tensor]) -> None:
    case, entry = fixture(file), ENTRIES[file]
    model = build(case.spec)
    atol = entry.get("tolerance", {}).get("atol", 1e-5)
    with pretended_device() as device, torch.no_grad():
        device.move(model)
        for inputs, wanted in case.calls():
            given = [device.put(x) for x in tensors(inputs, model)]
            device.reads.clear()
            packed.clear()
            found = numbers(model(*given))
            assert_ready(device, len(packed))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a.numpy(), b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    "file",
    rest_thorough(ONE_PER_CLASS, [f for f in ONE_PER_CLASS if any(k in f for k in GRADIENTS)][::2]),
)
def test_gradients_are_those_of_the_cpu(file: str, packed: list[Tensor]) -> None:
    case = fixture(file)
    model, there = build(case.spec), build(case.spec)
    (inputs, _), *_ = case.calls()

    def differentiate(outputs: Any) -> None:
        ys = [y for y in flat(outputs) if y.requires_grad]
        if ys:
            torch.stack([y.square().mean() for y in ys]).sum().backward()

    given = tensors(inputs, model)
    differentiate(model(*given))
    packed.clear()
    with pretended_device() as device:
        device.move(there)
        differentiate(there(*[device.put(x) for x in given]))
    assert_ready(device, len(packed))
    for (name, one), other in zip(model.named_parameters(), there.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert isinstance(other.grad, PretendedTensor)
            size = float(one.grad.nan_to_num().abs().max().clamp(min=1e-3))
            options: Any = {"rtol": 0, "atol": 1e-4 * size, "equal_nan": True}
            torch.testing.assert_close(other.grad.held, one.grad, **options)


@pytest.mark.parametrize("how", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("file", "waits"),
    [
        ("keras-2.3.1/arch_ner_char_lstm_weights.h5", 2),
        ("keras-3.15.1/dtypes_masks.h5", 2),
        ("tf.keras-2.15.0/graph_siamese.h5", 2),
    ],
)
def test_the_host_waits_once_for_each_masked_layer(file: str, waits: int, how: Any) -> None:
    case = fixture(file)
    model = build(case.spec)
    with pretended_device() as device, how():
        device.move(model)
        for inputs, wanted in case.calls():
            given = [device.put(x) for x in tensors(inputs, model)]
            device.reads.clear()
            found = flat(model(*given))
            assert len(device.reads) == waits
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a.held.detach().numpy(), b, atol=1e-5, rtol=1e-4)


@pytest.mark.thorough
def test_the_files_have_every_class() -> None:
    found = {layer.class_name for f in ONE_PER_CLASS for layer in fixture(f).spec.root.walk()}
    assert found == set(LAYERS) | set(OPS) | set(CELLS)


def test_a_stack_reads_the_lengths_of_a_mask_for_each_layer() -> None:
    rnn = k2t.BiGRU(5, 7, num_layers=3, merge_mode=["sum", "mul", "ave"], batch_first=True)
    x, mask = torch.randn(3, 11, 5), torch.rand(3, 11) < 0.6
    wanted, _ = rnn(x, mask=mask)
    with pretended_device() as device:
        device.move(rnn)
        found, _ = rnn(device.put(x), mask=device.put(mask))
    assert_ready(device, waits=3)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("merge", ["sum", "concat"])
@pytest.mark.parametrize("packed", [False, True])
def test_lengths_on_the_host_are_copied_once_and_read_for_each_layer(
    packed: bool, merge: Any, mode: Any
) -> None:
    rnn = k2t.BiGRU(5, 7, num_layers=3, merge_mode=merge, batch_first=True)
    x, lengths = torch.randn(4, 11, 5), [3, 11, 0, 5]
    with pretended_device() as device, mode():
        if packed:
            lengths[2] = 1
            given = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            wanted, last = rnn(given)
            device.move(rnn)
            order, back = map(device.put, given[2:])
            there = PackedSequence(device.put(given.data), given.batch_sizes, order, back)
            found, state = rnn(there)
            wanted, found = wanted.data, found.data
        else:
            wanted, last = rnn(x, lengths=lengths)
            device.move(rnn)
            found, state = rnn(device.put(x), lengths=lengths)
    assert_ready(device, waits=3, copies=1)
    for a, b in ((found, wanted), (state, last)):
        torch.testing.assert_close(a.held.detach(), b.detach(), rtol=0, atol=1e-5)


def test_lengths_on_the_device_are_read_for_each_layer() -> None:
    rnn = k2t.BiLSTM(5, 7, num_layers=2, merge_mode="sum")
    x, lengths = torch.randn(11, 3, 5), torch.tensor([3, 12, -1])
    with pretended_device() as device, torch.no_grad():
        wanted, _ = rnn(x, lengths=lengths.clamp(0, 11))
        device.move(rnn)
        found, _ = rnn(device.put(x), lengths=device.put(lengths))
    assert_ready(device, waits=2)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_mask_that_is_changed_between_calls_is_read_again(mode: Any) -> None:
    rnn = k2t.BiGRU(5, 7, num_layers=2, merge_mode="sum", batch_first=True)
    x, mask = torch.randn(3, 11, 5), torch.rand(3, 11) < 0.6
    with mode():
        wanted, _ = rnn(x, mask=~mask)
    with pretended_device() as device, mode():
        device.move(rnn)
        given = device.put(mask)
        rnn(device.put(x), mask=given)
        given.logical_not_()
        found, _ = rnn(device.put(x), mask=given)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_graph_of_the_caller_can_hold_a_model_with_a_mask(layers: int) -> None:
    rnn = k2t.BiLSTM(5, 7, num_layers=layers, batch_first=True)
    x, mask = torch.randn(3, 11, 5), torch.rand(3, 11) < 0.6
    with torch.no_grad():
        wanted, _ = rnn(x, mask=mask)
    with pretended_device() as device, torch.no_grad(), pytest.MonkeyPatch.context() as patching:
        device.move(rnn)
        given = device.put(x), device.put(mask)
        patching.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        found, _ = rnn(given[0], mask=given[1])
        assert_ready(device, waits=0)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_stack_in_evaluation_mode_has_gradients(masked: bool) -> None:
    rnn = k2t.BiGRU(5, 7, num_layers=2, batch_first=True).eval()
    x, hx = torch.randn(3, 11, 5), torch.randn(4, 3, 7)
    mask = torch.rand(3, 11) < 0.6 if masked else None
    rnn(x, hx, mask=mask)[0].sin().sum().backward()
    wanted = [p.grad for p in rnn.parameters()]
    rnn.zero_grad()
    with pretended_device() as device:
        device.move(rnn)
        given = None if mask is None else device.put(mask)
        rnn(device.put(x), device.put(hx), mask=given)[0].sin().sum().backward()
    found = [p.grad.held for p in rnn.parameters()]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


# ---- the device itself ---------------------------------------------------------------------------


def test_the_device_notes_tensors_of_two_devices_reads_and_copies() -> None:
    with pretended_device() as device:
        x = device.put(torch.arange(6.0).reshape(2, 3))
        assert x.is_cuda and x.device == torch.device("cuda", 0)
        assert x.new_zeros(2).is_cuda and torch.ones(2, device=x.device).is_cuda
        assert device.mismatches == device.reads == device.copies == []
        x + torch.ones(3)
        assert device.mismatches == ["add: cuda [2, 3], cpu [3]"]
        assert x.sum().item() == 15.0
        assert x[x > 2].shape == (3,)
        assert torch.equal(x.cpu(), torch.arange(6.0).reshape(2, 3))
        assert device.reads == ["_local_scalar_dense", "index", "_to_copy"]
        torch.tensor([1.0], device=x.device)
        x.new_tensor(3)
        x.copy_(torch.ones(2, 3))
        torch.ones(3).to(x.device)
        assert device.copies == ["tensor", "new_tensor", "copy_", "_to_copy"]
