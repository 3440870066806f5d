"""Whole models of the kinds that people train, from the first file to the exported program.

That every file of them gives what real Keras gave is asked in ``test_fixtures``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from commands import k2t
from sampling import rest_thorough
from specs import ENTRIES, FIXTURES, fixture
from torch import Tensor
from warm_process import run_command

from keras2torch_birnn.layers.building import build
from keras2torch_birnn.layers.model_graph import attribute_names
from keras2torch_birnn.layers.running import flat

# A model -> the Keras layer names that have to stand in its code, from the newest file of it.
ARCHITECTURES: Mapping[str, str] = {
    "sentiment": "spatial_dropout1d bidirectional bidirectional_1",
    "sentiment_1": "embedding_1 bidirectional_1 bidirectional_2 dense_1",
    "toxic": "bidirectional conv1d global_average_pooling1d global_max_pooling1d",
    "toxic_cudnn": "embedding bidirectional bidirectional_1",
    "ner_char_cnn": "time_distributed_4 concatenate bidirectional",
    "ner_char_lstm": "time_distributed_1 concatenate bidirectional",
    "deep_speech": "conv1d bidirectional bidirectional_1 bidirectional_2",
    "deep_speech_1": "bidirectional_1 bidirectional_2 bidirectional_3 batchnormalization_1",
    "deep_speech_2d": "conv2d re_lu conv2d_1 bidirectional bidirectional_1",
    "crnn_ocr": "conv2d max_pooling2d reshape bidirectional bidirectional_1",
    "crnn_permute": "permute time_distributed bidirectional bidirectional_1",
    "crnn_by_hand": "gru gru_1 add gru_2 gru_3 concatenate",
    "seq2seq_luong": "bidirectional concatenate concatenate_1 lstm_1 dot activation dot_1",
    "seq2seq_attention": "bidirectional concatenate concatenate_1 lstm_1 attention",
    "seq2seq_bahdanau": "bidirectional gru_1 additive_attention",
    "siamese": "embedding bidirectional subtract multiply",
    "siamese_cosine": "embedding bidirectional dot",
    "forecast": "bidirectional repeat_vector bidirectional_1 time_distributed",
    "joint": "bidirectional slots intent",
    "residual": "bidirectional add layer_normalization bidirectional_1",
    "residual_batch_norm": "bidirectional bidirectional_1 add batch_normalization",
    "hierarchy": "time_distributed bidirectional_1",
    "hierarchy_attention": "time_distributed_2 bidirectional_1 dot_1",
    "multi_head": "bidirectional multi_head_attention add global_average_pooling1d",
    "sound_events": "conv2d bidirectional bidirectional_1",
    "video": "time_distributed bidirectional",
    "reader": "embedding bidirectional dot softmax dot_1 bidirectional_1",
    "siamese_manhattan": "embedding bidirectional dense",
    "attention_by_hand": "embedding bidirectional dense dense_1",
    "last_step": "bidirectional concatenate dense",
    "dense_connections": "embedding bidirectional bidirectional_1 concatenate",
}
# Few of these models, which together have every class of layer.
EXPORTED = (
    "toxic toxic_cudnn ner_char_cnn deep_speech_2d crnn_permute seq2seq_attention "
    "seq2seq_bahdanau siamese forecast multi_head reader siamese_manhattan attention_by_hand "
    "last_step"
).split()
FILES = [file for file, entry in ENTRIES.items() if "architecture" in entry["tags"]]
FLAT_WEIGHTS = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self.*_flat_weights:UserWarning"
)


def files_of(name: str) -> list[str]:
    """All files of a model, the oldest generation first."""
    found = [file for file in FILES if ENTRIES[file]["case"] == f"arch_{name}"]
    order = ("keras-1", "keras-2", "tf.keras", "tf_keras", "keras-3")
    return sorted(found, key=lambda f: [f.startswith(start) for start in order].index(True))


def inputs_of(file: str) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x) for x in fixture(file).inputs[0])


def test_every_file_belongs_to_a_model_of_the_table() -> None:
    assert {ENTRIES[file]["case"] for file in FILES} == {f"arch_{name}" for name in ARCHITECTURES}


def test_the_models_were_written_by_every_generation_and_in_every_kind_of_file() -> None:
    labels = {ENTRIES[file]["label"].split("-")[0] for file in FILES}
    assert labels == {"keras", "tf.keras", "tf_keras"}
    versions = {ENTRIES[file]["keras_version"].split(".")[0] for file in FILES}
    assert versions == {"1", "2", "3"}
    assert {ENTRIES[file]["kind"] for file in FILES} == {"h5", "keras", "weights_h5", "weights_v3"}


@pytest.mark.parametrize("name", rest_thorough(ARCHITECTURES, EXPORTED[::2]))
def test_the_command_line_converts_and_verifies_one_of_each(name: str, tmp_path: Path) -> None:
    file = files_of(name)[0]
    config = ENTRIES[file]["config"]
    more = () if config is None else ("--config", FIXTURES / config)
    out = tmp_path / "model.pt"
    run = k2t("convert", FIXTURES / file, out, *more)
    assert run.code == 0, run.err
    run = k2t("verify", FIXTURES / file, out, *more, "--against", "reference", "--per-layer")
    assert run.code == 0, run.out + run.err
    assert run.out.splitlines()[-1] == "OK"
    assert k2t("verify", out).code == 0


def test_the_models_to_export_have_every_class_of_the_others() -> None:
    def classes_of(names: Iterable[str]) -> set[str]:
        specs = (fixture(files_of(name)[-1]).spec for name in names)
        return {layer.class_name for spec in specs for layer in spec.root.walk()}

    assert classes_of(EXPORTED) == classes_of(ARCHITECTURES)


@FLAT_WEIGHTS
@pytest.mark.parametrize("name", rest_thorough(EXPORTED, EXPORTED[:1]))
def test_the_exported_program_gives_the_same_after_a_round_trip(name: str, tmp_path: Path) -> None:
    file = files_of(name)[-1]
    model, given = build(fixture(file).spec), inputs_of(file)
    torch.export.save(torch.export.export(model, given), tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        wanted, got = flat(model(*given)), flat(again(*given))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_code_reads_as_keras_would_call_its_layers(name: str) -> None:
    """Each layer is called by its Keras name, and each line gives its result a name.

    Operations, which Keras 3 adds to make masks, are functions and stand there as such.
    """
    file = files_of(name)[-1]
    spec = fixture(file).spec
    code = build(spec).code
    called = set(re.findall(r"self\.([\w.]+)\(", code))
    own = [
        layer
        for layer in spec.graph.layers
        if layer.class_name != "InputLayer" and not layer.class_name.startswith("ops.")
    ]
    names = attribute_names([layer.name for layer in spec.graph.layers])
    called.discard("floats_like")  # the dtype that inputs are brought to
    assert {call.split(".")[0] for call in called} == {names[layer.name] for layer in own}
    assert set(ARCHITECTURES[name].split()) <= {layer.name for layer in own}
    lines = [line for line in code.splitlines() if "=" in line]
    assert all(re.match(r"    \w+ = \S", line) for line in lines)


@pytest.mark.parametrize("name", ["seq2seq_attention", "ner_char_lstm", "hierarchy"])
def test_a_model_learns(name: str) -> None:
    """Gradients reach every weight that Keras trains."""
    file = files_of(name)[-1]
    model = build(fixture(file).spec).train()
    sum(y.square().mean() for y in flat(model(*inputs_of(file)))).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


CRFS = (
    ("keras-2.2.4/contrib_viterbi.h5", "keras-contrib-crf"),
    ("tf.keras-2.15.0/addons_plain.h5", "examples/plugins/tensorflow_addons_crf.py"),
)


@pytest.mark.parametrize(("file", "plugin"), CRFS)
@pytest.mark.thorough
def test_a_tagger_that_ends_in_a_crf_goes_through_the_command_line(
    file: str, plugin: str, tmp_path: Path
) -> None:
    """A BiLSTM-CRF, and a CRF over embedded words; ``test_plugins`` compares their numbers.

    A plugin stays in the process that loads it.
    """
    model, out = FIXTURES / "plugins" / file, tmp_path / "model.pt"
    run = run_command("convert", model, out, "--plugin", plugin)
    assert run.code == 0, run.err
    run = run_command("verify", model, out, "--plugin", plugin, "--against", "reference")
    assert run.code == 0, run.out + run.err
    assert run.out.splitlines()[-1] == "OK"
