"""Making a release: ``python -m release``, which `make release` runs. Not in the wheel."""
