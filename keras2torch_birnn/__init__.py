"""Keras Bidirectional LSTM/GRU models as PyTorch models: same numbers, no TensorFlow.

Importing the package is cheap: torch and the readers are imported when first used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; a test compares it with _NAMES
    from keras2torch_birnn.conversion import convert as convert
    from keras2torch_birnn.errors import InvalidModelFileError as InvalidModelFileError
    from keras2torch_birnn.errors import K2TError as K2TError
    from keras2torch_birnn.errors import MissingArchitectureError as MissingArchitectureError
    from keras2torch_birnn.errors import OutputError as OutputError
    from keras2torch_birnn.errors import PluginError as PluginError
    from keras2torch_birnn.errors import UnsupportedLayerError as UnsupportedLayerError
    from keras2torch_birnn.errors import UnsupportedOptionError as UnsupportedOptionError
    from keras2torch_birnn.errors import UsageError as UsageError
    from keras2torch_birnn.errors import WeightMismatchError as WeightMismatchError
    from keras2torch_birnn.exporting.exporter import Exported as Exported
    from keras2torch_birnn.exporting.exporter import export as export
    from keras2torch_birnn.freezing import freeze as freeze
    from keras2torch_birnn.inspection import inspect as inspect
    from keras2torch_birnn.layers.registry import MaskFlow as MaskFlow
    from keras2torch_birnn.layers.running import reset_states as reset_states
    from keras2torch_birnn.porting.comparing import compare as compare
    from keras2torch_birnn.porting.report import PortReport as PortReport
    from keras2torch_birnn.readers.steps import weights as weights
    from keras2torch_birnn.rnn.bidirectional import BiGRU as BiGRU
    from keras2torch_birnn.rnn.bidirectional import BiLSTM as BiLSTM
    from keras2torch_birnn.rnn.bidirectional import BiRNN as BiRNN
    from keras2torch_birnn.rnn.engine_settings import explain as explain
    from keras2torch_birnn.rnn.engine_settings import set_engine as set_engine
    from keras2torch_birnn.rnn.engine_settings import set_precision as set_precision
    from keras2torch_birnn.saving.checkpoint import load as load
    from keras2torch_birnn.saving.checkpoint import save as save
    from keras2torch_birnn.schema.custom_layers import converts as converts
    from keras2torch_birnn.schema.custom_layers import equation as equation
    from keras2torch_birnn.schema.custom_layers import supplies as supplies
    from keras2torch_birnn.spec import LayerSpec as LayerSpec
    from keras2torch_birnn.spec import ModelSpec as ModelSpec
    from keras2torch_birnn.trainers.output_masks import output_mask as output_mask
    from keras2torch_birnn.trainers.penalties import constrain_ as constrain_
    from keras2torch_birnn.trainers.penalties import penalty as penalty
    from keras2torch_birnn.trainers.resuming import Training as Training
    from keras2torch_birnn.trainers.resuming import training as training
    from keras2torch_birnn.trainers.writing_back import WrittenModel as WrittenModel
    from keras2torch_birnn.trainers.writing_back import write_back as write_back
    from keras2torch_birnn.verification import ParityReport as ParityReport
    from keras2torch_birnn.verification import verify as verify

# Module -> its public names, imported when first used.
_NAMES = {
    "conversion": ("convert",),
    "errors": (
        "InvalidModelFileError",
        "K2TError",
        "MissingArchitectureError",
        "OutputError",
        "PluginError",
        "UnsupportedLayerError",
        "UnsupportedOptionError",
        "UsageError",
        "WeightMismatchError",
    ),
    "exporting.exporter": ("Exported", "export"),
    "freezing": ("freeze",),
    "inspection": ("inspect",),
    "layers.registry": ("MaskFlow",),
    "porting.comparing": ("compare",),
    "porting.report": ("PortReport",),
    "readers.steps": ("weights",),
    "trainers.resuming": ("Training", "training"),
    "rnn.bidirectional": ("BiGRU", "BiLSTM", "BiRNN"),
    "rnn.engine_settings": ("explain", "set_engine", "set_precision"),
    "layers.running": ("reset_states",),
    "saving.checkpoint": ("load", "save"),
    "schema.custom_layers": ("converts", "equation", "supplies"),
    "spec": ("LayerSpec", "ModelSpec"),
    "trainers.output_masks": ("output_mask",),
    "trainers.penalties": ("constrain_", "penalty"),
    "verification": ("ParityReport", "verify"),
    "trainers.writing_back": ("WrittenModel", "write_back"),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = tuple(sorted(_MODULES))

try:
    __version__ = version("keras2torch_birnn")
except PackageNotFoundError:  # run from a folder that was never installed
    __version__ = "0+unknown"


if not TYPE_CHECKING:  # or misspelt names would have a type

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # A fixed table of our own modules: nothing from a file is ever imported.
        module = __import__(f"{__name__}.{_MODULES[name]}", fromlist=[name])
        found = getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
