"""Trained models of amplifiers and effects."""
