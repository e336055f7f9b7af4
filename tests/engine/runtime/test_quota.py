"""Containers see all processors of a machine and may use a part of their time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastlstm.target import machine
from fastlstm.target.quota import processor_quota


def written(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    return tmp_path / "groups"


@pytest.mark.parametrize(
    ("limits", "expected"),
    [({"pod/app": "max 100000"}, None), ({"pod/app": "150000 100000"}, 1.5),
     ({"pod": "200000 100000", "pod/app": "max 100000"}, 2.0),
     ({"pod": "50000 50000", "pod/app": "300000 100000"}, 1.0), ({"pod/app": "garbage"}, None),
     ({"pod/app": "100000 0"}, None), ({}, None)],
)  # fmt: skip
def test_the_strictest_group_limits_the_processors(
    tmp_path: Path, groups: Path, limits: dict[str, str], expected: float | None
) -> None:
    groups.write_text("0::/pod/app\n")
    for group, text in limits.items():
        written(tmp_path / "mounted" / group, cpu__max=text)
    assert processor_quota(groups, tmp_path / "mounted") == expected


def test_a_container_whose_group_is_the_root_has_its_limit_there(tmp_path: Path, groups: Path) -> None:
    groups.write_text("0::/\n")
    written(tmp_path / "mounted", cpu__max="400000 100000\n")
    assert processor_quota(groups, tmp_path / "mounted") == 4.0


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("250000", 2.5)])
def test_groups_of_version_1_are_read(tmp_path: Path, groups: Path, quota: str, expected: float | None) -> None:
    groups.write_text("4:memory:/other\n2:cpu,cpuacct:/docker/abc\n0::/\n")
    written(
        tmp_path / "mounted" / "cpu,cpuacct" / "docker" / "abc", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000"
    )
    written(tmp_path / "mounted" / "memory" / "other", cpu__max="1 100000")
    assert processor_quota(groups, tmp_path / "mounted") == expected


def test_a_path_outside_and_a_system_without_groups_set_no_limit(tmp_path: Path, groups: Path) -> None:
    assert processor_quota(groups, tmp_path) is None
    written(tmp_path, cpu__max="100000 100000")
    groups.write_text("0::/../../elsewhere\nnonsense\n")
    assert processor_quota(groups, tmp_path / "mounted") is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (2.9, 2), (64.0, 8)])
def test_cores_are_those_that_the_quota_keeps_busy(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "processor_quota", lambda: quota)
    assert machine.cores() == expected
