"""Compiled code: micro-kernels, activations, recurrent layers and what stands around them. See README.md."""
