"""Progress of a run: remaining times, curves, and no long silence."""

import io
import json
import os
import time
from types import SimpleNamespace

import pytest
from kubeflow_trainer_api.models import TrainerV1alpha1UpdateTrainJobStatusRequest
from rich.cells import cell_len
from rich.console import Console
from transformers import TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks

from ngrpo.report import phases
from ngrpo.report import remaining as remaining_module
from ngrpo.report.progress_lines import PrintProgress
from ngrpo.report.remaining import Remaining, duration, sparkline
from ngrpo.report.sampling_progress import SamplingProgress
from ngrpo.stages.surroundings import job_reporters
from ngrpo_kfp.pipelines.cli.terminal import Terminal
from ngrpo_kfp.pipelines.local import progress
from ngrpo_kfp.pipelines.local.progress import NodeState, StageProgress
from receiver import receiver


class Clock:
    """Time that goes when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


# --- what is left -------------------------------------------------------------------------------------------------------


def test_what_is_left_is_that_of_the_pace_since_the_start(clock):
    left = Remaining(20)
    assert left.words(20, 60) == ""
    clock.now += 30
    assert left.seconds(30, 60) == pytest.approx(90.0)  # 10 in 30 s, 30 are left
    assert left.words(30, 60) == ", about 1 min 30 s left"
    assert left.words(60, 60) == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (18_240, "5 h 4 min"),
        (183_600, "2 d 3 h"),
    ],
)
def test_a_time_has_two_units_at_most(seconds, said):
    assert duration(seconds) == said


def test_a_curve_is_one_line_of_at_most_16_characters(monkeypatch):
    monkeypatch.setattr(remaining_module, "sys", SimpleNamespace(stdout=SimpleNamespace(encoding="utf-8")))
    assert sparkline(range(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.5]) == ""
    assert set(sparkline([1.0, 1.0, 1.0])) == {"▁"}
    long = sparkline([float(value) for value in range(1000)])
    assert (len(long), long[0], long[-1]) == (16, "▁", "█")
    monkeypatch.setattr(remaining_module, "sys", SimpleNamespace(stdout=SimpleNamespace(encoding="ascii")))
    assert sparkline(range(8)) == "", "a stage must not fail for a curve"


# --- stages -------------------------------------------------------------------------------------------------------------


def trained(clock, *, start=0, total=60, seconds=1.0, history=()):
    """Return what a trainer says that logs a reward every step."""
    said = []
    shown = PrintProgress({"reward": "reward"}, said.append)
    state = TrainerState(max_steps=total, global_step=start, log_history=list(history), is_world_process_zero=True)
    shown.on_train_begin(None, state, TrainerControl())
    for step in range(start + 1, total + 1):
        clock.now += seconds
        state.global_step = step
        shown.on_log(None, state, TrainerControl(), logs={"reward": step / total})
    return said


def test_a_training_says_its_rewards_and_what_is_left(clock):
    said = trained(clock)
    assert len(said) == 20
    assert said[0].startswith("step 3/60 reward 0.05, about 57 s left ▁")
    assert said[-1].startswith("step 60/60 reward 1 ▁")
    assert said[-1].endswith("█")


def test_a_resumed_training_says_where_and_counts_its_own_pace(clock):
    history = [{"step": step, "reward": 0.0} for step in range(1, 21)]
    said = trained(clock, start=20, seconds=2.0, history=history)
    assert said[0] == "resuming at 20/60"
    assert said[1].startswith("step 21/60 reward 0.35, about 1 min 18 s left ▁")
    assert len(said[1].split()[-1]) == 16, "the rewards before are drawn too"


def test_a_training_with_slow_steps_says_every_one(clock):
    assert len(trained(clock, total=60, seconds=6.0)) == 60


def test_a_reward_that_is_no_number_is_not_drawn(clock):
    said = []
    shown = PrintProgress({"reward": "reward"}, said.append)
    state = TrainerState(max_steps=2, is_world_process_zero=True)
    shown.on_train_begin(None, state, TrainerControl())
    for step, value in ((1, float("nan")), (2, 0.5)):
        clock.now += 3
        state.global_step = step
        shown.on_log(None, state, TrainerControl(), logs={"reward": value})
    assert said == ["step 1/2 reward nan, about 3 s left", "step 2/2 reward 0.5"]


def test_an_evaluation_says_what_is_left_of_all_models(clock):
    said = []
    following = SamplingProgress(200, said.append)  # two models with 100 samples each
    following.skip(50)
    add = following.of("base sums", 100, 50)
    clock.now += 10
    add(50)
    assert said == ["base sums: 100/100 samples, about 20 s left"]
    add = following.of("trained sums", 100, 100)
    clock.now += 6
    add(1)
    assert said[-1].startswith("trained sums: 1/100 samples, about "), "five seconds have gone by"
    clock.now += 1
    add(1)
    assert len(said) == 2
    add(98)
    assert said[-1] == "trained sums: 100/100 samples"


def test_a_node_of_a_train_job_tells_kubeflow_how_far_it_is(tmp_path, monkeypatch):
    assert job_reporters() == ()
    (tmp_path / "token").write_text("a-token")
    with receiver() as there:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", there.url)
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
        (kind,) = get_reporting_integration_callbacks(list(job_reporters()))
        callback, control = kind(), TrainerControl()
        state = TrainerState(max_steps=4, is_world_process_zero=True)
        callback.on_train_begin(None, state, control)
        callback.on_log(None, state, control, logs={"reward": 0.5, "text": "the moon"})
        callback.on_train_end(None, state, control)
    first, last = there.documents
    for document in (first, last):
        request = TrainerV1alpha1UpdateTrainJobStatusRequest.from_dict(document)
        assert request.to_dict().keys() == document.keys()
    assert first["trainerStatus"]["progressPercentage"] == 0
    assert last["trainerStatus"]["progressPercentage"] == 100
    assert last["trainerStatus"]["metrics"] == [{"name": "reward", "value": "0.5"}]
    monkeypatch.setenv("DISABLE_KUBEFLOW_INTEGRATION", "true")
    assert job_reporters() == ()


# --- the run ------------------------------------------------------------------------------------------------------------

WORD = "step 15/300 loss 2.55 accuracy 0.303 [kept], about 3 min 4 s left ▁▂▃"
STATES = [
    NodeState("prepare_data", "cached"),
    NodeState("neighbor_index", "done", 4.24),
    NodeState("sft_warm_start", "running", 75.0, WORD),
    NodeState("ngrpo_training.a-label-that-is-long.seed1", "starting", 3.0, "its process starts"),
    NodeState("model_promotion", "waiting"),
]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_table_of_a_run_fits_and_shows_times_whole(width):
    console = Console(width=width, file=io.StringIO())
    console.print(progress._table(STATES, width))
    lines = console.file.getvalue().splitlines()
    assert len(lines) == len(STATES)
    assert max(map(cell_len, lines)) <= width
    assert "1 min 15 s" in lines[2]
    assert "~3 min 4 s" in lines[2]
    assert ("ngrpo_training.a-label-that-is-long.seed1" in lines[3]) == (width == 200)
    assert ("…" in lines[2].replace("▶", "")) == (width < 200)
    if width == 200:
        assert "step 15/300 loss 2.55 accuracy 0.303 [kept] ▁▂▃" in lines[2]


class Nodes(list):
    """A plan with two nodes."""

    def __init__(self):
        super().__init__(
            SimpleNamespace(name=name, cached=False, worker=SimpleNamespace(name=name)) for name in ("first", "second")
        )


def record(directory, name, **values):
    (directory / "stages").mkdir(exist_ok=True)
    (directory / "logs").mkdir(exist_ok=True)
    (directory / "stages" / f"{name}.json").write_text(json.dumps({"key": "k", "pid": 1, **values}))


def test_what_waits_for_its_process_is_said(tmp_path):
    shown = StageProgress(Nodes(), tmp_path, Console(file=io.StringIO()))
    assert [state.state for state in shown.states()] == ["starting", "waiting"]
    record(tmp_path, "first")
    assert [state.state for state in shown.states()] == ["running", "waiting"]
    record(tmp_path, "first", seconds=2.0, artifact="s3://")
    assert [state.state for state in shown.states()] == ["done", "starting"]
    record(tmp_path, "first", seconds=2.0, error="no")
    assert [state.state for state in shown.states()] == ["failed", "waiting"]


def test_without_a_terminal_no_five_seconds_are_silent_and_lines_are_plain(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "_QUIET_SECONDS", 0.1)
    monkeypatch.setattr(progress, "_POLL_SECONDS", 0.02)
    console = Console(file=io.StringIO(), width=40)
    with StageProgress(Nodes(), tmp_path, console):
        time.sleep(0.3)
        record(tmp_path, "first")
        (tmp_path / "logs" / "first.log").write_text(
            "\x1b[32m50%|#####     |\r 60%|######    | step 3/5, about 2 s left\r"
        )
        time.sleep(0.5)
        record(tmp_path, "first", seconds=2.0, artifact="s3://")
        time.sleep(0.1)
    said = console.file.getvalue()
    assert not set(said) & {"\r", "\x1b"}
    lines = said.splitlines()
    assert lines[0].startswith("first: starting ")
    working = [line for line in lines if line.startswith("first: running ")]
    assert len(working) >= 3, "it says again what has not changed"
    assert any(line.endswith("step 3/5, about 2 s left") for line in working)
    assert "first: done 2.0 s" in lines


def test_a_stage_of_hours_says_a_line_a_minute():
    assert phases.longest_silence(30.0) < 5.0
    assert phases.longest_silence(3600.0) == 60.0


def test_a_phase_is_a_spinner_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(phases, "_QUIET_SECONDS", 0.1)
    plain, terminal = Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True)
    for console in (plain, terminal):
        with phases.phase(console, "looking") as done:
            done.now("looking at what is there")
            time.sleep(0.25)
            done.end()
            before = console.file.getvalue()
            time.sleep(0.25)
            assert console.file.getvalue() == before
    assert plain.file.getvalue().splitlines()[0] == "looking at what is there: 0 s"
    assert "looking at what is there" in terminal.file.getvalue()


def test_the_first_phase_of_a_process_counts_the_imports_before_it(monkeypatch):
    monkeypatch.setattr(phases.Phase, "silent_since", time.monotonic() - 7.0)
    console = Console(file=io.StringIO())
    for _ in range(2):
        with phases.phase(console, "making the plan"):
            time.sleep(0.1)
    assert console.file.getvalue() == "making the plan: 7 s\n", "at once, and the second counts for itself"


def test_a_phase_says_how_far_it_is_and_what_is_left(clock, monkeypatch):
    told = []
    monkeypatch.setattr(phases.Phase, "now", lambda self, what: told.append(what))
    with phases.phase(Console(file=io.StringIO(), force_terminal=True), "reading") as shown:
        for _ in shown.each(["a", "b", "c"], "reading", "runs"):
            clock.now += 10
        clock.now += 1000
        for _ in shown.each(["d", "e"], "removing", "items"):
            clock.now += 5
    assert told == [
        "reading 1 of 3 runs",
        "reading 2 of 3 runs, about 20 s left",
        "reading 3 of 3 runs, about 10 s left",
        "removing 1 of 2 items",
        "removing 2 of 2 items, about 5 s left",
    ]


def test_a_phase_that_fails_is_over(monkeypatch):
    monkeypatch.setattr(phases, "_QUIET_SECONDS", 0.05)
    console = Console(file=io.StringIO())
    with pytest.raises(ZeroDivisionError), phases.phase(console, "dividing"):
        raise ZeroDivisionError
    time.sleep(0.15)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize("setting", ["NO_COLOR", None])
def test_no_color_is_kept_to(monkeypatch, setting):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setitem(os.environ, "FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    if setting is not None:
        monkeypatch.setenv(setting, "1")
    terminal = Terminal()
    terminal.file = io.StringIO()
    terminal.print(progress._table(STATES, 80))
    assert ("\x1b[32m" in terminal.file.getvalue()) == (setting is None)
