"""How results are taken and shown: timing, profiles, tables, pictures."""
