"""PyTorch state dicts: recurrent layers and what stands around them, from names and shapes alone.

A state dict holds tensors by dotted names and no word about how they are used. The tensors are grouped by
module and each module's kind is read off its names and shapes; what order they run in, which step is kept
and which activations come between comes from a short spec (`fastlstm.converters.torch.layer_spec`) or is assumed,
with a sentence in the graph's notes. Every tensor is used, or an error names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastlstm.converters.common.modules import Module, group
from fastlstm.converters.torch.chain import Chain
from fastlstm.converters.torch.layer_spec import RECURRENT_WORDS, Step, parse_layers
from fastlstm.converters.torch.weights import read_pt, read_safetensors
from fastlstm.errors import InputError, UnsupportedError
from fastlstm.graph import Graph
from fastlstm.typing import Array

__all__ = ["from_state_dict", "load"]


def load(
    path: str | Path,
    layers: str | None = None,
    batch_first: bool | None = None,
    prefix: str = "",
    lengths: bool = False,
) -> Graph:
    """Read a state dict from a ``.pt``, ``.pth`` or ``.safetensors`` file.

    Parameters are those of `from_state_dict`. Nothing in the file is executed.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    UnsupportedError
        If it holds something other than tensors, or tensors that make no chain of known layers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _build(read_safetensors(path), layers, batch_first, prefix, lengths, path.stem, ordered=False)
    return _build(
        read_pt(path, order_known=layers is not None), layers, batch_first, prefix, lengths, path.stem, ordered=True
    )


def from_state_dict(
    mapping: Mapping[str, Any],
    layers: str | None = None,
    batch_first: bool | None = None,
    prefix: str = "",
    lengths: bool = False,
    name: str = "",
) -> Graph:
    """Build a graph from a state dict in memory.

    Parameters
    ----------
    mapping : mapping of str to array or tensor
        NumPy arrays, or torch tensors, in the order in which the modules were made.
    layers : str, optional
        What runs in which order: ``"embedding | lstm | last | relu | linear"``; the words and the grammar
        stand in `fastlstm.converters.torch.layer_spec`. Without it the modules are chained in their order, every
        step is kept and no activation is assumed, and the graph's notes say so.
    batch_first : bool, optional
        True: inputs and outputs are [batch, time, features]; False: [time, batch, features]. Not given:
        True, and the notes say so.
    prefix : str
        Use only the tensors whose names begin with it, and drop it from the names.
    lengths : bool
        Add an input ``lengths`` [batch] int64, for models that pack padded sequences.
    name : str
        The graph's name.

    Returns
    -------
    Graph
        Input ``input``, output ``output``; for a lone recurrent module also ``h_n`` and (LSTM) ``c_n``,
        [layers * directions, batch, hidden].

    Raises
    ------
    InputError
        If `layers` is not of the grammar.
    UnsupportedError
        If a tensor is not understood or left over, or shapes do not fit one another; the message names them.
    """
    arrays = {key: _array(key, value) for key, value in mapping.items()}
    return _build(arrays, layers, batch_first, prefix, lengths, name, ordered=True)


def _array(name: str, value: Any) -> Array:
    if hasattr(value, "detach"):  # a torch tensor; torch itself is not imported
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise UnsupportedError(f"The tensor '{name}' should hold numbers; its dtype is {array.dtype}.")
    return array


def _build(
    arrays: Mapping[str, Array],
    layers: str | None,
    batch_first: bool | None,
    prefix: str,
    lengths: bool,
    name: str,
    *,
    ordered: bool,
) -> Graph:
    chosen = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
    if not arrays:
        raise InputError("The state dict holds no tensors.")
    if not chosen:
        raise InputError(f"No tensor's name begins with '{prefix}'; the names are {', '.join(arrays) or 'none'}.")
    modules = group({key: _float32(a) for key, a in chosen.items()})
    steps = None if layers is None else parse_layers(layers)
    pairs = _assumed(modules, ordered) if steps is None else _assigned(steps, modules)
    if not any(step.word in RECURRENT_WORDS for step, _ in pairs):
        raise UnsupportedError(
            "There is no recurrent layer among the tensors: expected names such as 'lstm.weight_ih_l0'; "
            f"found {', '.join(chosen)}."
        )
    chain = Chain(name, batch_first is not False, lengths)
    graph = chain.build(pairs)
    return graph.replace(notes=(*_notes(pairs, steps, batch_first, arrays), *graph.notes))


def _float32(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _notes(
    pairs: Sequence[tuple[Step, Module | None]],
    steps: Sequence[Step] | None,
    batch_first: bool | None,
    arrays: Mapping[str, Array],
) -> Iterator[str]:
    if steps is None and len(pairs) > 1:
        yield (
            f'The file holds weights only; layers="{" | ".join(str(step) for step, _ in pairs)}" was assumed '
            "from names and shapes: every step is kept, and no activation or skip connection comes between. If the "
            "model has one, or keeps the last step alone, say so in layers=... with its name, 'residual' or 'last'."
        )
    if steps is None and any(step.word == "rnn" for step, _ in pairs):
        yield "tanh was assumed for the RNN layers; say 'rnn_relu' in layers=... if they were made with relu."
    if batch_first is None:
        yield (
            "The batch was assumed to come first: inputs are [batch, time, features]; batch_first=False says otherwise."
        )
    if any(a.dtype == np.float64 for a in arrays.values()):
        yield "Weights stored in float64 were rounded to float32."
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"The tensor '{key}' holds NaN or infinite numbers."


def _assigned(steps: Sequence[Step], modules: Sequence[Module]) -> list[tuple[Step, Module | None]]:
    """Give each step that needs tensors its module: the one it names, or the next that fits."""
    free = list(modules)
    named = {step.module: _find(step.module, modules) for step in steps if step.module}
    pairs: list[tuple[Step, Module | None]] = []
    for step in steps:
        if not step.needs_tensors:
            pairs.append((step, None))
            continue
        reserved = [m for m in free if m not in named.values()]
        module = named.get(step.module) or next((m for m in reserved if step.word in m.words), None)
        if module is None or module not in free or step.word not in module.words:
            found = f"the module '{module.name}' is {module}" if module in free else "none is left"
            raise UnsupportedError(
                f"layers: '{step}' needs the weights of such a layer, but {found}. "
                f"The file holds: {'; '.join(f'{m.name}: {m}' for m in modules)}."
            )
        free.remove(module)
        pairs.append((step, module))
    if free:
        raise UnsupportedError(
            f"layers: no step uses the tensors {', '.join(t for m in free for t in m.tensor_names)}. "
            f"Add a step such as '{free[0].words[0]}={free[0].name}', or choose a part with prefix=..."
        )
    return pairs


def _find(name: str, modules: Sequence[Module]) -> Module:
    exact = [m for m in modules if m.name == name]
    ending = [m for m in modules if m.name.endswith(f".{name}")]
    found = exact or ending
    if len(found) != 1:
        raise InputError(
            f"layers: the name '{name}' fits {len(found)} modules; they are {', '.join(repr(m.name) for m in modules)}."
        )
    return found[0]


def _assumed(modules: Sequence[Module], ordered: bool) -> list[tuple[Step, Module | None]]:
    """Chain the modules: in their own order if that fits, else in the only order that does."""
    for module in modules:
        if module.words[0] == "prelu":
            raise UnsupportedError(
                f"The module '{module.name}' is {module}: say which, and what runs when, with layers=\"...\"."
            )
    if ordered:
        pairs = _chained(modules)
        if pairs is not None:
            return pairs
    else:
        modules = sorted(modules, key=lambda module: module.name)  # the reader's order differs from run to run
    orders = [pairs for order in _orders(modules) if (pairs := _chained(order)) is not None]
    if len(orders) != 1:
        how = "fit one another in several orders" if orders else "fit one another in no order"
        raise UnsupportedError(
            f"The modules {how}: {'; '.join(f'{m.name}: {m}' for m in modules)}. Say what runs when, as in "
            f'layers="{" | ".join(f"{m.words[0]}={m.name}" for m in modules)}"; a model that is no chain '
            "can be exported with torch.export or to ONNX."
        )
    return orders[0]


def _chained(order: Sequence[Module]) -> list[tuple[Step, Module | None]] | None:
    features: int | None = None
    pairs: list[tuple[Step, Module | None]] = []
    for position, module in enumerate(order):
        following = order[position + 1] if position + 1 < len(order) else None
        word = module.words[0]
        if position == 0 and module.is_embedding_of(following):
            word, features = "embedding", module.embedding_size
        elif features in (None, module.input_size):
            features = module.output_size
        else:
            return None
        pairs.append((Step(word, module.name), module))
    return pairs


def _orders(modules: Sequence[Module]) -> Iterator[tuple[Module, ...]]:
    """Yield the orders worth trying: modules numbered by one parent (a Sequential) keep their order."""
    if len(modules) > 7:
        raise UnsupportedError(
            f'The order of {len(modules)} modules cannot be guessed; say it with layers="...". The file '
            f"holds: {'; '.join(f'{m.name}: {m}' for m in modules)}."
        )

    def extend(order: tuple[Module, ...], left: Sequence[Module]) -> Iterator[tuple[Module, ...]]:
        if not left:
            yield order
        for module in left:
            if not any(other.stands_before(module) for other in left):
                yield from extend((*order, module), [m for m in left if m is not module])

    return extend((), modules)
