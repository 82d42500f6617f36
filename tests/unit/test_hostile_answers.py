"""200 answers that a grader may hang on, die of or get wrong, each with what a careful reader says of it.

`data/hostile_answers.jsonl` has a line for each: its kind, the gold answer, the response in parts (a part is a text, or a text and how
often it is repeated), and whether it is `right`. Where our grader says otherwise the line has its `verdict`; where it must say that
it could not decide, `undecided`.
"""

import json
from pathlib import Path

from ngrpo.grading.grader import Grader

ANSWERS = Path(__file__).parents[1] / "data" / "hostile_answers.jsonl"
KINDS = [
    "endless",
    "nested boxes",
    "unbalanced boxes",
    "a million characters",
    "unicode digits",
    "intervals",
    "sets",
    "matrices",
    "units",
    "percent",
    "no solution",
    "two boxes",
    "box before </think>",
]


def test_hostile_answers():
    answers = [json.loads(line) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 200
    assert list(dict.fromkeys(answer["kind"] for answer in answers)) == KINDS
    texts = ["".join(part if isinstance(part, str) else part[0] * part[1] for part in a["text"]) for a in answers]
    with Grader(workers=2, timeout_seconds=2.0) as grader:
        grades = grader.grade([(text, answer["gold"]) for text, answer in zip(texts, answers, strict=True)])
        assert len(grader._pool._workers) <= 2

    surprises = []
    print(f"{'kind':<22} answers  verdict right  undecided")
    for kind in KINDS:
        pairs = [(a, grade) for a, grade in zip(answers, grades, strict=True) if a["kind"] == kind]
        right = sum(grade.correct == answer["right"] for answer, grade in pairs)
        undecided = sum(grade.error is not None for _, grade in pairs)
        print(f"{kind:<22} {len(pairs):7d}  {right / len(pairs):12.0%}  {undecided:9d}")
        for answer, grade in pairs:
            expected = answer.get("verdict", answer["right"]), answer.get("undecided", False)
            if (grade.correct, grade.error is not None) != expected:
                surprises.append(
                    f"{kind}: {str(answer['text'])[:80]} against {answer['gold']}: {grade.correct}, {grade.error}"
                )
    total = sum(grade.correct == answer["right"] for answer, grade in zip(answers, grades, strict=True))
    false_positives = sum(grade.correct > answer["right"] for answer, grade in zip(answers, grades, strict=True))
    print(f"{'all':<22} {len(answers):7d}  {total / len(answers):12.0%}; right by mistake: {false_positives}")
    assert not surprises, "\n".join(surprises)
