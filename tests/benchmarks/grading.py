"""What grading costs: answers a second of two workers, until the first verdict, and memory, against math-verify called in one process."""

from __future__ import annotations

import itertools
import subprocess
import sys

import psutil
from math_verify import LatexExtractionConfig, parse, verify
from tests.benchmarks.measure import alternate, report

from ngrpo.grading.grader import Grader

ANSWERS, ROUNDS, STARTS = 400, 5, 3
FORMS = (
    *(("{n}", "{n}"),) * 8,
    *(("{n}", "{m}"),) * 4,
    *((r"\frac{{{n}}}{{{m}}}", r"\dfrac{{{n}}}{{{m}}}"),) * 2,
    (r"\frac{{{n}}}{{7}}", r"{m}/7"),
    (r"{n}\sqrt{{3}}", r"\sqrt{{3}}\cdot {n}"),
    (r"\left({n},\frac{{\pi}}{{2}}\right)", r"({n}, \pi/2)"),
    (r"x^2+{n}x", r"x(x+{n})"),
    (r"{n}\%", r"{n} \text{{ percent}}"),
    (r"\text{{Evelyn {n}}}", "Evelyn {n}"),
)
"""Gold answers and answers in about the shares that MATH-500 has them; whole numbers are decided without math-verify."""
FIRST_VERDICT = r"from math_verify import parse, verify; verify(parse(r'\boxed{\frac12}'), parse(r'\boxed{0.5}'))"


def run() -> list[dict]:
    """Measure answers that all differ, samples of which eight agree, and the start."""
    numbers = itertools.count(1)
    results = []
    with Grader() as grader:
        grader.grade(_answers(numbers, 1))
        for name, samples in (("grading_distinct", 1), ("grading_samples", 8)):
            ours, peer = alternate(
                lambda: grader.grade(_answers(numbers, samples)),  # noqa: B023 - called in this turn
                lambda: _one_by_one(_answers(numbers, samples)),  # noqa: B023
                ROUNDS,
            )
            workers = [psutil.Process(worker.process.pid) for worker in grader._pool._workers]
            results.append(
                report(
                    name,
                    ours,
                    peer,
                    unit="ms per answer",
                    scale=1000 / ANSWERS,
                    peer_is="math-verify in one process, answer by answer",
                    samples_with_the_same_answer=samples,
                    answers_per_second=round(ANSWERS / sorted(ours)[len(ours) // 2]),
                    workers=len(workers),
                    workers_memory_mib=round(sum(worker.memory_info().rss for worker in workers) / 2**20),
                )
            )
    for result in results:
        speed, memory = result["answers_per_second"], result["workers_memory_mib"]
        print(f"{result['name']}: {speed} answers/s, {result['workers']} workers of {memory} MiB together")
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
    return [*results, start]


def _answers(numbers: itertools.count, samples: int) -> list[tuple[str, str]]:
    """Responses with their gold answers, none of which occurred before; so many in a row say the same."""
    items = []
    for n, (gold, answer) in zip(itertools.islice(numbers, ANSWERS // samples), itertools.cycle(FORMS), strict=False):
        item = (rf"so it is \boxed{{{answer.format(n=n, m=n + 1)}}}.", gold.format(n=n, m=n + 1))
        items += [item] * samples
    return items


def _one_by_one(items: list[tuple[str, str]]) -> None:
    how = [LatexExtractionConfig(boxed_match_priority=0)]
    for text, gold in items:
        verify(parse(rf"\boxed{{{gold}}}", how), parse(text, how))


def _first_verdicts() -> None:
    with Grader(workers=2) as grader:
        grader.grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac13}", "0.5")])
