"""What runs on other machines is there."""

from __future__ import annotations

import re

from chosen import QUICK, ROOT, TESTS


def test_the_tests_for_other_machines_exist() -> None:
    assert not [name for name in (*QUICK, *TESTS) if not (ROOT / name).is_file()]


def test_they_need_no_framework() -> None:
    wanted = re.compile(r"^\s*(import|from) (torch|onnx|keras)", re.MULTILINE)
    assert not [name for name in (*QUICK, *TESTS) if wanted.search((ROOT / name).read_text(encoding="utf-8"))]
