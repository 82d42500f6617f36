"""An evaluation in several processes has the samples of a single process, whichever is killed; without GPUs they share the CPU."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked_children import ForkedChild, fork_children

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.errors import ConfigError, DataError, EngineError
from ngrpo.evaluation import configured_sampler
from ngrpo.evaluation.samples import Part, Sampler
from ngrpo.evaluation.sampling_processes import devices_of_processes, sampled_by_processes
from ngrpo.rollout import child_process
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context
from ngrpo.storage.state import read_state
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline

MODELS = ("warm_start", "trained")
PROBLEMS = {"others": 7, "sums": 12}
SAMPLES = 4
TOTAL = len(MODELS) * SAMPLES * sum(PROBLEMS.values())
CONFIG = {
    "seed": 5,
    "model": {"source": {"kind": "initialized"}},
    "neighbors": {"candidates": 4},
    "warm_start": {"steps": 0},
    "evaluation": {
        "samples": SAMPLES,
        "pass_at": (1,),
        "max_tokens": 16,
        "batch_size": 5,
        "bootstrap_draws": 100,
        "top_p": 1.0,
        "temperature": 1.0,
    },
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A fork has none of the threads that its parent computed with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def forks(monkeypatch) -> list[ForkedChild]:
    """Start the processes as forks, and return them."""
    return fork_children(monkeypatch)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(MODELS):
        save_tiny_model(root / name / "model", seed)
    benchmarks = root / "dataset" / "benchmarks"
    benchmarks.mkdir(parents=True)
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("prompt", turns), ("answer", pa.string())])
    for name, size in PROBLEMS.items():
        rows = [
            {
                "id": f"{name}-{number}",
                # Of different lengths, so that batches are padded: another batch would round in another way.
                "prompt": [{"role": "user", "content": " + ".join(["3"] * (number % 5 + 2))}],
                "answer": "3",
            }
            for number in range(size)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), benchmarks / f"{name}.parquet")
    (root / "dataset" / "sources.json").write_text('{"layout": 1, "tables": {}}')
    return {name: root / name for name in ("dataset", *MODELS)}


def settings(**evaluation) -> BenchmarkEvaluationConfig:
    return BenchmarkEvaluationConfig.model_validate(CONFIG | {"evaluation": CONFIG["evaluation"] | evaluation})


def evaluate(root: Path, inputs: dict[str, Path], processes: int | None, config=None, lines=None) -> dict[str, bytes]:
    """Run the stage, and return the files of its artifact."""
    output = root / f"output-{time.monotonic_ns()}"
    output.mkdir(parents=True)
    (root / "work").mkdir(exist_ok=True)
    context = Context(root / "work", processes=processes, progress=print if lines is None else lines.append)
    benchmark_evaluation.run(config or settings(), inputs, output, context)
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def kept(root: Path) -> dict[str, int]:
    """Return the parts in a work directory, and how many samples each holds."""
    return {path.name: pq.read_table(path).num_rows for path in (root / "work").rglob("*.parquet")}


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory) -> dict[str, bytes]:
    """The artifact of an evaluation in one process."""
    return evaluate(tmp_path_factory.mktemp("alone"), inputs, None)


def test_two_processes_give_the_samples_of_one(inputs, alone, forks, tmp_path):
    lines: list[str] = []
    assert evaluate(tmp_path, inputs, 2, lines=lines) == alone
    assert len(forks) == 2 * len(MODELS), "two for each model"
    assert [fork.returncode for fork in forks] == [0] * 4
    assert sum(kept(tmp_path).values()) == TOTAL
    assert {line for line in lines if "processes" in line} == {f"{name}: 76 samples by 2 processes" for name in MODELS}
    assert [line for line in lines if line.startswith("trained sums: ")][-2] == "trained sums: 48/48 samples"
    assert evaluate(tmp_path, inputs, 3) == alone
    assert len(forks) == 4, "nothing was left to generate"


def test_mixing_and_more_processes_than_parts(inputs, forks, tmp_path):
    config = settings(mixing={"rate": 0.5, "k": 3, "end_marker": None}, batch_size=40)
    whole = evaluate(tmp_path / "one", inputs, None, config)
    assert evaluate(tmp_path / "many", inputs, 8, config) == whole
    assert len(forks) == len(MODELS) * 3, "28 and 48 samples are three batches of 40 at most"


def hold_after(monkeypatch, held: Path, parts: int, do) -> None:
    """Let the processes generate so many parts together, and the one that begins another do something else."""
    generate, begun = Sampler.generate, held / "begun"
    begun.mkdir(parents=True)

    def counting(self, *arguments):
        if len(list(begun.iterdir())) >= parts:
            do()
        (begun / str(time.monotonic_ns())).touch()
        return generate(self, *arguments)

    monkeypatch.setattr(Sampler, "generate", counting)


@pytest.mark.parametrize("again", [1, 3])
def test_a_process_that_is_killed_ends_the_stage_and_nothing_is_generated_twice(
    inputs, alone, forks, tmp_path, monkeypatch, again
):
    def die():
        print("out of paper", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        hold_after(patch, tmp_path, 4, die)
        with pytest.raises(EngineError) as caught:
            evaluate(tmp_path, inputs, 2)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("warm_start: process ")
    assert "of 2 was killed by SIGKILL, for want of memory perhaps; its last line: out of paper." in message
    assert all(fork.returncode is not None for fork in forks), "the other one is ended too"
    before = kept(tmp_path)
    assert 10 <= sum(before.values()) <= 20, "parts of one batch each"
    assert evaluate(tmp_path, inputs, again) == alone
    after = kept(tmp_path)
    assert before.items() <= after.items()
    assert sum(after.values()) == TOTAL


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConfigError("evaluation.x=1: no; set it to 2"), ConfigError, "evaluation.x=1: no; set it to 2"),
        (DataError("model: damaged; copy it again"), DataError, "model: damaged; copy it again"),
        (
            RuntimeError("Engine core initialization failed.\nSee root cause above."),
            EngineError,
            "warm_start: process 1 of 1 (GPU 0) failed: RuntimeError: Engine core initialization failed. See root cause above.; the log",
        ),
    ],
)
def test_an_engine_that_does_not_start_says_why(inputs, forks, tmp_path, monkeypatch, capfd, error, kind, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(configured_sampler, "start_engine", refuse)
    monkeypatch.setattr(benchmark_evaluation, "devices_of_processes", lambda *_: ["0"])
    with pytest.raises(kind) as caught:
        evaluate(tmp_path, inputs, None)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert ("Traceback" in capfd.readouterr().err) == (kind is EngineError)


def stage_that_is_killed(root: Path, inputs: dict[str, Path], told) -> None:
    os.setsid()
    pids: list[int] = []

    def fork(*arguments, **options):
        made = ForkedChild(*arguments, **options)
        pids.append(made.pid)
        if len(pids) == 2:
            told.send(pids)
        return made

    child_process.subprocess.Popen = fork
    Sampler.generate = lambda *_: time.sleep(600)
    evaluate(root, inputs, 2)


def test_a_stage_that_is_killed_takes_its_processes_with_it(inputs, tmp_path):
    ours, theirs = multiprocessing.Pipe()
    stage = multiprocessing.get_context("fork").Process(target=stage_that_is_killed, args=(tmp_path, inputs, theirs))
    stage.start()
    workers = [psutil.Process(pid) for pid in ours.recv()]
    stage.kill()
    stage.join()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_a_process_of_its_own_says_why_it_cannot_begin(inputs, tmp_path):
    """With a new interpreter, as outside of tests."""
    task = {"config": settings().model_dump_json(), "model": str(tmp_path), "benchmarks": str(tmp_path / "none")}
    tables = sampled_by_processes(task, [Part(0, [(0, 0)])], [None], ahead=1, work=tmp_path, what="base")
    with pytest.raises(DataError, match=r"benchmarks in .*none: no \*\.parquet file"):
        next(tables)
    assert read_state(tmp_path / "sampling.json", dict, cure="") == task


@pytest.mark.long
def test_two_new_processes_give_the_samples_of_one(inputs, tmp_path):
    """From the command line, where the environment says how many."""
    arguments = [sys.executable, "-m", "ngrpo.stages.benchmark_evaluation"]
    arguments += ["--preset", str(Path(__file__).with_name("small.toml"))]
    arguments += [part for name in inputs for part in ("--input", f"{name}={inputs[name]}")]
    for setting in ("warm_start.steps=0", "evaluation.batch_size=5", "evaluation.bootstrap_draws=100"):
        arguments += ["--set", setting]
    outputs = []
    for processes in ("", "2"):
        output = tmp_path / f"output-{processes}"
        environment = {**os.environ, "NGRPO_PROCESSES": processes, "NGRPO_STORE": "", "OMP_NUM_THREADS": "1"}
        subprocess.run([*arguments, "--output", str(output)], check=True, env=environment, timeout=300)
        outputs.append({path.name: path.read_bytes() for path in output.rglob("*") if path.is_file()})
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("gpus", "visible", "asked", "each", "expected"),
    [
        (0, None, None, 1, [None]),
        (0, None, 3, 1, [None] * 3),
        (1, None, None, 1, ["0"]),
        (8, None, None, 1, list("01234567")),
        (8, None, 2, 1, ["0", "1"]),
        (8, None, None, 2, ["0,1", "2,3", "4,5", "6,7"]),
        (3, None, None, 2, ["0,1"]),
        (2, "GPU-a, GPU-b", None, 1, ["GPU-a", "GPU-b"]),
        (2, "5,7", 9, 1, ["5", "7"]),
    ],
)
def test_every_gpu_gets_a_process(monkeypatch, gpus, visible, asked, each, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_of_processes(asked, each) == expected


def test_fewer_gpus_than_share_a_model_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size=4 but 2 GPUs are visible here: lower it"):
        devices_of_processes(None, 4)


def test_a_process_sees_its_gpus_alone(inputs, forks, tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    seen.mkdir()
    start = configured_sampler.start_engine

    def watched(*arguments, **options):
        (seen / os.environ["CUDA_VISIBLE_DEVICES"]).touch()
        return start(*arguments, **options)

    monkeypatch.setattr(configured_sampler, "start_engine", watched)
    monkeypatch.setattr(benchmark_evaluation, "devices_of_processes", lambda *_: ["2", "3"])
    evaluate(tmp_path, inputs, None, settings(samples=1, max_tokens=1))
    assert {path.name for path in seen.iterdir()} == {"2", "3"}
