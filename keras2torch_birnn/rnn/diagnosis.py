"""The engine that computes each cell on this machine, and why: ``k2t doctor``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch

from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.rnn.bidirectional import BiGRU, BiLSTM, BiRNN
from keras2torch_birnn.rnn.native.codes import PRECISIONS
from keras2torch_birnn.rnn.native.library import FOLDER, NAME, find_sets, why_missing

# Cells that torch has kernels for, and their kin that it has none for.
_CELLS: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "LSTM": (BiLSTM, {}),
    "LSTM, hard_sigmoid": (BiLSTM, {"recurrent_activation": "hard_sigmoid_0.2"}),
    "GRU": (BiGRU, {}),
    "GRU, reset_after=False": (BiGRU, {"reset_after": False}),
    "SimpleRNN": (BiRNN, {}),
}
_SIZES = {"input_size": 5, "hidden_size": 7, "batch_first": True}
_VARIABLES = ("K2T_", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def describe_kernel() -> dict[str, Any]:
    """Return the file of the native kernel, why there is none, and the instruction sets it has."""
    missing = why_missing()
    return {
        "file": str(FOLDER / NAME),
        "missing": missing,
        "instruction_sets": {
            precision: [] if missing else [*find_sets(precision)] for precision in PRECISIONS
        },
    }


def describe_torch() -> dict[str, Any]:
    """Return what torch was built for and finds."""
    versions: Any = torch.version
    cudnn: Any = torch.backends.cudnn
    count = _ask(torch.cuda.device_count)
    return {
        "threads": torch.get_num_threads(),
        "cuda": versions.cuda,
        "hip": versions.hip,
        "cudnn": _ask(cudnn.version),
        "gpus": [_ask(_describe_gpu, number) for number in range(count)]
        if isinstance(count, int)
        else [count],
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def _ask(question: Callable[..., Any], *of: Any) -> Any:
    """Return what a library answers, or how it fails."""
    try:
        return question(*of)
    except Exception as failure:  # a driver may raise anything, and the report is about it
        return _describe(failure)


def _describe(failure: Exception) -> str:
    """Return the type of an error and its first line."""
    return f"{type(failure).__name__}: {next(iter(str(failure).splitlines()), '')}"


def _describe_gpu(number: int) -> str:
    major, minor = torch.cuda.get_device_capability(number)
    return f"{torch.cuda.get_device_name(number)} (sm_{major}{minor})"


def choose_engines(devices: Sequence[str]) -> list[dict[str, Any]]:
    """Return the engine of every cell on each device, and why it was chosen.

    Where a device fails, or ``K2T_ENGINE`` asks for one that cannot run it, "none" with the reason.
    """
    rows = []
    for device, cell, training in product(devices, _CELLS, (False, True)):
        made, options = _CELLS[cell]
        row: dict[str, Any] = {"device": device, "cell": cell, "training": training}
        try:
            module = made(**_SIZES, **options, device=device).train(training)
            with torch.set_grad_enabled(training):
                (choice,) = module.explain()
            row |= {"engine": choice.engine, "reason": choice.reason}
        except UsageError as refused:
            row |= {"engine": "none", "reason": str(refused)}
        except Exception as failure:  # as above
            row |= {"engine": "none", "reason": _describe(failure)}
        rows.append(row)
    return rows
