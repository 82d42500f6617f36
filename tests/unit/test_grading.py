r"""Grading: where the answer is, whether it is right, and that no answer can harm the calling process."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from ngrpo.errors import GradingError
from ngrpo.grading import pool as grading_pool
from ngrpo.grading.comparison import judge
from ngrpo.grading.grader import _PLAIN_NUMBER, Grade, Grader, extract_answer, gold_parses
from ngrpo.training.rewards import CorrectnessReward

ENDLESS = r"\sum_{a=1}^{9999}\sum_{b=1}^{9999}\sum_{c=1}^{9999}abc"
"""A sum of 10^12 terms, which are added one by one."""

MILLION = 1_000_000


@pytest.fixture(scope="module")
def grader():
    with Grader() as shared:
        yield shared


def workers() -> set[int]:
    """Ids of the grading workers of this process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and running(entry):
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and b"ngrpo.grading.worker" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def running(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- where the answer is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{ 42 }.", "42"),
        (r"\boxed {42}", "42"),
        (r"\\boxed{42}", "42"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1} or \boxed{2", "1"),
        (r"\boxed{1 \boxed{2}", "2"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{1} }}}", "1"),
        (r"{{{ \boxed{1}", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        (r"\boxed{a\\}", r"a\\"),
        ("\\boxed{1\n2}", "1\n2"),
        (r"<think>\boxed{1}</think> so \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> so 2", None),
        (r"<think>a</think>\boxed{1}<think>b</think> 3", None),
        (r"a</think>b</think>\boxed{3}", "3"),
        (r"<think>never finished \boxed{4}", "4"),
        (r"\boxed{2</think>}", None),
        ("no box", None),
        ("", None),
        (r"\boxed", None),
        (r"\boxed{", None),
        (r"\boxed{1", None),
        (r"\boxed 5", "5"),
        (r"\boxed 42 or so", "42"),
        (r"\boxed  -1,234.5.", "-1,234.5"),
        (r"\boxed \frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed{1} or \boxed 2", "2"),
        (r"\boxed 1 or \boxed{2}", "2"),
        (r"\boxed B.", "B"),
        (r"\boxed Because", None),
        (r"\boxed5", None),
        (r"\boxed{}", None),
        (r"\boxed{1} \boxed{ }", None),
        (r"\fbox{5}", None),
    ],
)
def test_the_last_balanced_box_after_the_thought_counts(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x" * MILLION, None),
        ("x" * MILLION + r"\boxed{7}", "7"),
        (r"\boxed{7}" + "x" * MILLION, "7"),
        (r"\boxed{" * (MILLION // 7), None),
        ("{" * MILLION + r"\boxed{7}", "7"),
        (r"\boxed{7}" + "}" * MILLION, "7"),
        ("\\" * MILLION + r"\boxed{7}", "7"),
        (r"\boxed " * (MILLION // 7), None),
        (r"\boxed" + " " * MILLION + "{7}", "7"),
        ("</think>" * (MILLION // 8) + r"\boxed{7}", "7"),
        (r"\boxed{" + "{" * (MILLION // 2) + "}" * (MILLION // 2) + "}", "{" * (MILLION // 2) + "}" * (MILLION // 2)),
    ],
    ids=range(11),
)
def test_a_million_characters_are_read_in_linear_time(text, answer):
    started = time.process_time()
    assert extract_answer(text) == answer
    assert time.process_time() - started < 10  # a quadratic scan takes hours


# --- whether it is right ----------------------------------------------------------------------------------------------

UNREAD = "cannot be parsed"
CASES = [
    # gold, answer, correct, pattern of the error
    ("18", "18", True, None),
    ("18", " 18 ", True, None),
    ("18", "18.0", True, None),
    ("18", "018", True, None),
    ("18", "+18", True, None),
    ("18", "81", False, None),
    ("18", "-18", False, None),
    ("-7", "-7.00", True, None),
    ("1,234", "1234", True, None),
    ("1234", "1,234", True, None),
    ("0.5", ".5", True, None),
    ("100000000000000000001", "100000000000000000000", False, None),
    ("100000000000000000001", "100000000000000000001", True, None),
    ("0.00000001", "0.00000002", False, None),  # both are six zeros when rounded, but they are not equal
    # fractions, powers, roots
    (r"\frac{1}{2}", "1/2", True, None),
    (r"\frac{1}{2}", "0.5", True, None),
    (r"\frac12", r"\dfrac{2}{4}", True, None),
    (r"\frac{1}{2}", r"\frac{2}{1}", False, None),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True, None),
    (r"\frac{1}{3}", "0.333333", True, None),
    (r"\frac{1}{3}", "0.33", False, None),
    (r"1\frac{1}{2}", "1.5", True, None),
    ("1024", "2^{10}", True, None),
    (r"3\sqrt{2}", r"\sqrt{18}", True, None),
    (r"3\sqrt{2}", r"2\sqrt{3}", False, None),
    (r"\pi", "3.14", False, None),
    (r"\binom{5}{2}", "10", True, None),
    ("5!", "120", True, None),
    # expressions and equations
    ("x^2+2x+1", "(x+1)^2", True, None),
    ("x^2+2x+1", "(x-1)^2", False, None),
    ("p-q", "-q+p", True, None),
    ("5", "x=5", True, None),
    ("x=5", "5", True, None),
    ("y=2x+1", "2x+1", True, None),
    ("x<5", "5>x", True, None),
    ("x<5", "x>5", False, None),
    # sets, tuples, intervals: the gold answer's form decides
    (r"\{1,2\}", r"\{2,1\}", True, None),
    (r"\{1,2\}", "1,2", True, None),
    (r"\{1,2\}", r"\{1,2,3\}", False, None),
    (r"\{1,2\}", r"\{1\}", False, None),
    ("1,2", "2 and 1", True, None),
    ("(1,2)", "(2,1)", False, None),
    ("(1,2)", "(1,2]", False, None),
    ("[1,2)", r"\left[1,2\right)", True, None),
    (r"(-\infty,3)\cup(5,\infty)", r"(5,\infty)\cup(-\infty,3)", True, None),
    ("1<x<5", "(1,5)", True, None),
    ("(1,5)", "1<x<5", True, None),
    (r"\emptyset", r"\{\}", True, None),
    # matrices
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True, None),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False, None),
    # units, currency, percent, degrees
    ("5", r"5\text{ cm}", True, None),
    ("5", "5 cm", True, None),
    (r"5 \text{ cm}", "5", True, None),
    ("5", r"\$5", True, None),
    (r"50\%", "50", True, None),
    (r"50\%", "0.5", True, None),
    ("50", r"50\%", True, None),
    (r"50\%", "5", False, None),
    ("90", r"90^\circ", True, None),
    # words and letters
    (r"\text{Evelyn}", "Evelyn", True, None),
    ("no solution", r"\text{no solution}", True, None),
    ("no solution", "5", False, None),
    ("A", r"\text{(A)}", True, None),
    ("A", "B", False, None),
    ("18", "eighteen", True, None),
    ("18", "eighteenth", False, UNREAD),
    ("18", "not 17 but 18", False, None),
    # what cannot be read is said, not swallowed
    ("5", "5.", True, None),  # the full stop of a sentence
    ("5", "⑤", False, UNREAD),
    ("⑤", "⑤", True, None),  # equal texts need no reading
    ("⑤", "5", False, UNREAD),
    ("5", r"\text{}", False, None),
    ("5", r"\frac{5}", False, UNREAD),
    ("5", "^^^", False, UNREAD),
    ("5", "\x00", False, UNREAD),
    ("5", "🙂", False, UNREAD),
    (r"\frac{1}{0}", r"\frac{2}{0}", False, "nan or zoo"),
    ("5", r"\frac{5}{0}", False, None),
    ("5", "1+" * 3000 + "1", False, "characters"),
    ("1+" * 3000 + "1", "5", False, "characters"),
    ("5", "9" * MILLION, False, "characters"),
    ("9" * MILLION, "9" * MILLION, True, None),
    ("5", "(" * 20 + "5" + ")" * 20, True, None),
    ("5", "(" * 21 + "5" + ")" * 21, False, "nested more than 20 deep"),
    (r"\sqrt{" * 21 + "5" + "}" * 21, "5", False, "nested more than 20 deep"),
    ("5", "(" * 1000 + "5" + ")" * 1000, False, "nested more than 20 deep"),
]


def test_labelled_answers(grader):
    grades = grader.grade([(rf"reasoning \boxed{{{answer}}}", gold) for gold, answer, _, _ in CASES])
    wrong = []
    for (gold, answer, correct, error), grade in zip(CASES, grades, strict=True):
        as_expected = grade.error is None if error is None else re.search(error, grade.error or "")
        if grade.correct != correct or not as_expected:
            wrong.append(f"{gold[:40]} ~ {answer[:40]}: {grade.correct} {grade.error}, expected {correct} {error}")
    print(f"{len(CASES) - len(wrong)}/{len(CASES)} labelled answers as expected")
    assert not wrong, "\n".join(wrong)


def test_no_answer_scores_zero_and_is_no_error(grader):
    grades = grader.grade([("no box", "5"), (r"\boxed{5}</think> done", "5"), (r"\boxed{5}", "5")])
    assert grades == [Grade(False, None, None), Grade(False, None, None), Grade(True, "5", None)]


def test_plain_numbers_are_decided_as_a_process_decides_them():
    random_ = random.Random(0)

    def number() -> str:
        whole = str(random_.choice([0, 1, 5, 12, 120, random_.randrange(10**6), random_.randrange(10**9)]))
        sign = random_.choice(["", "", "-", "+"])
        padding = random_.choice(["", "", "0", "00"])
        digits = random_.randrange(0, 7)
        decimals = "." + "".join(random_.choice("0005") for _ in range(digits)) if digits else ""
        return f"{sign}{padding}{whole}{decimals}"[:17]

    def variant(text: str) -> str:
        """The same value, or nearly."""
        if "." not in text:
            return random_.choice([text, f"{text}.0", f"{text}.000", f"{text}.000001", f"0{text.lstrip('+-')}"])
        return random_.choice(
            [text.rstrip("0").rstrip("."), text[:-1] + "1", "-" + text.lstrip("+-"), f"+{text.lstrip('+-')}"]
        )

    pairs = []
    while len(pairs) < 600:
        gold = number()
        answer = random_.choice([variant, variant, lambda _: number()])(gold)
        if _PLAIN_NUMBER.fullmatch(gold) and _PLAIN_NUMBER.fullmatch(answer) and gold != answer:
            pairs.append((gold, answer))
    with Grader() as fast:
        grades = fast.grade([(rf"\boxed{{{answer}}}", gold) for gold, answer in pairs])
        assert fast._pool._workers == [], "no worker was needed"
    disagreements = [
        (pair, grade.correct)
        for pair, grade in zip(pairs, grades, strict=True)
        if (grade.correct, grade.error) != judge(*pair)
    ]
    print(f"{len(pairs)} pairs of plain numbers, {sum(grade.correct for grade in grades)} equal")
    assert not disagreements
    assert 100 < sum(grade.correct for grade in grades) < 500


@pytest.mark.parametrize(
    ("gold", "parses"),
    [
        ("5", True),
        (" -3.5 ", True),
        (r"\frac{1}{2}", True),
        (r"\text{Evelyn}", True),
        (r"\{1,2\}", True),
        ("", False),
        ("  ", False),
        ("５", True),
        ("no solution", True),
        ("⑤", False),
        (r"\frac{5}", False),
        ("1+" * 3000 + "1", False),
    ],
)
def test_gold_parses(gold, parses):
    assert gold_parses(gold) is parses


# --- workers ----------------------------------------------------------------------------------------------------------


def test_an_endless_answer_is_killed_within_the_limit_and_its_worker_replaced():
    easy = [(rf"\boxed{{\frac{{{i}}}{{7}}}}", rf"\frac{{{2 * i}}}{{14}}") for i in range(1, 20)]
    others = workers()
    with Grader(workers=2, timeout_seconds=1.0) as grader:
        grader.grade(easy[:2])
        before = workers() - others
        started = time.monotonic()
        grades = grader.grade([(rf"\boxed{{{ENDLESS}}}", "5"), *easy, (rf"\boxed{{{ENDLESS}+1}}", "5"), *easy])
        seconds = time.monotonic() - started
        print(f"two endless answers with a limit of 1 s: {seconds:.1f} s")
        assert [grade.error for grade in grades if not grade.correct] == ["no verdict within 1 s"] * 2
        assert 1.0 <= seconds < 10.0
        assert len(workers() - others) <= 2
        assert before - workers(), "killed"
        assert grader.grade(easy)[0] == Grade(True, r"\frac{1}{7}", None)
        assert len(workers() - others) == 2
    assert workers() == others


def test_the_limit_starts_when_grading_starts():
    # A worker needs longer than this limit to start, and the last answers wait longer than it for their turn.
    items = [(rf"\boxed{{\frac{{{i}}}{{7}}}}", rf"\frac{{{2 * i}}}{{14}}") for i in range(1, 400)]
    with Grader(workers=1, timeout_seconds=0.5) as grader:
        started = time.monotonic()
        grades = grader.grade(items)
        assert time.monotonic() - started > 0.5
    assert [grade.error for grade in grades] == [None] * len(items)


def test_workers_start_only_when_needed_and_end_with_the_grader():
    grader = Grader()
    grader.grade([(r"\boxed{5}", "5"), ("nothing", "5"), (r"\boxed{x}", "x"), (r"\boxed{1.50}", "3")])
    assert grader._pool._workers == []
    grader.grade([(r"\boxed{\frac{1}{2}}", "0.5")])
    started = {worker.process.pid for worker in grader._pool._workers}
    assert len(started) == 1, "one answer needs one worker"
    assert started <= workers()
    grader.close()
    assert not started & workers()
    assert grader.grade([(r"\boxed{\frac{1}{2}}", "0.5")])[0].correct, "a closed grader starts again"
    grader.close()


def test_many_calls_leak_neither_workers_nor_descriptors():
    with Grader() as grader:
        grader.grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac13}", "0.5")])
        before, descriptors = workers(), len(os.listdir("/proc/self/fd"))
        for i in range(10_000):
            slow = i % 20 == 0
            text = rf"\boxed{{\frac{{{i + 1}}}{{7}}}}" if slow else rf"\boxed{{{i}}}"
            grade = grader.grade([(text, rf"\frac{{{2 * i + 2}}}{{14}}" if slow else str(i))])[0]
            assert grade.correct
        assert workers() == before
        assert len(os.listdir("/proc/self/fd")) == descriptors
        largest = max(
            int(line.split()[1]) // 1024
            for pid in before
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
        print(f"largest worker after 10,000 calls: {largest} MiB")
        assert largest < 300


def test_the_memory_of_a_worker_is_limited(grader):
    grader.grade([(r"\boxed{\frac12}", "0.5")])
    for worker in grader._pool._workers:
        soft, _ = resource.prlimit(worker.process.pid, resource.RLIMIT_AS)
        assert 0 < soft <= 2**29


def test_a_worker_that_dies_is_an_error_of_its_answer_alone():
    easy = [(rf"\boxed{{\frac{{{i}}}{{7}}}}", rf"\frac{{{2 * i}}}{{14}}") for i in range(1, 5)]
    with Grader(workers=1, timeout_seconds=30.0) as grader:
        grader.grade(easy[:1])
        (victim,) = grader._pool._workers
        threading.Timer(0.5, victim.process.kill).start()
        grades = grader.grade([(rf"\boxed{{{ENDLESS}}}", "5"), *easy])
        assert grades[0].error == "the grading worker died with status -9"
        assert all(grade.correct for grade in grades[1:])
        # One that died between two calls is replaced without a trace.
        (victim,) = grader._pool._workers
        victim.process.kill()
        victim.process.wait()
        assert all(grade.correct for grade in grader.grade(easy))


def test_a_stopped_worker_does_not_stop_the_run(monkeypatch):
    with Grader(workers=1, timeout_seconds=1.0) as grader:
        grader.grade([(r"\boxed{\frac12}", "0.5")])
        monkeypatch.setattr(grading_pool, "_PATIENCE", 0.5)
        os.kill(grader._pool._workers[0].process.pid, signal.SIGSTOP)
        grades = grader.grade([(r"\boxed{\frac13}", "0.5")])
    assert grades[0].error == "the grading worker died with status -9"


def test_a_worker_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(grading_pool, "_WORKER", "ngrpo.nowhere")
    with Grader() as grader, pytest.raises(GradingError, match="3 grading workers in a row"):
        grader.grade([(r"\boxed{\frac12}", "0.5")])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_is_killed_before_it_is_ready_is_replaced(monkeypatch, workers):
    start, killed = grading_pool._Worker.__init__, []

    def short_lived(self, seconds):
        start(self, seconds)
        if len(killed) < 2:
            killed.append(self.process.pid)
            self.process.kill()

    monkeypatch.setattr(grading_pool._Worker, "__init__", short_lived)
    with Grader(workers=workers) as grader:
        grades = grader.grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac13}", "0.5")])
    assert [grade.correct for grade in grades] == [True, False]
    assert len(killed) == 2


def test_an_interrupted_call_leaves_no_answer_behind(monkeypatch):
    with Grader(workers=1) as grader:
        grader.grade([(r"\boxed{\frac12}", "0.5")])

        def interrupted(*_args, **_options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(grading_pool, "_wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                grader.grade([(r"\boxed{\frac13}", "0.5")])
        assert grader.grade([(r"\boxed{\frac14}", "0.25")])[0].correct


def test_grading_from_several_threads(grader):
    verdicts = {}

    def work(number: int) -> None:
        items = [
            (rf"\boxed{{\frac{{{i}}}{{{number}}}}}", rf"\frac{{{2 * i + i % 2}}}{{{2 * number}}}") for i in range(1, 30)
        ]
        verdicts[number] = [grade.correct for grade in grader.grade(items)]

    threads = [threading.Thread(target=work, args=(number,)) for number in (31, 37, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {number: [i % 2 == 0 for i in range(1, 30)] for number in (31, 37, 41)}


def test_workers_do_not_run_the_program_a_second_time(tmp_path):
    # Without a main guard: a worker that imported the program again would start workers of its own, and so on.
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            r"""
            from ngrpo.grading.grader import Grader
            print("once", flush=True)
            assert all(grade.correct for grade in Grader().grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac14}", "0.25")]))
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_workers_end_when_the_program_is_killed(tmp_path, busy):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            rf"""
            import time
            from ngrpo.grading.grader import Grader
            grader = Grader(timeout_seconds=3.0)
            grader.grade([(r"\boxed{{\frac12}}", "0.5"), (r"\boxed{{\frac13}}", "0.5")])
            print(*[worker.process.pid for worker in grader._pool._workers], flush=True)
            if {busy}:
                grader.grade([(r"\boxed{{{ENDLESS}}}", "5"), (r"\boxed{{{ENDLESS}+1}}", "5")])
            time.sleep(600)
            """
        )
    )
    program = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    children = [Path(f"/proc/{pid}") for pid in program.stdout.readline().split()]
    time.sleep(0.5)
    program.kill()
    program.wait()
    program.stdout.close()
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(child) for child in children)


def test_importing_the_grader_loads_neither_torch_nor_math_verify():
    heavy = "{'torch', 'numpy', 'sympy', 'math_verify', 'transformers'}"
    code = (
        "import sys; from ngrpo.grading.grader import Grader; "
        r"assert Grader().grade([(r'\boxed{4}', '4')])[0].correct; "
        f"assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_throughput_and_start(capsys):
    with Grader() as grader:
        numbers = [(rf"reasoning \boxed{{{i}}}", str(i + i % 2)) for i in range(5000)]
        started = time.perf_counter()
        assert sum(grade.correct for grade in grader.grade(numbers)) == 2500
        fast = len(numbers) / (time.perf_counter() - started)
        started = time.perf_counter()
        grader.grade([(r"\boxed{\frac12}", "0.5"), (r"\boxed{\frac13}", "0.5")])
        start = time.perf_counter() - started
        typical = [
            (rf"reasoning \boxed{{{form}}}", rf"\frac{{{number}}}{{7}}")
            for number in range(1, 100)
            for form in (
                rf"\frac{{{number}}}{{7}}",
                rf"\dfrac{{{number}}}{{7}}",
                f"{number}/7",
                f"{number}",
                rf"{number}\%",
            )
        ]
        started = time.perf_counter()
        grades = grader.grade(typical)
        slow = len(typical) / (time.perf_counter() - started)
    with capsys.disabled():
        print(f"\ngrading: {fast:,.0f} plain numbers/s, {slow:,.0f} other answers/s, workers ready after {start:.2f} s")
    assert sum(grade.correct for grade in grades) >= 3 * 99


# --- as a reward ------------------------------------------------------------------------------------------------------


def test_the_reward_function_of_trl(grader):
    reward = CorrectnessReward(grader)
    logged = {}
    rewards = reward(
        prompts=[[{"role": "user", "content": "?"}]] * 4,
        completions=[
            [{"role": "assistant", "content": text}]
            for text in (r"<think>\boxed{1}</think>\boxed{2}", r"\boxed{4/2}", "2", r"\boxed{2^}")
        ],
        answer=["2", "2", "2", "2"],
        completion_ids=[[1]] * 4,
        trainer_state=None,
        log_metric=lambda name, value: logged.update({name: value}),
    )
    assert rewards == [1.0, 1.0, 0.0, 0.0]
    assert reward.__name__ == "correctness"
    assert logged == {"grading/no_answer": 0.25, "grading/error": 0.25}
