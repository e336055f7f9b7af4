"""Programs bound to the memory of this process: segments and their calls from Python, worker threads, busy flags.

`program` binds a `Program` to memory, `segment` runs it, `native` and `entry` make it callable as a Python built-in,
`split` and `team` divide it among threads. `foreign` and `conversion` take callers' arrays, `prepared` keeps first
calls on disk.
"""
