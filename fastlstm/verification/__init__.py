"""Whether a model still is the same: made-up inputs, other runners, and the comparison of what they give."""
