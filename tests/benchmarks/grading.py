"""What grading costs: answers a second of two workers, until the first verdict, and memory, against math-verify called in one process."""

from __future__ import annotations

import itertools
import subprocess
import sys

import psutil
from math_verify import LatexExtractionConfig, parse, verify
from tests.benchmarks.measure import alternate, report

from ngrpo.evaluation.grading import Grader

ANSWERS, ROUNDS, STARTS = 300, 5, 3
FORMS = (
    *(("{n}", "{n}"),) * 3,
    ("{n}", "{m}"),
    (r"\frac{{{n}}}{{{m}}}", r"\dfrac{{{n}}}{{{m}}}"),
    (r"\frac{{{n}}}{{7}}", r"{m}/7"),
    (r"{n}\sqrt{{3}}", r"{n}\sqrt{{3}}+0"),
    (r"\left({n},\frac{{\pi}}{{2}}\right)", r"({n}, \pi/2)"),
    (r"x^2+{n}x", r"x(x+{n})"),
    (r"{n}\%", r"{n} \text{{ percent}}"),
)
"""Gold answers and answers such as benchmarks of mathematics have: of each ten, four are decided without math-verify."""
FIRST_VERDICT = r"from math_verify import parse, verify; verify(parse(r'\boxed{\frac12}'), parse(r'\boxed{0.5}'))"


def run() -> list[dict]:
    """Measure typical answers, no two alike, and the start."""
    numbers = itertools.count(1)
    with Grader() as grader:
        grader.grade(_answers(numbers, 20))
        ours, peer = alternate(lambda: grader.grade(_answers(numbers)), lambda: _one_by_one(_answers(numbers)), ROUNDS)
        workers = [psutil.Process(worker.process.pid) for worker in grader._pool._workers]
        memory = sum(worker.memory_info().rss for worker in workers) / 2**20
        result = report(
            "grading_answers",
            ours,
            peer,
            unit="ms per answer",
            scale=1000 / ANSWERS,
            peer_is="math-verify in one process, answer by answer",
            answers_per_second=round(ANSWERS / sorted(ours)[len(ours) // 2]),
            workers=len(workers),
            workers_memory_mib=round(memory),
        )
    print(f"grading: {result['answers_per_second']} answers/s, {len(workers)} workers, {memory:.0f} MiB")
    ours, peer = alternate(
        _first_verdicts, lambda: subprocess.run([sys.executable, "-c", FIRST_VERDICT], check=True), STARTS
    )
    start = report(
        "grading_start",
        ours,
        peer,
        unit="s to the first verdicts",
        scale=1,
        peer_is="an interpreter that imports math-verify",
        workers=2,
    )
    return [result, start]


def _answers(numbers: itertools.count, count: int = ANSWERS) -> list[tuple[str, str]]:
    items = []
    for (gold, answer), n in zip(itertools.cycle(FORMS), itertools.islice(numbers, count), strict=False):
        items.append((rf"so it is \boxed{{{answer.format(n=n, m=n + 1)}}}.", gold.format(n=n, m=n + 1)))
    return items


def _one_by_one(items: list[tuple[str, str]]) -> None:
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    for text, gold in items:
        verify(parse(rf"\boxed{{{gold}}}", how), parse(text, how))


def _first_verdicts() -> None:
    with Grader(workers=2) as grader:
        grader.grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac13}", "0.5")])
