"""The table of operations: a row says everything of one, but how it is computed.

Each row begins with the operation's forms (see ``forms``): in TensorFlow's functions (``tf``), in
nodes of graphs (``node``) and in Keras 3 (``keras``); then, where that is not the function of its
name, what computes it: in torch (``torch``, ``operator``, or our ``functional``), and in NumPy
(``np``, or our ``reference``). Then its output shape, the words for its dtypes, and its options.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from keras2torch_birnn.schema.operations import movement, shapes
from keras2torch_birnn.schema.operations.dtypes import Dtypes, Promotion, settle
from keras2torch_birnn.schema.operations.forms import FORM, Form, function_name, parse_forms
from keras2torch_birnn.schema.operations.options import (
    WHOLE,
    dtype,
    one_axis,
    parse_bounds,
    parse_key,
    parse_pairs,
    parse_sections,
    parse_subscripts,
    several_axes,
    target_shape,
)
from keras2torch_birnn.schema.operations.shapes import Output
from keras2torch_birnn.schema.options import (
    REQUIRED,
    Option,
    choice,
    flag,
    number,
    optional,
    parse_activation,
    size,
)
from keras2torch_birnn.schema.row import Schema

_USED = frozenset({"dtype", "named", "num", "broadcasts"})


@dataclass(frozen=True)
class Operation(Schema):
    """Row of an operation.

    ``op``: its name. ``text``: its forms as written; ``usual``: parameters where a form has none.
    ``words``: for the dtypes of its arguments and results (see ``dtypes``).
    """

    op: str = ""
    text: str = ""
    usual: Mapping[str, str] = field(default_factory=dict)
    words: str = "any"

    @cached_property
    def forms(self) -> tuple[Form, ...]:
        """Return the forms in the row."""
        return tuple(parse_forms(self.op, self.text, self.usual))

    def settle_dtypes(self, has: Dtypes, config: Mapping[str, Any]) -> Promotion:
        """Return the dtypes of a call from those of its arguments.

        Raises:
            DtypeError: they are not supported.
        """
        return settle(self.words, self.arguments, has, config)

    @property
    def options_of_function(self) -> list[str]:
        """List the options that the functions are given; readers have used the others."""
        return [name for name in self.options if name not in _USED]

    def form_of(self, *dialects: str) -> Form:
        """Return the form in such a dialect, or one of the operation's name, of no dialect."""
        named = (form for form in self.forms if form.dialect in dialects)
        return next(named, Form(self.op, "", function_name(self.op), {}, {}))


def _row(
    text: str, output: Output, words: str, arguments: str = "x", /, **options: Option
) -> Operation:
    """Make a row; the argument "xs" is a list, and "sizes" stands for several."""
    names = tuple(arguments.split())
    shape = shapes.checked(output, names)
    return Operation(
        options, output=shape, arguments=names, listed=names == ("xs",), words=words, text=text
    )


def _rows(row: Operation, usual: Mapping[str, str], lines: str) -> dict[str, Operation]:
    """Make rows that differ in their forms alone, one a line."""
    pairs = (line.split(maxsplit=1) for line in lines.strip().splitlines())
    return {op: replace(row, text=text, usual=usual) for op, text in pairs}


def _activations(lines: str) -> str:
    """Return the forms of all activations, each with the step that names it."""
    pairs = (line.split(maxsplit=1) for line in lines.strip().splitlines())
    return " ".join(FORM.sub(rf"\g<0>|activate:{name}", forms) for name, forms in pairs)


_ALONE = {"keras": "x", "tf": "x", "node": "x"}
_ONE = {"keras": "x", "tf": "x input=x", "node": "x"}
_TWO = {"keras": "x1 x2", "tf": "x=x1 y=x2", "node": "x1 x2 incompatible_shape_error=-"}
_REDUCED = {
    "keras": "x axis keepdims initial=! dtype=!",
    "tf": "input_tensor=x axis keepdims",
    "node": "x axis keep_dims=keepdims",
    "torch": "dim=axis keepdim=keepdims",
}
_AXES = {"axis": several_axes(), "keepdims": flag(False)}

_ACTIVATIONS = """
    softmax tf.nn.softmax(x logits=x axis dim=axis) tf.compat.v1.nn.softmax(x logits=x axis \
        dim=axis) node.Softmax keras.Softmax(x axis)
    log_softmax tf.nn.log_softmax(x logits=x axis dim=axis) node.LogSoftmax keras.LogSoftmax(x \
        axis)
    relu tf.nn.relu(x features=x) node.Relu keras.Relu keras.ReLU(x negative_slope max_value \
        threshold)
    relu6 tf.nn.relu6(x features=x) node.Relu6 keras.Relu6
    leaky_relu tf.nn.leaky_relu(x features=x alpha=negative_slope) node.LeakyRelu(x \
        alpha=negative_slope) keras.LeakyRelu(x negative_slope)
    elu tf.nn.elu(x features=x) node.Elu keras.Elu(x alpha)
    selu tf.nn.selu(x features=x) node.Selu keras.Selu
    gelu tf.nn.gelu(x features=x approximate) keras.Gelu(x approximate)
    silu tf.nn.silu(x features=x) keras.Silu
    sigmoid tf.math.sigmoid node.Sigmoid keras.Sigmoid
    log_sigmoid tf.math.log_sigmoid keras.LogSigmoid
    softplus tf.math.softplus(x features=x) node.Softplus keras.Softplus
    softsign tf.nn.softsign(x features=x) node.Softsign keras.Softsign
    hard_sigmoid_1/6 keras.HardSigmoid
    hard_silu keras.HardSilu
"""
_TABLE = {
    # ---- value by value ----
    **_rows(_row("", shapes.same, "floats"), _ONE, """
        Exp tf.math.exp node.Exp keras.Exp
        Expm1 tf.math.expm1 node.Expm1 keras.Expm1
        Log tf.math.log node.Log keras.Log
        Log1p tf.math.log1p node.Log1p keras.Log1p
        Log2 keras.Log2
        Log10 keras.Log10
        Sqrt tf.math.sqrt node.Sqrt keras.Sqrt
        Rsqrt tf.math.rsqrt node.Rsqrt keras.Rsqrt
        Sin tf.math.sin node.Sin keras.Sin
        Cos tf.math.cos node.Cos keras.Cos
        Tan tf.math.tan node.Tan keras.Tan
        Sinc keras.Sinc
        Arcsin tf.math.asin node.Asin keras.Arcsin
        Arccos tf.math.acos node.Acos keras.Arccos
        Arctan tf.math.atan node.Atan keras.Arctan
        Sinh tf.math.sinh node.Sinh keras.Sinh
        Cosh tf.math.cosh node.Cosh keras.Cosh
        Tanh tf.math.tanh node.Tanh keras.Tanh
        Arcsinh tf.math.asinh node.Asinh keras.Arcsinh
        Arccosh tf.math.acosh node.Acosh keras.Arccosh
        Arctanh tf.math.atanh node.Atanh keras.Arctanh
        Erf tf.math.erf node.Erf keras.Erf
        Reciprocal tf.math.reciprocal node.Reciprocal keras.Reciprocal
        """),
    **_rows(_row("", shapes.same, "reals"), _ONE, """
        Floor tf.math.floor node.Floor keras.Floor
        Ceil tf.math.ceil node.Ceil keras.Ceil
        Round tf.math.round tf.math.rint node.Round node.Rint keras.Round(x \
            decimals)|refuse_decimals
        """),
    **_rows(_row("", shapes.same, "numbers"), _ONE, """
        Negative tf.math.negative node.Neg keras.Negative
        Absolute tf.math.abs node.Abs keras.Absolute
        Sign tf.math.sign node.Sign keras.Sign
        Square tf.math.square node.Square keras.Square
        """),
    **_rows(_row("", shapes.same, "any->bool"), _ONE, """
        Isnan tf.math.is_nan node.IsNan keras.Isnan
        Isinf tf.math.is_inf node.IsInf keras.Isinf
        Isfinite tf.math.is_finite node.IsFinite keras.Isfinite
        """),
    **_rows(_row("", shapes.elementwise, "numbers or sizes", "x1 x2"), _TWO, """
        Add tf.__operators__.add tf.math.add tf.nn.bias_add(value=x1 bias=x2 \
            data_format)|refuse_channels_first node.Add node.AddV2 node.BiasAdd(x1 x2 data_format \
            data_format:TkhXQw==)|decode:data_format|refuse_channels_first keras.Add operator.add
        Subtract tf.math.subtract node.Sub keras.Subtract operator.sub
        Multiply tf.math.multiply node.Mul \
            keras.Multiply operator.mul
        FloorDivide tf.compat.v1.floor_div node.FloorDiv keras.FloorDivide
        Maximum tf.math.maximum node.Maximum keras.Maximum
        Minimum tf.math.minimum node.Minimum keras.Minimum
        """),
    **_rows(_row("", shapes.elementwise, "numbers", "x1 x2"), _TWO, """
        Mod tf.math.floormod node.FloorMod keras.Mod torch.remainder
        Power tf.math.pow node.Pow keras.Power torch.pow
        SquaredDifference tf.math.squared_difference node.SquaredDifference
        """),
    **_rows(_row("", shapes.elementwise, "floats", "x1 x2"), _TWO, """
        Divide tf.math.truediv node.RealDiv keras.Divide keras.TrueDivide operator.truediv
        """),
    # 0 where x2 is 0
    **_rows(_row("", shapes.elementwise, "floats", "x1 x2"), _TWO, """
        DivideNoNan tf.math.divide_no_nan node.DivNoNan keras.DivideNoNan
        """),
    **_rows(_row("", shapes.elementwise, "numbers->bool", "x1 x2"), _TWO, """
        Less tf.math.less node.Less keras.Less operator.lt
        LessEqual tf.math.less_equal node.LessEqual keras.LessEqual operator.le
        Greater tf.math.greater node.Greater keras.Greater operator.gt
        GreaterEqual tf.math.greater_equal node.GreaterEqual keras.GreaterEqual operator.ge
        """),
    **_rows(_row("", shapes.elementwise, "any->bool", "x1 x2"), _TWO, """
        Equal tf.math.equal tf.__operators__.eq(self=x1 other=x2)|unsaved node.Equal \
            keras.Equal operator.eq
        NotEqual tf.math.not_equal tf.__operators__.ne(self=x1 other=x2)|unsaved node.NotEqual \
            keras.NotEqual operator.ne
        """),
    **_rows(_row("", shapes.elementwise, "bools", "x1 x2"), _TWO, """
        LogicalAnd tf.math.logical_and node.LogicalAnd keras.LogicalAnd \
            torch.logical_and|tensors
        LogicalOr tf.math.logical_or node.LogicalOr keras.LogicalOr torch.logical_or|tensors
        LogicalXor tf.math.logical_xor keras.LogicalXor torch.logical_xor|tensors
        """),
    **_rows(_row("", shapes.same, "bools"), _ONE, """
        LogicalNot tf.math.logical_not node.LogicalNot keras.LogicalNot
        """),
    **_rows(_row("", shapes.same, "any or sizes"), _ONE, """
        Identity tf.identity tf.stop_gradient node.Identity \
            node.StopGradient keras.Copy keras.StopGradient(variable=x) reference.identity
        """),
    # "named": the dtype in the file's own words; a cast to what a tensor is keeps its mask
    "Cast": _row("""
        tf.cast(x dtype)|read_cast node.Cast(x DstT=dtype Truncate=!)|read_cast
        keras.Cast(x dtype)|read_cast reference.identity
        """, shapes.same, "dtype", dtype=dtype(),
        named=choice("float32", "float16", "bfloat16", "float32", "float64", *WHOLE)),
    "ConvertToTensor": _row("keras.ConvertToTensor(x dtype sparse=! ragged=!) reference.identity",
        shapes.same, "dtype", dtype=optional(dtype(None))),
    "ZerosLike": _row("""
        tf.zeros_like(input=x dtype layout=-) tf.compat.v1.zeros_like(tensor=x dtype optimize=-)
        node.ZerosLike(x) keras.ZerosLike(x dtype sparse=!)
        """, shapes.same, "dtype", dtype=optional(dtype(None))),
    "OnesLike": _row("""
        tf.ones_like(input=x dtype layout=-)
        keras.OnesLike(x dtype sparse=!)
        """, shapes.same, "dtype", dtype=optional(dtype(None))),
    "Activation": replace(
        _row(_activations(_ACTIVATIONS), shapes.activated, "floats",
             function=Option(REQUIRED, parse_activation)), usual=_ALONE),
    # ---- one or several axes together ----
    **_rows(_row("", shapes.reduced, "totals", **_AXES), _REDUCED, """
        Sum tf.math.reduce_sum node.Sum keras.Sum torch.sum|gives:int64
        Prod tf.math.reduce_prod node.Prod keras.Prod functional.product|gives:int64
        """),
    **_rows(_row("", shapes.reduced, "floats", **_AXES), _REDUCED, """
        Mean tf.math.reduce_mean node.Mean keras.Mean torch.mean
        Var tf.math.reduce_variance keras.Var torch.var(dim=axis keepdim=keepdims \
            correction:0)
        Std tf.math.reduce_std keras.Std torch.std(dim=axis keepdim=keepdims correction:0)
        Logsumexp tf.math.reduce_logsumexp keras.Logsumexp
        """),
    **_rows(_row("", shapes.reduced, "numbers", **_AXES), _REDUCED, """
        Max tf.math.reduce_max node.Max keras.Max torch.amax
        Min tf.math.reduce_min node.Min keras.Min torch.amin
        """),
    **_rows(_row("", shapes.reduced, "bools", **_AXES), _REDUCED, """
        Any tf.math.reduce_any node.Any keras.Any torch.any
        All tf.math.reduce_all node.All keras.All torch.all
        """),
    "Norm": _row("""
        tf.math.reduce_euclidean_norm(input_tensor=x axis keepdims)
        tf.compat.v1.norm(tensor=x ord axis keepdims keep_dims=keepdims keepdims:false)|read_order
        keras.Norm(x ord axis keepdims)|read_order
        """, shapes.reduced, "floats", **_AXES),
    "Argmax": _row("""
        tf.math.argmax(input=x axis axis:0 output_type=dtype dtype:int64)
        node.ArgMax(x axis output_type=dtype dtype:int64) keras.Argmax(x axis keepdims dtype:int32)
        functional.arg_extreme(largest:true)|gives:int64
        """, shapes.reduced, "numbers->dtype", axis=optional(one_axis(None)),
        keepdims=flag(False), dtype=dtype()),
    "Argmin": _row("""
        tf.math.argmin(input=x axis axis:0 output_type=dtype dtype:int64)
        node.ArgMin(x axis output_type=dtype dtype:int64) keras.Argmin(x axis keepdims dtype:int32)
        functional.arg_extreme(largest:false)|gives:int64
        """, shapes.reduced, "numbers->dtype", axis=optional(one_axis(None)),
        keepdims=flag(False), dtype=dtype()),
    "Normalize": _row("""
        tf.math.l2_normalize(x axis epsilon epsilon:1e-12 dim=axis)|root_epsilon
        keras.Normalize(x axis order epsilon=smallest smallest:1e-7)|refuse_orders
        """, shapes.along_axis, "floats", axis=several_axes(-1), smallest=number(REQUIRED)),
    "Cumsum": _row("""
        tf.math.cumsum(x axis axis:0 exclusive reverse) node.Cumsum(x axis exclusive reverse)
        keras.Cumsum(x axis dtype=!) functional.cumsum|gives:int64
        """, shapes.along_axis, "totals", axis=one_axis(), reverse=flag(False),
        exclusive=flag(False)),
    "TopK": _row("""
        tf.math.top_k(input=x k sorted index_type=! k:1)|refuse_unsorted:top_k|split_k
        node.TopKV2(x k sorted)|refuse_unsorted:TopKV2|split_k
        keras.TopK(x k sorted)|refuse_unsorted:top_k functional.top_k|gives::int64
        """, shapes.ranked, "numbers->positions", "x sizes", k=optional(size())),
    # ---- products ----
    "Matmul": _row("""
        tf.linalg.matmul(a=x1 b=x2 transpose_a transpose_b adjoint_a adjoint_b a_is_sparse=-
            b_is_sparse=- output_type=! grad_a=- grad_b=-)|read_adjoints
        node.MatMul(x1 x2 transpose_a transpose_b)
        node.BatchMatMulV2(x1 x2 adj_x=transpose_a adj_y=transpose_b) keras.Matmul(x1 x2)
        functional.matmul|tensors
        """, shapes.matmul, "reals", "x1 x2", transpose_a=flag(False),
        transpose_b=flag(False)),
    "Dot": _row("keras.Dot(x1 x2) functional.dot|tensors", shapes.dot, "reals", "x1 x2"),
    "Einsum": _row("""
        tf.einsum(equation=subscripts inputs=xs)|unsaved
        node.Einsum(inputs=xs equation=subscripts)|decode:subscripts keras.Einsum(subscripts)
        functional.einsum|tensors
        """, shapes.einsum, "reals", "xs", subscripts=Option(REQUIRED, parse_subscripts)),
    "AddN": _row("""
        tf.math.add_n(inputs=xs)
        node.AddN(inputs=xs) functional.add_all|tensors
        """, shapes.elementwise, "numbers", "xs"),
    # ---- moving values ----
    "Reshape": _row("""
        tf.reshape(tensor=x shape)|move_sizes node.Reshape(x shape)|move_sizes
        keras.Reshape(x newshape=shape)|move_sizes keras.Ravel(x shape:[-1])
        """, movement.reshape, "any or sizes", "x sizes", shape=target_shape(-1)),
    "BroadcastTo": _row("""
        tf.broadcast_to(input=x shape)|move_sizes node.BroadcastTo(x shape)|move_sizes
        keras.BroadcastTo(x shape)|move_sizes
        """, movement.broadcast_to, "any or sizes", "x sizes", shape=target_shape(-1)),
    "Tile": _row("""
        tf.tile(input=x multiples=shape)|move_sizes node.Tile(x shape)|move_sizes
        keras.Tile(x repeats=shape)|move_sizes
        """, movement.tiled, "any or sizes", "x sizes", shape=target_shape(0)),
    "Full": _row("""
        tf.fill(dims=shape value layout=-)|read_fill
        tf.zeros(shape dtype layout=- value:0.0)|read_fill
        tf.ones(shape dtype layout=- value:1.0)|read_fill node.Fill(shape value T=dtype)|read_fill
        """, movement.wanted, "any->dtype", "sizes", shape=target_shape(0),
        value=number(REQUIRED), dtype=dtype()),
    "Arange": _row("""
        tf.range(start limit=stop delta=step dtype dtype:int32)|read_range
        node.Range(start stop step dtype:int32)|read_range functional.count_up
        """, movement.counted, "any->dtype", "sizes", bounds=Option(REQUIRED, parse_bounds),
        dtype=dtype("int32")),
    "GetItem": _row("""
        tf.slice(input_=x begin size)|read_slice
        tf.strided_slice(input_=x begin end strides begin_mask end_mask ellipsis_mask new_axis_mask
            shrink_axis_mask var=!)|read_masks
        node.Slice(x begin size)|read_slice
        node.StridedSlice(x begin end strides begin_mask end_mask ellipsis_mask new_axis_mask
            shrink_axis_mask)|read_masks
        keras.GetItem(x key)|read_key
        keras.Slice(inputs=x start_indices=begin shape=size)|read_slice
        """, movement.items, "any or sizes", "x sizes", key=Option(REQUIRED, parse_key)),
    "Transpose": _row("""
        tf.compat.v1.transpose(a=x perm=axes conjugate=!) node.Transpose(x axes)
        keras.Transpose(x axes)
        """, movement.transpose, "any", axes=several_axes()),
    "Swapaxes": _row("""
        keras.Swapaxes(x axis1 axis2)
        torch.transpose(dim0=axis1 dim1=axis2)
        """, movement.swapped, "any", axis1=one_axis(), axis2=one_axis()),
    "Squeeze": _row("""
        tf.compat.v1.squeeze(input=x axis squeeze_dims=axis)
        node.Squeeze(x squeeze_dims=axis)|drop_empty_axis keras.Squeeze(x axis)
        """, movement.squeezed, "any", axis=several_axes()),
    "ExpandDims": _row("""
        tf.expand_dims(input=x axis) node.ExpandDims(x axis) keras.ExpandDims(x axis)
        """, movement.expanded, "any", axis=several_axes(REQUIRED)),
    "Flip": _row("tf.reverse(tensor=x axis) node.ReverseV2(x axis) keras.Flip(x axis)",
        shapes.along_axis, "any", axis=several_axes()),
    "Repeat": _row("""
        tf.repeat(input=x repeats axis) keras.Repeat(x repeats axis)
        torch.repeat_interleave(dim=axis)
        """, movement.repeated, "any", repeats=size(), axis=optional(one_axis(None))),
    "Pad": _row("""
        tf.compat.v1.pad(tensor=x paddings=pad_width mode constant_values=value)|read_padding
        node.Pad(x pad_width)|read_padding node.PadV2(x pad_width value)|read_padding
        keras.Pad(x pad_width mode constant_values=value)|read_padding
        """, movement.padded, "any", pad_width=Option(REQUIRED, parse_pairs),
        value=number(0.0)),
    "Split": _row("""
        tf.split(value=x num_or_size_splits=sections axis axis:0 num=-)|read_sections:sizes
        node.Split(axis x num_split=sections)|read_sections:sizes
        node.SplitV(x sections axis num_split=-)|read_sections:sizes
        keras.Split(x indices_or_sections=sections axis)|read_sections:places
        """, movement.split, "any", sections=Option(REQUIRED, parse_sections),
        by=choice(REQUIRED, "count", "sizes", "places"), axis=one_axis()),
    "Unstack": _row("""
        tf.unstack(value=x num axis) node.Unpack(x axis num) keras.Unstack(x num axis)
        torch.unbind(dim=axis)
        """, movement.unstacked, "any or sizes", axis=one_axis(0), num=optional(size(None))),
    "Concatenate": _row("""
        tf.concat(values=xs axis) node.ConcatV2(inputs)|split_axis keras.Concatenate(xs axis)
        torch.cat(dim=axis)|tensors
        """, movement.joined, "any or sizes", "xs", axis=one_axis(-1)),
    "Stack": _row("""
        tf.stack(values=xs axis) node.Pack(inputs=xs axis) keras.Stack(x=xs axis)
        torch.stack(dim=axis)|tensors
        """, movement.stacked, "any or sizes", "xs", axis=one_axis(0)),
    # ---- choosing values ----
    "Where": _row("""
        tf.where(condition x=x1 y=x2)
        node.Select(condition x1 x2 broadcasts:false) node.SelectV2(condition x1 x2)
        keras.Where(condition x1 x2)
        """, shapes.chosen, "any", "condition x1 x2", broadcasts=flag(True)),
    "Clip": _row("""
        tf.clip_by_value(t=x clip_value_min=x_min clip_value_max=x_max) keras.Clip(x x_min x_max)
        """, shapes.elementwise, "numbers", "x x_min x_max"),
    "Take": _row("""
        tf.compat.v1.gather(params=x indices validate_indices=- axis batch_dims)|infer_axis
        node.GatherV2(x indices axis batch_dims) keras.Take(x indices axis) functional.take|tensors
        """, movement.taken, "any", "x indices", axis=optional(one_axis(None)),
        batch_dims=size(0, least=0)),
    "OneHot": _row("""
        tf.one_hot(indices depth on_value=on off_value=off axis axis:-1 dtype
            dtype:float)|refuse_values
        node.OneHot(indices depth on off axis T=dtype)|refuse_values
        keras.OneHot(x=indices num_classes=depth axis dtype sparse=! dtype:float)
        functional.one_hot|gives:bool
        """, movement.one_hot, "any->dtype", "indices", depth=size(), axis=one_axis(-1),
        dtype=dtype()),
    "SequenceMask": _row("""
        tf.sequence_mask(lengths=indices maxlen dtype dtype:bool)|split_maxlen
        functional.sequence_mask|gives:bool
        """, movement.sequence_mask, "any->dtype", "indices sizes", maxlen=optional(size()),
        dtype=dtype("bool")),
    "Shape": _row("tf.compat.v1.shape(input=x out_type=-) node.Shape(x out_type=-) reference.shape",
        movement.sizes_of, "any or sizes->size"),
}  # fmt: skip

OPS: Mapping[str, Operation] = {f"ops.{op}": replace(row, op=op) for op, row in _TABLE.items()}
