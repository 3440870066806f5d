"""Cases and contenders of each benchmark; the docstring of its function is its help."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.contenders import PRECISIONS, STACKS, STREAMS
from keras2torch_birnn.bench.case import MERGES, Case, Model, Stack, input_of, to_json
from keras2torch_birnn.bench.contenders import (
    BY_ONNX,
    COMPILED,
    CONTENDERS,
    LOOP,
    OURS,
    PLAIN,
    Contender,
)

ROOT = Path(__file__).parents[1]
# Cell -> rnn, recurrent_activation, reset_after
CELLS: Mapping[str, tuple[str, str, bool]] = {
    "lstm": ("lstm", "sigmoid", True),
    "gru": ("gru", "sigmoid", True),
    "lstm-hard": ("lstm", "hard_sigmoid_0.2", True),
    "gru-before-hard": ("gru", "hard_sigmoid_0.2", False),
}
PLAIN_CELLS = ("lstm", "gru")
# batch, time, input, units
SHAPES = (
    (1, 64, 64, 64),
    (1, 200, 300, 256),
    (8, 100, 128, 128),
    (32, 128, 128, 128),
    (64, 256, 256, 256),
)
TRAIN = tuple(name for name in CONTENDERS if "train" in name)


@dataclass(frozen=True)
class Task:
    """A case, and what is timed on it: see ``keras2torch_birnn.bench.measure.measure``.

    about: what else its row in the results tells. floor: whether that is the least possible time.
    """

    case: Case
    contenders: Sequence[str]
    table: Mapping[str, Contender] = field(default_factory=lambda: CONTENDERS)
    exactly: bool = True
    memory: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    floor: bool = False


def stack(cell: str, merge: str, layers: int, sizes: tuple[int, ...], **more: Any) -> Stack:
    """Describe a stack of one of ``CELLS``."""
    rnn, gate, after = CELLS[cell]
    batch, time, features, units = sizes
    one = Stack(rnn, merge, layers, batch, time, features, units, gate, after)
    return replace(one, **more)


def without(*names: str) -> tuple[str, ...]:
    """Return the contenders of ``k2t bench`` but some."""
    return tuple(name for name in CONTENDERS if name not in names)


def time_layers(options: Namespace) -> Iterator[Task]:
    """Time calls of two layers: cells, merge modes, sizes, masked and not.

    The floor of a case is what its multiply-adds take at the product's peak, or what reading the
    recurrent weights once per step takes, whichever is longer; both are measured in the same run.
    """
    aside = (LOOP,)
    for sizes, cell, merge, masked in product(SHAPES, CELLS, MERGES, (False, True)):
        case = stack(cell, merge, 2, sizes, masked=masked)
        yield Task(case, without(*aside, *TRAIN), floor=True)


def time_training(options: Namespace) -> Iterator[Task]:
    """Time steps of training of two layers, without dropout and with it."""
    for sizes, cell, masked in product(SHAPES, CELLS, (False, True)):
        case = stack(cell, "mul", 2, sizes, masked=masked, training=True)
        yield Task(case, (OURS, PLAIN, "torch.compile", COMPILED, *TRAIN), floor=True)
    for sizes, cell in product(SHAPES, PLAIN_CELLS):
        case = stack(cell, "mul", 2, sizes, training=True, dropout=0.2)
        yield Task(case, (OURS, LOOP))


def time_stacks(options: Namespace) -> Iterator[Task]:
    """Time short calls of several layers: in one call of the kernel, and one by one."""
    shapes = ((1, 16, 32, 32), (1, 64, 64, 64), (1, 100, 128, 128), (8, 50, 64, 64))
    for sizes, cell, layers in product(shapes, PLAIN_CELLS, (1, 2, 4)):
        yield Task(stack(cell, "mul", layers, sizes), tuple(STACKS), STACKS)


def time_precision(options: Namespace) -> Iterator[Task]:
    """Time reduced precision, with the error of each contender; that of float32 is asserted."""
    shapes = ((1, 64, 64, 64), (8, 100, 128, 128), (32, 128, 128, 128), (64, 100, 256, 256))
    for sizes, cell in product(shapes, PLAIN_CELLS):
        yield Task(stack(cell, "concat", 2, sizes), tuple(PRECISIONS), PRECISIONS)


def time_long(options: Namespace) -> Iterator[Task]:
    """Time long sequences, with the memory that they take (on Linux).

    Layers of both directions against ONNX Runtime, and for a quarter, a half and all of the steps;
    layers of one direction in chunks with carried states, against the whole sequence.
    """
    for (batch, steps), cell in product(((1, 20_000), (200, 1_000)), PLAIN_CELLS):
        case = stack(cell, "concat", 2, (batch, steps, 128, 128))
        yield Task(case, (OURS, "ONNX Runtime"), about={"part": "time"})
        for layers, share in product((1, 2), (4, 2, 1)):
            part = replace(case, layers=layers, time=steps // share)
            yield Task(part, [OURS], STACKS, memory=True, about={"part": "memory"})
        about = {"part": "one direction"}
        yield Task(case, tuple(STREAMS), STREAMS, exactly=False, memory=True, about=about)


# ---- models --------------------------------------------------------------------------------------

# Names of fixtures: a masked tagger, one on words and characters, a text classifier, two siamese
# inputs, attention in an encoder and decoder, hierarchical and of many heads, a CNN before a BiLSTM
# that reads lines, a reader of question and text, a two-dimensional CNN of speech.
ARCHITECTURES = (
    "mask_stack_bi_dense",
    "arch_ner_char_cnn",
    "arch_toxic",
    "arch_siamese",
    "arch_seq2seq_attention",
    "arch_hierarchy_attention",
    "arch_crnn_ocr",
    "arch_multi_head",
    "arch_reader",
    "arch_deep_speech_2d",
)
# name of the file, the steps of its real inputs (a file that fixes them keeps them), the file of
# its architecture if it holds weights only
TRAINED = (
    ("poreplex-0.4__demux-tetra-r3.hdf5", 350, None),
    ("shakkala-1.7__middle_model.h5", 495, None),
    ("medaka-0.6.5__r941_flip213_model.hdf5", 1000, None),
    ("medaka-1.3.4__r941_min_high_g360_model.hdf5", 1000, None),
    ("ethnicolr-0.9.8__census2000_ln_lstm.h5", 20, None),
    ("chars2vec-0.1.7__eng_50_weights.h5", 12, "chars2vec_eng_50.json"),
    ("sleepecg-0.5.9__ws-gru-mesa.keras", 960, None),
)


def time_models(options: Namespace) -> Iterator[Task]:
    """Time whole models: those of fixtures and, with --real, trained ones."""
    from keras2torch_birnn.readers import read_model
    from keras2torch_birnn.verification.live_keras import keras_for

    # What k2t replaces, and what runs no models.
    aside = (PLAIN, "torch.compile", LOOP, "Keras on torch", *TRAIN)
    trained = TRAINED if options.real else ()
    real = [(options.real / name, steps, config) for name, steps, config in trained]
    for file, steps, architecture in (*real, *map(find_architecture, ARCHITECTURES)):
        config = architecture and str(file.with_name(architecture))
        one = Model(str(file), config, keras_for(read_model(file, config=config)), 1, steps)
        for rows in (1, 8, 32):
            yield Task(replace(one, batch=rows), without(*aside))


def find_fixtures() -> Path:
    """Return the folder of all fixtures, unpacked."""
    sys.path.append(str(ROOT / "tools"))
    return Path(import_module("fixture_archives").unpacked())


def find_architecture(name: str) -> tuple[Path, int, str | None]:
    """Find the file of a fixture, and that of its architecture where it holds weights only."""
    folder = find_fixtures() / "keras-3.15.1"
    whole = [folder / f"{name}{suffix}" for suffix in (".keras", ".h5")]
    file = next((file for file in whole if file.exists()), folder / f"{name}.weights.h5")
    return file, 50, None if file in whole else f"{name}.json"


# ---- exports -------------------------------------------------------------------------------------

SUFFIXES = {OURS: ".k2t.onnx", "torch.onnx": ".torch.onnx", "tf2onnx": ".tf2onnx.onnx"}


def time_exports(options: Namespace) -> Iterator[Task]:
    """Time our ONNX in ONNX Runtime against that of torch's exporter and of tf2onnx.

    All three files of a case come from one Keras model, which ``keras_files.py`` writes by the
    interpreter --keras-python (TensorFlow 2.15 or older with its own Keras, and tf2onnx); the files
    stay in --folder. A case for which an exporter makes no file is timed without. --again: our file
    in a second process shows what is noise.
    """
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    grid = product(SHAPES, CELLS, (False, True))
    cases = {
        folder / f"{number:02}.json": stack(cell, "mul", 2, sizes, masked=masked)
        for number, (sizes, cell, masked) in enumerate(grid)
    }
    for file, case in cases.items():
        file.write_text(to_json(case), encoding="utf-8")
    if options.keras_python:
        script = Path(__file__).with_name("keras_files.py")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [options.keras_python, str(script), str(folder)]
        subprocess.run(command, check=True, env=environment)
    for file, case in cases.items():
        keras = file.with_suffix(".h5")
        if not keras.exists():
            continue
        _export(keras, case)
        found = {name: keras.with_suffix(suffix) for name, suffix in SUFFIXES.items()}
        if options.again:
            found[f"{OURS} again"] = found[OURS]
        table = {
            name: Contender(BY_ONNX, str(one.resolve()), ("onnxruntime",))
            for name, one in found.items()
            if one.exists()
        }
        yield Task(case, tuple(table), table)


def _export(keras: Path, case: Stack) -> None:
    """Export a Keras file by us and by torch alone, where that was not yet done."""
    import torch

    import keras2torch_birnn as k2t

    ours, other = (keras.with_suffix(SUFFIXES[name]) for name in (OURS, "torch.onnx"))
    if ours.exists():
        return
    model = k2t.convert(keras)
    k2t.export(model, ours)
    axes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            given = (torch.from_numpy(input_of(case)),)
            torch.onnx.export(model, given, other, dynamo=True, dynamic_shapes=(axes,))
        except Exception as error:  # whatever it cannot export
            other.unlink(missing_ok=True)
            why = str(error).splitlines()[0]
            print(f"{case.label}: no file by torch.onnx: {type(error).__name__}: {why}")


def add_options(parser: ArgumentParser) -> None:
    """Add the options of single benchmarks."""
    parser.add_argument("--real", type=Path, help="models: folder of the trained models")
    folder = ROOT / "build" / "exports"
    parser.add_argument("--folder", type=Path, default=folder, help="exports: where files stay")
    parser.add_argument("--keras-python", help="exports: interpreter with Keras 2 and tf2onnx")
    parser.add_argument("--again", action="store_true", help="exports: our file twice")


TASKS: Mapping[str, Callable[[Namespace], Iterator[Task]]] = {
    "layers": time_layers,
    "training": time_training,
    "stacks": time_stacks,
    "models": time_models,
    "exports": time_exports,
    "long": time_long,
    "precision": time_precision,
}
