"""What tests of entries take for granted."""

from __future__ import annotations

import pytest

from fastlstm.kernels.addresses import address
from fastlstm.runtime.native import likely_entry
from fastlstm.target import machine


@pytest.fixture(scope="session", autouse=True)
def _entries_at_once() -> None:
    """Have the entries' code, so that a first call makes one: where it has to be compiled it is put off."""
    for inputs in (1, 2):
        address(likely_entry(inputs, 1), machine.detect())
