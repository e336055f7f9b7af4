"""What shape each aten operation gives that computes: elementwise, reductions, products, layers."""

from __future__ import annotations

from collections.abc import Mapping

from fastlstm.converters.torch.aten import elementwise
from fastlstm.converters.torch.aten.shapes_call import CallShapes, Rule, Shape, UnknownShapeError, broadcast, first
from fastlstm.converters.torch.program import SymInt
from fastlstm.converters.torch.sizes import Size, Sizes

__all__ = ["RULES"]


def _elementwise(z: Sizes, c: CallShapes) -> list[Shape]:
    return [broadcast(z, c.all_shapes())]


def _reduce(outputs: int) -> Rule:
    def rule(_z: Sizes, c: CallShapes) -> list[Shape]:
        shape = c.shape("self")
        axes = c.axes_of(len(shape)) or range(len(shape))
        keep = c.flag("keepdim")
        kept = [Size(1, "fixed") if a in axes else s for a, s in enumerate(shape) if keep or a not in axes]
        return [kept] * (outputs if c.get("dim") is not None else 1)

    return rule


def _layer_norm(z: Sizes, c: CallShapes) -> list[Shape]:
    sizes = c.integers("normalized_shape")
    shape = c.shape("input", least=len(sizes))
    for have, want in zip(shape[len(shape) - len(sizes) :], sizes, strict=True):
        z.same(have, z.fixed(want))
    return [shape]


def _channels_norm(z: Sizes, c: CallShapes) -> list[Shape]:
    """Normalisation with weights or statistics for each channel on axis 1."""
    shape = c.shape("input", least=2)
    known = [c.shape(name, least=1) for name in ("weight", "running_mean") if c.get(name) is not None]
    if known:
        z.same(shape[1], known[0][0])
    z.fix(shape[1])
    return [shape]


def _linear(z: Sizes, c: CallShapes) -> list[Shape]:
    x, weight = c.shape("input", least=1), c.shape("weight", least=1)
    z.same(x[-1], weight[-1])
    return [[*x[:-1], *weight[:-1]]]


def _product(z: Sizes, a: Shape, b: Shape) -> Shape:
    z.same(a[-1], b[-2] if len(b) > 1 else b[0])
    front = broadcast(z, [a[:-2], b[:-2]])
    return [*front, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]


def _matmul(z: Sizes, c: CallShapes) -> list[Shape]:
    second = next((name for name in ("mat2", "vec") if c.get(name) is not None), "other")
    return [_product(z, c.shape("self", least=1), c.shape(second, least=1))]


def _add_product(first: str, second: str) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        return [broadcast(z, [_product(z, c.shape(first, least=1), c.shape(second, least=1)), c.shape("self")])]

    return rule


def _einsum(z: Sizes, c: CallShapes) -> list[Shape]:
    terms, _, result = c.text("equation").replace(" ", "").partition("->")
    if "." in terms or not result:
        raise UnknownShapeError
    found: dict[str, Size] = {}
    letters_of, shapes = terms.split(","), c.shapes("tensors")
    fits = list(map(len, letters_of)) == list(map(len, shapes)) and set(result) <= set(terms)
    c.expect(fits, "the equation does not fit its operands")
    for letters, shape in zip(letters_of, shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            z.same(found.setdefault(letter, size), size)
    return [[found[letter] for letter in result]]


def _attention(z: Sizes, c: CallShapes) -> list[Shape]:
    q, k, v = (c.shape(name, least=2) for name in ("query", "key", "value"))
    z.fix(q[-1], k[-1])  # the scale comes from the number of features
    z.same(k[-2], v[-2])
    if c.get("attn_mask") is not None:
        broadcast(z, [[q[-2], k[-2]], c.shape("attn_mask")])
    return [[*broadcast(z, [q[:-2], k[:-2], v[:-2]]), q[-2], v[-1]]]


def _embedding(_z: Sizes, c: CallShapes) -> list[Shape]:
    return [[*c.shape("indices"), *c.shape("weight", least=1)[1:]]]


def _embedding_bag(z: Sizes, c: CallShapes) -> list[Shape]:
    return [[c.shape("offsets", least=1)[0], c.shape("weight", least=2)[1]], *[[z.fixed(0)]] * 3]


def _glu(z: Sizes, c: CallShapes) -> list[Shape]:
    shape = list(c.shape("self", least=1))
    axis = c.axis_of(len(shape), default=-1)
    z.fix(shape[axis])
    shape[axis] = z.fixed(shape[axis].value // 2)
    return [shape]


def _window(z: Sizes, size: Size, kernel: int, stride: int, pads: int, dilation: int) -> Size:
    return z.shift(z.ratio(z.shift(size, pads - dilation * (kernel - 1) - 1), stride), 1)


def _convolution(z: Sizes, c: CallShapes) -> list[Shape]:
    x, weight = c.shape("input"), c.shape("weight", least=3)
    count = len(weight) - 2
    if len(x) != count + 2:
        raise UnknownShapeError
    if c.flag("transposed"):
        return _convolution_back(z, c)
    z.same(x[1], z.fixed(weight[1].value * c.integer("groups", 1)))
    z.fix(x[1])
    if c.get("padding") == "same":
        return [[x[0], weight[0], *x[2:]]]
    padding = [0] * count if c.get("padding") == "valid" else c.integers("padding", 0, count)
    dilation, stride = c.steps("dilation", 1, count), c.steps("stride", 1, count)
    kernels = [size.value for size in weight[2:]]
    sizes = [
        _window(z, size, k, s, 2 * p, d)
        for size, k, s, p, d in zip(x[2:], kernels, stride, padding, dilation, strict=True)
    ]
    return [[x[0], weight[0], *sizes]]


def _convolution_back(z: Sizes, c: CallShapes) -> list[Shape]:
    weight = c.shape("weight", least=3)
    x, count, groups = c.shape("input", least=len(weight)), len(weight) - 2, c.integer("groups", 1)
    c.expect(len(x) == len(weight), f"its input has {len(x)} axes")
    z.same(x[1], weight[0])
    z.fix(x[1])
    stride, padding = c.steps("stride", 1, count), c.integers("padding", 0, count)
    dilation, extra = c.steps("dilation", 1, count), c.integers("output_padding", 0, count)
    sizes = []
    for i, size in enumerate(x[2:]):
        spread = z.product([size, z.fixed(stride[i])]) if stride[i] != 1 else size
        rest = dilation[i] * (weight[2 + i].value - 1) + extra[i] + 1 - 2 * padding[i] - stride[i]
        sizes.append(z.shift(spread, rest))
    return [[x[0], z.fixed(weight[1].value * groups), *sizes]]


def _pool(count: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, kernel = c.shape("self", least=count), c.steps("kernel_size", None, count)
        if c.flag("ceil_mode"):
            raise UnknownShapeError
        stride = c.steps("stride", None, count) if c.get("stride") else kernel
        padding, dilation = c.integers("padding", 0, count), c.steps("dilation", 1, count)
        sizes = [
            _window(z, size, k, s, 2 * p, d)
            for size, k, s, p, d in zip(x[-count:], kernel, stride, padding, dilation, strict=True)
        ]
        return [[*x[:-count], *sizes]]

    return rule


def _adaptive_pool(count: int, outputs: int = 1) -> Rule:
    """A number that is the size of the input's axis may be meant as a number: it fixes the axis."""

    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        shape, wanted, sizes = c.shape("self", least=count), c.items("output_size"), []
        wanted = wanted if len(wanted) == count else wanted * count
        c.expect(len(wanted) == count, f"'output_size' has {len(wanted)} items")
        for position, (size, number) in enumerate(zip(shape[-count:], wanted, strict=True)):
            if isinstance(number, SymInt):
                found = c.size("output_size", position)
                sizes.append(size if found is None or found.root is size.root else found)
                continue
            c.expect(isinstance(number, int), "'output_size' should be integers")
            if number != 1:
                z.fix(size)
            sizes.append(z.fixed(number))
        return [[*shape[:-count], *sizes]] * outputs

    return rule


def _stack_of_layers(states: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, both = c.shape("input", least=3), c.flag("bidirectional")
        initial = c.shapes("hx") if states == 2 else [c.shape("hx")]
        c.expect([len(x), *map(len, initial)] == [3] * (1 + states), "its input and states should have 3 axes")
        batch = x[0 if c.flag("batch_first") else 1]
        params = c.shapes("params")
        c.expect(len(params) > 1 and len(params[0]) == len(params[1]) == 2, "its weights should be matrices")
        z.same(x[2], params[0][1])
        z.fix(x[2])
        hidden = params[1][0].value // (4 if states == 2 else 3 if c.call.target.startswith("aten.gru") else 1)
        for (layers, rows, features), size in zip(initial, (params[1][1].value, hidden), strict=False):
            z.same(rows, batch)
            z.same(layers, z.fixed(c.integer("num_layers") * (1 + both)))
            z.same(features, z.fixed(size))
            z.fix(layers, features)
        return [[*x[:2], z.fixed((1 + both) * initial[0][2].value)], *initial]

    return rule


def _cell(states: int) -> Rule:
    def rule(z: Sizes, c: CallShapes) -> list[Shape]:
        x, initial = c.shape("input", least=2), c.shapes("hx", 2) if states == 2 else [c.shape("hx", 2)]
        c.expect(len(initial) == states, f"it has {len(initial)} states")
        z.same(x[1], c.shape("w_ih", least=2)[1])
        z.fix(x[-1])
        for state in initial:
            z.same(state[0], x[0])
            z.same(state[1], c.shape("w_hh", least=2)[1])
            z.fix(state[-1])
        return initial

    return rule


_ELEMENTWISE = [
    *elementwise.ELEMENTWISE, "div", "where", "masked_fill", "pow", "clamp", "clamp_min", "clamp_max", "elu", "gelu",
    "addcmul", "expm1", "hardtanh", "leaky_relu", "lerp", "log1p", "log_sigmoid", "relu6", "rsqrt", "silu",
    "softplus", "square",
]  # fmt: skip
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(["softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "logcumsumexp"], first("self")),
    **dict.fromkeys(["dropout", "alpha_dropout", "feature_dropout"], first("input")),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "prod", "argmax", "argmin", "logsumexp"], _reduce(1)),
    **dict.fromkeys(["max", "min"], _reduce(2)),
    **dict.fromkeys(["var", "std"], _reduce(1)),
    **dict.fromkeys(["batch_norm", "group_norm", "instance_norm"], _channels_norm),
    **dict.fromkeys(["matmul", "mm", "bmm", "mv"], _matmul),
    **dict.fromkeys(["prelu", "_prelu_kernel"], first("self", 1)),
    **dict.fromkeys(["conv1d", "conv2d", "convolution", "_convolution_mode"], _convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d"], _convolution_back),
    **dict.fromkeys(["gru", "rnn_tanh", "rnn_relu"], _stack_of_layers(1)),
    **dict.fromkeys(["gru_cell", "rnn_tanh_cell", "rnn_relu_cell"], _cell(1)),
    "adaptive_avg_pool1d": _adaptive_pool(1), "adaptive_avg_pool2d": _adaptive_pool(2),
    "adaptive_max_pool1d": _adaptive_pool(1, 2), "adaptive_max_pool2d": _adaptive_pool(2, 2),
    "addmm": _add_product("mat1", "mat2"), "avg_pool1d": _pool(1), "avg_pool2d": _pool(2),
    "baddbmm": _add_product("batch1", "batch2"), "einsum": _einsum, "embedding": _embedding,
    "embedding_bag": _embedding_bag, "glu": _glu, "layer_norm": _layer_norm, "linalg_vector_norm": _reduce(1),
    "linear": _linear, "lstm": _stack_of_layers(2), "lstm_cell": _cell(2), "max_pool1d": _pool(1),
    "max_pool2d": _pool(2), "scaled_dot_product_attention": _attention, "_weight_norm": first("v"),
}  # fmt: skip
"""Rules by the operation's name without its overload."""
