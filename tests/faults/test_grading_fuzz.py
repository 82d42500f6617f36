"""10,000 hostile answers other than those of the suite: none of them runs code, opens a file or starts a process."""

from fuzzed_answers import faults, pair
from ngrpo.grading.grader import Grader

FIRST, ANSWERS = 1_000_000, 10_000


def test_ten_thousand_hostile_answers_do_nothing_but_get_graded(tmp_path):
    canary = tmp_path / "canary"
    pairs = [pair(number, canary) for number in range(FIRST, FIRST + ANSWERS)]
    with Grader(workers=2, timeout_seconds=1.0) as grader:
        grades = grader.grade([(rf"\boxed{{{answer}}}", gold) for gold, answer in pairs])
    assert not canary.exists()
    assert not (problems := faults(pairs, grades)), "\n".join(problems)
