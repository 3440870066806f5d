"""Options of one layer: the keys of its config, explicit and checked, and those of its training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keras2torch_birnn.errors import (
    InvalidModelFileError,
    K2TError,
    printable,
)
from keras2torch_birnn.limits import MAX_LAYERS_IN_NOTE
from keras2torch_birnn.readers.config.classes import (
    is_custom_class,
    is_custom_function,
    lacks_activation,
)
from keras2torch_birnn.readers.config.generations import (
    activation,
    cell_defaults,
    has_effect,
    is_tensorflow_1,
    masked_output,
    options_of,
    parse_shape,
    plain_value,
    rename_keys,
    rule_of,
)
from keras2torch_birnn.readers.config.parsing import DtypePolicy, Parsing, read_policy
from keras2torch_birnn.schema import AUGMENTATION, REQUIRED, SCHEMA, BadOptionError, Option
from keras2torch_birnn.schema.training_rules import (
    ACTIVITY,
    CONSTRAINT,
    REGULARIZER,
    is_known,
    parse_penalty,
    rows_of,
)
from keras2torch_birnn.spec import Generation, LayerSpec

_INPUT_ADVICE: Mapping[str, str] = {
    "ragged": "build the model on a dense Input with mask_zero or Masking, give it the weights "
    "(set_weights) and save it; pad the rows with x.to_tensor()",
    "sparse": "build the model on a dense Input, give it the weights (set_weights) and save it",
}


_QUANTIZED = "quantize() changes the model for good: save it before"
_LORA_ADVICE = (
    "build the model without it, give its layers the kernels with the updates (layer.kernel in "
    "Keras), and save it"
)
_HOW_TO_CHANGE = (
    "save the model with such a value, or replace the layer by one of your own, given with --plugin"
)


def parse_options(
    file_class: str,
    class_name: str,
    stated: Mapping[str, Any],
    parsing: Parsing,
    place: str,
    *,
    wrapped: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a layer's config and semantics, all explicit; unsupported options become problems."""
    schema = SCHEMA[class_name]
    rules = dict(options_of(class_name, parsing.generation))
    config = rename_keys(class_name, stated)
    trainable = config.pop("trainable", True)
    if class_name == "InputLayer":
        _note_dtype(read_policy(config.get("dtype")), parsing)
        if config.get("shape") is not None:
            config["shape"] = parse_shape(config["shape"], place)
        for key in ("sparse", "ragged"):
            if config.get(key):
                parsing.refuse(f"{key}=True is not supported", _INPUT_ADVICE[key], place)
    elif "dtype" not in schema.options:
        mode = _quantization(config.get("dtype"))
        if mode is not None:
            found = f"quantized weights ({printable(mode)}) of {class_name} are not supported"
            parsing.refuse(found, _QUANTIZED, place)
        else:
            check_dtype(config.get("dtype"), parsing, place)
        config.pop("dtype", None)
        if config.get("lora_rank") is not None:
            found = f"LoRA (lora_rank={_shown(config['lora_rank'])}) of {class_name}"
            parsing.refuse(f"{found} is not supported", _LORA_ADVICE, place)
    if "recurrent_dropout" in schema.options:
        config = cell_defaults(file_class, config, parsing.generation)
    if "masked_output" in schema.semantics:
        first = wrapped and is_tensorflow_1(stated, parsing.generation)
        if first:
            parsing.of_tensorflow_1.add(place)
        restarts = first or not rule_of("bidirectional_carries", parsing.generation)
        if wrapped and config.get("stateful") and restarts:
            config["stateful"] = False
            parsing.notes.append(
                f"{printable(place)}: stateful inside a Bidirectional has no effect in Keras "
                f"{printable(parsing.generation.version)}: every batch starts from zero states"
            )
        rules["masked_output"] = masked_output(
            file_class, config, parsing.generation, wrapped=wrapped
        )
        config.pop("zero_output_for_mask", None)
    lacks_causal = class_name in ("Attention", "AdditiveAttention") and "causal" not in stated
    if lacks_causal and parsing.generation.version == "2.2.4-tf":
        parsing.notes.append(
            f"{printable(place)}: TensorFlow 1.14 does not write the options of {class_name}; "
            "taken as causal=False, as this Keras does when it reads the file"
        )
    options: dict[str, Any] = {"trainable": trainable is not False}
    for key, option in schema.options.items():
        options[key] = _parse_option(class_name, key, option, config, parsing, place)
    semantics = {
        key: _parse_option(class_name, key, option, rules, parsing, place)
        for key, option in schema.semantics.items()
    }
    for key in config.keys() - schema.options.keys():
        if key not in (*schema.parts, "layer") and has_effect(class_name, key):
            parsing.refuse(
                f"{class_name} option {printable(key)}={printable(repr(config[key]))} is unknown",
                "save without it, or supply the layer by another class name with --plugin",
                place,
            )
    return options, semantics


def _quantization(policy: Any) -> Any:
    """Return the mode of a policy of ``quantize()``, None for another one."""
    config = policy.get("config") if isinstance(policy, Mapping) else None
    return config.get("mode") if isinstance(config, Mapping) else None


def _parse_option(
    class_name: str,
    key: str,
    option: Option,
    config: Mapping[str, Any],
    parsing: Parsing,
    place: str,
) -> Any:
    if key not in config and option.default is not REQUIRED:
        return option.default
    try:
        if key not in config:
            raise InvalidModelFileError(
                f"{class_name} without {key}", "the file is incomplete", place=place
            )
        value = config[key]
        if key in ("activation", "recurrent_activation"):
            _note_activation(value, parsing)
            value = activation(value, parsing.generation)
        return option.parse(value)
    except BadOptionError as error:
        parsing.refuse(
            f"{class_name} option {key}={_shown(config[key])} is not supported: {error}",
            error.advice or _HOW_TO_CHANGE,
            place,
        )
    except K2TError as error:
        parsing.problems.append(error)
    return None if option.default is REQUIRED else option.default


def _shown(value: Any) -> str:
    """Show an option's value: of a serialized class or function its name."""
    if isinstance(value, Mapping) and "class_name" in value:
        name = value.get("config" if is_custom_function(value) else "class_name")
        return printable(str(name))
    return printable(repr(value))


def _note_activation(value: Any, parsing: Parsing) -> None:
    """Note an activation that may be the user's own, and is read as Keras' of the same name."""
    generation = parsing.generation
    if isinstance(value, str) and lacks_activation(generation, value):
        parsing.note(
            f"activation {printable(value)}: Keras {printable(generation.version)} has none of "
            "this name, so it was TensorFlow's or the user's own; taken as that of later Keras"
        )


def check_dtype(policy: Any, parsing: Parsing, place: str) -> None:
    """Note the dtype of a policy; report one that is not supported."""
    meaning = read_policy(policy)
    _note_dtype(meaning, parsing)
    parsing.floats |= {meaning.floats} - {""}
    if meaning.refusal:
        parsing.refuse(meaning.refusal, "build the model with that dtype and save it again", place)


def _note_dtype(meaning: DtypePolicy, parsing: Parsing) -> None:
    if meaning.note:
        parsing.note(meaning.note)


# ---- regularizers and constraints, of all generations; they act in training only -----------------


# Names and shortcuts of Keras, in lower case without underscores -> name, defaults of the shortcut.
_L1, _L2 = {"l1": 0.01}, {"l2": 0.01}
_NAMES: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "l1": ("L1L2", _L1),
    "l2": ("L1L2", _L2),
    "l1l2": ("L1L2", {}),
    "weightregularizer": ("L1L2", {}),  # Keras 1
    "activityregularizer": ("L1L2", {}),
    "maxnorm": ("MaxNorm", {}),
    "nonneg": ("NonNeg", {}),
    "unitnorm": ("UnitNorm", {}),
    "minmaxnorm": ("MinMaxNorm", {}),
}
_SHORTCUTS = {"l1_l2": _L1 | _L2}
_RENAMED = {"m": "max_value", "low": "min_value", "high": "max_value"}  # Keras 1
# Keras 1 keeps kernels of these in other layouts, so axes of its constraints are others, too.
_VECTORS = ("Dense", "Embedding", "LSTM", "GRU", "SimpleRNN")


def read_training(
    class_name: str, config: Mapping[str, Any], generation: Generation
) -> dict[str, dict[str, Any]]:
    """Read the regularizers and constraints of a config, as ``LayerSpec.training`` holds them.

    Keras 1 writes ``W_regularizer``, later ones ``kernel_regularizer``; the values are a name, or
    ``class_name`` and ``config`` (in Keras 1 ``name`` and the options beside it).
    """
    found: dict[str, dict[str, Any]] = {}
    given = dict(config)
    if class_name == "ActivityRegularization":
        options = {key: config[key] for key in ("l1", "l2") if key in config}
        given[ACTIVITY] = {"class_name": "L1L2", "config": options}
    for key, value in given.items():
        if key.endswith((REGULARIZER, CONSTRAINT)) and isinstance(value, str | Mapping):
            one = _read(key, value)
            if generation.name == "keras1" and "axis" in one and class_name not in _VECTORS:
                one = {"name": one["name"] + " of Keras 1"}
            if one.get("l1", True) or one.get("l2", True):  # all but an L1L2 of nothing
                found[key] = one
    return found


def _read(key: str, value: str | Mapping[str, Any]) -> dict[str, Any]:
    written, options = _split(value)
    plain = written.replace("_", "").lower()
    name, defaults = _NAMES.get(plain, ("", {}))
    if name not in rows_of(key):  # a constraint is no regularizer
        return {"name": printable(written)}
    shortcut = _SHORTCUTS.get(written, defaults) if isinstance(value, str) else defaults
    named = {_RENAMED.get(k, k): plain_value(v) for k, v in {**shortcut, **options}.items()}
    try:
        return parse_penalty(key, name, {k: 0.0 if v is None else v for k, v in named.items()})
    except BadOptionError as error:
        return {"name": f"{printable(written)} ({error})"}


def _split(value: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Split a serialized object into its name and its options."""
    if isinstance(value, str):
        return value, {}
    function = is_custom_function(value)
    own = function or is_custom_class(value) or value.get("registered_name") is not None
    name = str(value.get("config" if function else "class_name", value.get("name", "")))
    options = value.get("config", {k: v for k, v in value.items() if k != "name"})
    return f"Custom>{name}" if own else name, options if isinstance(options, Mapping) else {}


def list_unknown(config: Mapping[str, Any], training: Mapping[str, Any]) -> list[str]:
    """List what a layer does in training that is not carried over."""
    unknown = [
        f"{key.removesuffix(REGULARIZER).removesuffix(CONSTRAINT)}: {value['name']}"
        for key, value in training.items()
        if not is_known(key, value)
    ]
    return [*unknown, "virtual batches"] if config.get("virtual_batch_size") else unknown


def describe_penalties(by_place: Mapping[str, Sequence[str]]) -> list[str]:
    """Describe in one line which layers lose which. ``by_place``: by the layer's path."""
    if not by_place:
        return []
    layers = [f"{printable(place)} ({', '.join(kinds)})" for place, kinds in by_place.items()]
    shown, more = layers[:MAX_LAYERS_IN_NOTE], len(layers) - MAX_LAYERS_IN_NOTE
    shown += [f"and {more} more layers"] if more > 0 else []
    return [
        f"training only: not converted: {', '.join(shown)}; add them to your own loss and steps"
    ]


def describe_augmentation(root: LayerSpec) -> Iterator[str]:
    """Yield a note if training in Keras changes images that the converted model leaves alone."""
    found = {layer.class_name: None for layer in root.walk() if layer.class_name in AUGMENTATION}
    if found:
        yield (
            f"in training Keras changes images at random ({', '.join(found)}): the converted model "
            "never does; change the images of your training data instead"
        )
