"""Table of the plugins that come with the package: names, classes, and where these are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Shipped:
    """Plugin of this package: the classes it converts, and their packages.

    Its module in ``plugins`` has its name.
    """

    classes: tuple[str, ...]
    origin: str


_SELF_ATTENTION = ("SeqSelfAttention", "SeqWeightedAttention")
SHIPPED: Mapping[str, Shipped] = {
    "attention-weighted-average": Shipped(("AttentionWeightedAverage",), "textgenrnn, DeepMoji"),
    "keras-self-attention-0.45": Shipped(_SELF_ATTENTION, "keras-self-attention 0.28 to 0.45"),
    "keras-self-attention-0.46": Shipped(_SELF_ATTENTION, "keras-self-attention 0.46"),
    "keras-self-attention-0.51": Shipped(_SELF_ATTENTION, "keras-self-attention 0.47 to 0.51"),
    "keras-contrib-crf": Shipped(("CRF",), "keras-contrib 2.0"),
    "tensorflow-addons-crf": Shipped(("Addons>CRF",), "tensorflow-addons 0.11 to 0.23"),
}


def advise_shipped(class_names: Sequence[object], command: str) -> str:
    """Return the command that converts a layer of the first of these names that a plugin knows.

    command: without the plugin. Empty if no plugin does.
    """
    for class_name in class_names:
        found = [
            f"--plugin {name} (of {plugin.origin})"
            for name, plugin in SHIPPED.items()
            if class_name in plugin.classes
        ]
        if found:
            return f"if it is the layer of that package: {command} {' or '.join(found)}"
    return ""
