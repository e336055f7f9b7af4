"""From a graph and a target to programs.

`plan` labels the nodes, `segments` lowers those around recurrent layers, `tapes` records the others for inputs of one
shape, `pack` lays out weights. `explain` and `summary` describe the result, `usual` lists the kernels that usual
models need.
"""
