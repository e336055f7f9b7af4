"""A page that marks speech live: Silero's voice-activity detector as WebAssembly.

    pip install 'fastlstm[onnx,wasm]' silero-vad
    python make_page.py page && python -m http.server --directory page

The weights come from the package `silero-vad` (MIT licence). The model takes 512 new samples of 16 kHz behind the last
64 of those before, keeps the state of its LSTM, and says how likely it is that somebody speaks.
"""

from __future__ import annotations

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import fastlstm

WEIGHTS = "data/silero_vad_openvino_16k.onnx"  # 16 kHz alone, sizes fixed: the others have branches for 8 kHz


def weights() -> Path:
    """Return where the installed package keeps the model."""
    found = find_spec("silero_vad")
    if found is None or found.origin is None:
        raise SystemExit("The page needs the weights of the package 'silero-vad': pip install silero-vad")
    return Path(found.origin).parent / WEIGHTS


def main() -> None:
    """Export the model and put the page beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the page goes; must not exist")
    arguments = parser.parse_args()
    model = fastlstm.load(weights())
    fastlstm.export(model, arguments.folder, targets=("wasm32", "wasm32-simd"), name="vad", state={"state": "stateN"})
    for name in ("speech.html", "microphone.js"):
        shutil.copy(Path(__file__).with_name(name), arguments.folder)
    print(f"python -m http.server --directory {arguments.folder}, then open /speech.html")


if __name__ == "__main__":
    main()
