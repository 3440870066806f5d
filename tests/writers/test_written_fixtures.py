"""Every family of ``.h5`` and ``.keras`` fixtures: written back untouched, and trained.

Other formats are refused.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from cut_fixtures import CUT, cut_of
from sampling import rest_thorough
from specs import FIXTURES
from tensorflow_fixtures import unpack
from trained import config_of, differing, train

import keras2torch_birnn as k2t

# Every generation, container, family of layers and layout of weights.
FILES = (
    *("keras-1.2.2/" + name for name in ("less_cpu_lstm.h5", "less_gpu_gru_before.h5")),
    *("keras-1.2.2/" + name for name in ("less_mem_gru_before.h5", "norm.h5")),
    *("keras-1.2.2/" + name for name in ("weights_1_weights.h5",)),
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
    *("keras-3.15.1/" + name for name in ("policy_mixed_float16.keras",)),
    *("keras-3.15.1/" + name for name in ("layernorm_rms.keras", "backward_units.keras")),
    *("keras-3.15.1/" + name for name in ("cells_bi_halves.h5",)),
    *("keras-3.15.1/" + name for name in ("state_lstm_seq.h5", "stateful_bi_gru.h5")),
    *("keras-3.15.1/" + name for name in ("graph_dicts.keras", "td_td_model.h5")),
)
HALF = (
    ("keras-3.15.1/policy_float16.keras", torch.float16),
    ("keras-3.15.1/policy_bfloat16.h5", torch.bfloat16),
    ("tf.keras-2.15.0/policy_float16.h5", torch.float16),
)
CUDNN_LSTM = ("keras-2.2.4/cudnnlstm_bi.h5", "tf.keras-2.15.0/cudnnlstm_plain.h5")
OTHERS = (
    "tf.keras-2.10.0/batchnorm.untraced.tar",
    "tf.keras-2.15.0/cells_bi.savedmodel.tar",
    "tf.keras-2.15.0/chain.checkpoint_several.tar",
    "tensorflowjs-4.22.0/batchnorm.tfjs_shards.tar",
)


def weights_file(path: Path) -> io.BytesIO:
    """Return the HDF5 file of a model, or that in its archive."""
    if not zipfile.is_zipfile(path):
        return io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        return io.BytesIO(archive.read("model.weights.h5"))


def assert_only_weights_differ(source: Path, new: Path) -> None:
    """Assert that an HDF5 file has the same objects, and only weights have other values."""
    weights = set(k2t.weights(source))
    with h5py.File(weights_file(source)) as before, h5py.File(weights_file(new)) as after:
        names: list[str] = []
        before.visit(names.append)
        others: list[str] = []
        after.visit(others.append)
        assert names == others
        changed = []
        for name in ["/", *names]:
            one, other = before[name], after[name]
            for key, value in one.attrs.items():
                np.testing.assert_array_equal(value, other.attrs[key])
            assert len(one.attrs) == len(other.attrs)
            if isinstance(one, h5py.Dataset):
                facts = ("shape", "dtype", "chunks", "compression", "shuffle", "fletcher32")
                assert [getattr(one, f) for f in facts] == [getattr(other, f) for f in facts]
                if one[()].tobytes() != other[()].tobytes():
                    changed.append(name)
    assert 0 < len(changed) <= len(weights)
    assert not [name for name in changed if name.startswith("optimizer")]


def same_members(source: Path, new: Path) -> None:
    """Assert that archives have the same members, all but the weights of the same content."""
    with zipfile.ZipFile(source) as one, zipfile.ZipFile(new) as other:
        assert other.testzip() is None
        for before, after in zip(one.infolist(), other.infolist(), strict=True):
            facts = ("filename", "date_time", "compress_type", "external_attr")
            assert [getattr(before, f) for f in facts] == [getattr(after, f) for f in facts]
            if before.filename != "model.weights.h5":
                assert one.read(before) == other.read(after)


@pytest.mark.parametrize("name", rest_thorough([*FILES, *CUDNN_LSTM], [*FILES[::4], *CUDNN_LSTM]))
def test_untouched_is_the_source_and_trained_reads_back_as_trained(
    name: str, tmp_path: Path
) -> None:
    source, out = FIXTURES / name, tmp_path / Path(name).name
    config = config_of(source)
    model = k2t.convert(source, config=config)
    written = k2t.write_back(model, source, out, config=config)
    assert written.changed == 0
    assert written.notes == ()
    assert out.read_bytes() == source.read_bytes()
    out.unlink()

    written = k2t.write_back(train(model), source, out, config=config)
    assert written.changed > 0
    assert differing(model, out, config=config) == []
    assert_only_weights_differ(source, out)
    if out.suffix == ".keras":
        same_members(source, out)
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


def refused(source: Path, out: Path, config: Path | None = None) -> None:
    model = k2t.convert(source, config=config)
    with pytest.raises(k2t.UnsupportedOptionError, match=r"only \.h5 and \.keras .* save it as"):
        k2t.write_back(model, source, out, config=config)
    assert not out.exists()


@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    source = unpack(name, tmp_path)
    refused(source.model, tmp_path / "new", source.config)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    source = FIXTURES / "keras-3.15.1/mask_stack_plain.keras"
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "folder")
    refused(tmp_path / "folder", tmp_path / "new")


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
