"""Vocabularies that ``adapt()`` stored for an IntegerLookup: text with one integer a line.

The configuration has a vocabulary only if the user passed one (``IndexLookup.save_assets`` of
tf.keras 2.13 to 2.15 and of Keras 3). The text begins with the special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.weights.slots import Key
from keras2torch_birnn.readers.weights.v3 import ROOTS, VOCABULARY, v3_places
from keras2torch_birnn.spec import Generation, LayerSpec


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
