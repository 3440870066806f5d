"""Every class on a pretended CUDA device: no tensor is left behind, and the host hardly waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import getitem
from typing import Any

import numpy as np
import pytest
import torch
from pretended_device import PretendedDevice, PretendedTensor, pretended_device
from sampling import rest_thorough
from spec_parity import model_of
from specs import ENTRIES, bi, chain, fixture, functional, layer, rnn
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves, tree_map

import keras2torch_birnn as k2t
from keras2torch_birnn.building import build
from keras2torch_birnn.layers import masks_ahead
from keras2torch_birnn.layers.masks_ahead import EXACT, compute_on_both
from keras2torch_birnn.layers.merging import all_masks, any_mask, concatenated_mask
from keras2torch_birnn.layers.time_distributed import step_counts, unfold_steps
from keras2torch_birnn.rnn.once_per_call import expect, find_on_host, on_host, one_call
from keras2torch_birnn.running import flat
from keras2torch_birnn.schema import CELLS, LAYERS, OPS
from keras2torch_birnn.spec import Array, Call, TensorRef

# Files that together have every class, what makes numbers on the device (resizing), and one mask
# behind layers that join what has it (reader, residual).
ONE_PER_CLASS = """
    keras-2.2.4/around_bilinear_corners.h5
    tf.keras-2.15.0/around_resized_area.h5
    tf.keras-2.4.0/resizing_nearest.h5
    keras-1.2.2/conv_valid_same.h5
    keras-1.2.2/cube_global_tf.h5
    keras-1.2.2/cube_tf.h5
    keras-1.2.2/learned_activations.h5
    keras-1.2.2/local2_tf.h5
    keras-1.2.2/merge_first_masked.h5
    keras-1.2.2/plane_deconvolution_same_tf.h5
    keras-1.2.2/plane_lstm_tf.h5
    keras-2.0.8/merge_legacy.h5
    keras-2.2.4/around_conv2_first.h5
    keras-2.3.1/highway_maxout.h5
    keras-3.15.1/adaptive1.keras
    keras-3.15.1/adaptive2.keras
    keras-3.15.1/adaptive3.h5
    keras-3.15.1/around_depthwise2_first.keras
    keras-3.15.1/around_mask_rmsnorm.keras
    keras-3.15.1/arch_residual.weights.h5
    keras-3.15.1/arch_seq2seq_attention.weights.h5
    keras-3.15.1/augmented.keras
    keras-3.15.1/augmented_old_file.h5
    keras-3.15.1/auto_contrast.keras
    keras-3.15.1/groups.keras
    keras-3.15.1/mel.keras
    keras-3.15.1/ops_layers.keras
    keras-3.15.1/ops_more.keras
    keras-3.15.1/ops_newest.keras
    keras-3.15.1/ops_reduce.keras
    keras-3.15.1/ops_shapes.keras
    keras-3.15.1/ops_sinc.keras
    keras-3.15.1/ops_values.keras
    keras-3.15.1/pipeline_shared.keras
    keras-3.15.1/resizing_first.keras
    keras-3.15.1/reversible.keras
    keras-3.15.1/stft_angle.keras
    tf-2.2.3/ops_node_values.h5
    tf.keras-2.15.0/activation_layers.keras
    tf.keras-2.15.0/arch_reader.h5
    tf.keras-2.15.0/around_count.h5
    tf.keras-2.15.0/around_discretization.keras
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
    tf.keras-2.15.0/random_fourier.keras
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
    tf_keras-2.21.0/hashing.keras
    tf_keras-2.21.0/local.keras
    tf_keras-2.21.0/lookup.keras
    tf_keras-2.21.0/ops_tf_more.keras
    tf_keras-2.21.0/ops_tf_sizes.keras
""".split()
# ... or all there are, in some minutes.
FORWARD = [*ENTRIES] if "K2T_ALL_FIXTURES" in os.environ else ONE_PER_CLASS
# Masks of several inputs; of characters and of the words they are in; that are no flags; joined
# behind layers, by all and by any, in one file by operations with ones like what a layer gives.
SEVERAL_MASKS = """
    keras-2.3.1/arch_ner_char_lstm_weights.h5
    keras-3.15.1/arch_reader.h5
    keras-3.15.1/dtypes_masks.h5
    keras-3.15.1/graph_nested_sequential_mask.keras
    keras-3.15.1/graph_siamese.keras
    tf.keras-2.15.0/arch_ner_char_lstm.h5
    tf.keras-2.15.0/graph_nested_sequential_mask.h5
    tf.keras-2.15.0/graph_siamese.h5
""".split()
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


def assert_ready(device: PretendedDevice, waits: int = 1, copies: int = 0) -> None:
    """Nothing is left on the host, copied or waited for no more often than that."""
    assert device.mismatches == []
    assert len(device.copies) == copies
    assert device.reads == ["_to_copy"] * len(device.reads)
    assert len(device.reads) <= waits


def most_waits(model: Any) -> int:
    """Return how often a model's masks may make the host wait."""
    return 1 if model.meta["masks"] else 0


@pytest.mark.every(4)
@pytest.mark.parametrize("file", FORWARD)
def test_a_model_computes_on_the_device_what_keras_gave(file: str) -> None:
    case, entry = fixture(file), ENTRIES[file]
    model = build(case.spec)
    atol = entry.get("tolerance", {}).get("atol", 1e-5)
    with pretended_device() as device, torch.no_grad():
        device.move(model)
        for inputs, wanted in case.calls():
            given = [device.put(x) for x in tensors(inputs, model)]
            device.reads.clear()
            found = numbers(model(*given))
            assert_ready(device, most_waits(model))
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a.numpy(), b, atol=atol, rtol=1e-4)


@pytest.mark.parametrize(
    "file",
    rest_thorough(ONE_PER_CLASS, [f for f in ONE_PER_CLASS if any(k in f for k in GRADIENTS)][::2]),
)
def test_gradients_are_those_of_the_cpu(file: str) -> None:
    case = fixture(file)
    model, there = build(case.spec), build(case.spec)
    (inputs, _), *_ = case.calls()

    def differentiate(outputs: Any) -> None:
        ys = [y for y in flat(outputs) if y.requires_grad]
        if ys:
            torch.stack([y.square().mean() for y in ys]).sum().backward()

    given = tensors(inputs, model)
    differentiate(model(*given))
    with pretended_device() as device:
        device.move(there)
        differentiate(there(*[device.put(x) for x in given]))
    assert_ready(device, most_waits(there))
    for (name, one), other in zip(model.named_parameters(), there.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            assert isinstance(other.grad, PretendedTensor)
            size = float(one.grad.nan_to_num().abs().max().clamp(min=1e-3))
            options: Any = {"rtol": 0, "atol": 1e-4 * size, "equal_nan": True}
            torch.testing.assert_close(other.grad.held, one.grad, **options)


@pytest.mark.parametrize("how", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("file", SEVERAL_MASKS)
def test_the_host_waits_once_for_several_masks(file: str, how: Any) -> None:
    case = fixture(file)
    model = build(case.spec)
    with pretended_device() as device, how():
        device.move(model)
        for inputs, wanted in case.calls():
            given = [device.put(x) for x in tensors(inputs, model)]
            device.reads.clear()
            found = flat(model(*given))
            assert len(device.reads) == 1
            for a, b in zip(found, wanted, strict=True):
                np.testing.assert_allclose(a.held.detach().numpy(), b, atol=1e-5, rtol=1e-4)


def test_the_host_waits_once_where_inputs_are_named() -> None:
    case = fixture("tf.keras-2.15.0/graph_siamese.h5")
    model: Any = build(case.spec)
    names = [node.target for node in model.graph.find_nodes(op="placeholder")]
    (inputs, wanted), *_ = case.calls()
    with pretended_device() as device, torch.no_grad():
        device.move(model)
        given = map(device.put, tensors(inputs, model))
        found = numbers(model(**dict(zip(names, given, strict=True))))
    assert_ready(device)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("join", "options"),
    [
        ("Add", {"masking": "all"}),
        ("Add", {"masking": "any"}),
        ("Concatenate", {"masking": "all", "axis": 2}),
        ("Concatenate", {"masking": "any", "axis": -1}),
        ("Concatenate", {"masking": "all", "axis": 1}),
    ],
)
def test_masks_joined_behind_layers_are_read_before(join: str, options: dict[str, Any]) -> None:
    starts = [layer("InputLayer", name, shape=(None, None, 5)) for name in "ab"]
    masks = [layer("Masking", f"masking_{name}", mask_value=0.0) for name in "ab"]
    width = 10 if options.get("axis") in (-1, 2) else 5
    widths = enumerate((5, 5, width))
    layers = [rnn("GRU", 5, size, seed, return_sequences=True) for seed, size in widths]
    joined = layer(join, "joined", **options)
    wires = [(masks[0], "a"), (masks[1], "b"), (layers[0], masks[0]), (layers[1], masks[1])]
    calls = [Call(to.name, 0, (TensorRef(getattr(x, "name", x)),)) for to, x in wires]
    both = tuple(TensorRef(one.name) for one in layers[:2])
    calls += [Call("joined", 0, (both,)), Call(layers[2].name, 0, (TensorRef("joined"),))]
    inputs = tuple(TensorRef(start.name) for start in starts)
    every = [*starts, *masks, *layers, joined]
    model = build(model_of(functional(every, calls, inputs, TensorRef(layers[2].name))))
    a, b = torch.randn(3, 11, 5), torch.randn(3, 7 if options.get("axis") == 1 else 11, 5)
    a[0, 4:], a[1, 2], b[0, 3], b[2, 1:] = 0.0, 0.0, 0.0, 0.0
    with pretended_device() as device, torch.no_grad():
        wanted = model(a, b)
        device.move(model)
        found = model(device.put(a), device.put(b))
    assert_ready(device)
    assert len(device.reads) == 1
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("function", EXACT, ids=lambda function: function.__name__)
def test_a_mask_of_shapes_and_known_masks_is_known(function: Any) -> None:
    mask, x = torch.rand(4, 3) < 0.6, torch.randn(4, 3, 5)
    given: dict[Any, tuple[Any, ...]] = {
        torch.full_like: (x, True),
        torch.logical_and: (mask, ~mask),
        torch.logical_or: (mask, ~mask.flip(0)),
        torch.cat: ((mask, ~mask), 1),
        torch.any: (mask, 1),
        torch.all: (mask, 1),
        getitem: (mask, (slice(None), 1)),
        Tensor.unsqueeze: (mask, -1),
        all_masks: ((x, x), (mask, None)),
        any_mask: ((x, x), (mask, mask.flip(0))),
        concatenated_mask: ((x, x), (mask, None), 1, "any"),
        step_counts: (x, mask[..., None]),
        unfold_steps: (mask, torch.randn(2, 2, 15)),
    }
    shape = EXACT[function]
    args = given.get(function, (mask,))
    wanted = function(*args)
    with pretended_device() as device, one_call():
        there = tree_map(lambda one: device.put(one) if isinstance(one, Tensor) else one, args)
        for place, arg in enumerate(there):
            if place != shape:
                for one in tree_leaves(arg):
                    if isinstance(one, Tensor):
                        expect(one)
        once_read = device.put(torch.arange(3))
        assert torch.equal(on_host(once_read), torch.arange(3))
        found = compute_on_both(function.__name__, *there)
        held = find_on_host(found)
    assert len(device.reads) == 1
    assert held is not None and not isinstance(held, PretendedTensor)
    assert held.dtype is wanted.dtype
    assert torch.equal(held, wanted) and torch.equal(found.held, wanted)


def test_a_mask_of_what_is_not_known_on_the_host_is_not_known() -> None:
    with pretended_device() as device, one_call():
        flags = device.put(torch.tensor([True, False]))
        assert find_on_host(compute_on_both("logical_not", flags)) is None
        assert device.reads == []


def test_the_host_waits_again_for_a_mask_of_what_a_layer_computes() -> None:
    halves = [rnn("LSTM", 5, 5, seed, return_sequences=True) for seed in range(4)]
    layers = [layer("Masking", name, mask_value=0.0) for name in ("one", "two")]
    layers = [layers[0], bi(*halves[:2], "mul"), layers[1], bi(*halves[2:], "sum")]
    model = build(model_of(chain(*layers, shape=(None, None, 5))))
    x = torch.randn(3, 11, 5)
    x[0, 4:], x[1, 2], x[2, 7] = 0.0, 0.0, 0.0
    with pretended_device() as device, torch.no_grad():
        wanted = model(x)
        device.move(model)
        found = model(device.put(x))
    assert_ready(device, waits=2)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_the_files_have_every_class() -> None:
    found = {layer.class_name for f in ONE_PER_CLASS for layer in fixture(f).spec.root.walk()}
    assert found == set(LAYERS) | set(OPS) | set(CELLS)


def test_a_stack_reads_the_lengths_of_a_mask_once() -> None:
    rnn = k2t.BiGRU(5, 7, num_layers=3, merge_mode=["sum", "mul", "ave"], batch_first=True)
    x, mask = torch.randn(3, 11, 5), torch.rand(3, 11) < 0.6
    wanted, _ = rnn(x, mask=mask)
    with pretended_device() as device:
        device.move(rnn)
        found, _ = rnn(device.put(x), mask=device.put(mask))
    assert_ready(device)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("merge", ["sum", "concat"])
@pytest.mark.parametrize("packed", [False, True])
def test_lengths_on_the_host_are_not_waited_for(packed: bool, merge: Any, mode: Any) -> None:
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
    assert_ready(device, waits=0, copies=1)
    for a, b in ((found, wanted), (state, last)):
        torch.testing.assert_close(a.held.detach(), b.detach(), rtol=0, atol=1e-5)


def test_lengths_on_the_device_are_read_once() -> None:
    rnn = k2t.BiLSTM(5, 7, num_layers=2, merge_mode="sum")
    x, lengths = torch.randn(11, 3, 5), torch.tensor([3, 12, -1])
    with pretended_device() as device, torch.no_grad():
        wanted, _ = rnn(x, lengths=lengths.clamp(0, 11))
        device.move(rnn)
        found, _ = rnn(device.put(x), lengths=device.put(lengths))
    assert_ready(device)
    torch.testing.assert_close(found.held, wanted, rtol=0, atol=1e-5)


def test_code_for_a_gpu_is_made_in_the_first_call_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    announce = masks_ahead.announce_masks
    monkeypatch.setattr(
        masks_ahead, "announce_masks", lambda *given: [made.append(given), announce(*given)]
    )
    case = fixture("tf.keras-2.15.0/graph_siamese.h5")
    model: Any = build(case.spec)
    (inputs, _), *_ = case.calls()
    given = tensors(inputs, model)
    with pretended_device() as device, torch.no_grad():
        model(*given)
        assert made == []
        device.move(model)
        for _ in range(2):
            model(*map(device.put, given))
            assert len(made) == 1
        model.recompile()
        model(*map(device.put, given))
        assert len(made) == 2


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
