"""Mutations of operations: Keras 3 ``ops``, TensorFlow functions, and nodes of older graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from keras2torch_birnn.layers import functional, operations
from keras2torch_birnn.layers.operations import Target
from keras2torch_birnn.readers.operations import translation
from mutations.patches import Mutation, Patch, by_name, edit, put

TF, K3, NODE = "tf.keras-2.15.0/ops_tf_", "keras-3.15.1/ops_", "tf-2.2.3/ops_node_"
VALUES = (f"{TF}values.keras", f"{K3}values.keras", f"{NODE}values.h5")
REDUCE = (f"{TF}reduce.keras", f"{K3}reduce.keras", f"{NODE}reduce.h5")
SHAPES = (f"{TF}shapes.keras", f"{K3}shapes.keras", f"{NODE}shapes.h5")
OPS, REWORKS = "layers.functional", "readers.operations.reworks"
LAYER = "layers.operations"
CHOOSE, SIZES = f"{TF}choose.keras", f"{TF}sizes.keras"


def subtract_backwards(x1: Any, x2: Any) -> Any:
    return x2 - x1


def divide_backwards(x1: Any, x2: Any) -> Any:
    return x2 / x1


def power_backwards(x1: Any, x2: Any) -> Any:
    return x2**x1


def remainder_of_c(x1: Any, x2: Any) -> Any:
    return torch.fmod(x1, x2)


def less_than(x1: Any, x2: Any) -> Any:
    return x1 < x2


def of_first(x: Any, indices: Any, axis: int | None, batch_dims: int) -> Any:
    return functional.take(
        x, indices[:1].expand_as(indices) if batch_dims else indices, axis, batch_dims
    )


def unbind_backwards(x: Any, dim: int) -> Any:
    return torch.unbind(x.flip(dim), dim)


def target(name: str, new: Target) -> Patch:
    return put(operations._TARGETS, name, new)


def fixed(name: str, **options: Any) -> Patch:
    return target(name, replace(operations._TARGETS[name], fixed=options))


def form(forms: Any, name: str, **changes: Any) -> Patch:
    return put(forms, name, replace(forms[name], **changes))


def sinc_of_radians(x: Any) -> Any:
    return torch.sinc(x / torch.pi)


BUGS = {
    "subtract backwards": Mutation(target("Subtract", Target(subtract_backwards)), VALUES),
    "divide backwards": Mutation(target("Divide", Target(divide_backwards)), VALUES),
    "power backwards": Mutation(target("Power", Target(power_backwards)), VALUES),
    "remainder of C": Mutation(target("Mod", Target(remainder_of_c)), VALUES),
    "less for greater": Mutation(target("Greater", operations._TARGETS["Less"]), VALUES),
    "greater without equal": Mutation(target("GreaterEqual", Target(less_than)), VALUES),
    "minimum for maximum": Mutation(target("Maximum", operations._TARGETS["Minimum"]), VALUES[:2]),
    "sinc without pi": Mutation(target("Sinc", Target(sinc_of_radians)), (f"{K3}sinc.keras",)),
    "round up": Mutation(target("Round", Target(torch.ceil)), VALUES),
    "angle of the other": Mutation(
        edit(
            f"{OPS}.arctan2",
            "as_tensor(x1, like), as_tensor(x2, like)",
            "as_tensor(x2, like), as_tensor(x1, like)",
        ),
        VALUES,
    ),
    "difference without square": Mutation(
        edit(f"{OPS}.squared_difference", "difference * difference", "difference"), VALUES[::2]
    ),
    "lower bound only": Mutation(edit(f"{OPS}.clip", "minimum(x, x_max)", "x"), VALUES[:2]),
    "product along all axes": Mutation(
        edit(f"{OPS}.product", "dims_of(x, axis)", "dims_of(x, None)"), REDUCE
    ),
    "sum of the first axis only": Mutation(
        edit(f"{OPS}.logsumexp", "dims_of(x, axis)", "dims_of(x, axis)[:1]"), REDUCE[:1]
    ),
    "variance of a sample": Mutation(fixed("Var", correction=1), REDUCE[:2]),
    "deviation of a sample": Mutation(fixed("Std", correction=1), REDUCE[:2]),
    "moments of a sample": Mutation(
        edit(f"{OPS}.moments", "correction=0", "correction=1"), REDUCE[1:2]
    ),
    "smallest for largest": Mutation(fixed("Argmax", largest=False), REDUCE),
    "no smallest length": Mutation(
        edit(f"{OPS}.normalize", "length.clamp(min=smallest)", "length"),
        (REDUCE[0], f"{K3}newest.keras"),
    ),
    "mean without weights": Mutation(edit(f"{OPS}.average", "x * spread", "x"), REDUCE[1:2]),
    "sum with here": Mutation(edit(f"{OPS}.cumulate", "if exclusive", "if False"), REDUCE[::2]),
    "sum from the start": Mutation(
        edit(f"{OPS}.cumulate", "x = x.flip(axis) if reverse else x", "x = x"), REDUCE[::2]
    ),
    "order upwards": Mutation(
        edit(f"{OPS}.sort", "descending=descending", "descending=False"), REDUCE[:1]
    ),
    "places upwards": Mutation(
        edit(f"{OPS}.argsort", "descending=descending", "descending=False"), REDUCE[:1]
    ),
    "smallest k": Mutation(edit(f"{OPS}.top_k", "descending=True", "descending=False"), REDUCE),
    "the first is not turned": Mutation(
        edit(f"{OPS}.matmul", "if transpose_a", "if transpose_b"), SHAPES[::2]
    ),
    "the second is not turned": Mutation(
        edit(f"{OPS}.matmul", "if transpose_b", "if transpose_a"), SHAPES[::2]
    ),
    "slices one longer": Mutation(
        edit(
            f"{LAYER}._getitem",
            'next(free) if bound == "@" else bound for bound in value)',
            'next(free) if bound == "@" else (5 if bound == 4 else bound) for bound in value)',
        ),
        SHAPES,
    ),
    "last for first": Mutation(
        edit(f"{LAYER}._getitem", "else value\n\n", "else 0 if value == -1 else value\n\n"), SHAPES
    ),
    "not backwards": Mutation(
        edit(
            f"{OPS}.getitem_backwards",
            "places.start + places.step * steps",
            "(places.start + places.step * steps).flip(0)",
        ),
        SHAPES,
    ),
    "another order of axes": Mutation(
        edit(f"{LAYER}._transpose", '*config["axes"]', '*config["axes"][:1], 1, 2'), SHAPES
    ),
    "padding of other axes": Mutation(edit(f"{OPS}.pad", "reversed(pairs)", "pairs"), SHAPES),
    "cut after the first": Mutation(
        target("Unstack", replace(operations._TARGETS["Unstack"], function=unbind_backwards)),
        SHAPES,
    ),
    "parts in reverse": Mutation(
        edit(
            f"{OPS}.split",
            "torch.split(x, whole // sections, dim=axis)",
            "torch.split(x, whole // sections, dim=axis)[::-1]",
        ),
        SHAPES,
    ),
    "upper for lower": Mutation(target("Tril", operations._TARGETS["Triu"]), SHAPES[:2]),
    "yes for no": Mutation(
        edit(
            f"{OPS}.where",
            "as_tensor(x1, like), as_tensor(x2, like)",
            "as_tensor(x2, like), as_tensor(x1, like)",
        ),
        (CHOOSE, *SHAPES[1:]),
    ),
    "rows of the first sample": Mutation(target("Take", Target(of_first, tensors=True)), (CHOOSE,)),
    "ones at the end": Mutation(
        edit(f"{OPS}.one_hot", "hot.movedim(-1, axis)", "hot.movedim(-1, 1)"), (CHOOSE,)
    ),
    "up to the length": Mutation(edit(f"{OPS}.sequence_mask", "< lengths", "<= lengths"), (SIZES,)),
    "the shape's other size": Mutation(
        edit(f"{LAYER}._shape", "iter(sizes)", "iter(sizes[::-1])"), (SIZES,)
    ),
    "a cast drops the mask": Mutation(
        edit("layers.graph._Emitter.mask_of_operation", "came if passes else None", "None"),
        (f"{TF}masks.keras", f"{K3}masks.keras"),
    ),
    "every operation passes the mask": Mutation(
        edit("layers.graph._Emitter.mask_of_operation", "came if passes else None", "came"),
        (f"{TF}masks.keras", f"{K3}masks.keras"),
    ),
    "arguments change places": Mutation(
        form(translation.FUNCTION_FORMS, "math.subtract", parameters={"x": "x2", "y": "x1"}),
        VALUES[:1],
        rereads=True,
    ),
    "inputs change places": Mutation(
        form(translation.NODE_FORMS, "RealDiv", parameters={"x2": "x2", "x1": "x1"}),
        VALUES[2:],
        rereads=True,
    ),
    "sides change places": Mutation(
        form(translation.KERAS3_FORMS, "Subtract", parameters={"x2": "x2", "x1": "x1"}),
        VALUES[1:2],
        rereads=True,
    ),
    "transpose_b is a": Mutation(
        form(
            translation.FUNCTION_FORMS,
            "linalg.matmul",
            parameters={
                "a": "x1",
                "b": "x2",
                "transpose_b": "transpose_a",
                "transpose_a": "transpose_b",
            },
        ),
        SHAPES[:1],
        rereads=True,
    ),
    "argmax of all": Mutation(
        form(translation.FUNCTION_FORMS, "math.argmax", fixed={"dtype": "int64"}),
        REDUCE[:1],
        rereads=True,
    ),
    "epsilon of the length": Mutation(
        edit(f"{REWORKS}.root_epsilon", "float(epsilon) ** 0.5", "float(epsilon)"),
        REDUCE[:1],
        rereads=True,
    ),
    "indices are slices": Mutation(
        edit(f"{REWORKS}.read_masks", '"shrink_axis_mask" in bits_set', "False"),
        SHAPES[2:],
        rereads=True,
    ),
    "an end that is not meant": Mutation(
        edit(f"{REWORKS}.read_masks", 'None if "end_mask" in bits_set else last', "last"),
        SHAPES[2:],
        rereads=True,
    ),
    "size for end": Mutation(
        edit(f"{REWORKS}._from", "begin + length", "length"), SHAPES, rereads=True
    ),
    "places for sizes": Mutation(
        form(translation.KERAS3_FORMS, "Split", steps=(("read_sections", "sizes"),)),
        SHAPES[1:2],
        rereads=True,
    ),
    "tensors in reverse": Mutation(
        edit(
            "readers.operations.translation:_inputs_of_node", "iter(tensors)", "iter(tensors[::-1])"
        ),
        VALUES[2:],
        rereads=True,
    ),
    "epsilon of Keras 3 ignored": Mutation(
        form(
            translation.KERAS3_FORMS,
            "Normalize",
            parameters={"x": "x", "axis": "axis", "order": "order", "epsilon": "-"},
        ),
        (f"{K3}newest.keras",),
        rereads=True,
    ),
}
MUTATIONS = by_name(BUGS)
