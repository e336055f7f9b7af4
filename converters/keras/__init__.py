"""Keras models, from files or in memory."""
