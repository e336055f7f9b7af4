"""Keras models, from files or alive."""
