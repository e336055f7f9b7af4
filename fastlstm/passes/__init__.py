"""Passes: graphs as exporters write them become plain enough for the planner, with the same meaning.

`optimise` applies the rewrites below to a fixed point; each is one small function whose docstring shows what it
turns into what. `shapes.infer` tells symbolic shapes, dtypes and known content of every value.

===============  ======================================================================================
module           noun
===============  ======================================================================================
`shapes`         inference over a graph, by the rules of `fastlstm.operators`
`branches`       the same without branches that cannot run
`rewrite`        applying rewrites: one sweep is linear in the size of the graph
`fold`           constants, known content, If with a known condition
`simplify`       operations without effect, slices and concatenations that cancel
`reshape`        Reshape, Squeeze, Unsqueeze, Flatten
`sink`           Transpose and Reshape moving towards the outputs
`states`         initial states and lengths without effect
`fuse`           Dense and LayerNormalization
`convolve`       explicit padding of convolutions, batch normalisation folded into them
`quantised`      quantised operators as float32 arithmetic on integers
`stacks`         time steps split and joined again, reversed sequences
`loops`          loop invariants; loops read as iterations over frames
`fixed_time`     notes on recurrences unrolled over an axis that is declared open
`recognise`      recurrent cells that are written out: `loop_layers` and `unrolled` find them, by the algebra
                 of `vectors`, `formulas` and `cells`; `surgery` puts layers in their place and checks them
===============  ======================================================================================
"""

from __future__ import annotations

from fastlstm.errors import UnsupportedError
from fastlstm.graph import RECURRENT_OPS, Graph
from fastlstm.operators import ELEMENTWISE, REDUCTIONS
from fastlstm.operators.validation import validated
from fastlstm.passes import (
    convolve,
    fixed_time,
    fold,
    fuse,
    loops,
    quantised,
    reshape,
    shapes,
    simplify,
    sink,
    stacks,
    states,
)
from fastlstm.passes.branches import infer_possible
from fastlstm.passes.recognise import recognise
from fastlstm.passes.rewrite import Budget, Rewrite, fixpoint

__all__ = ["infer_possible", "optimise", "shapes"]

MOST_ROUNDS = 4
"""Rounds of recognition: cells in bodies may only be found once the layers around them have been."""


def optimise(graph: Graph) -> Graph:
    """Return a graph with the same inputs, outputs and results, in the form that the planner reads.

    It may have more notes, on what the graph leaves open.

    Raises
    ------
    UnsupportedError
        If the graph given is not valid, holds a node that cannot run on its inputs, or an endless loop.
    """
    budget = Budget(graph)
    graph, infos = fixpoint(validated(graph), RULES, budget)
    if problem := shapes.first_misfit(graph, infos):
        raise UnsupportedError(problem)
    graph = fixed_time.with_notes(graph, infos)
    for _ in range(MOST_ROUNDS):
        recognised = recognise(graph, infos)
        if recognised is graph:
            break
        graph, infos = fixpoint(recognised, RULES, budget)
    loops.refuse_endless(graph)
    return graph.replace(notes=tuple(dict.fromkeys(graph.notes)))  # a stored model has those of its last optimisation


def _table() -> dict[str, tuple[Rewrite, ...]]:
    table: dict[str, list[Rewrite]] = {}

    def on(ops: object, *rewrites: Rewrite) -> None:
        for op in (ops,) if isinstance(ops, str) else tuple(ops):  # type: ignore[arg-type]
            table.setdefault(op, []).extend(rewrites)

    on("DequantizeLinear", quantised.constant_weights, quantised.dequantised)
    on("QuantizeLinear", quantised.quantised)
    on("DynamicQuantizeLinear", quantised.dynamic_range)
    on("MatMulInteger", quantised.product_in_floats)
    on("ConvInteger", quantised.convolution_in_floats)
    on(("QLinearMatMul", "QLinearConv"), quantised.quantised_product)
    on("Cast", quantised.plain_sum)
    on(("MatMul", "Conv"), quantised.scaled_product)
    on("*", fold.fold_constants, fold.fold_known_content)
    on("If", fold.inline_if)
    on(("Loop", "Scan"), loops.invariants)
    on("Dropout", simplify.unread_dropout)
    on("Cast", simplify.cast_to_same, simplify.cast_of_rows)
    on(("Concat", "Sum", "Max", "Min", "Mean"), simplify.join_of_one)
    on(("Slice", "Expand", "Tile", "Pad", "Transpose"), simplify.same_shape)
    on(("Add", "Sub", "Mul", "Div", "Pow"), simplify.neutral_operand)
    on("Gather", simplify.gather_with_plain_index, simplify.gather_of_one)
    on(("Gather", "Slice"), simplify.cut_of_concat, reshape.slice_of_split)
    on("Concat", simplify.concat_of_slices, stacks.join_of_cuts, stacks.join_of_pieces)
    on("Reshape", stacks.turn_of_one_row)
    on("ReverseSequence", stacks.plain_reversal)
    on("Slice", stacks.reversal_of_reversal)
    on("SequenceAt", stacks.step_of_pieces)
    on("Gather", stacks.step_of_reversal)
    on("Squeeze", simplify.squeeze_of_cut, sink.transpose_after)
    on(reshape.RESHAPES, reshape.merge_reshapes)
    on("Transpose", sink.merge_transposes, reshape.transpose_before_split)
    on(RECURRENT_OPS, states.absent_states, states.broadcast_states, stacks.reversed_layer)
    on("MatMul", fuse.dense_of_matmul)
    on("Gemm", fuse.dense_of_gemm)
    on("BatchNormalization", convolve.normalised_convolution)
    on("Conv", convolve.explicit_padding)
    on("Add", fuse.dense_bias)
    on("Mul", fuse.swish)
    on("GlobalAveragePool", fuse.pooled_mean)
    on(("Div", "Mul", "Add"), fuse.layer_normalization)
    on(sink.BROADCASTING, sink.transpose_after_join)
    sinking = ["Dense", "LayerNormalization", "Softmax", "LogSoftmax", "Hardmax", "Gather", "Slice"]
    on((*sorted(ELEMENTWISE), *sinking, *REDUCTIONS), sink.transpose_after)
    on((*sorted(ELEMENTWISE), *sinking[:5], "Add", "Sub", "Mul", "Div"), sink.reshape_after)
    return {op: tuple(rewrites) for op, rewrites in table.items()}


RULES = _table()
"""Operator -> its rewrites, in the order they are tried."""
