"""Every family of fixtures: written back untouched, and trained.

``campaign.py`` does the same with all of them.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import contents
from cut_fixtures import CUT, cut_of
from sampling import rest_thorough
from specs import FIXTURES
from tensorflow_fixtures import unpack
from trained import config_of, differing, train

import keras2torch_birnn as k2t
from keras2torch_birnn.readers.containers import open_container
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.arrays import Contiguous

# Every generation, container, family of layers and layout of weights.
FILES = (
    *("keras-1.2.2/" + name for name in ("less_cpu_lstm.h5", "less_gpu_gru_before.h5")),
    *("keras-1.2.2/" + name for name in ("less_mem_gru_before.h5", "norm.h5")),
    *("keras-1.2.2/" + name for name in ("plane_deconvolution_same_th.h5",)),
    *("keras-1.2.2/" + name for name in ("plane_lstm_th_bi.h5", "weights_1_weights.h5")),
    *("keras-2.0.8/" + name for name in ("prelu_negative.h5",)),
    *("keras-2.2.4/" + name for name in ("cudnngru_bi.h5", "cudnngru_plain.h5")),
    *("keras-2.2.4/" + name for name in ("chunked_weights.h5", "compiled.h5", "cells_nested.h5")),
    *("keras-2.2.4/" + name for name in ("conv_lstm_2d_bi.h5", "stacked_bi.h5", "chain.h5")),
    *("keras-2.3.1/" + name for name in ("mask_bi_gru_after_seq.h5", "batchnorm.h5")),
    *("tf-1.14.0/" + name for name in ("first_attention.h5", "first_mask_gru_before.h5")),
    *("tf.keras-2.4.0/" + name for name in ("arch_residual_weights.h5", "policy_float64.h5")),
    *("tf.keras-2.15.0/" + name for name in ("attention_concat.h5", "around_groupnorm.h5")),
    *("tf.keras-2.15.0/" + name for name in ("around_normalization.keras", "bi_lstm_mul_seq.h5")),
    *("tf.keras-2.15.0/" + name for name in ("around_transposed2.keras",)),
    *("tf.keras-2.15.0/" + name for name in ("heads_cross.h5", "einsum.h5")),
    *("tf.keras-2.15.0/" + name for name in ("many_of_a_class.weights.h5", "name_slash.h5")),
    *("tf.keras-2.15.0/" + name for name in ("frozen_backward.h5", "around_separable2.keras")),
    *("tf_keras-2.21.0/" + name for name in ("arch_sentiment.keras", "td_two_inputs.h5")),
    *("keras-3.0.5/" + name for name in ("arch_sentiment.weights.h5", "batchnorm.keras")),
    *("keras-3.5.0/" + name for name in ("plain_stack.keras",)),
    *("keras-3.15.1/" + name for name in ("policy_mixed_float16.keras", "quantized.keras")),
    *("keras-3.15.1/" + name for name in ("layernorm_rms.keras", "backward_units.keras")),
    *("keras-3.15.1/" + name for name in ("cells_bi_halves.h5", "lora.keras")),
    *("keras-3.15.1/" + name for name in ("state_lstm_seq.h5", "stateful_bi_gru.h5")),
    *("keras-3.15.1/" + name for name in ("graph_dicts.keras", "td_td_model.h5")),
)
HALF = (
    ("keras-3.15.1/policy_float16.keras", torch.float16),
    ("keras-3.15.1/policy_bfloat16.h5", torch.bfloat16),
    ("tf.keras-2.15.0/policy_float16.h5", torch.float16),
)
CUDNN_LSTM = ("keras-2.2.4/cudnnlstm_bi.h5", "tf.keras-2.15.0/cudnnlstm_plain.h5")
TENSORFLOW = (
    "tf-2.1.4/batchnorm.savedmodel.tar",
    "tf-2.1.4/stack_same_class.checkpoint_three_shards.tar",
    "tf-2.2.3/stack_same_class.weights_two_shards.tar",
    "tf.keras-2.4.0/nested_frozen.savedmodel.tar",
    "tf.keras-2.10.0/batchnorm.untraced.tar",
    "tf.keras-2.15.0/cells_bi.savedmodel.tar",
    "tf.keras-2.15.0/chain.checkpoint_several.tar",
    "tf.keras-2.15.0/chain.savedmodel_two_shards.tar",
    "tf_keras-2.21.0/mask_stack_bi_dense.savedmodel.tar",
    "tensorflowjs-4.22.0/batchnorm.tfjs_shards.tar",
    "tensorflowjs-4.22.0/mask_stack_bi_dense.tfjs_groups.tar",
    "tfjs-1.7.4/bi_lstm_concat.tfjs.tar",
    "tfjs-4.22.0/activation_layers.tfjs.tar",
)


def positions(path: Path) -> list[tuple[int, int]]:
    """Return where a file's arrays of weights are."""
    found: list[tuple[int, int]] = []
    with open_container(path) as container:
        for array in container.store.arrays(list(container.weight_names().values())):
            assert isinstance(array.layout, Contiguous)
            assert isinstance(array.window, Window)
            start = array.window.offset + array.layout.offset
            found.append((start, start + array.nbytes))
    return found


def assert_only_weights_differ(source: Path, new: Path) -> None:
    """Assert that a file has its length, and all bytes but those of the weights."""
    before, after = (np.frombuffer(path.read_bytes(), np.uint8) for path in (source, new))
    assert len(before) == len(after)
    other = np.ones(len(before), bool)
    for start, stop in positions(source):
        other[start:stop] = False
    assert (before == after)[other].all()
    assert (before != after).any()


def same_members(source: Path, new: Path) -> None:
    """Assert that archives have the same members, all but the weights of the same content."""
    with zipfile.ZipFile(source) as one, zipfile.ZipFile(new) as other:
        assert other.testzip() is None
        for before, after in zip(one.infolist(), other.infolist(), strict=True):
            facts = ("filename", "date_time", "compress_type", "file_size", "external_attr")
            assert [getattr(before, f) for f in facts] == [getattr(after, f) for f in facts]
            if before.filename != "model.weights.h5":
                assert one.read(before) == other.read(after)


@pytest.mark.parametrize("name", rest_thorough([*FILES, *CUDNN_LSTM], [*FILES[::4], *CUDNN_LSTM]))
def test_untouched_is_the_source_and_trained_reads_back_as_trained(
    name: str, tmp_path: Path
) -> None:
    source, out = FIXTURES / name, tmp_path / Path(name).name
    config = config_of(source)
    shards = name.endswith(".json")
    model = k2t.convert(source, config=config)
    written = k2t.write_back(model, source, out, config=config)
    assert written.changed == 0
    assert written.notes == ()
    if shards:
        assert all((source.parent / n).read_bytes() == b for n, b in contents(out).items())
        out = tmp_path / "other"
    else:
        assert out.read_bytes() == source.read_bytes()
        out.unlink()

    written = k2t.write_back(train(model), source, out, config=config)
    assert written.changed > 0
    assert differing(model, out / source.name if shards else out, config=config) == []
    if out.suffix == ".keras":
        same_members(source, out)
    elif not shards:
        assert_only_weights_differ(source, out)
    assert not list(tmp_path.glob(".k2t-*"))


@pytest.mark.parametrize(("name", "dtype"), HALF)
def test_half_precision_is_exact_or_refused(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source, out = FIXTURES / name, tmp_path / Path(name).name
    model = k2t.convert(source)
    k2t.write_back(train(model, like=dtype), source, out)
    assert differing(model, out) == []
    out.unlink()
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(k2t.WeightMismatchError, match=rf"stores {kind}, which cannot hold \d+ of"):
        k2t.write_back(train(model), source, out)
    assert not out.exists()
    k2t.write_back(model, source, out, allow_rounding=True)
    for name, tensor in k2t.convert(out).state_dict().items():
        now = model.state_dict()[name]
        rounded = now.to(dtype).to(tensor.dtype)
        assert ((tensor == now) | (tensor == rounded)).all()  # some layers have float32


def test_a_cudnn_lstm_gets_the_sum_of_its_biases(tmp_path: Path) -> None:
    source, out = FIXTURES / CUDNN_LSTM[0], tmp_path / "new.h5"
    model = k2t.convert(source)
    name = next(n for n in model.state_dict() if n.endswith("bias_ih_l0"))
    with torch.no_grad():
        model.state_dict()[name][2] += 0.5
        model.state_dict()[name][3] = 0
    k2t.write_back(model, source, out)
    old, new = k2t.weights(source), k2t.weights(out)
    (changed,) = (n for n in old if old[n].tobytes() != new[n].tobytes())
    half = len(old[changed]) // 2
    where = np.flatnonzero(old[changed].view("u4") != new[changed].view("u4"))
    assert where.tolist() == [2, 3, half + 2, half + 3]
    assert new[changed][half + 2] == 0
    assert differing(model, out) == []


@pytest.mark.parametrize("name", TENSORFLOW)
def test_containers_of_several_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source, out = unpack(name, tmp_path / "source"), tmp_path / "new"
    folder = source.model.is_dir()
    base = source.model if folder else source.model.parent
    model = k2t.convert(source.model, config=source.config)
    before = contents(tmp_path / "source")

    assert k2t.write_back(model, source.model, out, config=source.config).changed == 0
    assert all((base / name).read_bytes() == data for name, data in contents(out).items())

    out = tmp_path / "trained"
    k2t.write_back(train(model), source.model, out, config=source.config)
    assert differing(model, out if folder else out / source.model.name, config=source.config) == []
    for name, data in contents(out).items():
        old = (base / name).read_bytes()
        assert len(data) == len(old)
        weights = name.endswith((".index", ".bin")) or ".data-" in name
        assert data == old or weights
    assert contents(tmp_path / "source") == before
    assert not list(tmp_path.glob(".k2t-*"))


@pytest.mark.parametrize("kind", ["tfjs_uint8", "tfjs_uint16"])
def test_quantized_files_of_tfjs_are_refused_once_they_are_trained(
    kind: str, tmp_path: Path
) -> None:
    source = unpack(f"tensorflowjs-4.22.0/batchnorm.{kind}.tar", tmp_path).model
    model = k2t.convert(source)
    k2t.write_back(model, source, tmp_path / "same")
    with pytest.raises(k2t.WeightMismatchError, match="a quantized weight, and it was trained"):
        k2t.write_back(train(model), source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_half_precision_of_tfjs(tmp_path: Path) -> None:
    source = unpack("tensorflowjs-4.22.0/batchnorm.tfjs_float16.tar", tmp_path).model
    model = train(k2t.convert(source), like=torch.float16)
    k2t.write_back(model, source, tmp_path / "new")
    assert differing(model, tmp_path / "new" / "model.json") == []


@pytest.mark.parametrize(
    "name", ["end_to_end.keras", "lambda_ctc.h5", "captcha.h5", "two_texts.keras"]
)
def test_a_part_of_a_model_is_written_back_into_the_whole(name: str, tmp_path: Path) -> None:
    """Layers that were cut off keep their bytes: the rest of the file is read as before."""
    file = f"keras-3.15.1/{name}"
    source, cut = CUT / file, cut_of(file)
    model = k2t.convert(source, from_layer=cut.first, to_layer=cut.last)
    new = tmp_path / name
    k2t.write_back(model, source, new)
    assert new.read_bytes() == source.read_bytes()
    new.unlink()
    k2t.write_back(train(model), source, new)
    again = k2t.convert(new, from_layer=cut.first, to_layer=cut.last).state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    before, after = k2t.weights(source), k2t.weights(new)
    assert list(before) == list(after)
    assert any(not np.array_equal(before[key], after[key]) for key in before)
