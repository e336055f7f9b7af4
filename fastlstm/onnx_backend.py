"""The ONNX project's backend interface, so that tools and test suites written for it run on fastlstm.

    import fastlstm.onnx_backend as backend
    outputs = backend.prepare(model).run([x])

``onnx.backend.test`` runs its conformance suite through this module; `docs/onnx.md` holds what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastlstm.converters.onnx.graph import NEWEST_OPSET
from fastlstm.converters.onnx.load import from_onnx
from fastlstm.errors import DependencyError, FastLSTMError, InputError, counted
from fastlstm.model import Model

try:
    from onnx import TensorProto, helper
    from onnx.backend.base import Backend, BackendRep, namedtupledict
    from onnx.defs import onnx_opset_version
except ImportError:
    raise DependencyError.missing("onnx", "onnx", "The ONNX backend") from None

__all__ = ["FastLSTMBackend", "FastLSTMRep", "is_compatible", "prepare", "run_model", "run_node", "supports_device"]


class FastLSTMRep(BackendRep):  # type: ignore[misc]  # onnx has no types here
    """A prepared model.

    Attributes
    ----------
    model : Model
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run the model.

        Parameters
        ----------
        inputs : sequence of array, mapping of str to array, or one array
            In the order of the model's inputs that are no initialisers, or by name.

        Returns
        -------
        named tuple of array
            The outputs in order; also by name, as ``outputs["Y"]``.

        Raises
        ------
        InputError
            If the inputs do not fit the model, or a further argument is given.
        """
        if kwargs:
            raise InputError(f"run takes the inputs and nothing else; got {', '.join(kwargs)}.")
        names = [spec.name for spec in self.model.inputs]
        if not isinstance(inputs, Mapping):
            given = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(given) != len(names):
                wanted = f"{counted(len(names), 'input')} ({', '.join(names)})"
                raise InputError(f"The model takes {wanted}; got {len(given)}.")
            inputs = dict(zip(names, given, strict=True))
        found = self.model.run(inputs)
        result: tuple[Any, ...] = namedtupledict("Outputs", list(found))(*found.values())
        return result


class FastLSTMBackend(Backend):  # type: ignore[misc]  # onnx has no types here
    """fastlstm as an ``onnx.backend.base.Backend``; the module's functions are its methods."""

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Return whether the model can be read and the device is there."""
        try:
            cls.prepare(model, device, **kwargs)
        except FastLSTMError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> FastLSTMRep:
        """Return the model ready to run.

        Parameters
        ----------
        model : onnx.ModelProto
        device : str
            "CPU", the only one.
        **kwargs
            ``threads`` and ``precision``, as for `fastlstm.load`.

        Raises
        ------
        InputError
            If the device or an option is not known.
        FileFormatError, UnsupportedError
            If the model is damaged or holds what is not understood.
        """
        if not cls.supports_device(device):
            raise InputError(f"The device should be 'CPU'; got '{device}'.")
        unknown = sorted(set(kwargs) - {"threads", "precision"})
        if unknown:
            raise InputError(f"prepare has no option '{unknown[0]}'; there are threads and precision.")
        return FastLSTMRep(Model(from_onnx(model), **kwargs))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Prepare the model and run it once; see `prepare` and `FastLSTMRep.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,  # noqa: ARG003 - onnx's signature
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one operator.

        Parameters
        ----------
        node : onnx.NodeProto
        inputs : sequence of array, or mapping of str to array
            One for each input of the node that is not absent (``""``).
        device : str
        outputs_info : sequence of (dtype, shape), optional
            Not needed: the results have the types that ONNX prescribes.
        **kwargs
            ``opset_version``, else the newest that fastlstm and onnx know; and what `prepare` takes.

        Returns
        -------
        named tuple of array
        """
        opset = kwargs.pop("opset_version", min(NEWEST_OPSET, onnx_opset_version()))
        names = list(dict.fromkeys(name for name in node.input if name))
        if not isinstance(inputs, Mapping):
            given = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
            if len(given) != len(names):
                wanted = f"{counted(len(names), 'input')} ({', '.join(names)})"
                raise InputError(f"The node takes {wanted}; got {len(given)}.")
            inputs = dict(zip(names, given, strict=True))
        types = [_value_info(name, value) for name, value in inputs.items()]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = helper.make_graph([node], node.op_type, types, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
        return cls.run_model(model, inputs, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether the device is there: the CPU is."""
        return device.split(":")[0] == "CPU"


def _value_info(name: str, value: Any) -> Any:
    """Return the description of an array, or of a list of arrays."""
    if isinstance(value, list):
        kind = helper.np_dtype_to_tensor_dtype(np.asarray(value[0]).dtype) if value else TensorProto.FLOAT
        return helper.make_tensor_sequence_value_info(name, kind, None)
    array = np.asarray(value)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


is_compatible = FastLSTMBackend.is_compatible
prepare = FastLSTMBackend.prepare
run_model = FastLSTMBackend.run_model
run_node = FastLSTMBackend.run_node
supports_device = FastLSTMBackend.supports_device
