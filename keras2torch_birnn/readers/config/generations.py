"""The Keras version that wrote the file, and the meaning of its configs.

Sources: Keras at its tags 1.2.2, 2.0.8, 2.2.4, 2.3.1 (``keras/layers/recurrent.py``,
``keras/backend/tensorflow_backend.py``), tf.keras 2.15 (``keras/src/backend.py`` ``rnn``) and
Keras 3 (``keras/src/activations``, ``keras/src/backend/*/rnn.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.readers.config.dialects import has_mask
from keras2torch_birnn.spec import Generation, LayerSpec, TimeDistributedMask

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?((?![0-9])[!-~]*)")
# A Keras 3 whose version is not known; real ones have three numbers.
UNKNOWN_KERAS3 = "3.0"
# tf.keras 2.2.4-tf is that of TensorFlow 1.13 to 2.0, 2.3.0-tf that of 2.1 and of 2.2
_TIME_DISTRIBUTED: Mapping[int, TimeDistributedMask] = {
    2: "inner, input if fixed",
    3: "inner, unknown if fixed",
}
_OLD_SIGMOID, _NEW_SIGMOID = "hard_sigmoid_0.2", "hard_sigmoid_1/6"
_GATES = ("activation", "recurrent_activation")  # options that may hold one of them


def generation_of(version: str) -> Generation:
    """Return the rules of ``version`` ("2.2.4", "2.2.4-tf", "3.3.3").

    Raises:
        InvalidModelFileError: it is not a version of Keras.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise InvalidModelFileError(
            f"keras_version {printable(version)!r} is not a version of Keras",
            place="keras_version",
        )
    major, minor, patch = int(match[1]), int(match[2]), int(match[3] or 0)
    if major == 1:
        return Generation(
            "keras1",
            version,
            _OLD_SIGMOID,
            recurrent_activation="hard_sigmoid",
            reset_after=False,
            masked_output="previous_state",
            average_pooling_uses_mask=False,
            time_distributed="passes by",
            cells_give_states=False,
            conv_lstm="fails",
        )
    if major == 2 and minor <= 3 and "-tf" not in match[4]:
        return Generation(
            "keras2",
            version,
            _OLD_SIGMOID,
            recurrent_activation="hard_sigmoid" if minor < 3 else "sigmoid",
            reset_after=False,
            masked_output="previous_state" if minor < 3 else "previous_output",
            average_pooling_uses_mask=(minor, patch) >= (2, 3),
            time_distributed="inner unless fixed" if minor >= 2 else "passes by",
            bidirectional_carries=(minor, patch) < (1, 4),
            stack_states="first cell first" if (minor, patch) >= (2, 3) else "last cell first",
            cells_give_states=False,
            conv_lstm="fails",
        )
    if major == 2:
        return Generation(
            "tf.keras",
            version,
            _OLD_SIGMOID,
            recurrent_activation="sigmoid",
            reset_after=True,
            masked_output="zeros",
            time_distributed=_TIME_DISTRIBUTED.get(minor, "inner"),
            softmax="add" if minor >= 4 else "ignore",
            relu_passes_mask=minor >= 5,
            attention_rows="add" if minor >= 10 else "ignore",
            passed_mask_goes_on=minor >= 3,
            bilinear="centers" if minor >= 3 else "corners or centers",
            carried_state_wins=minor >= 3,
            conv_lstm="previous_output",
            images_keep_integers=minor >= 12,
        )
    if major == 3:
        return Generation(
            "keras3",
            version,
            _NEW_SIGMOID,
            recurrent_activation="sigmoid",
            reset_after=True,
            masked_output="zeros",
            time_distributed="input",
            softmax="replace" if minor >= 13 else "add",
            # up to 3.3 ``Layer.__call__`` finds no mask on a list of tensors
            merging="any" if minor >= 4 else "none",
            attention_mask="query" if minor >= 4 else "none",
            # since 3.7 MultiHeadAttention calls ``ops.dot_product_attention`` where it can
            attention_rows="zeros" if minor >= 13 else "add by hand" if minor >= 7 else "add",
            attention_takes_masks=minor >= 8,
            passed_mask_goes_on=minor >= 11,
            smallest_norm=1e-12 if minor >= 6 else 1e-6,
            bilinear="centers",
            images_keep_integers=minor >= 6,
        )
    raise InvalidModelFileError(
        f"keras_version {printable(version)!r} is newer than this k2t knows",
        "upgrade keras2torch_birnn",
        place="keras_version",
    )


def version_by_shape(model: Mapping[str, Any]) -> str:
    """Guess a version for an architecture that names none (JSON of Keras 3, files of Keras 1).

    Only Keras 3 writes ``batch_shape``, ``build_config`` with a ``module`` and dtype policies; a
    text that has ``time_major`` comes from tf.keras.
    """
    text = str(model)
    if "'batch_shape'" in text or "'DTypePolicy'" in text or "'zero_output_for_mask'" in text:
        return UNKNOWN_KERAS3
    if "'time_major'" in text or "'registered_name'" in text:
        return "2.15"
    return "1" if "'output_dim'" in text and "'inner_activation'" in text else ""


_FORMULAS: Mapping[str, str] = {
    _OLD_SIGMOID: "hard_sigmoid is clip(0.2 x + 0.5, 0, 1)",
    _NEW_SIGMOID: "hard_sigmoid is clip(x/6 + 0.5, 0, 1)",
}
_AT_MASKED_STEPS: Mapping[str, str] = {
    "zeros": "Bidirectional gives zeros at masked steps",
    "previous_output": "masked steps repeat the previous output",
    "previous_state": "masked steps repeat the previous state",
}


def describe_rules(generation: Generation, root: LayerSpec, writer: str = "") -> str:
    """Describe in one line which Keras wrote the model, and its rules that the model uses.

    writer: a program other than Keras that wrote the file and computes as this version does.
    """
    name = "tf.keras" if generation.name == "tf.keras" else "Keras"
    version = f"{name} {printable(generation.version)}"
    if generation.version == UNKNOWN_KERAS3:
        version = (
            f'a Keras 3 that it does not name, and read by the rules of {UNKNOWN_KERAS3} ("keras_'
            'version" in the architecture names another)'
        )
    by = f"{printable(writer)}, which computes as {version}" if writer else version
    layers = list(root.walk())
    sigmoid, rule = generation.hard_sigmoid, generation.masked_output
    facts = []
    if any(sigmoid in (layer.config.get(key) for key in _GATES) for layer in layers):
        facts.append(_FORMULAS[sigmoid])
    if has_mask(root) and any(layer.semantics.get("masked_output") == rule for layer in layers):
        facts.append(_AT_MASKED_STEPS[rule])
    return f"written by {by}" + (f": {'; '.join(facts)}" if facts else "")
