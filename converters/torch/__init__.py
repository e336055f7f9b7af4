"""PyTorch's files and modules: state dicts, exported programs, TorchScript archives."""
