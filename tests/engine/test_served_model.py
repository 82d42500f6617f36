"""`ngrpo serve` with the real server of vLLM: what it answers, to whom, and that nothing of it is left."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ngrpo.config import BenchmarkEvaluationConfig, load_config
from ngrpo.errors import ConfigError
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.endpoint_names import digest_name
from ngrpo.evaluation.samples import parts
from ngrpo.stages import benchmark_evaluation
from ngrpo.storage.digest import model_digest
from ngrpo_kfp.pipelines.local.services import services
from ngrpo_kfp.pipelines.local.workspace import Workspace
from tiny import save_tiny_model

pytestmark = [pytest.mark.engine, pytest.mark.long]
SMALL = Path(__file__).parent.parent / "pipeline" / "small.toml"
RUN = "20260101-000000-000000-small"
PROBLEMS = [f"{first} + {second} =" for first in (1, 7, 23) for second in (2, 31)]


def settings(url: str | None = None) -> BenchmarkEvaluationConfig:
    evaluation = {"samples": 2, "pass_at": (1,), "max_tokens": 16, "batch_size": 8, "top_p": 1e-6, "temperature": 0.6}
    return BenchmarkEvaluationConfig.model_validate(
        {
            "model": {"source": {"kind": "initialized"}},
            "seed": 3,
            "neighbors": {},
            "warm_start": {"steps": 0},
            "evaluation": evaluation | ({} if url is None else {"endpoint": {"url": url}}),
        }
    )


def sampled(config: BenchmarkEvaluationConfig, directory: Path):
    prompts = [[{"role": "user", "content": problem}] for problem in PROBLEMS]
    benchmark = Benchmark("sums", PROBLEMS, prompts, ["1"] * len(PROBLEMS))
    waiting = parts(0, [(problem, sample) for problem in range(len(PROBLEMS)) for sample in range(2)], 2)
    made = benchmark_evaluation._sampled_here(config, {"model": str(directory)}, [benchmark], waiting, tuple, ahead=16)
    rows = [row for _, table in made for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["problem_id"], row["sample_id"]))


def finished_run(home: Path, model: Path) -> None:
    """Leave a workspace in which a run has trained a model."""
    workspace = Workspace(home)
    with services(workspace) as around:
        shutil.copytree(model, home.parent / "payload" / "model")
        reference = around.artifact_store(workspace).publish(
            "ngrpo_training", "key", home.parent / "payload", config_digest="c", code_version="v", inputs={}
        )
        run = workspace.new_run(RUN)
        stages = {"ngrpo_training": {"key": "key", "artifact": reference.uri}}
        (run / "summary.json").write_text(
            json.dumps({"stages": stages, "wall_seconds": 1.0, "mlflow": {"run_id": "r"}})
        )
        options = ["evaluation.vllm.options.kv_cache_memory_bytes=67108864"]
        (run / "config.json").write_text(load_config(SMALL, options).model_dump_json())
        workspace.set_latest(run)


def in_group(group: int) -> list[str]:
    told = subprocess.run(["ps", "-eo", "pgid=,stat=,args="], capture_output=True, text=True).stdout.splitlines()
    return [line for line in told if line.split()[0] == str(group) and not line.split()[1].startswith("Z")]


@pytest.mark.timeout(900)
def test_a_model_is_served_until_it_is_told_to_stop(tmp_path):
    model, home = save_tiny_model(tmp_path / "model"), tmp_path / "outputs"
    finished_run(home, model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "NGRPO_"))}
    command = [sys.executable, "-m", "ngrpo_kfp.pipelines.cli.app", "serve", RUN, "--port", str(port)]
    process = subprocess.Popen(
        command, env=kept | {"NGRPO_HOME": str(home)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told = []
    try:
        for line in process.stdout:
            told.append(line.rstrip())
            if line.startswith("Ctrl-C"):
                break
        url = f"http://127.0.0.1:{port}/v1"
        assert any(line.endswith(f"is served at {url}") for line in told), told
        # Evaluated through its endpoint it gives what the engine of the stage gives, to the token.
        here, there = sampled(settings(), model), sampled(settings(url), model)
        assert len({row["text"] for row in here}) > 1
        assert there == here
        # The lines that were printed work.
        curl = next(line for line in told if line.startswith("curl "))
        answer = json.loads(subprocess.run(curl, shell=True, capture_output=True, check=True).stdout)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        first = next(place for place, line in enumerate(told) if "import OpenAI" in line)
        program = "\n".join(told[first : first + 4])
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        # Another model is refused, by the digest.
        with pytest.raises(ConfigError, match=f"serves another model \\({digest_name(model_digest(model))}, not "):
            sampled(settings(url), save_tiny_model(tmp_path / "other", seed=1, hidden_size=128))
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        groups = [int(child) for child in children if in_group(int(child))]
        assert any(len(in_group(group)) > 1 for group in groups), "the server has an engine of its own"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
        time.sleep(0.5)
        assert [in_group(group) for group in groups] == [[] for _ in groups]
    finally:
        process.terminate()  # killed outright it would leave the engine
        process.communicate(timeout=120)
