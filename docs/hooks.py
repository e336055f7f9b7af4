"""What the site's build adds: the demo's forecaster as WebAssembly, and the record that it forecasts (see live.md)."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fastlstm

DATA = Path(fastlstm.__file__).parent / "cli" / "demo_data"
PAGE = ("forecaster.js", "forecaster.wasm", "forecaster-simd.wasm")


def on_post_build(config: Any) -> None:
    """Write the files beside the page's script."""
    write(Path(config["site_dir"]) / "demo")


def write(folder: Path) -> None:
    """Export the forecaster, and write its record as JSON: the time of each month in years, its sunspot number."""
    model = fastlstm.load(DATA / "forecaster.safetensors", layers="lstm | linear", batch_first=True)
    with TemporaryDirectory() as aside:
        exported = Path(aside, "forecaster")
        fastlstm.export(model, exported, targets=("wasm32", "wasm32-simd"), name="forecaster")
        for name in PAGE:
            shutil.copyfile(exported / name, folder / name)
    with (DATA / "sunspots.csv").open(newline="", encoding="utf-8") as file:
        months = [(row[0], float(row[1])) for row in list(csv.reader(file))[1:]]
    record = {
        "years": [int(month[:4]) + (int(month[5:]) - 0.5) / 12 for month, _ in months],
        "numbers": [number for _, number in months],
    }
    (folder / "sunspots.json").write_text(json.dumps(record), encoding="utf-8")
