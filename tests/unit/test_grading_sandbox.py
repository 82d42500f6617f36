r"""Each wall of the grader's sandbox alone stops its attack, which succeeds without walls; and what a worker can do to its parent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ngrpo.evaluation import protocol
from ngrpo.grading import pool as grading_pool
from ngrpo.grading import sandbox
from ngrpo.grading.grader import Grade, Grader, gold_parses
from ngrpo.stages.keys import _is_transparent

TESTS = Path(__file__).parents[1]

LINE_BREAKS = ["\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
EASY = (r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")


def exploit(code: str, line_break: str) -> str:
    """An infinite sum whose symbol has a name that closes the generated expression and goes on with `code`."""
    spelled = "+".join(f"chr({ord(character)})" for character in code)
    return r"\{\sum_{n=0}^{\infty} \bar{)" + line_break + rf"exec({spelled}}}^n\}}"


# --- each wall alone ----------------------------------------------------------------------------------------------------

WRITES = ["run_code", "hypergeometric_sum", "parse_python", "write_a_file", "start_a_program"]
STOPPED = {
    "descriptors": ["write_to_an_open_file"],
    "imports": ["import_a_module"],
    "no generators": ["hypergeometric_sum", "parse_python"],
    "limits": [*WRITES, "write_to_an_open_file", "read_a_file", "open_a_socket", "read_the_environment_of_the_parent"],
    "kernel": [
        *WRITES,
        "read_a_file",
        "remove_a_file",
        "open_a_socket",
        "start_a_process",
        "read_the_environment_of_the_parent",
        "signal_the_parent",
        "call_libc",
    ],
    "watch": [
        *(attack for attack in WRITES if attack != "start_a_program"),
        "run_code_without_a_trace",
        "read_a_file",
        "remove_a_file",
        "open_a_socket",
        "start_a_process",
        "read_the_environment_of_the_parent",
        "signal_the_parent",
        "call_libc",
        "load_a_pickle",
    ],
}
ATTACKS = sorted({attack for attacks in STOPPED.values() for attack in attacks})


def outcome(wall: str, attack: str, folder: Path) -> str:
    folder.mkdir()
    (folder / "secret").write_text("secret")
    (folder / "this_is_imported_late.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "evil_worker", "alone", wall, attack, str(folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(folder)])},
        capture_output=True,
        text=True,
        check=False,
    )
    attempt = sandbox.refusal(done.returncode)
    if attempt is not None:
        return f"ended: {attempt}"
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("attack", ATTACKS)
def test_without_a_wall_the_attack_succeeds(attack, tmp_path):
    assert outcome("none", attack, tmp_path / "box") == "succeeded"


@pytest.mark.skipif(sys.platform != "linux", reason="the filter of system calls is Linux's")
@pytest.mark.parametrize(
    ("wall", "attack"), [(wall, attack) for wall, attacks in STOPPED.items() for attack in attacks]
)
def test_each_wall_alone_stops_the_attack(wall, attack, tmp_path):
    result = outcome(wall, attack, tmp_path / "box")
    assert result.startswith("ended: " if wall == "watch" else "stopped by "), result
    box = tmp_path / "box"
    assert (box / "secret").read_text() == "secret"
    assert not (box / "canary").exists() or not (box / "canary").stat().st_size
    if wall != "limits":  # a file of no bytes can be made there where a descriptor is left
        assert not (box / "canary").exists()


# --- the exploit, through everything ------------------------------------------------------------------------------------


def test_an_answer_runs_no_code(tmp_path):
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r},'w').write('x')"
    golds = ["5", r"\frac{1}{3}", r"3\sqrt{13}", "x^2+1", r"\{\sum_{n=0}^{\infty} \frac{1}{2^n}\}"]
    answers = [exploit(code, line_break) for line_break in LINE_BREAKS]
    items = [(rf"\boxed{{{answer}}}", gold) for answer in answers for gold in golds]
    items += [(r"\boxed{5}", answer) for answer in answers]  # a poisoned data set
    with Grader() as grader:
        grades = grader.grade([*items, EASY])
    assert not canary.exists()
    assert not any(grade.correct for grade in grades[:-1])
    assert grades[-1].correct
    assert not any(gold_parses(answer) for answer in answers if canary.exists())
    assert not canary.exists()


# --- what a worker that was taken over can do to its parent -------------------------------------------------------------


@pytest.fixture
def evil(monkeypatch):
    """A grader whose workers do what the gold answer says."""
    monkeypatch.setattr(grading_pool, "_WORKER", "evil_worker")
    monkeypatch.setattr(grading_pool, "_PATIENCE", 1.5)
    with Grader(workers=1, timeout_seconds=0.5) as grader:
        yield grader


def run(grader: Grader, attack: str, argument: str = "") -> tuple[bool, str | None]:
    ((correct, error),) = grader._pool.run([(attack, argument)])
    return correct, error


def test_a_worker_knows_nothing_of_the_environment(evil, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    error = run(evil, "environment")[1]
    assert "hush" not in error
    assert error.startswith('{"PYTHONPATH": ')
    monkeypatch.setattr(grading_pool.sys, "path", [str(TESTS)])
    evil.close()
    assert set(json.loads(run(evil, "environment")[1])) <= {"PYTHONPATH", "PYTHONHASHSEED", "LC_CTYPE"}
    inherited = grading_pool._environment() | {"AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"]}
    monkeypatch.setattr(grading_pool, "_environment", lambda: inherited)
    evil.close()
    assert "hush" in run(evil, "environment")[1], "the attack can succeed"


NO_REPLY = "the grading worker sent something that is no reply"
FORGED = {
    "another nonce": '["0123456789abcdef0123456789abcdef", true, null]',
    "no nonce": "[true, null]",
    "a number for a verdict": '["NONCE", 1, null]',
    "an error of a right answer": '["NONCE", true, "x"]',
    "an error that is a list": '["NONCE", false, ["x"]]',
    "an error that is long": json.dumps(["NONCE", False, "x" * 301]),
    "one more": '["NONCE", true, null, null]',
    "an object": '{"nonce": "NONCE", "correct": true}',
    "null": "null",
    "deeply nested": "[" * 900 + "]" * 900,
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_reply_is_an_error_and_the_end_of_the_worker(evil, kind):
    first = run(evil, "environment")
    (worker,) = evil._pool._workers
    correct, error = run(evil, "send_json", FORGED[kind])
    assert not correct
    assert error.startswith(NO_REPLY)
    assert worker.process.returncode is not None
    assert not evil._pool._workers
    assert run(evil, "environment") == first, "the next answer has a new worker"


@pytest.mark.parametrize(
    ("kind", "sent", "error"),
    [
        # What multiprocessing's connections would have unpickled: os.system("touch CANARY").
        ("a pickle", b"\0\0\0\x20" + b"cposix\nsystem\n(S'touch CANARY'\ntR."[:32], NO_REPLY),
        ("too much", b"\x7f\xff\xff\xff", "the grading worker sent more than a reply"),
        ("a long reply", b"\0\0\x0f\xff" + b" " * 4095, "the grading worker sent more than a reply"),
        ("no text", b"\0\0\0\x02\xff\xfe", NO_REPLY),
        ("half a header", b"\0\0\0", "no verdict within 0.5 s"),
        ("half a reply", b"\0\0\0\x20[\0", "no verdict within 0.5 s"),
    ],
)
def test_bytes_that_are_no_reply(evil, tmp_path, monkeypatch, kind, sent, error):
    monkeypatch.chdir(tmp_path)
    correct, said = run(evil, "send_bytes", sent.hex())
    assert not correct
    assert said.startswith(error)
    assert not list(tmp_path.iterdir())
    assert run(evil, "environment")[1].startswith("{")


def test_a_reply_to_a_request_to_come_is_thrown_away_with_its_worker(evil):
    assert run(evil, "reply_and_more") == (True, None), "a lie about its own answer is what it can do"
    (worker,) = evil._pool._workers
    grading_pool._ready([(worker.replies, grading_pool.select.POLLIN)], 10.0)
    assert run(evil, "environment")[1].startswith("{"), "the next answer has a new worker"
    assert worker.process.returncode is not None


def test_a_worker_that_takes_its_alarm_away_is_killed_from_here(evil):
    assert run(evil, "ignore_the_alarm") == (False, "the grading worker died with status -9")


def test_a_worker_that_stops_reading_does_not_keep_the_parent(evil, monkeypatch):
    long = "x" * 1_000_000  # more than a pipe holds
    assert run(evil, "environment", long)[1].startswith("{")
    monkeypatch.setattr(grading_pool, "_WORKER", "deaf_worker")
    evil.close()
    assert run(evil, "environment", long) == (False, "the grading worker died with status -9")


def test_a_worker_is_replaced_after_so_many_requests(monkeypatch):
    monkeypatch.setattr(grading_pool, "_REQUESTS_OF_A_LIFE", 3)
    with Grader(workers=1) as grader:
        processes = []
        for number in range(5):
            assert grader.grade([(rf"\boxed{{\frac{{{2 * number + 2}}}{{6}}}}", rf"\frac{{{number + 1}}}{{3}}")])[
                0
            ].correct
            processes.append(grader._pool._workers[0].process.pid)
    assert processes[0] == processes[2] != processes[3] == processes[4]


def test_what_a_refused_answer_is_told():
    assert sandbox.refusal(sandbox.REFUSED) == "run generated code"
    assert sandbox.refusal(sandbox.REFUSED + len(sandbox.REFUSALS)) == "do what no grading needs"
    assert (
        sandbox.refusal(0)
        is sandbox.refusal(-9)
        is sandbox.refusal(sandbox.REFUSED + len(sandbox.REFUSALS) + 1)
        is None
    )


def test_a_refused_answer_is_an_error_of_its_own(evil):
    evil._pool._size = 1
    correct, error = run(evil, "watched_exec")
    assert (correct, error) == (False, "refused: the answer made the grader run generated code")


@pytest.mark.skipif(sys.platform != "linux", reason="the filter of system calls is Linux's")
def test_the_workers_of_the_grader_have_all_walls():
    with Grader(workers=1) as grader:
        assert grader.grade([EASY]) == [Grade(True, r"\frac{2}{4}", None)]
        process = Path(f"/proc/{grader._pool._workers[0].process.pid}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        limits = {line[:26].strip(): line[26:].split()[:2] for line in (process / "limits").read_text().splitlines()}
        assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
        assert all(
            limits[f"Max {name}"] == ["0", "0"] for name in ("open files", "file size", "processes", "core file size")
        )
        assert {os.readlink(entry).partition(":")[0] for entry in (process / "fd").iterdir()} == {"pipe"}
        assert len(list((process / "fd").iterdir())) == 2
        assert os.readlink(process / "cwd") == "/"


def test_a_missing_wall_is_said_once(monkeypatch, capfd):
    grading_pool._say.cache_clear()
    monkeypatch.setattr(grading_pool, "_WORKER", "unfiltered_worker")
    with Grader(workers=2) as grader:
        assert all(grade.correct for grade in grader.grade([EASY, (r"\boxed{\frac{3}{9}}", r"\frac{1}{3}")]))
    grading_pool._say.cache_clear()
    assert capfd.readouterr().err == (
        "grading: no filter of system calls on a machine of the tests; the other walls around the grader stand\n"
    )


@pytest.mark.parametrize("machine", ["riscv64", "arm64"])
def test_a_machine_without_a_filter_is_named(monkeypatch, machine):
    monkeypatch.setattr(sandbox.platform, "machine", lambda: machine)
    assert sandbox.filter_system_calls() == f"no filter of system calls on {sys.platform} ({machine})"


# --- the version of the grader ------------------------------------------------------------------------------------------


def test_the_graders_version_covers_all_that_decides():
    """All modules of this package that the grader and its worker reach, by importing them."""
    script = (
        "import sys; from ngrpo.grading import grader, worker; worker.load();"
        "print(*(name for name in sys.modules if name.startswith('ngrpo.')))"
    )
    names = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    beside = {
        name for name in names if not protocol.is_grader_source(name.removeprefix("ngrpo.").replace(".", "/") + ".py")
    }
    # What brings the code of a grader of the user's decides nothing: that code is in the version by itself.
    deciding = {name for name in beside if not _is_transparent(name)} - {"ngrpo.user_code", "ngrpo.user_code.loading"}
    assert deciding == {"ngrpo.grading", "ngrpo.storage"}, "the packages themselves, and nothing that decides"
    assert len(names) > 8


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\det\left(\begin{pmatrix} exec & 1 \\ 0 & 2 \end{pmatrix}\right)", "(1, 5)"),
        (r"\int_0^1 \log_{2} \int_0^1 x \, dx \, dx", r"\frac{1}{3}"),
    ],
)
def test_what_sympy_imports_only_for_some_answers_is_there_behind_the_walls(answer, gold):
    with Grader(workers=1) as grader:
        (grade,) = grader.grade([(rf"\boxed{{{answer}}}", gold)])
    assert not grade.correct
    assert "No module named" not in (grade.error or "")


def test_factors_of_a_large_number_may_need_more_primes_than_are_there():
    """SymPy keeps them in an array, and the making of one is an audit event."""
    gold = r"\begin{pmatrix} \sin(\sqrt[3]{999999999999999999999999999999}) & 1 \\ 0 & 2 \end{pmatrix}"
    with Grader(workers=1) as grader:
        (grade,) = grader.grade([(r"\boxed{(1, 5)}", gold)])
    assert (grade.correct, grade.error) == (False, None)
