"""Time whole models: k2t, eager and compiled, against ONNX Runtime, OpenVINO and Keras.

    python benchmarks/models.py --real FOLDER --json benchmarks/results/models-DATE.json

Ten architectures of the fixtures and, where a folder of trained models is given, those that
``TRAINED`` names there. Parity is asserted first; every contender runs alone in its process; the
rounds go round robin (as ``k2t bench`` does, which times one model).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from fixture_files import FIXTURES

from keras2torch_birnn.bench.case import Model
from keras2torch_birnn.bench.contenders import CONTENDERS, OURS
from keras2torch_birnn.bench.measure import Row, facts, measure
from keras2torch_birnn.bench.report import write_results
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.verification.live_keras import keras_for

# what it is -> name of the fixture
ARCHITECTURES = {
    "masked tagger": "mask_stack_bi_dense",
    "tagger on words and characters": "arch_ner_char_cnn",
    "text classifier": "arch_toxic",
    "siamese": "arch_siamese",
    "encoder and decoder with attention": "arch_seq2seq_attention",
    "hierarchical attention": "arch_hierarchy_attention",
    "CNN, then BiLSTM (reads lines)": "arch_crnn_ocr",
    "multi-head attention": "arch_multi_head",
    "reader (question and text)": "arch_reader",
    "speech, two-dimensional CNN": "arch_deep_speech_2d",
}
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
OF_OURS = (OURS, "k2t compiled")
TRAIN = tuple(name for name in CONTENDERS if "train" in name)
# What k2t replaces, and what runs no models.
ASIDE = ("torch per layer", "torch.compile", "k2t folded", "naive loop", "Keras on torch", *TRAIN)


def cases(real: Path | None, batches: list[int]) -> Iterator[Model]:
    """Yield every model at every batch size."""
    trained = (
        [] if real is None else [(real / name, time, config) for name, time, config in TRAINED]
    )
    for file, time, architecture in trained + list(_architectures()):
        config = None if architecture is None else str(file.with_name(architecture))
        package = keras_for(read_model(file, config=config))
        one = Model(str(file), config, package, 1, time)
        yield from (replace(one, batch=rows) for rows in batches)


def _architectures() -> Iterator[tuple[Path, int, str | None]]:
    """Find the files of the fixtures, and the architecture where they hold weights only."""
    folder = FIXTURES / "keras-3.15.1"
    for name in ARCHITECTURES.values():
        whole = [folder / f"{name}{suffix}" for suffix in (".keras", ".h5")]
        weights = folder / f"{name}.weights.h5"
        file = next((file for file in whole if file.exists()), weights)
        yield file, 50, None if file in whole else f"{name}.json"


def without_folders(case: Model) -> Model:
    """Name files as they are named anywhere."""
    config = case.config and Path(case.config).name
    return replace(case, path=Path(case.path).name, config=config)


def best(row: Row, names: tuple[str, ...]) -> tuple[str, float] | None:
    """Return the fastest of these contenders and its median in milliseconds."""
    found = {t.contender: t.median_ms for t in row.timings if t.contender in names and t.times_ms}
    return min(found.items(), key=lambda pair: pair[1]) if found else None


def main() -> None:
    """Measure, print, write after every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=Path, help="folder of the trained models")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="", help="only files whose names contain this")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    contenders = args.only or [c for c in CONTENDERS if c not in ASIDE]
    peers = tuple(name for name in contenders if name not in OF_OURS)
    head = facts(args.threads, args.rounds)
    print(", ".join(f"{key} {value}" for key, value in head.items()))
    rows: list[Row] = []
    ratios = []
    for case in cases(args.real, args.batch):
        if args.name not in case.path:
            continue
        row = measure(case, threads=args.threads, rounds=args.rounds, contenders=contenders)
        rows.append(replace(row, case=without_folders(case)))
        ours, peer = best(row, (OURS,)), best(row, peers)
        eager = f"{ours[1]:9.3f} ms" if ours else "        absent"
        print(f"{case.label:58} {eager}", end="")
        if ours and peer:
            ratios.append(ours[1] / peer[1])
            print(f" {ratios[-1]:6.2f} of {peer[0]}", end="")
        print(flush=True)
        for timing in row.timings:
            if timing.absent:
                print(f"    {timing.contender}: {timing.absent}")
            else:
                print(f"    {timing.contender:28} {timing.median_ms:9.3f} ms")
        if args.json:
            write_results(args.json, head, rows)
    if ratios:
        median = statistics.median(ratios)
        print(f"k2t / best other: median {median:.2f}, largest {max(ratios):.2f}")
    if args.json:
        head["load_average_after"] = facts(args.threads, args.rounds)["load_average"]
        write_results(args.json, head, rows)


if __name__ == "__main__":
    main()
