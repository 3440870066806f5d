"""Registry of the user's layers: classes that Keras does not have, and Lambdas by name. No torch.

The decorators of a plugin fill ``REGISTERED``; readers, builder and reference look there. A layer
of the user's own is one whose class is no row of the schema. ``SHIPPED`` are plugins known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from keras2torch_birnn.errors import K2TError, PluginError, line_of, printable
from keras2torch_birnn.schema import CLASS_NAMES, SCHEMA
from keras2torch_birnn.spec import Array, LayerSpec, Shape, Shapes

# ---- plugins that are known by name --------------------------------------------------------------


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


# ---- registered layers ---------------------------------------------------------------------------

Function = TypeVar("Function", bound=Callable[..., object])
WeightNames = (
    Sequence[str]
    | Callable[[Mapping[str, Any], Shape], Mapping[str, Shape | None]]
    | Callable[[Mapping[str, Any], tuple[Shape, ...]], Mapping[str, Shape | None]]
)
"""Names of weights, or a function of the config and of the input's shape, or those of several."""
OutputShape = (
    Callable[[Mapping[str, Any], Shape], Shapes]
    | Callable[[Mapping[str, Any], tuple[Shape, ...]], Shapes]
)
"""A function of the config and of the input's shape, or those of several."""

Sizes = int | str | Sequence[int | str] | Callable[[LayerSpec], int | str | Sequence[int | str]]
"""A size, the name of the option that holds it, a list of these, or a function that returns one."""

InitialState = Literal["zeros", "own"]
"""The states a cell begins with: zeros, or what its module's ``get_initial_state`` returns."""

# Before the name of a class of the user's own that is called as one of Keras'.
_OWN = "own>"
LAMBDA = "Lambda"


@dataclass(frozen=True)
class CustomLayer:
    """Registration of one class, or of the Lambdas of one name, by a plugin.

    ``build``: LayerSpec -> module. ``mask``: a word, a MaskFlow, a function of the layer, or None
    if unspecified. ``weights``, ``options``, ``outputs``, ``output``, ``vocabulary``: see
    ``converts``; of a cell also ``state_size``, ``output_size`` and ``initial_state``. ``source``:
    the object that the user decorated.
    """

    build: Callable[[LayerSpec], Any]
    mask: object = None
    weights: WeightNames = ()
    options: Mapping[str, Any] | None = None
    outputs: int | Callable[[LayerSpec], int] = 1
    output: OutputShape | None = None
    source: Any = None
    vocabulary: str | int | None = None
    state_size: Sizes | None = None
    output_size: Sizes | None = None
    initial_state: InitialState | None = None


@dataclass(frozen=True)
class Registry:
    """All registrations: converters by class, Lambdas by name, NumPy equations.

    ``initial_states``: NumPy functions of cells. ``loaded``: the names of plugins that were loaded,
    as the user gave them, and whether they registered anything.
    """

    layers: dict[str, CustomLayer] = field(default_factory=dict)
    lambdas: dict[str, CustomLayer] = field(default_factory=dict)
    equations: dict[str, Callable[..., Any]] = field(default_factory=dict)
    initial_states: dict[str, Callable[..., Any]] = field(default_factory=dict)
    loaded: dict[str, bool] = field(default_factory=dict)

    def copy_tables(self) -> tuple[dict[str, Any], ...]:
        """Return what is registered now."""
        tables = (self.layers, self.lambdas, self.equations, self.initial_states)
        return tuple(dict(table) for table in tables)


REGISTERED = Registry()


# ---- the decorators ----------------------------------------------------------------------------


def converts(
    *class_names: str,
    mask: object = None,
    weights: WeightNames = (),
    options: Mapping[str, Any] | None = None,
    outputs: int | Callable[[LayerSpec], int] = 1,
    output: OutputShape | None = None,
    vocabulary: str | int | None = None,
    state_size: Sizes | None = None,
    output_size: Sizes | None = None,
    initial_state: InitialState | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as the converter of your own layer classes, or cells.

    The function takes a LayerSpec (``config``, ``weights``, ``name``) and returns a module whose
    ``forward`` takes the layer's input: a tensor, or a tuple where Keras passes a list. All that
    the module has learned must be in its parameters or buffers.

    The module of a cell takes ``(x_t, states)``, (B, F) and a tuple of (B, size), and returns
    ``(y, states)``; masks, order, and states between the steps are those of the RNN.

    Args:
        *class_names: As in the file, ``"MyLayer"`` or ``"package>MyLayer"``.
        mask: The effect on a mask (B, T): ``"uses"`` (``forward`` gets ``mask=``, the output has no
            mask), ``"uses and passes"``, ``"passes"`` (the output has it, ``forward`` does not get
            it), ``"drops"``; a ``MaskFlow`` for anything else; or a function of the LayerSpec that
            returns one of these. Without it, a mask that reaches the layer is an error.
        weights: Names, in Keras' order (trainable ones first); ``"dense/kernel"`` is the kernel of
            the layer that the class keeps as ``self.dense``. All that the file has must be named.
            Or ``(config, input shape) -> {name: shape}``.
        options: Every key that the class writes into its config, with its default; all others are
            refused then. Left out, ``config`` is the file's.
        outputs: How many tensors the layer gives, if several.
        output: ``(config, input shape) -> output shape``; left out, it is seen from what runs.
        vocabulary: Of a layer that takes ids, how many there are: the name of the option that says
            it, or the number. Ids of 0 to below that are drawn to try, to verify, and for golden
            vectors.
        state_size: Of a cell, which an RNN, a stack of cells or a Bidirectional holds: the sizes of
            its states, as ``cell.state_size`` in Keras: a number, the name of the option that says
            it, a list of these, or a function of the LayerSpec.
        output_size: Of a cell, the size of y (B, size), if it is not that of the first state.
        initial_state: Of a cell, the states before the first step: ``"zeros"``, or ``"own"`` where
            the Keras class has a ``get_initial_state`` of its own. The module then has a method of
            that name, which takes the number of rows and returns the states, in the order of
            ``state_size``. Left out, zeros.

    Returns:
        A decorator, which returns the function as it is.

    Raises:
        ValueError: A class has a converter already, or a cell declares what only layers have.
    """
    if state_size is not None and (mask, outputs, output, vocabulary) != (None, 1, None, None):
        raise ValueError(
            "a cell sees one step: mask=, outputs=, output= and vocabulary= are not its"
        )
    if state_size is None and (output_size, initial_state) != (None, None):
        raise ValueError(
            "output_size= and initial_state= are those of a cell, which needs state_size= as well"
        )
    if initial_state not in (None, *get_args(InitialState)):
        raise ValueError(f'initial_state={initial_state!r}: "zeros" or "own" is expected')

    def register(build: Function) -> Function:
        own = CustomLayer(
            build,
            mask,
            weights,
            options,
            outputs,
            output,
            build,
            vocabulary,
            state_size,
            output_size,
            initial_state,
        )
        for name in class_names:
            _add(REGISTERED.layers, name, own, "a converter of")
        return build

    return register


def supplies(
    *layer_names: str,
    mask: object = None,
    outputs: int | Callable[[LayerSpec], int] = 1,
    vocabulary: str | int | None = None,
) -> Callable[[Function], Function]:
    """Register a torch function, or a module, as what the Lambda layers of these names compute.

    It takes what the Lambda's function took: the input, then the Lambda's ``arguments`` by name,
    and ``mask`` if it has a parameter of that name. The code in the file is never read.

    Args:
        *layer_names: ``"lambda_3"``, or its whole path ``"encoder/lambda_3"``.
        mask: As in Keras the output has no mask, unless this is ``"passes"`` (or a ``MaskFlow``).
        outputs: How many tensors the layer gives, if several.
        vocabulary: As for ``converts``, the name of one of the ``arguments``.

    Returns:
        A decorator, which returns the function as it is.

    Raises:
        ValueError: A layer is supplied already.
    """

    def register(function: Function) -> Function:
        own = CustomLayer(lambda _: function, mask, (), None, outputs, None, function, vocabulary)
        for name in layer_names:
            _add(REGISTERED.lambdas, name, own, "what computes")
        return function

    return register


def equation(
    *names: str, initial_state: Callable[[LayerSpec, int], Sequence[Array]] | None = None
) -> Callable[[Function], Function]:
    """Register a NumPy equation of your own layers, by which ``verify`` judges the torch module.

    The function is ``(layer, x, mask) -> (output, mask of the output)``: arrays of the run's
    precision, weights in ``layer.weights`` too; None where there is no mask; tuples where there are
    several tensors. Of a cell: ``(cell, x, states) -> (output, states)`` of one step.

    Args:
        *names: Of classes as for ``converts``, or of Lambda layers as for ``supplies``.
        initial_state: Of a cell whose converter says ``initial_state="own"``, the states before the
            first step: ``(cell, rows) -> arrays (rows, size)``. Left out, the module gives them,
            and they are not verified.

    Returns:
        A decorator, which returns the function as it is.

    Raises:
        ValueError: There is one already.
    """

    def register(function: Function) -> Function:
        for name in names:
            _add(REGISTERED.equations, name, function, "an equation of")
            if initial_state is not None:
                _add(REGISTERED.initial_states, name, initial_state, "initial states of")
        return function

    return register


def _add(table: dict[str, Any], name: str, new: Any, what: str) -> None:
    """Put an entry into a table; the same function may come again (a cell that runs twice)."""
    old = table.get(name)
    if old is not None and _home(old) != _home(new):
        raise ValueError(f"{what} {name} is registered already, in {_home(old)[0]}")
    table[name] = new


def _home(entry: Any) -> tuple[str, str]:
    """Return file and name of a function; a notebook's cells are one file."""
    function = entry.source if isinstance(entry, CustomLayer) else entry
    code = getattr(function, "__code__", None)
    file = code.co_filename if code is not None else ""
    module = str(getattr(function, "__module__", ""))
    name = str(getattr(function, "__qualname__", type(function).__qualname__))
    return ("__main__" if module == "__main__" else file, name)


# ---- looking up --------------------------------------------------------------------------------


def custom_layer_of(layer: LayerSpec) -> CustomLayer | None:
    """Return the plugin's registration of this layer, None if there is none."""
    if layer.class_name in SCHEMA:
        return None
    if layer.class_name == LAMBDA:
        return REGISTERED.lambdas.get(layer.place) or REGISTERED.lambdas.get(layer.name)
    return REGISTERED.layers.get(layer.class_name.removeprefix(_OWN))


def equation_of(layer: LayerSpec) -> Callable[..., Any] | None:
    """Return the user's equation of this layer, if there is one."""
    if layer.class_name == LAMBDA:
        return REGISTERED.equations.get(layer.place) or REGISTERED.equations.get(layer.name)
    return REGISTERED.equations.get(layer.class_name.removeprefix(_OWN))


def initial_states_of(cell: LayerSpec) -> Callable[..., Any] | None:
    """Return the user's NumPy function of this cell's initial states, if there is one."""
    return REGISTERED.initial_states.get(cell.class_name.removeprefix(_OWN))


def class_name_of(names: Sequence[Any]) -> str | None:
    """Return the spec's class name for the first of these names that is registered."""
    for name in names:
        if isinstance(name, str) and name in REGISTERED.layers:
            return f"{_OWN}{name}" if name in CLASS_NAMES else name
    return None


def python_name(class_name: str) -> str:
    """Return the class's name in Python: without the package before ``>``."""
    return class_name.rpartition(">")[2]


def named_weights(layer: LayerSpec) -> Mapping[str, Shape | None] | None:
    """Return name -> shape (None: any) of a custom layer's weights; None if it has no plugin.

    Raises:
        PluginError: the plugin's function fails.
    """
    own = custom_layer_of(layer)
    if own is None:
        return None
    if not callable(own.weights):
        return dict.fromkeys(own.weights)
    with naming_plugin(layer, "its weights= function"):
        given: Any = layer.input_shape
        return dict(own.weights(layer.config, given))


def own_output(layer: LayerSpec, shape: Any) -> Shapes:
    """Return a custom layer's output shape by its plugin or, of a Lambda, by the file; else None.

    Raises:
        PluginError: the plugin's function fails.
    """
    own = custom_layer_of(layer)
    if own is None or shape is None:
        return None
    if layer.class_name == LAMBDA:
        declared = layer.config.get("output_shape")
        first = shape[0] if shape and isinstance(shape[0], tuple) else shape
        return declared and (first[0], *declared)
    if own.output is None:
        return None
    with naming_plugin(replace(layer, input_shape=shape), "its output= function"):
        return own.output(layer.config, shape)


def own_vocabulary(layer: LayerSpec) -> int | None:
    """Return the number of ids that a custom layer accepts; None if its plugin does not state it.

    Raises:
        PluginError: its plugin says something else than a number of ids.
    """
    own = custom_layer_of(layer)
    if own is None or own.vocabulary is None:
        return None
    size: Any = own.vocabulary
    if isinstance(size, str):
        options = layer.config["arguments"] if layer.class_name == LAMBDA else layer.config
        size = options.get(size)
    if type(size) is not int or size < 1:
        raise PluginError(
            f"{shown(layer)}: vocabulary={own.vocabulary!r} gives {printable(repr(size))}",
            "the number of ids is expected, or the option that holds it",
            place=layer.place,
        )
    return size


def output_count(layer: LayerSpec) -> int:
    """Return the number of outputs of a custom layer.

    Raises:
        PluginError: the plugin's function fails.
    """
    own = custom_layer_of(layer)
    if own is None:
        return 1
    if not callable(own.outputs):
        return own.outputs
    with naming_plugin(layer, "its outputs= function"):
        return int(own.outputs(layer))


# ---- errors ------------------------------------------------------------------------------------


@contextmanager
def naming_plugin(layer: LayerSpec, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into an error that names class, place and line."""
    try:
        yield
    except Exception as error:
        # One that is a TypeError or a ValueError is about how the user's code calls ours.
        if isinstance(error, K2TError) and not isinstance(error, TypeError | ValueError):
            error.place = error.place or layer.place
            raise
        lines = str(error).strip().splitlines()
        reason = printable(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
        raise PluginError(
            f"{shown(layer)}: {what} fails: {reason} ({line_of(error)})",
            "--debug shows the traceback",
            place=layer.place,
        ) from error


def shown(layer: LayerSpec) -> str:
    """Name the class in messages."""
    return f"plugin for {printable(python_name(layer.class_name))}"
