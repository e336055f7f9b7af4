"""A model in a browser: Chromium replays the golden samples and draws; Node runs a program written with the types."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from browser import page, served
from exported import recurrent


def test_the_page_replays_the_samples_and_runs_the_model(everywhere: Path, tmp_path: Path) -> None:
    with served(everywhere) as address:
        for _ in range(3):  # on a busy machine a page may be taken down before it has drawn
            found = page(f"{address}/index.html", tmp_path)
            assert 'data-samples="ok"' in found, re.findall(r'id="samples">([^<]*)', found)
            steps = re.search(r'data-steps="(\d+)"', found)
            if steps is not None:
                break
    assert steps is not None
    assert int(steps[1]) > 0


@pytest.mark.quick
def test_streams_of_a_module_are_independent_and_refuse_what_does_not_fit(everywhere: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(3).normal(size=300).astype(np.float32)
    wanted = recurrent("lstm", 20).stream().push(x[:, None])[:, 0]
    program = tmp_path / "program.mjs"
    program.write_text(
        f"""
import {{ load }} from "{everywhere.as_uri()}/amp.js";
const x = Float32Array.from({x.tolist()});
const model = await load();
const [one, two] = [model.stream(), model.stream()];
const result = one.run(x);
const other = x.map((value) => two.step(value)[0]);
if (result.some((value, at) => value !== other[at])) throw new Error("streams differ");
const kept = one.state;
const next = one.step(0.5)[0];
one.state = kept;
if (one.step(0.5)[0] !== next) throw new Error("the state was not restored");
for (const wrong of [() => one.step([1, 2]), () => one.step(), () => (one.state = [1]), () => model.call(1)]) {{
  try {{ wrong(); }} catch (error) {{ continue; }}
  throw new Error(`not refused: ${{wrong}}`);
}}
one.close();
console.log(JSON.stringify([...result]));
"""
    )
    done = subprocess.run(["node", str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), wanted, atol=1e-6, rtol=1e-6)
