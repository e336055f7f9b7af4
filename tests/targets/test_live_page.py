"""The site's live page: the script and the files that the site's build adds to it, in Chromium."""

from __future__ import annotations

import re
import shutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from browser import page, served

import fastlstm
from fastlstm.cli.demo import DATA, read_series

DOCS = Path(__file__).parents[2] / "docs"


def test_the_forecast_in_the_browser_is_that_of_python(tmp_path: Path) -> None:
    spec = spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    site = tmp_path / "site"
    shutil.copytree(DOCS / "demo", site / "demo")
    hooks.write(site / "demo")
    text = (DOCS / "live.md").read_text(encoding="utf-8")
    (site / "live").mkdir()
    (site / "live" / "index.html").write_text(text[text.index("<div") : text.index("</script>")] + "</script>")
    with served(site) as address:
        found = page(f"{address}/live/index.html", tmp_path / "profile")
    shown = re.search(r'data-forecast="([\d.]+)"', found)
    assert shown is not None, found
    model = fastlstm.load(DATA / "forecaster.safetensors", layers="lstm | linear", batch_first=True)
    _, numbers = read_series()
    last = float(model((np.sqrt(numbers) / 10).astype(np.float32)[None, :, None])[0, -1, 0])
    assert float(shown[1]) == pytest.approx((10 * last) ** 2, abs=1e-3)
