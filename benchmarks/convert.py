"""Time ``k2t convert`` and its peak memory, against ``import torch`` and Keras' ``load_model``.

    python -m benchmarks convert MODEL [--keras-python PYTHON] [--rounds 11] [--out RESULT.json]

MODEL is a file, or a folder whose largest model is taken. PYTHON is the interpreter of an
environment that has TensorFlow and Keras. Every measured command is a process of its own; rounds
go round robin, so that a slow moment of the machine hits all of them. Large models written here,
most of three an embedding, all of one an LSTM, show that memory does not grow with the file: it is
to stay under that of ``import torch`` + 1.2 x the largest tensor + the file's index.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras2torch_birnn

ROOT = Path(__file__).parents[1]
K2T = "from keras2torch_birnn.cli import main; main()"
IMPORT_TORCH = "import torch"
LOAD = "import sys; from {package}.models import load_model; load_model(sys.argv[1], compile=False)"
# Where load_model fails, because tf_keras takes an old model for a new one: the model of its config
# with the defaults of its own time, and load_weights, as `k2t verify` does it.
LOAD_OLD = (
    "import runpy, sys, {package}; runpy.run_path({child!r})['_old_model']({package}, sys.argv[1])"
)
KERAS_CHILD = Path(keras2torch_birnn.__file__).parent / "verification" / "keras_child.py"
SUFFIXES = (".h5", ".hdf5", ".keras")
# File name -> what ``tests/support/synthetic.py`` is told.
LARGE: Mapping[str, Sequence[object]] = {
    "embedding-1GB.h5": ("embedding", 2_500_000, 100, 7),
    "embedding-1GB.keras": ("archive", 2_500_000, 100, 7),
    "embedding-400MB.h5": ("embedding", 1_000_000, 100, 7),
    "bilstm-192MB.h5": ("bidirectional", 1000, 2000),
}
# Run by processes of their own: the peak memory of a child counts from its parent's at the start.
SYNTHETIC = ROOT / "tests" / "support" / "synthetic.py"
SIZES = """
import json, sys, zipfile
from contextlib import ExitStack
import h5py
found = []
def note(name, item):
    if isinstance(item, h5py.Dataset):
        found.append(item.nbytes)
with ExitStack() as stack:
    given = sys.argv[1]
    if zipfile.is_zipfile(given):
        given = stack.enter_context(zipfile.ZipFile(given)).open("model.weights.h5")
    stack.enter_context(h5py.File(given)).visititems(note)
print(json.dumps([max(found), sum(found)]))
"""
VERSIONS = (
    "import json, sys; from importlib.metadata import version; "
    "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
)


def processor() -> str:
    """Return the name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def ask(python: str, code: str, *arguments: object) -> Any:
    """Run a few lines in a process of their own; return the JSON that they print."""
    command = [python, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(command: list[str]) -> dict[str, float]:
    """Seconds by the clock, seconds of computing and peak memory in MB of one process.

    The children it waited for are counted in. Computing depends less on what else the machine does.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    computing = usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu_seconds": computing, "peak_mb": peak}


def round_robin(commands: Mapping[str, list[str]], rounds: int) -> dict[str, Any]:
    """Return median, smallest and largest of every command, after one round that does not count."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            result = measure(command)
            if number:
                found[name].append(result)
    return {name: summary(results) for name, results in found.items()}


def summary(results: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the median, the range and every single value of each quantity."""
    columns = {key: [round(result[key], 4) for result in results] for key in results[0]}
    return {
        key: {
            "median": round(statistics.median(values), 4),
            "least": min(values),
            "most": max(values),
            "all": values,
        }
        for key, values in columns.items()
    }


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 2),
        "threads": "defaults (one per core)",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "h5py", "typer", "safetensors")},
    }


def largest(path: Path) -> Path:
    """Return the path itself, or the largest model of a folder."""
    if not path.is_dir():
        return path
    models = [p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()]
    return max(models, key=lambda p: p.stat().st_size)


def keras_command(python: str, package: str, model: Path) -> tuple[str, list[str]]:
    """Return the command that loads a model in Keras (``.keras``: Keras 3), and its name."""
    package = "keras" if model.suffix == ".keras" else package
    plain = [python, "-c", LOAD.format(package=package), str(model)]
    done = subprocess.run(plain, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if not done.returncode:
        return f"{package} load_model", plain
    code = LOAD_OLD.format(package=package, child=str(KERAS_CHILD))
    return f"{package} (load_model fails) load_weights", [python, "-c", code, str(model)]


def bench(model: Path, folder: Path, rounds: int, keras: tuple[str, str] | None) -> dict[str, Any]:
    """Time all commands on one model, after a proof that the conversion is right."""
    k2t, out = [sys.executable, "-c", K2T], folder / "out.pt"
    convert = [*k2t, "convert", str(model), str(out), "--force"]
    measure(convert)
    measure([*k2t, "verify", str(out)])
    commands = {
        "import torch": [sys.executable, "-c", IMPORT_TORCH],
        "k2t convert": convert,
        "k2t convert to .safetensors": [*convert[:-2], str(folder / "o.safetensors"), "--force"],
        "k2t inspect": [*k2t, "inspect", str(model)],
    }
    if keras:
        name, command = keras_command(*keras, model)
        commands[name] = command
    results = round_robin(commands, rounds)
    tensor, tensors = (size / 1e6 for size in ask(sys.executable, SIZES, model))
    size = model.stat().st_size / 1e6
    above = {
        key: round(results["k2t convert"][key]["median"] - alone["median"], 4)
        for key, alone in results["import torch"].items()
    }
    return {
        "model": model.name,
        "model_mb": round(size, 3),
        "verified": "k2t verify OUT, by its golden vectors",
        "rounds": rounds,
        "results": results,
        "above_import_torch": above,
        "largest_tensor_mb": round(tensor, 3),
        "allowed_above_import_torch_mb": round(1.2 * tensor + size - tensors, 3),
    }


def show(model: Mapping[str, Any]) -> None:
    """Print the figures of one model."""
    print(f"{model['model']} ({model['model_mb']:.1f} MB)")
    for command, numbers in model["results"].items():
        seconds, computing, peak = (numbers[k] for k in ("seconds", "cpu_seconds", "peak_mb"))
        print(
            f"  {command:42} {seconds['median']:7.2f} s"
            f" ({seconds['least']:.2f} to {seconds['most']:.2f})"
            f" {computing['median']:7.2f} s of computing {peak['median']:8.0f} MB"
        )
    above = model["above_import_torch"]
    print(
        f"  above import torch: {above['seconds']:.2f} s,"
        f" {above['cpu_seconds']:.2f} s of computing,"
        f" {above['peak_mb']:.0f} MB; 1.2 x the largest tensor + the index:"
        f" {model['allowed_above_import_torch_mb']:.0f} MB"
    )


def main(arguments: Sequence[str]) -> None:
    """Measure, print, write the raw numbers."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m benchmarks convert", description=about)
    parser.add_argument("model", type=Path)
    parser.add_argument("--keras-python", help="an interpreter that has TensorFlow and Keras")
    parser.add_argument("--keras-package", default="tf_keras", help="tf_keras, or keras")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--large-rounds", type=int, default=9, help="of the large models; 0: none")
    day = datetime.datetime.now(datetime.timezone.utc).date()
    parser.add_argument("--out", type=Path, default=ROOT / "build" / f"convert-{day}.json")
    options = parser.parse_args(arguments)
    head: dict[str, Any] = {"date": str(day), "machine": machine()}
    keras = None
    if options.keras_python:
        keras = (options.keras_python, options.keras_package)
        packages = ("tensorflow", options.keras_package.replace("_", "-"), "keras")
        head["keras_environment"] = ask(options.keras_python, VERSIONS, *packages)
    models = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models.append(bench(largest(options.model), folder, options.rounds, keras))
        for large, kind in LARGE.items() if options.large_rounds else ():
            path = folder / large
            writing = [sys.executable, str(SYNTHETIC), *map(str, kind), str(path)]
            subprocess.run(writing, check=True)
            models.append(bench(path, folder, options.large_rounds, keras))
            path.unlink()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**head, "models": models}, indent=1) + "\n")
    for model in models:
        show(model)
