"""The short spec for what a file of weights does not say: ``layers="embedding | lstm | last | linear"``.

Grammar::

    layers = step { "|" step }
    step   = word [ "(" number { "," number } ")" ] [ "=" module ]

A word that needs tensors takes the next module in the file that fits it, or the one named after ``=`` (the
end of a dotted name is enough: ``lstm=rnn`` finds ``encoder.rnn``). Words are not case-sensitive.

======================  =====================================================================
word                    meaning
======================  =====================================================================
``embedding``           rows of a table picked by integers; only at the start
``lstm`` ``gru``        all layers and directions of a module, or of a cell run over time
``rnn`` ``rnn_relu``    the plain recurrent layer with tanh, with relu
``linear``              ``x @ weight.T + bias``
``layernorm``           over the features; ``layernorm(1e-6)`` gives the epsilon (1e-5)
``batchnorm``           each feature with its running statistics; epsilon likewise
``prelu``               one slope, or one a feature
``every`` ``all``       go on with every step (what happens anyway)
``last``                go on with the last step (of each row, if there are lengths)
``hidden``              go on with the last layer's final hidden state, both directions joined
``mean`` ``max``        over time
``dropout``             nothing at inference
``residual``            add what the layer before it was given
``relu``, ``tanh`` …    an activation: see `ACTIVATION_WORDS`; parameters in parentheses
======================  =====================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastlstm.errors import InputError, counted

__all__ = ["ACTIVATION_WORDS", "LAYER_WORDS", "RECURRENT_WORDS", "Step", "parse_layers"]

RECURRENT_WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "lstm": ("LSTM", "Tanh"),
        "gru": ("GRU", "Tanh"),
        "rnn": ("RNN", "Tanh"),
        "rnn_relu": ("RNN", "Relu"),
    }
)
"""Words of recurrent layers: the operator and, of an RNN, the activation."""

LAYER_WORDS = frozenset({*RECURRENT_WORDS, "embedding", "linear", "layernorm", "batchnorm", "prelu"})
"""Words that take tensors from the file."""

ACTIVATION_WORDS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "relu": ("Relu", {}),
        "tanh": ("Tanh", {}),
        "sigmoid": ("Sigmoid", {}),
        "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
        "elu": ("Elu", {"alpha": 1.0}),
        "selu": ("Selu", {}),
        "gelu": ("Gelu", {"approximate": "none"}),
        "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
        "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        "hard_swish": ("HardSwish", {}),
        "softplus": ("Softplus", {}),
        "softsign": ("Softsign", {}),
        "mish": ("Mish", {}),
        "softmax": ("Softmax", {"axis": -1}),
        "log_softmax": ("LogSoftmax", {"axis": -1}),
    }
)
"""Words of activations: the operator and its attributes as PyTorch has them."""

_PARAMETERS = {"leaky_relu": ["alpha"], "elu": ["alpha"], "hard_sigmoid": ["alpha", "beta"]}
_OTHER_WORDS = frozenset({"every", "all", "last", "hidden", "mean", "max", "dropout", "residual", "silu"})
_STEP = re.compile(r"(?P<word>\w+)\s*(?:\((?P<numbers>[^()]*)\))?\s*(?:=\s*(?P<module>[\w.]+))?")


@dataclass(frozen=True)
class Step:
    """One step of the spec: a word, the module it names (``""``: the next that fits) and its numbers."""

    word: str
    module: str = ""
    numbers: tuple[float, ...] = ()

    @property
    def needs_tensors(self) -> bool:
        """Whether the step takes a module of the file."""
        return self.word in LAYER_WORDS

    def activation(self) -> tuple[str, dict[str, Any]]:
        """Return the operator and attributes of an activation's word."""
        op, attrs = ACTIVATION_WORDS[self.word]
        given = dict(zip(_PARAMETERS.get(self.word, []), self.numbers, strict=False))
        return op, {**attrs, **given}

    def __str__(self) -> str:
        return f"{self.word}={self.module}" if self.module else self.word


def parse_layers(text: str) -> list[Step]:
    """Return the steps that a spec such as ``"lstm=rnn | last | leaky_relu(0.2) | linear"`` names.

    Raises
    ------
    InputError
        If a step is not of the grammar, a word is unknown, or it takes no such numbers or module.
    """
    if not isinstance(text, str):
        raise InputError(
            f"layers should be a text of steps, such as 'lstm | last | linear'; got {type(text).__name__}."
        )
    steps = [_parse_step(part.strip()) for part in text.split("|")]
    if any(step.word == "embedding" for step in steps[1:]):
        raise InputError("layers: 'embedding' turns integers into features, so it can only stand at the start.")
    return steps


def _parse_step(text: str) -> Step:
    match = _STEP.fullmatch(text)
    if match is None:
        raise InputError(f"layers: '{text}' is not a step; expected word, word(number) or word=module.")
    word, module = match["word"].lower(), match["module"] or ""
    known = LAYER_WORDS | ACTIVATION_WORDS.keys() | _OTHER_WORDS
    if word not in known:
        raise InputError(f"layers: '{word}' is unknown; the words are {', '.join(sorted(known))}.")
    if module and word not in LAYER_WORDS:
        raise InputError(f"layers: '{word}' has no weights, so it cannot name the module '{module}'.")
    try:
        numbers = tuple(float(n) for n in (match["numbers"] or "").split(",") if n.strip())
    except ValueError:
        raise InputError(f"layers: '{text}' should hold numbers between the parentheses.") from None
    allowed = 1 if word in {"layernorm", "batchnorm", "dropout"} else len(_PARAMETERS.get(word, []))
    if len(numbers) > allowed:
        raise InputError(f"layers: '{word}' takes at most {counted(allowed, 'number')}; got {len(numbers)}.")
    return Step(word, module, numbers)
