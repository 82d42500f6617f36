"""`ngrpo regrade` on a finished run whose verdicts have changed."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ngrpo.config import load_config
from ngrpo.evaluation.verdicts import SAMPLES
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import regrading
from ngrpo_kfp.pipelines.local.workspace import Workspace

pytestmark = pytest.mark.pipeline


def sample(number: int, text: str, correct: bool) -> dict:
    raw = {"problem_id": "p", "sample_id": number, "text": text, "tokens": 3, "finish_reason": "stop"}
    return raw | {"extracted": None, "correct": correct, "grader_error": None}


@pytest.fixture
def finished(store, objects, tmp_path, monkeypatch):
    """A finished run with three samples of which an older grader took the first for wrong."""
    monkeypatch.setenv("NGRPO_STORE", objects.uri)
    data, evaluation = tmp_path / "data", tmp_path / "evaluation"
    (data / "benchmarks").mkdir(parents=True)
    problems = {"id": ["p"], "prompt": [[{"role": "user", "content": "3 + 4 ="}]], "answer": ["7"]}
    pq.write_table(pa.table(problems), data / "benchmarks" / "sums.parquet")
    rows = [sample(0, r"\boxed{7.0}", False), sample(1, r"\boxed{8}", False), sample(2, r"\boxed{7}", True)]
    (evaluation / "samples" / "trained").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SAMPLES), evaluation / "samples" / "trained" / "sums.parquet")
    directory = tmp_path / "run"
    directory.mkdir()
    stages = {}
    for name, payload in (("prepare_data", data), ("benchmark_evaluation", evaluation)):
        reference = store.publish(name, "k", payload, config_digest="c", code_version="v", inputs={})
        stages[name] = {"key": "k", "artifact": reference.uri}
    (directory / "summary.json").write_text(
        json.dumps({"stages": stages, "wall_seconds": 1.0, "mlflow": {"tracking_uri": "sqlite:///m.db", "run_id": "r"}})
    )
    config = load_config(PRESETS / "tiny.toml").model_dump_json()
    (directory / "config.json").write_text(config)
    return directory


def test_changed_verdicts_are_shown_and_decided_on_again(finished, tmp_path, monkeypatch, capsys):
    again = []
    monkeypatch.setattr(regrading, "run", lambda config, *_, rerun: again.append((config.preset, rerun)))
    monkeypatch.setenv("COLUMNS", "160")
    regrading.regrade_run(finished, Workspace(tmp_path / "outputs"), Console(highlight=False))
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "trained" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["trained", "sums", "3", "1", "0", "33.33%", "66.67%"]
    assert again == [("tiny", "benchmark_evaluation")]


def test_each_arm_of_a_run_is_graded_again(finished, tmp_path, monkeypatch, capsys):
    again = []
    monkeypatch.setattr(regrading, "run", lambda *_, rerun: again.append(rerun))
    monkeypatch.setenv("COLUMNS", "160")
    summary = json.loads((finished / "summary.json").read_text())
    evaluation = summary["stages"].pop("benchmark_evaluation")
    summary["stages"] |= {f"benchmark_evaluation.{arm}": evaluation for arm in ("grpo", "ngrpo")}
    (finished / "summary.json").write_text(json.dumps(summary))
    regrading.regrade_run(finished, Workspace(tmp_path / "outputs"), Console(highlight=False))
    printed = capsys.readouterr().out
    assert "grpo.trained" in printed
    assert "ngrpo.trained" in printed
    assert again == ["benchmark_evaluation.grpo", "benchmark_evaluation.ngrpo"]


def test_equal_verdicts_change_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(regrading, "run", lambda *_, **__: pytest.fail("ran"))
    monkeypatch.setattr(regrading, "graded", lambda samples, *_: samples)
    regrading.regrade_run(finished, Workspace(tmp_path / "outputs"), Console())
