"""250 hostile answers: none of them runs code, opens a file or starts a process. `tests/faults` has 10,000, the bench a million."""

from fuzzed_answers import faults, pair
from ngrpo.grading.grader import Grader

ANSWERS = 250


def test_hostile_answers_do_nothing_but_get_graded(tmp_path):
    canary = tmp_path / "canary"
    pairs = [pair(number, canary) for number in range(ANSWERS)]
    with Grader(workers=2, timeout_seconds=1.0) as grader:
        grades = grader.grade([(rf"\boxed{{{answer}}}", gold) for gold, answer in pairs])
    assert not canary.exists()
    assert not (problems := faults(pairs, grades)), "\n".join(problems)
    assert sum(grade.error is None for grade in grades) > ANSWERS // 20, "some of them reach the comparison"
