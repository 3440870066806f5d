"""Checks of a graph, and of a whole model: backend, number of calls, dtypes of inputs."""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping

from keras2torch_birnn.errors import InvalidModelFileError, invalid, printable
from keras2torch_birnn.limits import MAX_CALLS
from keras2torch_birnn.readers.config.parsing import Parsing
from keras2torch_birnn.schema import OPS, RECURRENT, SCHEMA, BadOptionError, Option
from keras2torch_birnn.schema.custom_layers import custom_layer_of
from keras2torch_birnn.schema.dtype_flow import (
    Node,
    keeps_dtype,
    refusals,
    without_time_distributed,
)
from keras2torch_birnn.schema.options import choice
from keras2torch_birnn.spec import (
    Call,
    Constant,
    Graph,
    LayerSpec,
    Structure,
    TensorRef,
    leaves,
    tensors,
)

# Layers that may be called with a structure of tensors; for others see their schema.
_STRUCTURES = ("TimeDistributed",)
CARRY_STATES = (*RECURRENT, "Bidirectional")
# Words of a call whose values are tensors, in any layer; those in which states go on.
_MASK, _STATES = "mask", "initial_state"
# Words of a call that only the reader adds, see ``calls`` and ``graphs``; the second with states.
KEEP_MASK, IGNORE_MASK = "keep_mask", "ignore_mask"
OWN_WORDS = (KEEP_MASK, IGNORE_MASK)
_ADDED = choice(True, True)


def list_words(layer: LayerSpec) -> tuple[str, ...]:
    """List the keywords with tensors that a call of one of Keras' layers may have in a file."""
    return (_MASK, _STATES) if layer.class_name in CARRY_STATES else (_MASK,)


def _list_options(layer: LayerSpec) -> dict[str, Option]:
    """List the other keywords of a parsed call of any layer."""
    added = dict.fromkeys(OWN_WORDS if layer.class_name in CARRY_STATES else (KEEP_MASK,), _ADDED)
    return {
        **added,
        **(SCHEMA[layer.class_name].call_options if layer.class_name in SCHEMA else {}),
    }


def check_graph(graph: Graph, place: str) -> Graph:
    """Check that a graph can run, and return it.

    Raises:
        InvalidModelFileError: an input that nobody feeds, a model input that is no InputLayer, or
            a call whose arguments are not those that the layer takes, or an empty list.
    """
    known = _check_ends(graph, place)
    for call in graph.calls:
        layer = graph.layer(call.layer)
        if layer.class_name == "InputLayer":
            if layer.name not in known:
                what = f"input {printable(layer.name)} is not one of input_layers"
                raise invalid(what, place)
            _refuse_first(layer, (*call.args, *call.kwargs), "nothing")
        elif layer.class_name in OPS:
            _check_operands(layer, call)
        elif layer.graph is not None:
            _check_inputs(layer, layer.graph, call)
        elif layer.class_name in SCHEMA:
            _check_arguments(layer, call)
        elif custom_layer_of(layer) is not None:
            _check_own_call(layer, call)
    return graph


def _check_ends(graph: Graph, place: str) -> frozenset[str]:
    """Check what a graph takes and gives; return the names of its inputs."""
    known: set[str] = set()
    for ref in leaves(graph.inputs):
        name, found, what = printable(ref.layer), graph.layer(ref.layer).class_name, ""
        if (ref.call, ref.output) != (0, 0):
            where = f"output {ref.output} of call {ref.call} of {name}"
            what = f"input_layers names {where}, and an input has one of one"
        elif found != "InputLayer":
            what = f"input_layers names {name}, which is no input but a {printable(found)}"
        elif ref.layer in known:
            what = f"input_layers names {name} twice"
        if what:
            raise invalid(what, place)
        known.add(ref.layer)
    for ends, key in ((graph.inputs, "input_layers"), (graph.outputs, "output_layers")):
        if any(isinstance(part, tuple | Mapping) and not part for part in _parts(ends)):
            raise invalid(f"{key} has an empty list", place)
    return frozenset(known)


def _refusal(layer: LayerSpec, argument: str, expected: str = "") -> InvalidModelFileError:
    where = f" where {expected} is expected" if expected else ""
    name = printable(layer.class_name)
    return invalid(f"{name} called with {argument}{where}", layer.place)


def _refuse_first(layer: LayerSpec, values: tuple[Structure, ...], expected: str) -> None:
    for value in values[:1]:
        raise _refusal(layer, printable(repr(value)), expected)


def _is_number(value: Structure) -> bool:
    return isinstance(value, Constant | bool | int | float)


def _check_operands(layer: LayerSpec, call: Call) -> None:
    """Refuse arguments of an operation that are not tensors or numbers, or one list of them."""
    given: Structure = call.args[0] if len(call.args) == 1 else call.args
    operands = given if isinstance(given, tuple) else (given,)
    schema = OPS[layer.class_name]
    # sizes come after the tensors, where not all are numbers; a list has at least one tensor
    least = 1 if schema.listed else sum(name != "sizes" for name in schema.arguments)
    endless = schema.listed or "sizes" in schema.arguments
    if len(operands) < least or (len(operands) > least and not endless):
        raise _refusal(layer, f"{len(operands)} tensors")
    for value in operands:
        if not (isinstance(value, TensorRef) or _is_number(value)):
            raise _refusal(layer, printable(repr(value)), "a tensor")
    _refuse_first(layer, tuple(call.kwargs), "no keyword")


def _check_inputs(layer: LayerSpec, inner: Graph, call: Call) -> None:
    """Refuse arguments of a model that are not one tensor for each of its inputs."""
    given, wanted = tuple(leaves(call.args)), len(tuple(leaves(inner.inputs)))
    for value in given:
        if not isinstance(value, TensorRef):
            raise _refusal(layer, printable(repr(value)), "a tensor")
    if len(given) != wanted:
        raise invalid(
            f"a model of {wanted} inputs that is called with {len(given)} tensors", layer.place
        )
    _check_words(layer, call)


def _takes_one(layer: LayerSpec) -> bool:
    """Tell whether the wrapped layer takes one tensor; a model or a plugin's may take more."""
    while layer.class_name in _STRUCTURES:
        if "layer" not in layer.parts:  # a refused class, which is a problem already
            return False
        layer = layer.parts["layer"]
    schema = SCHEMA.get(layer.class_name)
    if schema is None or layer.graph is not None:
        return False
    return not schema.listed and len(schema.arguments) == 1


def _check_arguments(layer: LayerSpec, call: Call) -> None:
    schema = SCHEMA[layer.class_name]
    given: Structure = call.args
    if schema.listed and call.args and isinstance(call.args[0], tuple):
        given = call.args[0]
    if layer.class_name in _STRUCTURES:
        given = tuple(leaves(call.args))
    all_needed = schema.listed or len(schema.arguments) == 1
    most = 1 if schema.listed else len(schema.arguments)
    if not given or len(call.args) > most:
        raise _refusal(layer, f"{len(given)} tensors")
    if layer.class_name in _STRUCTURES and _takes_one(layer) and call.args != given:
        raise _refusal(layer, printable(repr(call.args[0])), "a tensor")
    for value in given:
        if not (isinstance(value, TensorRef) or (value is None and not all_needed)):
            raise _refusal(layer, printable(repr(value)), "a tensor")
    _check_words(layer, call)


def _check_words(layer: LayerSpec, call: Call) -> None:
    """Refuse keywords that the call of one of Keras' layers cannot have, and their values."""
    tensors, options = list_words(layer), _list_options(layer)
    for key, value in call.kwargs.items():
        if key in tensors:
            _check_tensors(layer, key, value)
            listed = layer.graph is not None or _is_flat(value)  # a model takes dicts of tensors
            if not listed or (key == _STATES and not isinstance(value, tuple)):
                raise _refusal(layer, f"{key}={printable(repr(value))}", "a list of tensors")
        elif key not in options or not _is_parsed(options[key], value):
            raise _refusal(layer, f"{printable(key)}={printable(repr(value))}")
    masks, count = call.kwargs.get(_MASK), len(call.args)
    listed = isinstance(masks, tuple) and len(masks) == count
    if count > 1 and masks is not None and not listed:
        raise _refusal(layer, f"one mask for {count} tensors")


def _check_tensors(layer: LayerSpec, key: str, value: Structure) -> None:
    for leaf in leaves(value):
        if not (leaf is None or isinstance(leaf, TensorRef)):
            raise _refusal(layer, f"{key}={printable(repr(leaf))}", "a tensor")


def _is_flat(value: Structure) -> bool:
    """Tell whether a value is a tensor, none, or at least one of these in a list."""
    if isinstance(value, tuple):
        return bool(value) and not any(isinstance(part, tuple | Mapping) for part in value)
    return not isinstance(value, Mapping)


def _is_parsed(option: Option, value: Structure) -> bool:
    """Tell whether a value is one to which the option is parsed."""
    try:
        parsed = option.parse(value)
    except BadOptionError:
        return False
    return type(parsed) is type(value) and bool(parsed == value)


def _check_own_call(layer: LayerSpec, call: Call) -> None:
    """Refuse a call of a plugin's layer that is no data, or whose words are none of Python's."""
    for value in _parts(call.args):
        if isinstance(value, str | Constant):
            raise _refusal(layer, printable(repr(value)), "a tensor or a number")
    if not any(isinstance(leaf, TensorRef) for leaf in leaves(call.args)):
        raise _refusal(layer, "no tensor")
    for key, value in call.kwargs.items():
        if not is_argument_name(key):
            raise _refusal(layer, f"{printable(key)}=", "the name of an argument")
        if key == _MASK:
            _check_tensors(layer, key, value)
        if key in OWN_WORDS and not (key == KEEP_MASK and _is_parsed(_ADDED, value)):
            raise _refusal(layer, f"{printable(key)}={printable(repr(value))}")


def _parts(structure: Structure) -> Iterator[Structure]:
    """Yield a structure and everything in it, left to right."""
    yield structure
    inner = structure.values() if isinstance(structure, Mapping) else structure
    if isinstance(inner, tuple | list) or isinstance(structure, Mapping):
        for part in inner:
            yield from _parts(part)


def is_argument_name(key: str) -> bool:
    """Tell whether a call in Python code may have a keyword of this name beside the module."""
    plain = key.isascii() and key.isidentifier() and not key.startswith("__")
    return plain and not keyword.iskeyword(key) and key != "self"


# ---- backends ------------------------------------------------------------------------------------


# Files of Keras 1 and 2 that ran on Theano: it mirrors the kernels of convolutions.
#
# Source: Keras 2.2.4 ``engine/saving.py`` ``preprocess_weights_for_loading`` (which turns them when
# the file's ``backend`` is another one). Files of Keras 1 do not name their backend.


def check_backend(backend: str, root: LayerSpec, parsing: Parsing) -> None:
    """Refuse the convolutions of a file written on Theano; note where that is not known."""
    convolutions = [layer for layer in root.walk() if "Conv" in layer.class_name]
    if backend == "theano":
        for layer in convolutions:
            parsing.refuse(
                "the kernel of a convolution written on Theano is mirrored, which is not supported",
                "load the file with Keras 2 on TensorFlow and save it again",
                layer.place,
            )
    elif convolutions and parsing.generation.name == "keras1":
        parsing.notes.append(
            "files of Keras 1 do not name their backend: convolutions are taken to be "
            "TensorFlow's, Theano's would be mirrored"
        )


# ---- number of calls -----------------------------------------------------------------------------


# Count of layer calls in a model; a shared inner model counts at every call.
#
# A file holds a shared model once, but it runs at every call. Thirty models, each of which calls
# the previous one twice, are a small file with a billion calls.


def check_call_count(layer: LayerSpec) -> int:
    """Check and return how many calls one call of a layer makes, itself included.

    Raises:
        InvalidModelFileError: too many for straight-line code; the place is the innermost model
            with too many.
    """
    total = 1 + sum(map(check_call_count, layer.parts.values()))
    if layer.graph is not None:
        each = {inner.name: check_call_count(inner) for inner in layer.graph.layers}
        total += sum(each[call.layer] for call in layer.graph.calls)
    if total > MAX_CALLS:
        raise invalid(
            f"its shared models make {total} calls of layers, more than {MAX_CALLS}",
            printable(layer.place),
        )
    return total


# ---- dtypes of inputs ----------------------------------------------------------------------------


# Dtypes of inputs that a layer in torch does not compute with as Keras does.


# Dtypes of a Keras Input that no tensor of real numbers holds.
_NO_NUMBERS = frozenset({"string", "complex64", "complex128", "resource", "variant"})


def check_input_dtypes(root: LayerSpec, parsing: Parsing) -> None:
    """Refuse layers that read text, or whose outputs would differ for integers or bools.

    The converted model computes in floats.
    """
    for layer in root.walk():
        if layer.graph is None:
            continue
        for place, reason in refusals(layer.graph, parsing.generation):
            parsing.refuse(f"{reason}; not supported", "cast to float32 before", place)
        for place, found in _without_numbers(layer.graph):
            parsing.refuse(
                f"{found}; not supported", "turn it into numbers before the model", place
            )


def _without_numbers(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield (place, what) of each layer that computes with text, and of each output that is text.

    Keras lets text pass through layers that do not compute, and hashes or looks it up in others.
    """
    dtypes: dict[Node, str] = {}
    for call in graph.calls:
        node, layer = (call.layer, call.index), graph.layer(call.layer)
        own = layer.config.get("dtype")
        if layer.class_name == "InputLayer" and isinstance(own, str) and own in _NO_NUMBERS:
            dtypes[node] = own
            continue
        read = [dtypes.get((ref.layer, ref.call)) for ref in tensors((call.args, call.kwargs))]
        found = next((dtype for dtype in read if dtype is not None), None)
        inner = without_time_distributed(layer)
        if found is None or inner.graph is not None or custom_layer_of(inner) is not None:
            continue  # (the inputs of a model inside have a dtype of their own)
        if keeps_dtype(inner):
            dtypes[node] = found
        else:
            name = inner.class_name.removeprefix("ops.")
            yield inner.place, f"{name} computes with an input of dtype {found}"
    for ref in tensors(graph.outputs):
        if (ref.layer, ref.call) in dtypes:
            place = graph.layer(ref.layer).place
            yield place, f"an output of the model has dtype {dtypes[ref.layer, ref.call]}"
