"""Vocabularies that ``adapt()`` stored for an IntegerLookup: text with one integer a line.

The configuration has a vocabulary only if the user passed one (``IndexLookup.save_assets`` of
tf.keras 2.13 to 2.15 and of Keras 3). The text begins with the special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_INT64, MIN_INT64
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.weights.slots import Key, replace_layers
from keras2torch_birnn.readers.weights.v3 import ROOTS, VOCABULARY, v3_places
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.spec import Generation, LayerSpec

_NUMBER = re.compile(r"-?[0-9]{1,19}")


def with_vocabularies(
    root: LayerSpec, whole: LayerSpec, container: Container, parsing: Parsing
) -> LayerSpec:
    """Read the vocabulary of every IntegerLookup; a missing one is a problem.

    ``whole``: the model before it was cut, by which a text is found.

    Raises:
        InvalidModelFileError: a vocabulary holds something else.
    """
    if not any(map(_lacks, root.walk())):
        return root
    found: dict[Key, LayerSpec] = {}
    for owner, layer, name in written_vocabularies(whole, container, parsing.generation):
        if _lacks(layer):
            words = _numbers(container.vocabularies[name], name)
            found[owner] = replace(layer, config={**layer.config, "vocabulary": words})
    root = replace_layers(root, found)
    for layer in filter(_lacks, root.walk()):
        parsing.refuse(
            "IntegerLookup without vocabulary: what adapt() found is not in this file",
            "save it as .keras, or make the layer anew with vocabulary=layer.get_vocabulary()",
            layer.place,
        )
    return root


def written_vocabularies(
    whole: LayerSpec, container: Container, generation: Generation
) -> Iterator[tuple[Key, LayerSpec, str]]:
    """Yield the layers that have a text in the archive, with the name of the text."""
    first, last = VOCABULARY
    for group in ROOTS:
        if not any(name.startswith(f"{first}{group}/") for name in container.vocabularies):
            continue
        for owner, base, layer in v3_places(whole, container.store, generation, group):
            name = f"{first}{base.removeprefix('/')}{last}"
            if name in container.vocabularies:
                yield owner, layer, name


def _lacks(layer: LayerSpec) -> bool:
    ours = layer.class_name == "IntegerLookup" and custom_layer_of(layer) is None
    return ours and layer.config.get("vocabulary", ()) is None


def _numbers(text: str, place: str) -> tuple[int, ...]:
    lines = [line for line in text.split("\n") if line]
    wrong = next((line for line in lines if not _is_number(line)), None)
    if wrong is not None or not lines:
        raise invalid(
            f"{printable(repr(wrong or text))} where whole numbers of 64 bits are expected", place
        )
    return tuple(int(line) for line in lines)


def _is_number(line: str) -> bool:
    return bool(_NUMBER.fullmatch(line)) and MIN_INT64 <= int(line) <= MAX_INT64
