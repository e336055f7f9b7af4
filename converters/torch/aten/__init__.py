"""PyTorch's aten operations: their arguments, dtypes and shapes, and the nodes that mean the same."""
