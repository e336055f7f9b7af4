"""Compiled code: micro-kernels, activations, recurrent layers and the operators around them. See README.md."""
