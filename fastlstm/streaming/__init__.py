"""Streams and pools of streams: frames in and out, and the states kept in between.

`choosing.py` decides which engine of `engines.py` a stream runs on. For a model that is not a single segment,
`timeline.py` makes a graph whose states are inputs and outputs.
"""
