"""Shapes and element types of quantised operators."""

from __future__ import annotations

from fastlstm.operators.dtypes import dtype_of
from fastlstm.operators.values import RULES, Operands, ValueInfo, rule

__all__: list[str] = []


def _named(at: Operands, otherwise: str | None) -> str | None:
    """Return the element type that the attribute ``output_dtype`` names."""
    number = at.attr("output_dtype", 0)
    try:
        return dtype_of(number).name if number else otherwise
    except ValueError:  # said when the operator runs
        return None


@rule("QuantizeLinear")
def _quantize(at: Operands) -> ValueInfo:
    return ValueInfo(at[0].shape, at[2].dtype if at.given(2) else _named(at, "uint8"))


@rule("DequantizeLinear")
def _dequantize(at: Operands) -> ValueInfo:
    return ValueInfo(at[0].shape, _named(at, at[1].dtype))


@rule("DynamicQuantizeLinear")
def _dynamic(at: Operands) -> tuple[ValueInfo, ...]:
    return ValueInfo(at[0].shape, "uint8"), ValueInfo((), at[0].dtype), ValueInfo((), "uint8")


def _as(op: str, at: Operands, second: int, dtype: str | None) -> ValueInfo:
    """Return what is known of the result of the plain operator on the first input and another one."""
    found = RULES[op](Operands(at.node, (at[0], at[second])))
    return (found if isinstance(found, ValueInfo) else found[0]).but(dtype=dtype)


@rule("MatMulInteger")
def _matmul_integer(at: Operands) -> ValueInfo:
    return _as("MatMul", at, 1, "int32")


@rule("ConvInteger")
def _conv_integer(at: Operands) -> ValueInfo:
    return _as("Conv", at, 1, "int32")


@rule("QLinearMatMul")
def _qlinear_matmul(at: Operands) -> ValueInfo:
    return _as("MatMul", at, 3, at[7].dtype)


@rule("QLinearConv")
def _qlinear_conv(at: Operands) -> ValueInfo:
    return _as("Conv", at, 3, at[7].dtype)
