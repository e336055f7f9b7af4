"""What the engine itself is measured by: results known bit by bit, ulp of its functions, ONNX's own test cases."""
