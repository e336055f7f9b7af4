"""What tests of entries take for granted."""

from __future__ import annotations

import pytest

from fastlstm import machine
from fastlstm.kernels.addresses import address
from fastlstm.native import likely_entry


@pytest.fixture(scope="session", autouse=True)
def _entries_at_once() -> None:
    """Have the entry's code, so that a first call makes one: where much is compiled it is put off."""
    address(likely_entry(1, 1), machine.detect())
