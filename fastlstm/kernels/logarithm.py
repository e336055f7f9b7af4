"""The logarithm of a number, with the same bits on every machine, which C libraries do not guarantee.

With x = 2**e * m and m between sqrt(1/2) and sqrt(2),

    log(x) = e * ln 2 + 2 * (s + s**3 / 3 + s**5 / 5 + ...),      s = (m - 1) / (m + 1)

where s is below 0.172, so that eleven terms leave an error below 1e-17. It is computed in double precision; rounded to
float32, it is the nearest float or, a few times in a billion, its neighbour.
"""

from __future__ import annotations

import math

from fastlstm.kernels.pipeline import inlined
from fastlstm.kernels.simd import exponent_of, without_exponent

__all__ = ["log"]

LN2 = math.log(2)


@inlined
def log(x):
    """log(x) for any x but denormal doubles: -inf for 0, NaN for negative x."""
    if not x > 0.0:
        return -math.inf if x == 0.0 else math.nan
    if x == math.inf:
        return math.inf
    exponent = exponent_of(x)
    m = without_exponent(x, exponent)
    s = (m - 1.0) / (m + 1.0)
    v = s * s
    p = ((((1.0 / 21 * v + 1.0 / 19) * v + 1.0 / 17) * v + 1.0 / 15) * v + 1.0 / 13) * v + 1.0 / 11
    p = (((p * v + 1.0 / 9) * v + 1.0 / 7) * v + 1.0 / 5) * v + 1.0 / 3
    return exponent * LN2 + 2.0 * (s + s * v * p)
