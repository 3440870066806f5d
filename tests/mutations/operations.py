"""Mutations of operations: Keras 3 ``ops``, TensorFlow functions, and nodes of older graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from keras2torch_birnn.functional import movement
from keras2torch_birnn.layers import operations
from keras2torch_birnn.layers.operations import Target
from keras2torch_birnn.readers.operations import graph_nodes, keras3, tf_functions
from mutations.patches import Mutation, Patch, edit, put

TF, K3, NODE = "tf.keras-2.15.0/ops_tf_", "keras-3.15.1/ops_", "tf-2.2.3/ops_node_"
VALUES = (f"{TF}values.keras", f"{K3}values.keras", f"{NODE}values.h5")
REDUCE = (f"{TF}reduce.keras", f"{K3}reduce.keras", f"{NODE}reduce.h5")
SHAPES = (f"{TF}shapes.keras", f"{K3}shapes.keras", f"{NODE}shapes.h5")
MORE = (f"{TF}more.keras", f"{K3}more.keras", f"{NODE}more.h5")
LAYERS = f"{K3}layers.keras"
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
    return movement.take(
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


MUTATIONS = [
    Mutation("subtract backwards", target("Subtract", Target(subtract_backwards)), VALUES),
    Mutation("divide backwards", target("Divide", Target(divide_backwards)), VALUES),
    Mutation("power backwards", target("Power", Target(power_backwards)), VALUES),
    Mutation("remainder of C", target("Mod", Target(remainder_of_c)), VALUES),
    Mutation("less for greater", target("Greater", operations._TARGETS["Less"]), VALUES),
    Mutation("greater without equal", target("GreaterEqual", Target(less_than)), VALUES),
    Mutation("minimum for maximum", target("Maximum", operations._TARGETS["Minimum"]), VALUES[:2]),
    Mutation("sinc without pi", target("Sinc", Target(sinc_of_radians)), (f"{K3}sinc.keras",)),
    Mutation("round up", target("Round", Target(torch.ceil)), VALUES),
    Mutation(
        "angle of the other",
        edit(
            "functional.operations.arctan2",
            "as_tensor(x1, like), as_tensor(x2, like)",
            "as_tensor(x2, like), as_tensor(x1, like)",
        ),
        VALUES,
    ),
    Mutation(
        "difference without square",
        edit("functional.operations.squared_difference", "difference * difference", "difference"),
        (VALUES[0], VALUES[2]),
    ),
    Mutation(
        "lower bound only", edit("functional.operations.clip", "minimum(x, x_max)", "x"), VALUES[:2]
    ),
    Mutation(
        "product along all axes",
        edit("functional.operations.product", "dims_of(x, axis)", "dims_of(x, None)"),
        REDUCE,
    ),
    Mutation(
        "sum of the first axis only",
        edit("functional.operations.logsumexp", "dims_of(x, axis)", "dims_of(x, axis)[:1]"),
        (REDUCE[0],),
    ),
    Mutation("variance of a sample", fixed("Var", correction=1), REDUCE[:2]),
    Mutation("deviation of a sample", fixed("Std", correction=1), REDUCE[:2]),
    Mutation(
        "moments of a sample",
        edit("functional.operations.moments", "correction=0", "correction=1"),
        REDUCE[1:2],
    ),
    Mutation("smallest for largest", fixed("Argmax", largest=False), REDUCE),
    Mutation(
        "no smallest length",
        edit("functional.operations.normalize", "length.clamp(min=smallest)", "length"),
        (REDUCE[0], f"{K3}newest.keras"),
    ),
    Mutation(
        "mean without weights",
        edit("functional.operations.average", "x * spread", "x"),
        REDUCE[1:2],
    ),
    Mutation(
        "sum with here",
        edit("functional.operations.cumulate", "if exclusive", "if False"),
        REDUCE[::2],
    ),
    Mutation(
        "sum from the start",
        edit("functional.operations.cumulate", "x = x.flip(axis) if reverse else x", "x = x"),
        REDUCE[::2],
    ),
    Mutation(
        "order upwards",
        edit("functional.operations.sort", "descending=descending", "descending=False"),
        REDUCE[:1],
    ),
    Mutation(
        "places upwards",
        edit("functional.operations.argsort", "descending=descending", "descending=False"),
        REDUCE[:1],
    ),
    Mutation(
        "smallest k",
        edit("functional.operations.top_k", "descending=True", "descending=False"),
        REDUCE,
    ),
    Mutation(
        "the first is not turned",
        edit("functional.operations.matmul", "if transpose_a", "if transpose_b"),
        (SHAPES[0], SHAPES[2]),
    ),
    Mutation(
        "the second is not turned",
        edit("functional.operations.matmul", "if transpose_b", "if transpose_a"),
        (SHAPES[0], SHAPES[2]),
    ),
    Mutation(
        "slices one longer",
        edit(
            "layers.operations._getitem",
            'next(free) if bound == "@" else bound for bound in value)',
            'next(free) if bound == "@" else (5 if bound == 4 else bound) for bound in value)',
        ),
        SHAPES,
    ),
    Mutation(
        "last for first",
        edit(
            "layers.operations._getitem", "else value\n\n", "else 0 if value == -1 else value\n\n"
        ),
        SHAPES,
    ),
    Mutation(
        "not backwards",
        edit(
            "functional.movement.getitem_backwards",
            "places.start + places.step * steps",
            "(places.start + places.step * steps).flip(0)",
        ),
        SHAPES,
    ),
    Mutation(
        "another order of axes",
        edit("layers.operations._transpose", '*config["axes"]', '*config["axes"][:1], 1, 2'),
        SHAPES,
    ),
    Mutation(
        "padding of other axes",
        edit("functional.movement.pad", "reversed(pairs)", "pairs"),
        SHAPES,
    ),
    Mutation(
        "cut after the first",
        target("Unstack", replace(operations._TARGETS["Unstack"], function=unbind_backwards)),
        SHAPES,
    ),
    Mutation(
        "parts in reverse",
        edit(
            "functional.movement.split",
            "torch.split(x, whole // sections, dim=axis)",
            "torch.split(x, whole // sections, dim=axis)[::-1]",
        ),
        SHAPES,
    ),
    Mutation("upper for lower", target("Tril", operations._TARGETS["Triu"]), SHAPES[:2]),
    Mutation(
        "yes for no",
        edit(
            "functional.movement.where",
            "as_tensor(x1, like), as_tensor(x2, like)",
            "as_tensor(x2, like), as_tensor(x1, like)",
        ),
        (CHOOSE, *SHAPES[1:]),
    ),
    Mutation("rows of the first sample", target("Take", Target(of_first, tensors=True)), (CHOOSE,)),
    Mutation(
        "ones at the end",
        edit("functional.movement.one_hot", "hot.movedim(-1, axis)", "hot.movedim(-1, 1)"),
        (CHOOSE,),
    ),
    Mutation(
        "up to the length",
        edit("functional.movement.sequence_mask", "< lengths", "<= lengths"),
        (SIZES,),
    ),
    Mutation(
        "the shape's other size",
        edit("layers.operations._shape", "iter(sizes)", "iter(sizes[::-1])"),
        (SIZES,),
    ),
    Mutation(
        "a cast drops the mask",
        edit("layers.graph._Emitter.mask_of_operation", "came if passes else None", "None"),
        (f"{TF}masks.keras", f"{K3}masks.keras"),
    ),
    Mutation(
        "every operation passes the mask",
        edit("layers.graph._Emitter.mask_of_operation", "came if passes else None", "came"),
        (f"{TF}masks.keras", f"{K3}masks.keras"),
    ),
    Mutation(
        "arguments change places",
        form(tf_functions.FORMS, "math.subtract", parameters={"x": "x2", "y": "x1"}),
        VALUES[:1],
        rereads=True,
    ),
    Mutation(
        "inputs change places",
        form(graph_nodes.FORMS, "RealDiv", parameters={"x2": "x2", "x1": "x1"}),
        VALUES[2:],
        rereads=True,
    ),
    Mutation(
        "sides change places",
        form(keras3.FORMS, "Subtract", parameters={"x2": "x2", "x1": "x1"}),
        VALUES[1:2],
        rereads=True,
    ),
    Mutation(
        "transpose_b is a",
        form(
            tf_functions.FORMS,
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
    Mutation(
        "argmax of all",
        form(tf_functions.FORMS, "math.argmax", fixed={"dtype": "int64"}),
        REDUCE[:1],
        rereads=True,
    ),
    Mutation(
        "epsilon of the length",
        edit("readers.operations.reworks.root_epsilon", "float(epsilon) ** 0.5", "float(epsilon)"),
        REDUCE[:1],
        rereads=True,
    ),
    Mutation(
        "indices are slices",
        edit(
            "readers.operations.reworks.read_masks",
            '"shrink_axis_mask" in bits_set',
            "False",
        ),
        SHAPES[2:],
        rereads=True,
    ),
    Mutation(
        "gather_nd in the first sample",
        edit(
            "functional.movement.gather_nd",
            "torch.arange(x.shape[i], device=x.device)",
            "torch.zeros_like(torch.arange(x.shape[i], device=x.device))",
        ),
        MORE[:1],
    ),
    Mutation(
        "indices in reverse",
        edit("functional.movement.gather_nd", "indices.unbind(-1)", "indices.unbind(-1)[::-1]"),
        (MORE[0], MORE[2]),
    ),
    Mutation(
        "reversed to the end",
        edit(
            "functional.movement.reverse_sequence",
            "torch.where(steps < ends, ends - 1 - steps, steps)",
            "y.shape[1] - 1 - steps + 0 * ends",
        ),
        (MORE[0], MORE[2]),
    ),
    Mutation(
        "samples on the first axis",
        edit(
            "functional.movement.reverse_sequence",
            "(batch_axis, seq_axis), (0, 1)",
            "(0, seq_axis), (0, 1)",
        ),
        (MORE[0], MORE[2]),
    ),
    Mutation(
        "mirrored with the edge",
        edit("functional.movement.pad", 'shared=mode == "reflect"', "shared=False"),
        MORE,
    ),
    Mutation(
        "mirrored without the edge",
        edit("functional.movement.pad", 'shared=mode == "reflect"', "shared=True"),
        MORE[:2],
    ),
    Mutation(
        "a band of the other side",
        edit("functional.movement.band_part", "x.tril(upper)", "x.tril(lower)"),
        (MORE[0], MORE[2]),
    ),
    Mutation(
        "the root of squares always",
        edit("functional.operations.norm", "float(order)", "2.0"),
        MORE[:2],
    ),
    Mutation(
        "all lengths clipped",
        edit("functional.operations.clip_by_norm", "length.clamp(min=largest)", "length"),
        MORE[:1],
    ),
    Mutation(
        "zero times infinity",
        edit(
            "functional.operations.multiply_no_nan", "torch.where(x2 == 0, 0.0, x1 * x2)", "x1 * x2"
        ),
        MORE[:1],
    ),
    Mutation(
        "log of 0",
        edit(
            "functional.operations.xlogy",
            "torch.where(x1 == 0, 0.0, x1 * torch.log(x2))",
            "x1 * torch.log(x2)",
        ),
        MORE[:1],
    ),
    Mutation(
        "log of x itself",
        edit("functional.operations.xlog1py", "torch.log1p(x2)", "torch.log(x2)"),
        MORE[:1],
    ),
    Mutation(
        "0 over 0",
        edit("functional.operations.xdivy", "torch.where(x1 == 0, 0.0, x1 / x2)", "x1 / x2"),
        MORE[:1],
    ),
    Mutation(
        "the main diagonal always",
        edit("functional.movement.trace", "torch.diagonal(x, offset", "torch.diagonal(x, 0"),
        MORE[1:2],
    ),
    Mutation(
        "the largest of all",
        edit("functional.operations.top_k", "sizes[0] if k is None else k", "1"),
        (MORE[0], MORE[2]),
    ),
    Mutation(
        "looking ahead",
        edit("functional.operations.dot_product_attention", ".tril()", ".triu()"),
        (LAYERS,),
    ),
    Mutation(
        "looking ahead beside a mask",
        edit("functional.operations.dot_product_attention", "mask & before", "mask"),
        (LAYERS,),
    ),
    Mutation(
        "keys shared in turns",
        edit(
            "functional.operations.dot_product_attention",
            "x.repeat_interleave(times, dim=2)",
            "x.repeat(1, 1, times, 1)",
        ),
        (LAYERS,),
    ),
    Mutation(
        "no scale of attention",
        edit(
            "functional.operations.dot_product_attention",
            "query.shape[-1] ** -0.5 if scale is None else scale",
            "1.0",
        ),
        (LAYERS,),
    ),
    Mutation(
        "deviation of a sample, normalized",
        edit("functional.operations.layer_norm", "correction=0", "correction=1"),
        (LAYERS,),
    ),
    Mutation(
        "squares less their mean",
        edit("functional.operations.rms_norm", "(x * x).mean(", "x.var("),
        (LAYERS,),
    ),
    Mutation(
        "scale of the offset",
        edit("functional.operations.batch_norm", "* scale + offset", "+ offset"),
        (LAYERS,),
    ),
    Mutation(
        "zeros in the mean of a window",
        edit("functional.operations.average_pool", "/ real", "/ 1"),
        (f"{TF}pools.keras", LAYERS),
    ),
    Mutation(
        "the odd step is padded before",
        edit(
            "functional.operations._window",
            "[*pair, *around]",
            "[*reversed(pair), *around]",
        ),
        (f"{TF}pools.keras", f"{NODE}pools.h5", LAYERS),
    ),
    Mutation(
        "axes of windows change places",
        edit(
            "functional.operations._window",
            "[*pair, *around]",
            "[*around, *pair]",
        ),
        (f"{TF}pools.keras", f"{NODE}pools.h5", LAYERS),
    ),
    Mutation(
        "below a threshold",
        edit("functional.movement.threshold", "x > threshold", "x < threshold"),
        (LAYERS,),
    ),
    Mutation(
        "a computed place as a size",
        edit("readers.operations.reworks._from", '["@", None, 1]', '[0, "@", 1]'),
        MORE[:1],
        rereads=True,
    ),
    Mutation(
        "a square over x",
        form(tf_functions.FORMS, "math.reciprocal_no_nan", fixed={"x1": 2.0}),
        MORE[:1],
        rereads=True,
    ),
    Mutation(
        "an end that is not meant",
        edit(
            "readers.operations.reworks.read_masks",
            'None if "end_mask" in bits_set else last',
            "last",
        ),
        SHAPES[2:],
        rereads=True,
    ),
    Mutation(
        "size for end",
        edit("readers.operations.reworks._from", "begin + length", "length"),
        SHAPES,
        rereads=True,
    ),
    Mutation(
        "places for sizes",
        form(keras3.FORMS, "Split", steps=(("read_sections", "sizes"),)),
        SHAPES[1:2],
        rereads=True,
    ),
    Mutation(
        "tensors in reverse",
        edit("readers.operations.graph_nodes._inputs", "iter(tensors)", "iter(tensors[::-1])"),
        VALUES[2:],
        rereads=True,
    ),
    Mutation(
        "epsilon of Keras 3 ignored",
        form(
            keras3.FORMS,
            "Normalize",
            parameters={"x": "x", "axis": "axis", "order": "order", "epsilon": "-"},
        ),
        (f"{K3}newest.keras",),
        rereads=True,
    ),
]
