"""Modules that ``torch.ao.quantization.quantize_dynamic`` made: float modules in their places, integers in the graph.

torch.export cannot follow a module with packed weights. So it follows a float module with the same weights, and
recurrent layers then get the integers back, exactly, with the scales that the packed weights had. Linear layers
and recurrent layers of so few units that float32 is as fast keep the float values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastlstm.errors import UnsupportedError, counted
from fastlstm.graph import QUANTISED_INPUTS, RECURRENT_OPS, Graph, Node
from fastlstm.graph.quantise import SMALL
from fastlstm.typing import Array

__all__ = ["Unpacked"]


@dataclass
class Unpacked:
    """The quantised layers of one module.

    Attributes
    ----------
    torch : module
    scales : list of float32 array
        Those of the recurrent weights, [] or [rows].
    count : int
        Quantised layers met.
    """

    torch: Any
    scales: list[Array] = field(default_factory=list)
    count: int = 0

    def module(self, packed: Any) -> Any:
        """Return the float module of a quantised one, and any other as it is.

        Raises
        ------
        UnsupportedError
            If it is a quantised layer of another kind.
        """
        dynamic = self.torch.ao.nn.quantized.dynamic
        if isinstance(packed, dynamic.Linear):
            return self._linear(packed)
        if isinstance(packed, (dynamic.LSTM, dynamic.GRU)):
            settings = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional"]
        elif isinstance(packed, (dynamic.LSTMCell, dynamic.GRUCell, dynamic.RNNCell)):
            settings = ["input_size", "hidden_size", "bias"]
            settings += ["nonlinearity"] if isinstance(packed, dynamic.RNNCell) else []
        elif type(packed).__module__.startswith("torch.ao.nn."):
            raise UnsupportedError(
                f"The module holds a quantised {type(packed).__name__}; supported are dynamically quantised LSTM, GRU, "
                "their cells, RNNCell and Linear. Give the model as it was before quantisation, with precision='int8'."
            )
        else:
            return packed
        kind = getattr(self.torch.nn, type(packed).__name__)
        plain = kind(**{name: getattr(packed, name) for name in settings})
        weights = packed.get_weight()
        biases = packed.get_bias() if packed.bias else {}
        self.scales += [scale for weight in weights.values() if (scale := _scale(self.torch, weight)) is not None]
        self._fill(plain, {name: self._plain(weight) for name, weight in weights.items()} | biases)
        return plain

    def _linear(self, packed: Any) -> Any:
        bias = packed.bias()
        plain = self.torch.nn.Linear(packed.in_features, packed.out_features, bias is not None)
        self._fill(plain, {"weight": self._plain(packed.weight())} | ({} if bias is None else {"bias": bias}))
        return plain

    def _fill(self, plain: Any, tensors: dict[str, Any]) -> None:
        self.count += 1
        plain.load_state_dict({name: tensor.detach().float() for name, tensor in tensors.items()})
        plain.eval()

    @staticmethod
    def _plain(weight: Any) -> Any:
        return weight.dequantize() if weight.is_quantized else weight

    @contextlib.contextmanager
    def inside(self, module: Any) -> Iterator[Any]:
        """Replace quantised modules by float ones while the context lasts; yield the module."""
        root = self.module(module)
        taken: list[tuple[Any, str, Any]] = []
        try:
            if root is module:
                self._replace(root, taken)
            yield root
        finally:
            for parent, name, child in taken:
                setattr(parent, name, child)

    def _replace(self, parent: Any, taken: list[tuple[Any, str, Any]]) -> None:
        for name, child in list(parent.named_children()):
            plain = self.module(child)
            if plain is child:
                self._replace(child, taken)
            else:
                taken.append((parent, name, child))
                setattr(parent, name, plain)

    def narrowed(self, graph: Graph) -> Graph:
        """Return the graph with the weights of its recurrent layers as the integers that they were."""
        constants = dict(graph.constants)
        nodes = tuple(self._narrow(node, constants) for node in graph.nodes)
        used = {name for node in nodes for name in node.inputs}
        gone = {name for node in graph.nodes for name in node.inputs} - used
        constants = {name: array for name, array in constants.items() if name not in gone}
        layers = sum(old is not new for old, new in zip(graph.nodes, nodes, strict=True))
        note = (
            f"PyTorch quantised {counted(self.count, 'layer')}: {layers} of them run with 8-bit weights and 16-bit "
            "inputs here, the others in float32 with the values that those weights stand for."
        )
        return graph.replace(nodes=nodes, constants=constants, notes=(*graph.notes, note))

    def _narrow(self, node: Node, constants: dict[str, Array]) -> Node:
        if node.op not in RECURRENT_OPS or int(node.attrs["hidden_size"]) <= SMALL[node.op]:
            return node
        inputs = list(node.inputs)
        for weight, scale in QUANTISED_INPUTS[node.op]:
            name = node.input(weight)
            if not name:
                continue
            directions = [self._integers(matrix) for matrix in constants.get(name, ())]
            if not directions or None in directions:
                return node
            inputs += [""] * (scale + 1 - len(inputs))
            inputs[weight], inputs[scale] = f"{name} (int8)", f"{name} (int8 scale)"
            constants[inputs[weight]], constants[inputs[scale]] = (
                np.stack(arrays) for arrays in zip(*filter(None, directions), strict=True)
            )
        return Node(node.op, tuple(inputs), node.outputs, node.attrs, node.name)

    def _integers(self, matrix: Array) -> tuple[Array, Array] | None:
        """Return a matrix [rows, K] as int8 and a scale a row, if one of the scales gives it exactly."""
        for scale in self.scales:
            if scale.ndim and scale.shape != matrix.shape[:1]:
                continue
            rows = np.broadcast_to(scale, matrix.shape[:1]).astype(np.float32)
            whole = np.rint(matrix / rows[:, None])
            fits = whole.min(initial=0) >= -128 and whole.max(initial=0) <= 127
            if fits and np.array_equal(whole.astype(np.float32) * rows[:, None], matrix):
                return whole.astype(np.int8), rows
        return None


def _scale(torch: Any, weight: Any) -> Array | None:
    """Return a quantised weight's scale, or its scales a row; None for weights of another kind."""
    if not weight.is_quantized:
        return None
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        return weight.q_per_channel_scales().float().numpy()  # type: ignore[no-any-return]
    return np.asarray(weight.q_scale(), np.float32)
