"""Run a converted model over a large data set on Ray Data: ``pip install 'ray[data]'``.

    python predict_many.py model.pt inputs outputs --workers 2

inputs is a folder of shards, NAME.npy (rows, ...), and outputs gets a NAME.npy for each of them; of
a model with several outputs a NAME.npz with output_0, output_1, ... A shard appears there
completely or not at all, so the same command goes on after an interruption. If a worker is killed,
Ray starts another one, which repeats the shard. A shard that cannot be computed, or that kills its
worker three times, is left out and named at the end; the exit code is 1 then.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

import keras2torch_birnn as k2t

TRIES = 3


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
        """Predict the shards of one batch of paths; return what was done, in words."""
        paths = [Path(path) for path in shards["path"]]
        said = [self.try_shard(path) for path in paths]
        return {"name": [path.name for path in paths], "said": said}

    def try_shard(self, shard: Path) -> str:
        """Predict a shard unless its workers were killed too often; say what was done."""
        tries = self.outputs / f".{shard.name}.tries"
        before = len(tries.read_bytes()) if tries.exists() else 0
        if before >= TRIES:
            tries.unlink()
            return f"{FAILED} its worker was killed {before} times"
        with tries.open("ab") as file:
            file.write(b"1")
        try:
            return f"{self.predict(shard)} rows"
        except Exception as error:
            words = str(error).partition("\n")[0]
            return f"{FAILED} {type(error).__name__}: {words}"
        finally:  # not where the worker is killed
            tries.unlink()

    def predict(self, shard: Path) -> int:
        """Write the outputs of one shard in one step; return the number of rows."""
        inputs = np.load(shard)
        parts: list[tuple[Tensor, ...]] = []
        with torch.inference_mode():
            for at in range(0, len(inputs), self.rows):
                found = self.model(torch.from_numpy(inputs[at : at + self.rows]).to(self.device))
                found = found if isinstance(found, tuple) else (found,)
                parts.append(tuple(one.cpu() for one in found))
        outputs = [torch.cat(one).numpy() for one in zip(*parts, strict=True)]
        unfinished = self.outputs / f".{shard.name}.{os.getpid()}"
        with unfinished.open("wb") as file:
            if len(outputs) == 1:
                np.save(file, outputs[0])
            else:
                named: Any = {f"output_{at}": one for at, one in enumerate(outputs)}
                np.savez(file, **named)
        ending = ".npy" if len(outputs) == 1 else ".npz"
        unfinished.replace(self.outputs / f"{shard.stem}{ending}")
        return len(inputs)


FAILED = "not computed:"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="a file of k2t convert")
    parser.add_argument("inputs", type=Path, help="the folder of shards")
    parser.add_argument("outputs", type=Path, help="the folder of their outputs")
    parser.add_argument(
        "--workers", type=positive, default=2, help="processes, each with the model"
    )
    parser.add_argument("--rows", type=positive, default=256, help="rows that are computed at once")
    options = parser.parse_args(arguments)
    if not any(options.inputs.glob("*.npy")):
        parser.error(f"{options.inputs} holds no shard (NAME.npy)")
    if options.outputs.exists() and not options.outputs.is_dir():
        parser.error(f"{options.outputs} is no folder")
    try:
        k2t.load(options.model)  # as each worker will
    except k2t.K2TError as error:
        parser.error(str(error))
    return options


def positive(text: str) -> int:
    """Read a number of at least 1."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict every shard that has no output yet."""
    options = parse_arguments(arguments)
    options.outputs.mkdir(parents=True, exist_ok=True)
    shards = sorted(options.inputs.glob("*.npy"))
    for rest in options.outputs.glob(".*.npy.*"):  # of a run that was interrupted
        rest.unlink()
    done_before = {path.stem for path in options.outputs.glob("*.np[yz]")}
    left = [path for path in shards if path.stem not in done_before]
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
    failed = []
    for row in done.iter_rows():
        print(f"{row['name']}: {row['said']}", flush=True)
        failed += [str(row["name"])] if str(row["said"]).startswith(FAILED) else []
    if failed:
        raise SystemExit(f"{len(failed)} shards are not computed: {', '.join(sorted(failed))}")


if __name__ == "__main__":
    main()
