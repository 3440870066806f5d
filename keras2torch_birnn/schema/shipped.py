"""Table of plugins for layers of well-known packages: those that ship, and the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipped:
    """Plugin for the classes of a package."""

    classes: tuple[str, ...]
    origin: str


SHIPPED: Mapping[str, Shipped] = {"keras-contrib-crf": Shipped(("CRF",), "keras-contrib 2.0")}
"""Plugins that are loaded by name; the module in ``plugins`` has the plugin's name."""

EXAMPLES: Mapping[str, Shipped] = {
    "examples/plugins/attention_weighted_average.py": Shipped(
        ("AttentionWeightedAverage",), "textgenrnn, DeepMoji"
    ),
    "examples/plugins/keras_self_attention.py": Shipped(
        ("SeqSelfAttention", "SeqWeightedAttention"), "keras-self-attention 0.28 to 0.51"
    ),
    "examples/plugins/tensorflow_addons_crf.py": Shipped(
        ("Addons>CRF",), "tensorflow-addons 0.11 to 0.23"
    ),
}
"""Plugins in the project's source, loaded by their path."""


def advise_shipped(class_names: Sequence[object], command: str) -> str:
    """Return the command that converts a layer of the first of these names that a plugin knows.

    command: without the plugin. Empty if no plugin does.
    """
    for class_name in class_names:
        for name, plugin in {**SHIPPED, **EXAMPLES}.items():
            if class_name in plugin.classes:
                return (
                    f"if it is the layer of {plugin.origin}: {command} --plugin {name}"
                    + " of k2t's source" * (name in EXAMPLES)
                )
    return ""
