"""TorchScript's code, followed as data into aten operations."""
