"""The operators of ai.onnx that are read, and for each the attributes whose meaning is known.

Each line of the table is an operator in its opset-21 form and its attributes. ``mode=a|b`` lists the values
that are understood; an attribute in brackets is read and dropped, because it has no effect on inference with
the element types that are read (`saturate` speaks of 8-bit floats, `momentum` of training).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DTYPE_ATTRIBUTES", "OPERATORS", "Attribute"]


@dataclass(frozen=True)
class Attribute:
    """One attribute of the table.

    Attributes
    ----------
    choices : tuple of str
        The values understood; empty: any.
    dropped : bool
        Whether it is left out of the Graph.
    """

    choices: tuple[str, ...] = ()
    dropped: bool = False


_WINDOW = "auto_pad=NOTSET|SAME_UPPER|SAME_LOWER|VALID dilations kernel_shape pads strides"
_REDUCE = "keepdims noop_with_empty_axes"
_HEADS = "is_causal kv_num_heads q_num_heads left_window_size right_window_size"
_RESIZE = (
    "mode=nearest|linear|cubic nearest_mode=round_prefer_floor|round_prefer_ceil|floor|ceil "
    "coordinate_transformation_mode="
    "half_pixel|half_pixel_symmetric|pytorch_half_pixel|align_corners|asymmetric|tf_crop_and_resize "
    "cubic_coeff_a exclude_outside extrapolation_value antialias axes "
    "keep_aspect_ratio_policy=stretch|not_larger|not_smaller"
)

_TABLE = f"""
Abs
Acos
Acosh
Add
And
ArgMax axis keepdims select_last_index
ArgMin axis keepdims select_last_index
Asin
Asinh
Atan
Atanh
Attention {_HEADS} qk_matmul_output_mode scale softcap softmax_precision
AveragePool {_WINDOW} ceil_mode count_include_pad
BatchNormalization epsilon (momentum)
BitShift direction=LEFT|RIGHT
BitwiseAnd
BitwiseNot
BitwiseOr
BitwiseXor
BlackmanWindow output_datatype periodic
Cast to (saturate) (round_mode)
CastLike (saturate) (round_mode)
Ceil
Celu alpha
Clip
Col2Im dilations pads strides
Compress axis
Concat axis
ConcatFromSequence axis new_axis
ConstantOfShape value dtype
Conv {_WINDOW} group
ConvInteger {_WINDOW} group
ConvTranspose {_WINDOW} group output_padding output_shape
Cos
Cosh
CumProd exclusive reverse
CumSum exclusive reverse
DFT inverse onesided
DepthToSpace blocksize mode=DCR|CRD
DequantizeLinear axis block_size output_dtype
Det
Div
DynamicQuantizeLinear
Einsum equation
Elu alpha
Equal
Erf
Exp
Expand
EyeLike dtype k
Flatten axis
Floor
Gather axis
GatherElements axis
GatherND batch_dims
Gelu approximate=none|tanh
Gemm alpha beta transA transB
GlobalAveragePool
GlobalLpPool p
GlobalMaxPool
Greater
GreaterOrEqual
GroupNormalization epsilon num_groups stash_type=1
HammingWindow output_datatype periodic
HannWindow output_datatype periodic
HardSigmoid alpha beta
HardSwish
Hardmax axis
Identity
If then_branch else_branch
InstanceNormalization epsilon
IsInf detect_negative detect_positive
IsNaN
LRN alpha beta bias size
LayerNormalization axis epsilon stash_type=1
LeakyRelu alpha
Less
LessOrEqual
Log
LogSoftmax axis
Loop body
LpNormalization axis p
LpPool {_WINDOW} ceil_mode p
MatMul
MatMulInteger
Max
MaxPool {_WINDOW} ceil_mode storage_order
Mean
MeanVarianceNormalization axes
MelWeightMatrix output_datatype
Min
Mish
Mod fmod
Mul
Neg
NonZero
Not
OneHot axis
Or
PRelu
Pad mode=constant|reflect|edge|wrap
Pow
QLinearConv {_WINDOW} group
QLinearMatMul
QuantizeLinear axis block_size output_dtype (saturate)
RMSNormalization axis epsilon stash_type=1
Range (stash_type)
Reciprocal
ReduceL1 {_REDUCE}
ReduceL2 {_REDUCE}
ReduceLogSum {_REDUCE}
ReduceLogSumExp {_REDUCE}
ReduceMax {_REDUCE}
ReduceMean {_REDUCE}
ReduceMin {_REDUCE}
ReduceProd {_REDUCE}
ReduceSum {_REDUCE}
ReduceSumSquare {_REDUCE}
Relu
Reshape allowzero
Resize {_RESIZE}
ReverseSequence batch_axis time_axis
RotaryEmbedding interleaved num_heads rotary_embedding_dim
Round
STFT onesided
Scan body num_scan_inputs scan_input_axes scan_input_directions scan_output_axes scan_output_directions
ScatterElements axis reduction=none|add|mul|max|min
ScatterND reduction=none|add|mul|max|min
Selu alpha gamma
SequenceAt
SequenceConstruct
SequenceEmpty dtype
SequenceErase
SequenceInsert
SequenceLength
Shape start end
Shrink bias lambd
Sigmoid
Sign
Sin
Sinh
Size
Slice
Softmax axis
Softplus
Softsign
SpaceToDepth blocksize mode=DCR|CRD
Split axis num_outputs
SplitToSequence axis keepdims
Sqrt
Squeeze
Sub
Sum
Swish alpha
Tan
Tanh
TensorScatter axis mode=linear|circular
ThresholdedRelu alpha
Tile
TopK axis largest sorted
Transpose perm
Trilu upper
Unique axis sorted
Unsqueeze
Where
Xor
"""


def _attribute(word: str) -> tuple[str, Attribute]:
    name, _, choices = word.strip("()").partition("=")
    return name, Attribute(tuple(choices.split("|")) if choices else (), word.startswith("("))


OPERATORS: Mapping[str, Mapping[str, Attribute]] = {
    op: dict(_attribute(word) for word in words)
    for op, *words in (line.split() for line in _TABLE.strip().splitlines())
}
"""Operator → its attributes."""

DTYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype", "output_datatype"})
"""Attributes that hold a number of ``TensorProto.DataType``."""
