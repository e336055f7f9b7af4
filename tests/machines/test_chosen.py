"""What runs on other machines is there."""

from __future__ import annotations

from chosen import QUICK, ROOT, TESTS


def test_the_tests_for_other_machines_exist() -> None:
    assert not [name for name in (*QUICK, *TESTS) if not (ROOT / name).is_file()]
