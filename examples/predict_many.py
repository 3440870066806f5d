"""Run a converted model over a large data set on Ray Data: ``pip install 'ray[data]'``.

    python predict_many.py model.pt inputs outputs --workers 2

inputs is a folder of shards, NAME.npy (rows, ...), and outputs gets a NAME.npy for each of them. A
shard appears there completely or not at all, so the same command goes on after an interruption. If
a worker is killed, Ray starts another one, which repeats the shard.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

import keras2torch_birnn as k2t


class Predictor:
    """A worker: loads the model once, then computes shard after shard.

    threads: of torch in this process, so that workers do not compete for the processor's cores.
    """

    def __init__(self, model: str, outputs: str, rows: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = k2t.load(model, device=self.device)
        self.outputs, self.rows = Path(outputs), rows

    def __call__(self, shards: dict[str, Any]) -> dict[str, Any]:
        """Predict the shards of one batch of paths; return their names and numbers of rows."""
        counts = [self.predict(Path(path)) for path in shards["path"]]
        return {"name": [Path(path).name for path in shards["path"]], "rows": counts}

    def predict(self, shard: Path) -> int:
        """Write the outputs of one shard in one step; return the number of rows."""
        inputs = np.load(shard)
        with torch.inference_mode():
            parts = [
                self.model(torch.from_numpy(inputs[at : at + self.rows]).to(self.device)).cpu()
                for at in range(0, len(inputs), self.rows)
            ]
        unfinished = self.outputs / f".{shard.name}.{os.getpid()}"
        with unfinished.open("wb") as file:
            np.save(file, torch.cat(parts).numpy())
        unfinished.replace(self.outputs / shard.name)
        return len(inputs)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a file of k2t convert")
    parser.add_argument("inputs", type=Path, help="the folder of shards")
    parser.add_argument("outputs", type=Path, help="the folder of their outputs")
    parser.add_argument("--workers", type=int, default=2, help="processes, each with the model")
    parser.add_argument("--rows", type=int, default=256, help="rows that are computed at once")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict every shard that has no output yet."""
    options = parse_arguments(arguments)
    options.outputs.mkdir(exist_ok=True)
    shards = sorted(options.inputs.glob("*.npy"))
    left = [path for path in shards if not (options.outputs / path.name).exists()]
    print(f"{len(shards)} shards, {len(left)} to do", flush=True)
    if not left:
        return
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    ready = ray.data.from_items([{"path": str(path.resolve())} for path in left])
    done = ready.map_batches(
        Predictor,
        fn_constructor_args=(
            str(options.model.resolve()),
            str(options.outputs.resolve()),
            options.rows,
            threads,
        ),
        batch_size=1,
        concurrency=options.workers,
        num_gpus=1 if torch.cuda.is_available() else 0,
    )
    for row in done.iter_rows():
        print(f"{row['name']}: {row['rows']} rows", flush=True)


if __name__ == "__main__":
    main()
