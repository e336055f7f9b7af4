"""Passes: what exporters write becomes plain enough for the planner, with the same meaning.

`optimise` applies the rewrites below to a fixed point; each is one small function whose docstring shows what
it turns into what. `shapes.infer` tells symbolic shapes, dtypes and known content of every value.

===============  ======================================================================================
module           noun
===============  ======================================================================================
`dims`           symbolic dimensions and their arithmetic
`values`         what is known of a value
`shapes`         inference over a graph (`infer_compute`, `infer_movement`: its rules by operator)
`rewrite`        applying rewrites: one sweep is linear in the size of the graph
`fold`           constants, known content, If with a known condition
`simplify`       operations that do nothing, cuts and joins that cancel
`reshape`        Reshape, Squeeze, Unsqueeze, Flatten
`sink`           Transpose and Reshape moving towards the outputs
`states`         initial states and lengths that say nothing
`fuse`           Dense and LayerNormalization
`convolve`       convolutions as Dense layers
===============  ======================================================================================
"""

from __future__ import annotations

from fastlstm.graph import RECURRENT_OPS, Graph
from fastlstm.passes import convolve, fold, fuse, reshape, shapes, simplify, sink, states
from fastlstm.passes.infer_compute import ELEMENTWISE, REDUCTIONS
from fastlstm.passes.rewrite import Rewrite, settle

__all__ = ["optimise", "shapes"]


def optimise(graph: Graph) -> Graph:
    """Return a graph with the same inputs, outputs and results, in the form that the planner reads.

    Raises
    ------
    UnsupportedError
        If the graph given is not valid.
    """
    return settle(graph.validate(), RULES)


def _table() -> dict[str, tuple[Rewrite, ...]]:
    table: dict[str, list[Rewrite]] = {}

    def on(ops: object, *rewrites: Rewrite) -> None:
        for op in (ops,) if isinstance(ops, str) else tuple(ops):  # type: ignore[arg-type]
            table.setdefault(op, []).extend(rewrites)

    on("*", fold.fold_constants, fold.fold_known_content)
    on("If", fold.inline_if)
    on("Dropout", simplify.unread_dropout)
    on("Cast", simplify.cast_to_same)
    on(("Concat", "Sum", "Max", "Min", "Mean"), simplify.join_of_one)
    on(("Slice", "Expand", "Tile", "Pad", "Transpose"), simplify.same_shape)
    on(("Add", "Sub", "Mul", "Div", "Pow"), simplify.neutral_operand)
    on("Gather", simplify.gather_with_plain_index, simplify.gather_of_one)
    on(("Gather", "Slice"), simplify.cut_of_concat, reshape.slice_of_split)
    on("Concat", simplify.concat_of_slices)
    on("Squeeze", simplify.squeeze_of_cut, sink.transpose_after)
    on(reshape.RESHAPES, reshape.merge_reshapes)
    on("Transpose", sink.merge_transposes, reshape.transpose_before_split)
    on(RECURRENT_OPS, states.absent_states, states.broadcast_states)
    on("MatMul", fuse.dense_of_matmul)
    on("Gemm", fuse.dense_of_gemm)
    on("Conv", convolve.conv_of_groups, convolve.dense_of_conv)
    on("Add", fuse.dense_bias)
    on("GlobalAveragePool", fuse.pooled_mean)
    on(("Div", "Mul", "Add"), fuse.layer_normalization)
    on(sink.BROADCASTING, sink.transpose_after_join)
    sinking = ["Dense", "LayerNormalization", "Softmax", "LogSoftmax", "Hardmax", "Gather", "Slice"]
    on((*sorted(ELEMENTWISE), *sinking, *REDUCTIONS), sink.transpose_after)
    on((*sorted(ELEMENTWISE), *sinking[:5], "Add", "Sub", "Mul", "Div"), sink.reshape_after)
    return {op: tuple(rewrites) for op, rewrites in table.items()}


RULES = _table()
"""Operator -> its rewrites, in the order they are tried."""
