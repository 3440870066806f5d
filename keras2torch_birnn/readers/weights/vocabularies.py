"""Vocabularies of layers, and of the text layers that were cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keras2torch_birnn.errors import invalid, printable
from keras2torch_birnn.limits import MAX_NAMES
from keras2torch_birnn.readers.config.parsing import TextLayer, Whole
from keras2torch_birnn.readers.containers.container import Container
from keras2torch_birnn.readers.weights.v3 import ROOTS, VOCABULARY, v3_places
from keras2torch_birnn.spec import Generation, LayerSpec


def written_vocabularies(
    whole: LayerSpec, container: Container, generation: Generation
) -> Iterator[tuple[LayerSpec, str]]:
    """Yield the layers that have a text in the archive, with the name of the text."""
    first, last = VOCABULARY
    for group in ROOTS:
        if not any(name.startswith(f"{first}{group}/") for name in container.vocabularies):
            continue
        for base, layer in v3_places(whole, container.store, generation, group):
            name = f"{first}{base.removeprefix('/')}{last}"
            if name in container.vocabularies:
                yield layer, name


# ---- layers that were cut off --------------------------------------------------------------------


# Vocabularies of the layers that were cut off: what it takes to turn text into ids without Keras.
#
# They are in the configuration, if the user passed them; what ``adapt()`` found is read from the
# text in a ``.keras`` archive or folder. Other files have it in a lookup table, or nowhere.


Words = tuple[str | int, ...]

# Options of older versions that their files do not state, by class.
_LOOKUP: Mapping[str, Any] = {
    "max_tokens": None,
    "num_oov_indices": 1,
    "mask_token": None,
    "oov_token": "[UNK]",
    "output_mode": "int",
    "invert": False,
    "pad_to_max_tokens": False,
    "sparse": False,
    "idf_weights": None,
    "encoding": "utf-8",
}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "StringLookup": _LOOKUP,
    "IntegerLookup": {**_LOOKUP, "oov_token": -1},
    "TextVectorization": {
        "max_tokens": None,
        "standardize": "lower_and_strip_punctuation",
        "split": "whitespace",
        "ngrams": None,
        "output_mode": "int",
        "output_sequence_length": None,
        "pad_to_max_tokens": False,
        "sparse": False,
        "ragged": False,
        "idf_weights": None,
        "encoding": "utf-8",
    },
}
# What a TextVectorization says of unknown words and of padding.
_FIXED: Mapping[str, Any] = {"num_oov_indices": 1, "oov_token": "[UNK]", "mask_token": ""}


@dataclass(frozen=True)
class Vocabulary:
    """A layer that was cut off. ``words``: all tokens in the order of their ids, None if not known.

    Special ones come first. ``options``: Keras' options, all explicit.
    """

    place: str
    class_name: str
    options: Mapping[str, Any]
    words: Words | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data for JSON."""
        return {
            "layer": self.place,
            "class": self.class_name,
            **self.options,
            "vocabulary": self.words,
        }


def find_vocabularies(
    whole: Whole, container: Container, generation: Generation
) -> tuple[tuple[Vocabulary, ...], tuple[str, ...]]:
    """Find the vocabularies of all layers that were cut off; notes say what is not in the file."""
    if not whole.texts:
        return (), ()
    written = dict(_written_texts(whole, container, generation))
    found = []
    for place, layer in whole.texts.items():
        options = _options(layer)
        words = _from_config(layer) or written.get(place)
        if words is not None:
            words = _with_special(words, options, place)
        found.append(Vocabulary(place, layer.class_name, options, words))
    return tuple(found), tuple(_notes(found))


def _options(layer: TextLayer) -> dict[str, Any]:
    defaults = _OPTIONS[layer.class_name]
    fixed = _FIXED if layer.class_name == "TextVectorization" else {}
    return {**{key: layer.config.get(key, value) for key, value in defaults.items()}, **fixed}


def _from_config(layer: TextLayer) -> Words | None:
    words = layer.config.get("vocabulary")
    if not isinstance(words, list | tuple) or not all(type(one) in (str, int) for one in words):
        return None
    return tuple(words) or None


def _written_texts(
    whole: Whole, container: Container, generation: Generation
) -> Iterator[tuple[str, Words]]:
    """Yield place and words of the layers that have a text in the archive."""
    for layer, name in written_vocabularies(whole.model, container, generation):
        if layer.place in whole.texts:
            words = container.vocabularies[name].split("\n")
            yield layer.place, tuple(_as_numbers(words, whole.texts[layer.place], name))


def _as_numbers(words: Sequence[str], layer: TextLayer, place: str) -> Sequence[str | int]:
    if layer.class_name != "IntegerLookup":
        return words
    try:
        return [int(word) for word in words if word]
    except ValueError:
        raise invalid("a vocabulary of something else than numbers", place) from None


def _with_special(words: Words, options: Mapping[str, Any], place: str) -> Words:
    """Put the mask and the unknown in front, where they are not there (``IndexLookup``, 2.15)."""
    masks = options["mask_token"] is not None and options["output_mode"] == "int"
    count = options["num_oov_indices"]
    if type(count) is not int or not 0 <= count <= MAX_NAMES:
        raise invalid(f"num_oov_indices {printable(count)}", printable(place))
    special = (*[options["mask_token"]] * masks, *[options["oov_token"]] * count)
    return words if words[: len(special)] == special else (*special, *words)


def _notes(vocabularies: Sequence[Vocabulary]) -> Iterator[str]:
    for one in vocabularies:
        if one.words is None:
            yield (
                f"{printable(one.place)}: the vocabulary that adapt() found is not read from this "
                "file; take it in Keras with layer.get_vocabulary()"
            )
        if one.options["output_mode"] == "tf_idf" and one.options["idf_weights"] is None:
            yield f"{printable(one.place)}: its weights of words (tf_idf) are not read"
