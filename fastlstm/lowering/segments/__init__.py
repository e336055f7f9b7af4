"""Segments: groups of nodes around recurrent layers that run as one native call.

`build.py` makes a `Segment` from nodes; bound to a batch size, it is a `Program` that owns the memory of its kernels.
"""
