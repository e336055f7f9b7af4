"""Broadcasting between the outputs of recurrent layers reaches every element."""

from __future__ import annotations

import numpy as np

from fastlstm import Model
from fastlstm.converters.common.builder import Direction, GraphBuilder
from fastlstm.operators import reference


def test_pairs_of_two_sequences_through_an_activation() -> None:
    """Additive attention: [B, T, 1, F] + [B, 1, S, F], then tanh and a row of scales."""
    rng = np.random.default_rng(0)
    build = GraphBuilder("pairs")
    wide = []
    for name, axis in (("query", 2), ("key", 1)):
        x = build.input(name, [f"{name}_time", "batch", 3])
        direction = Direction(rng.normal(size=(16, 3)).astype("f4"), rng.normal(size=(16, 4)).astype("f4"))
        y = build.swap_time_and_batch(build.recurrent("LSTM", x, [direction], name=name)[0])
        wide.append(build.node("Unsqueeze", y, build.constant("axis", np.array([axis]))))
    pairs = build.node("Tanh", build.node("Add", *wide))
    scaled = build.node("Mul", pairs, build.constant("scale", rng.normal(size=4).astype("f4")))
    build.output(scaled, "y", ["batch", "query_time", "key_time", 4])
    graph = build.graph()
    inputs = {name: rng.normal(size=(6, 2, 3)).astype("f4") for name in ("query", "key")}
    # Values are below 3: float32 rounding through one LSTM stays well under 1e-5.
    np.testing.assert_allclose(Model(graph).run(inputs)["y"], reference.run(graph, inputs)["y"], atol=1e-5)
