"""``python -m fastlstm.converters.table [FILE]``: the feature table, from what the converters say they support.

It is printed, or written into a file between its two markers, as in ``converters/README.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastlstm.converters.keras import load as keras_models
from fastlstm.converters.keras import tensorflow
from fastlstm.converters.keras.activations import ACTIVATION_NAMES, RECURRENT_NAMES
from fastlstm.converters.onnx import load as onnx_models
from fastlstm.converters.torch import export, torchscript

__all__ = ["BEGIN", "END", "main", "render", "updated"]

BEGIN = "<!-- table: begin -->"
END = "<!-- table: end -->"


def render() -> str:
    """Return the table as Markdown: format, layer, supported options, refused ones."""
    rows = [("Keras", f"`{layer}`", options, refused) for layer, options, refused in keras_models.supported()]
    operations = ", ".join(f"`{name}`" for name in sorted(keras_models.OPERATIONS))
    rows.append(("Keras 3", "bare operations", operations, "all others"))
    functions = ", ".join(f"`{name}`" for name in sorted(tensorflow.FUNCTIONS))
    rows.append(("Keras 2", "functions of TensorFlow", functions, "all others"))
    names = [", ".join(f"`{name}`" for name in group) for group in (ACTIVATION_NAMES, RECURRENT_NAMES)]
    rows.append(("Keras", "activations by name", names[0], "`sparsemax`, functions of one's own"))
    rows.append(("Keras", "activations inside recurrent layers", names[1], "all others"))
    for operator, options, state in onnx_models.supported():
        taken = state == "supported"
        rows.append(("ONNX", operator, options if taken else "", "" if taken else f"{options} {state}".strip()))
    aten = ", ".join(f"`{name}`" for name in export.supported())
    rows.append(("PyTorch programs", "aten operations", aten, "all others"))
    rows += [("TorchScript", what, taken, refused) for what, taken, refused in torchscript.SUPPORTED]
    lines = ["| format | layer | supported | refused |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def updated(text: str) -> str:
    """Return `text` with the table between its markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render()}\n{END}{after}"


def main(argv: list[str] | None = None) -> None:
    """Write the table into the file named, or to standard output."""
    parser = argparse.ArgumentParser(prog="python -m fastlstm.converters.table", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a file with the two markers")
    path = parser.parse_args(argv).file
    if path is None:
        sys.stdout.write(render() + "\n")
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        parser.error(f"'{path}' cannot be read: {error}")
    if BEGIN not in text or END not in text:
        parser.error(f"'{path}' holds no {BEGIN} and {END} to write between")
    path.write_text(updated(text), encoding="utf-8")


if __name__ == "__main__":
    main()
