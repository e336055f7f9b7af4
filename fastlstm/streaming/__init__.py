"""Streams and pools of streams: frames in and out, and the states kept in between.

`choosing.py` says which of `engines.py` a stream runs on. Where a model is no single segment, `timeline.py` makes a
graph whose states are inputs and outputs.
"""
