"""Peers side by side: ``python -m bench`` from a checkout. README.md in this folder says how to read it."""
