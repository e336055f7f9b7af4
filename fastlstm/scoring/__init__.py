"""Scoring data sets: Arrow in, Arrow out, every row exactly once.

``columns`` turns Arrow arrays into NumPy ones, ``arrow`` does the reverse, ``ports`` finds out what a model's axes
mean, ``bucketing`` groups rows by length, ``batches`` puts them side by side, ``work`` runs them, ``scorer`` puts these
together. ``sources`` reads, ``parts`` writes, ``run`` has it done, by threads of this process (``local``) or on Ray
(``cluster``), ``recordings`` streams what is too long for memory.
"""
