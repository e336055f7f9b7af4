"""Model files: opening them, the ``.fastlstm`` format, graphs as JSON."""
