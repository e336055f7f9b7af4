"""Segments: groups of nodes around recurrent layers that run as one native call.

`build.py` makes a `Segment` of nodes; bound to a batch size it is a `Program`, which owns the memory that kernels use.
"""
