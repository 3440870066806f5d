"""Keras Bidirectional LSTM/GRU models as PyTorch models: same numbers, no TensorFlow.

Importing the package is cheap: torch and the readers are imported when first used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras2torch_birnn.api import convert, inspect
    from keras2torch_birnn.conversion import reset_states
    from keras2torch_birnn.errors import (
        InvalidModelFileError,
        K2TError,
        MissingArchitectureError,
        OutputError,
        PluginError,
        UnsupportedLayerError,
        UnsupportedOptionError,
        UsageError,
        WeightMismatchError,
    )
    from keras2torch_birnn.layers.registry import MaskFlow
    from keras2torch_birnn.rnn.bidirectional import BiGRU, BiLSTM, BiRNN
    from keras2torch_birnn.rnn.engine_settings import explain, set_engine
    from keras2torch_birnn.saving.checkpoint import load, save
    from keras2torch_birnn.schema.custom_layers import converts, equation, supplies
    from keras2torch_birnn.spec import LayerSpec, ModelSpec
    from keras2torch_birnn.verification import ParityReport, verify

# Public name -> the module that has it.
_HOMES = {
    "BiGRU": "rnn.bidirectional",
    "BiLSTM": "rnn.bidirectional",
    "BiRNN": "rnn.bidirectional",
    "explain": "rnn.engine_settings",
    "set_engine": "rnn.engine_settings",
    "convert": "api",
    "inspect": "api",
    "load": "saving.checkpoint",
    "reset_states": "conversion",
    "save": "saving.checkpoint",
    "verify": "verification",
    "ParityReport": "verification",
    "converts": "schema.custom_layers",
    "supplies": "schema.custom_layers",
    "equation": "schema.custom_layers",
    "MaskFlow": "layers.registry",
    "LayerSpec": "spec",
    "ModelSpec": "spec",
    "K2TError": "errors",
    "InvalidModelFileError": "errors",
    "MissingArchitectureError": "errors",
    "OutputError": "errors",
    "PluginError": "errors",
    "UnsupportedLayerError": "errors",
    "UnsupportedOptionError": "errors",
    "UsageError": "errors",
    "WeightMismatchError": "errors",
}

__all__ = [
    "BiGRU",
    "BiLSTM",
    "BiRNN",
    "InvalidModelFileError",
    "K2TError",
    "LayerSpec",
    "MaskFlow",
    "MissingArchitectureError",
    "ModelSpec",
    "OutputError",
    "ParityReport",
    "PluginError",
    "UnsupportedLayerError",
    "UnsupportedOptionError",
    "UsageError",
    "WeightMismatchError",
    "convert",
    "converts",
    "equation",
    "explain",
    "inspect",
    "load",
    "reset_states",
    "save",
    "set_engine",
    "supplies",
    "verify",
]

try:
    __version__ = version("keras2torch_birnn")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # A fixed table of our own modules: nothing from a file is ever imported.
    module = __import__(f"{__name__}.{_HOMES[name]}", fromlist=[name])
    found = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
