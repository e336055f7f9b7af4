"""From a graph and a target to programs.

`plan` labels the nodes, `segments` lowers those around recurrent layers, `tapes` records the others for inputs of one
shape, `pack` lays out their weights. `explain` and `summary` say what came of it, `usual` which kernels it takes.
"""
