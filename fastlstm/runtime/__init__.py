"""Programs bound to the memory of this process: segments and their calls from Python, worker threads, what is in use.

`program` binds a `Program` to memory, `segment` runs it, `native` and `entry` make of it a call that Python finds as a
built-in, `split` and `team` divide it among threads. `foreign` and `conversion` take callers' arrays, `prepared` keeps
first calls on disk.
"""
