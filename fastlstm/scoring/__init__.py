"""Scoring data sets: Arrow in, Arrow out, every row exactly once.

``columns`` turns Arrow arrays into NumPy arrays and ``arrow`` does the reverse, ``ports`` finds out what a model's axes
mean, ``bucketing`` groups rows by length, ``batches`` copies them into batches, ``work`` runs these, ``scorer``
combines all this. ``sources`` reads, ``parts`` writes, ``run`` organises a run by threads of this process (``local``)
or on Ray (``cluster``), ``recordings`` streams what is too long for memory.
"""
