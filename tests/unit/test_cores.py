"""How many graders work at a time."""

import os

import pytest

from ngrpo.grading.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000\n", 16),
        ("400000 100000\n", 4),
        ("450000 100000\n", 4),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 16),
        ("nonsense\n", 16),
        ("a b\n", 16),
        ("100000 0\n", 16),
        (None, 16),
    ],
)
def test_a_grader_for_each_core_that_the_container_has_a_right_to(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores(tmp_path / "cpu.max") == expected
