"""Calls of operations with arguments that no Keras writes: translated or refused, in every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from keras2torch_birnn.errors import K2TError, UnsupportedOptionError
from keras2torch_birnn.readers.operations import translation
from keras2torch_birnn.readers.operations.values import tensor
from keras2torch_birnn.schema.operations.forms import Form

TENSOR = tensor("a", 0, 0)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, "x", [], {}, [None], [[]], [1, 2], 10**18, TENSOR, [TENSOR]),
    {"class_name": "__tuple__", "items": None},
    {"class_name": "__numpy__", "config": {}},
    {"class_name": "__slice__"},
    {"class_name": "__tensor__", "config": {"value": [[1], 2], "dtype": 7}},
)
ATTRIBUTES: tuple[Any, ...] = (
    *(7, {"i": "3"}, {"i": None}, {"b": True}, {"s": "TkhXQw=="}, {"s": None}, {"shape": {}}),
    *({"list": {"i": ["1", "2"]}}, {"list": {"i": [None]}}, {"list": []}, {"type": "DT_FLOAT"}),
)
CALLS = 40


def some(random: Random, names: Any, values: tuple[Any, ...], rate: float) -> dict[str, Any]:
    return {name: random.choice(values) for name in names if random.random() < rate}


def call_node(op: str, names: list[str], random: Random) -> None:
    inputs = [f"i{n}" for n in range(random.randrange(5))]
    node = {"op": op, "input": inputs, "attr": some(random, names, ATTRIBUTES, 0.4)}
    constants = some(random, "01234", VALUES, 0.3)
    tensors = [TENSOR] * max(0, len(inputs) - len(constants))
    translation.translate_node({"node_def": node, "constants": constants}, tensors)


def call_function(function: str, names: list[str], random: Random) -> None:
    given = some(random, names, VALUES, 0.5)
    one = ["a", 0, 0, given]
    constant = ["_CONSTANT_VALUE", -1, random.choice(VALUES), given]
    node = random.choice((one, [one, one], constant, [], [[one]]))
    translation.translate_function("TFOpLambda", {"function": function}, node, {"a"})


def call_operation(class_name: str, names: list[str], random: Random) -> None:
    config, given = some(random, names, VALUES, 0.4), some(random, names, VALUES, 0.2)
    args = [random.choice((TENSOR, *VALUES)) for _ in range(random.randrange(4))]
    translation.translate_keras3(class_name, config, args, given)


@pytest.mark.parametrize(
    ("forms", "call"),
    [
        (translation.NODE_FORMS, call_node),
        (translation.FUNCTION_FORMS, call_function),
        (translation.KERAS3_FORMS, call_operation),
    ],
)
def test_any_arguments_are_translated_or_refused(
    forms: Mapping[str, Form], call: Callable[[str, list[str], Random], None]
) -> None:
    random = Random(2026)
    for name, form in forms.items():
        for _ in range(CALLS):
            with suppress(K2TError):
                call(name, list(form.parameters), random)


def test_a_concatenation_of_no_tensors_is_refused() -> None:
    with pytest.raises(UnsupportedOptionError, match="a list of no tensors"):
        translation.translate_node({"node_def": {"op": "ConcatV2", "input": []}}, [])


def test_an_attribute_does_not_replace_an_input() -> None:
    node = {"op": "Add", "input": ["i0", "i1"], "attr": {"x2": {"i": "3"}}}
    with pytest.raises(UnsupportedOptionError, match="operation Add with two values of x2"):
        translation.translate_node({"node_def": node}, [TENSOR, TENSOR])
