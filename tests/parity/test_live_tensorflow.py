"""SavedModels on new inputs: what the installed TensorFlow computes, and the converted models."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import environment
from live import label
from tensorflow_fixtures import ENTRIES, recorded, unpack
from test_fixtures import ATOL, RTOL, assert_agree, outputs

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.spec import Array

WORKER = Path(__file__).parents[1] / "support" / "saved_model_worker.py"
# By the functions that the writer traced: these have one output.
TRACED = (
    "tf-2.1.4/batchnorm.savedmodel",
    "tf-2.1.4/bi_gru_after_ave_seq.savedmodel",
    "tf-2.1.4/chain.savedmodel_two_shards",
    "tf-2.1.4/graph_siamese.savedmodel",
    "tf-2.1.4/mask_bi_gru_after_last.savedmodel",
    "tf-2.1.4/mask_bi_lstm_seq.savedmodel",
    "tf-2.1.4/mask_stack_bi_dense.savedmodel",
    "tf-2.1.4/stacked_bi.savedmodel",
    "tf-2.2.3/nested_frozen.savedmodel",
    "tf.keras-2.6.0/cells_bi.savedmodel",
    "tf.keras-2.10.0/stacked_bi.savedmodel",
    "tf.keras-2.15.0/mask_bi_lstm_seq.savedmodel",
    "tf_keras-2.21.0/mask_stack_bi_dense.savedmodel",
)
# By the layers that tf_keras builds of them.
UNTRACED = (
    "tf.keras-2.4.0/bi_lstm_sum_seq.untraced",
    "tf.keras-2.4.0/graph_nested_twice.untraced",
    "tf.keras-2.10.0/bi_lstm_none_seq.untraced",
    "tf.keras-2.15.0/bi_gru_before_mul_seq.untraced",
    "tf.keras-2.15.0/bi_lstm_ave_seq.untraced",
    "tf.keras-2.15.0/graph_siamese.untraced",
    "tf.keras-2.15.0/mask_through.untraced",
    "tf.keras-2.15.0/stacked_mask_widths.untraced",
    "tf.keras-2.15.0/td_bi.untraced",
    "tf_keras-2.21.0/cells_mask_bi.untraced",
    "tf_keras-2.21.0/graph_inputs_outputs.untraced",
)
MODELS = {
    f"{name}.tar": how for how, names in (("graph", TRACED), ("keras", UNTRACED)) for name in names
}


@dataclass(frozen=True)
class TensorFlow:
    """The child process."""

    process: subprocess.Popen[str]

    def run(self, how: str, model: Path, inputs: Mapping[str, Array], folder: Path) -> list[Array]:
        """Return the outputs of a SavedModel."""
        given, found = folder / "given.npz", folder / "found.npz"
        named: dict[str, Any] = dict(inputs)
        np.savez(given, **named)
        task = {"how": how, "model": str(model), "given": str(given), "found": str(found)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        assert json.loads(self.process.stdout.readline()) == ""
        with np.load(found) as data:
            return [data[f"out_{i}"] for i in range(len(data.files))]


@pytest.fixture(scope="module")
def tensorflow() -> Iterator[TensorFlow]:
    """TensorFlow with tf_keras."""
    if label("tf_keras") is None:
        pytest.skip("tf_keras is not installed")
    with subprocess.Popen(
        [sys.executable, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(CUDA_VISIBLE_DEVICES="", TF_USE_LEGACY_KERAS="1"),
    ) as process:
        yield TensorFlow(process)
        assert process.stdin is not None
        process.stdin.close()


def renewed(x: Array, random: np.random.Generator) -> Array:
    """Draw new numbers; steps that are all zero stay so, as padding, but in another row."""
    x = np.roll(x, 1, axis=0)
    if x.dtype.kind == "i":
        return np.where(x == 0, 0, random.integers(1, x.max() + 1, x.shape)).astype(x.dtype)
    kept = (x != 0).any(-1, keepdims=True) if x.ndim > 2 else np.ones_like(x, bool)
    return np.where(kept, random.standard_normal(x.shape), 0).astype(x.dtype)


@pytest.mark.live_keras
@pytest.mark.parametrize("file", MODELS)
def test_tensorflow_and_the_converted_model_agree_on_new_inputs(
    file: str, tensorflow: TensorFlow, tmp_path: Path
) -> None:
    found = unpack(file, tmp_path)
    spec = read_model(found.model)
    random = np.random.default_rng(zlib.crc32(file.encode()))
    inputs = tuple(renewed(x, random) for x in recorded(file).inputs[0])
    names = [layer.name for layer in spec.input_layers()]
    wanted = tensorflow.run(
        MODELS[file], found.model, dict(zip(names, inputs, strict=True)), tmp_path
    )
    assert len(wanted) == ENTRIES[file]["outputs_per_call"]
    assert_agree(outputs(build(spec), inputs), wanted, "torch", atol=ATOL, rtol=RTOL)
