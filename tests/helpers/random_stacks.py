"""Random graphs of layers that look at neighbours in time, ahead too, at several rates; and recurrent ones between."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from fastlstm.graph import Graph, Node, TensorSpec, default_activations

WIDTH = 4  # channels of every value, which is [batch, channels, time]


class Stack:
    """A graph that grows layer by layer."""

    def __init__(self, seed: int) -> None:
        self.random, self.numbers = random.Random(seed), np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.last = "x"

    def weight(self, *shape: int) -> str:
        return self.constant(self.numbers.uniform(-0.8, 0.8, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        name = f"v{len(self.nodes)}"
        outs = (name, *("" for _ in range(outputs - 1)))
        self.nodes.append(Node(op, inputs, outs, attrs, f"{op.lower()}{len(self.nodes)}"))
        return name

    def graph(self) -> Graph:
        spec = TensorSpec("x", ("batch", WIDTH, "time"))
        return Graph((spec,), (TensorSpec(self.last, ("batch", WIDTH, "out")),), tuple(self.nodes), self.constants)

    # ------------------------------------------------------------ layers

    def window(self) -> dict[str, object]:
        k, dilation, stride = (self.random.choice(c) for c in ([1, 2, 3, 4], [1, 1, 2], [1, 1, 1, 2, 3]))
        span = (k - 1) * dilation
        pads = [self.random.randint(0, span + 1), self.random.randint(0, span + 1)]
        return {"kernel_shape": [k], "dilations": [dilation], "strides": [stride], "pads": pads}

    def convolution(self) -> None:
        attrs = self.window()
        weight = self.weight(WIDTH, WIDTH, attrs["kernel_shape"][0])  # type: ignore[index]
        self.last = self.add("Conv", self.last, weight, self.weight(WIDTH), group=1, **attrs)

    def transposed(self) -> None:
        stride = self.random.choice([1, 2, 3])
        k, dilation = self.random.choice([1, 2, 3, 4]), self.random.choice([1, 1, 2])
        full = (k - 1) * dilation + 1
        pads = [self.random.randint(0, full // 2), self.random.randint(0, full // 2)]
        more = self.random.randint(0, stride - 1)
        attrs = {"strides": [stride], "dilations": [dilation], "pads": pads, "output_padding": [more], "group": 1}
        self.last = self.add("ConvTranspose", self.last, self.weight(WIDTH, WIDTH, k), self.weight(WIDTH), **attrs)

    def pooling(self) -> None:
        attrs = self.window()
        kernel, dilations = attrs["kernel_shape"][0], attrs.pop("dilations")  # type: ignore[index]
        attrs["pads"] = [self.random.randint(0, kernel // 2), self.random.randint(0, kernel // 2)]
        if self.random.random() < 0.5:
            self.last = self.add("AveragePool", self.last, count_include_pad=1, **attrs)
        else:
            self.last = self.add("MaxPool", self.last, dilations=dilations, **attrs)

    def slice(self) -> None:
        start, end, step = (self.random.choice(c) for c in ([0, 0, 1, 2], [1 << 40, -1, -2], [1, 1, 2, 3]))
        self.last = self.add("Slice", self.last, self.ints(start), self.ints(end), self.ints(2), self.ints(step))

    def padding(self) -> None:
        pads = (0, 0, self.random.randint(0, 2), 0, 0, self.random.randint(0, 2))
        value = self.constant(np.array(self.random.choice([0, 0.5]), np.float32))
        self.last = self.add("Pad", self.last, self.ints(*pads), value)

    def recurrent(self) -> None:
        op = self.random.choice(["LSTM", "GRU", "RNN"])
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
        attrs: dict[str, object] = {"hidden_size": WIDTH, "directions": ["forward"], "clip": None}
        attrs["activations"] = default_activations(op, 1)
        attrs |= {"LSTM": {"input_forget": 0}, "GRU": {"reset_after": 0}, "RNN": {}}[op]
        x = self.add("Transpose", self.last, perm=[2, 0, 1])
        weights = [self.weight(1, gates * WIDTH, WIDTH) for _ in range(2)]
        y = self.add(op, x, *weights, outputs=3 if op == "LSTM" else 2, **attrs)
        self.last = self.add("Transpose", y, perm=[1, 2, 0])

    def residual(self) -> None:
        k = self.random.choice([2, 3, 5])
        before = self.random.randint(0, k - 1)
        attrs = {"kernel_shape": [k], "dilations": [1], "strides": [1], "pads": [before, k - 1 - before], "group": 1}
        y = self.add("Conv", self.last, self.weight(WIDTH, WIDTH, k), "", **attrs)
        self.last = self.add(self.random.choice(["Add", "Mul"]), self.add("Tanh", y), self.last)

    def difference(self) -> None:
        late, early = (
            self.add("Slice", self.last, self.ints(a), self.ints(b), self.ints(2))
            for a, b in self.random.choice([((1, 1 << 40), (0, -1)), ((0, -2), (2, 1 << 40))])
        )
        self.last = self.add("Sub", late, early)

    def stacked(self) -> None:
        """Each row beside its neighbours."""
        after = self.add("Slice", self.last, self.ints(1), self.ints(1 << 40), self.ints(2))
        after = self.add("Pad", after, self.ints(0, 0, 0, 0, 0, 1))
        both = self.add("Concat", self.last, after, axis=1)
        self.last = self.add("Conv", both, self.weight(WIDTH, 2 * WIDTH, 1), "", kernel_shape=[1], group=1)

    def folded(self) -> None:
        """Two rows in one, or one in two."""
        inside = self.random.choice([2 * WIDTH, WIDTH // 2])
        x = self.add("Transpose", self.last, perm=[0, 2, 1])
        x = self.add("Reshape", x, self.ints(0, -1, inside), allowzero=0)
        x = self.add("MatMul", x, self.weight(inside, WIDTH))
        self.last = self.add("Transpose", x, perm=[0, 2, 1])

    def bent(self) -> None:
        self.last = self.add(self.random.choice(["Relu", "Tanh", "Sigmoid"]), self.last)


LAYERS: dict[str, Callable[[Stack], None]] = {
    name: getattr(Stack, name)
    for name in (
        "convolution", "transposed", "pooling", "slice", "padding", "recurrent", "residual", "difference", "stacked",
        "folded", "bent",
    )
}  # fmt: skip


def random_stack(seed: int, kinds: list[str]) -> Graph:
    """Return a graph of layers of these kinds, their sizes drawn by the seed."""
    stack = Stack(seed)
    for kind in kinds:
        LAYERS[kind](stack)
    return stack.graph()
