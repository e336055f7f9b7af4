"""What tests of entries take for granted."""

from __future__ import annotations

import pytest

from fastlstm import machine
from fastlstm.kernels.addresses import address
from fastlstm.native import likely_entry


@pytest.fixture(scope="session", autouse=True)
def _entries_at_once() -> None:
    """Have the entries' code, so that a first call makes one: where it has to be compiled it is put off."""
    for inputs in (1, 2):
        address(likely_entry(inputs, 1), machine.detect())
