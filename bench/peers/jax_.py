"""JAX: the cell's equations in a jit-compiled ``lax.scan``.

Timed as in https://docs.jax.dev/en/latest/benchmarking.html: compiled before, waited for with
block_until_ready. XLA's CPU client takes its number of threads from NPROC when it starts.
"""

from __future__ import annotations

import functools
from typing import Any

from bench.cases import Case
from bench.peers.engine import Call, Engine


class Jax(Engine):
    """One jit-compiled function of all layers; each layer's input projection is one product."""

    name = package = "jax"

    def settings(self, threads: int) -> dict[str, str]:
        """Describe the client."""
        return {
            "threads": f"NPROC={threads} before the client starts",
            "affinity": "none",
            "spinning": "XLA's own default",
        }

    def prepare(self, case: Case, threads: int) -> Call:  # noqa: ARG002 - NPROC, set at the start
        """Return a call of the compiled network; a stateful case feeds its states back."""
        import jax
        import jax.numpy as jnp

        from bench.peers.jax_layers import initial_state, network

        weights = jax.device_put(case.weights())
        x = jnp.asarray(case.x())
        state = initial_state(case)
        run = jax.jit(functools.partial(network, case))

        def call() -> Any:
            nonlocal state
            y, after = run(weights, x, state)
            state = after if case.stateful else state
            return y.block_until_ready()

        return call
