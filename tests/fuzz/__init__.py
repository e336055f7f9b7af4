"""Mutated model files: each one loads or is refused in a sentence, in bounded time and memory. See README.md."""
