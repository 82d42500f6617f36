"""Nodes: a stage that occurs several times in a pipeline, from the plan to MLflow and the cluster."""

import contextlib
import json
import sqlite3
from functools import cache
from pathlib import Path

import pytest
from arms import ARMS, arms
from golden_ir import IMAGES
from rich.console import Console
from test_plan import Store

from ngrpo.config import load_config
from ngrpo.config.cluster import ClusterConfig, ResourcesConfig, RetryConfig
from ngrpo.errors import ClusterError, ConfigError
from ngrpo.stages import supervision
from ngrpo.stages.step import execute
from ngrpo.stages.task import Task
from ngrpo_kfp.components.launching.train_job_manifest import JobSettings, manifest
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_pipeline, load_ir
from ngrpo_kfp.pipelines.kubeflow.runs import logs as run_logs
from ngrpo_kfp.pipelines.planning.nodes import History, find_node, names_of, node_of_task, task_name
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record
from ngrpo_kfp.pipelines.planning.summary import plan_table

pytest_plugins = ["commanding"]

PRESET = Path(__file__).with_name("small.toml")
SHARED = ["prepare_data", "neighbor_index", "sft_warm_start"]
SHORT = ["ngrpo_training.short", "benchmark_evaluation.short"]
LONG = ["ngrpo_training.long", "benchmark_evaluation.long"]
AGAIN = ["ngrpo_training.again", "benchmark_evaluation.again"]


def planned(pipeline=arms, *, store=None, history=None, tokens=None, run=""):
    return make_plan(
        load_config(PRESET),
        run=run,
        store=store,
        rerun_tokens=tokens or {},
        history=history or History(),
        pipeline=pipeline,
    )


def names(nodes):
    return [node.name for node in nodes]


# --- plan ---------------------------------------------------------------------------------------------------------------


def test_each_arm_has_nodes_of_its_own_and_the_same_work_is_planned_once():
    plan = planned()
    assert names(plan) == SHARED + SHORT + LONG + AGAIN == names_of(arms)
    assert names(plan.to_run) == SHARED + SHORT + LONG
    assert plan.stages_to_run == [*SHARED, "ngrpo_training", "benchmark_evaluation"]
    short, long, again = (plan[f"ngrpo_training.{arm}"] for arm in ARMS)
    assert [json.loads(node.config)["training"]["steps"] for node in (short, long, again)] == [10, 20, 10]
    assert again.key == short.key != long.key
    assert again.worker is short
    assert again.reasons == ("the same work as ngrpo_training.short: takes its result",)
    assert plan["benchmark_evaluation.again"].inputs["trained"] is again
    assert plan["benchmark_evaluation.again"].worker is plan["benchmark_evaluation.short"]
    table = Console(width=200, record=True)
    table.print(plan_table(plan, load_config(PRESET)))
    states = [row.split("│")[1:4] for row in table.export_text().splitlines() if "│" in row]
    assert [(name.strip(), state.strip()) for name, _, state in states][-6:] == [
        *((name, "to run") for name in SHORT + LONG),
        *((name, "shared") for name in AGAIN),
    ]


def test_reasons_and_reruns_are_those_of_a_node():
    first, store = planned(store=Store()), Store()
    store.hold(first)
    history = History(plan_record(first), frozenset(names(first)))
    token = {first.find("ngrpo_training.long").base_key: "again"}
    second = planned(store=store, history=history, tokens=token)
    assert names(second.to_run) == LONG
    assert second["ngrpo_training.long"].reasons == ("rerun asked for",)
    assert second["benchmark_evaluation.long"].reasons == ("input trained changed",)
    assert [node.reasons for node in second if node.cached] == [()] * 7
    # An arm that was not there: nothing is known of it.
    store = Store()
    store.keys = {first[name].key for name in SHARED}
    assert planned(store=store, history=History())["ngrpo_training.long"].reasons == ("no result yet",)


def test_a_stage_is_named_by_its_node_where_it_runs_once():
    nodes = [*SHARED, *SHORT, *LONG]
    assert find_node("prepare_data", nodes) == "prepare_data"
    assert find_node("ngrpo_training", [*SHARED, *SHORT]) == "ngrpo_training.short"
    with pytest.raises(
        ConfigError, match=r"runs several times: name one of ngrpo_training\.short, ngrpo_training\.long"
    ):
        find_node("ngrpo_training", nodes)
    with pytest.raises(
        ConfigError, match="'model_promotion' is not a node of the pipeline: name one of prepare_data, "
    ):
        find_node("model_promotion", nodes)


def test_the_task_of_a_node_leads_back_to_it():
    for node in (*SHARED, *LONG, "ngrpo_training.grpo.seed1"):
        assert node_of_task(task_name(node), node if "." in node else task_name(node)) == node
    assert task_name("ngrpo_training.grpo.seed1") == "ngrpo-training-grpo-seed1"


@pytest.mark.parametrize(
    ("labels", "settings", "problem"),
    [
        (("Grpo",), {}, "label 'Grpo': a label has lower-case letters and digits only"),
        (("seed--1",), {}, "label 'seed--1': "),
        (("-1",), {}, "label '-1': "),
        (("a-driver",), {}, "label 'a-driver': "),
        (("",), {}, "label '': "),
        (("driver",), {}, "label 'driver': "),
        (("a" * 60,), {}, "its name has more than 63 characters: shorten the labels"),
        (("a",), {"training.stepz": 1}, "node prepare_data.a: training.stepz: unknown setting"),
        (("a",), {"training": 1}, "node prepare_data.a: training: "),
        (("a",), {"mixing.k": 99}, "node prepare_data.a: mixing.k=99 exceeds neighbors.candidates"),
        (("a",), {"resources.prepare_data.cpus": 2}, "resources.prepare_data.cpus: no stage reads it"),
        (
            ("a",),
            {"cluster.nodes": 2},
            "cluster.nodes: no stage reads it, so it belongs to the whole run: set it there",
        ),
    ],
)
def test_what_a_node_cannot_be_is_said_with_its_name(labels, settings, problem):
    with pytest.raises(ConfigError) as refused:
        planned(lambda stage: stage("prepare_data", *labels, settings=settings))
    assert problem in str(refused.value)
    assert str(refused.value).startswith("node prepare_data")


def test_two_nodes_of_one_name_are_refused():
    def twice(stage):
        stage("prepare_data")
        stage("prepare_data", settings={"seed": 1})

    with pytest.raises(ConfigError, match="node prepare_data: the pipeline has a node prepare_data already"):
        planned(twice)


# --- the pipeline that a cluster runs -----------------------------------------------------------------------------------


@cache
def compiled() -> str:
    return compile_pipeline(load_config(PRESET), planned(), IMAGES, caching=False)


def producers(task):
    artifacts = task["inputs"].get("artifacts", {})
    return {name: source["taskOutputArtifact"]["producerTask"] for name, source in artifacts.items()}


def test_every_node_is_a_task_of_its_own_name_and_reads_its_own_arm():
    spec, platform = load_ir(compiled())
    tasks = spec["root"]["dag"]["tasks"]
    assert sorted(tasks) == sorted(task_name(node) for node in SHARED + SHORT + LONG)
    for node in SHORT + LONG:
        task = tasks[task_name(node)]
        assert task["taskInfo"]["name"] == node
        label = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task_name(node)}"]
        assert label["podMetadata"]["labels"]["ngrpo/stage"] == node
        container = spec["deploymentSpec"]["executors"][f"exec-{task_name(node)}"]["container"]
        assert {"name": "NGRPO_NODE", "value": node} in container["env"]
    assert tasks["prepare-data"]["taskInfo"]["name"] == "prepare-data"
    for arm in ("short", "long"):
        assert producers(tasks[f"benchmark-evaluation-{arm}"])["trained"] == f"ngrpo-training-{arm}"
        assert producers(tasks[f"ngrpo-training-{arm}"])["warm_start"] == "sft-warm-start"
    steps = {
        arm: json.loads(tasks[f"ngrpo-training-{arm}"]["inputs"]["parameters"]["config"]["runtimeValue"]["constant"])[
            "training"
        ]["steps"]
        for arm in ("short", "long")
    }
    assert steps == {"short": 10, "long": 20}


def test_who_reads_a_node_that_shares_work_is_given_the_result_of_the_other():
    def shared(stage):
        dataset, other = stage("prepare_data"), stage("prepare_data", "other")
        stage("sft_warm_start", dataset=dataset)
        stage("sft_warm_start", "wide", settings={"warm_start.steps": 3}, dataset=other)

    spec, _ = load_ir(compile_pipeline(load_config(PRESET), planned(shared), IMAGES, caching=False))
    tasks = spec["root"]["dag"]["tasks"]
    assert sorted(tasks) == ["prepare-data", "sft-warm-start", "sft-warm-start-wide"]
    assert producers(tasks["sft-warm-start-wide"]) == {"dataset": "prepare-data"}


def test_a_stage_that_is_never_cached_runs_once_in_a_pipeline_of_a_cluster():
    def two_promotions(stage):
        for label in ("a", "b"):
            data = stage("prepare_data", label, settings={"seed": len(label), "data.train.size": 8 + ord(label)})
            stage("model_promotion", label, trained=data, evaluation=data)

    assert len(planned(two_promotions).to_run) == 4, "on one machine each has a key of its own"
    with pytest.raises(ConfigError, match=r"nodes model_promotion\.a and model_promotion\.b: on a cluster"):
        compile_pipeline(load_config(PRESET), planned(two_promotions), IMAGES, caching=False)


def test_a_try_and_the_machines_of_a_job_know_their_node(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(supervision, "supervise", lambda command, *, stdin, **_: given.append(json.loads(stdin)))
    for name, value in {
        "NGRPO_TRIES": RetryConfig().model_dump_json(),
        "NGRPO_NODE": "ngrpo_training.long",
        "NGRPO_STORE": "s3://b/p",
        "NGRPO_CACHE_DIR": str(tmp_path),
        "NGRPO_WORK_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    metrics = tmp_path / "metrics.json"
    metrics.write_text("{}")
    execute("ngrpo_training", config_json="{}", key="k", code_version="c", inputs={}, output="o", metrics=str(metrics))
    task = Task(**given[0])
    assert (task.stage, task.node_name) == ("ngrpo_training", "ngrpo_training.long")
    settings = JobSettings(image="i", needs=ResourcesConfig(), cluster=ClusterConfig(nodes=2))
    job = manifest("job", task, settings)
    assert job["metadata"]["labels"]["ngrpo/stage"] == "ngrpo_training.long"
    assert json.loads(job["spec"]["trainer"]["args"][0])["node"] == "ngrpo_training.long"
    assert Task("prepare_data", "{}", "k", "c", {}).node_name == "prepare_data"


@pytest.fixture
def run(kubeflow, objects):
    """A run with arms that has been submitted."""
    return kubeflow.submit(compiled().replace(ClusterConfig().store, objects.uri))


@pytest.mark.pipeline
def test_status_tells_of_nodes(kubeflow, ngrpo, run, objects):
    for task in ("prepare-data", "neighbor-index", "sft-warm-start", "ngrpo-training-short"):
        kubeflow.detail(run, task, "SUCCEEDED")
    kubeflow.detail(run, "ngrpo-training-long", "FAILED", "OOMKilled (exit code 137)")
    kubeflow.detail(run, "benchmark-evaluation-short", "RUNNING")
    kubeflow.pods.append((run.run_id, "benchmark_evaluation.short", ""))
    kubeflow.pod_status = {"phase": "Pending"}
    told = ngrpo("status")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    assert {row[0]: row[1] for row in rows} == {
        **dict.fromkeys(SHARED, "succeeded"),
        "ngrpo_training.short": "succeeded",
        "ngrpo_training.long": "failed",
        "benchmark_evaluation.short": "waiting",
        "benchmark_evaluation.long": "waiting",
    }
    assert {row[0]: row[4] for row in rows}["ngrpo_training.long"] == "OOMKilled (exit code 137)"


@pytest.mark.pipeline
def test_logs_are_those_of_a_node(kubeflow, run, objects, capsys):
    key = kubeflow.parameter(run, "ngrpo-training-long", "key")
    kubeflow.pods.append((run.run_id, "ngrpo_training.long", "hello from long\n"))
    kubeflow.pods.append((run.run_id, "ngrpo_training.short", "hello from short\n"))
    kubeflow.pods.append((run.run_id, "prepare_data", "hello from data\n"))
    run_logs.show_logs(None, "ngrpo_training.long", Console())
    assert capsys.readouterr().out == "--- pod pod-0: running\nhello from long\n"
    run_logs.show_logs(None, "prepare_data", Console())
    assert capsys.readouterr().out.endswith("hello from data\n")
    with pytest.raises(ConfigError, match="'ngrpo_training' runs several times"):
        run_logs.show_logs(None, "ngrpo_training", Console())
    with pytest.raises(ClusterError, match=r"has no task ngrpo_training\.again: it was cached"):
        run_logs.show_logs(None, "ngrpo_training.again", Console())
    assert key == planned()["ngrpo_training.long"].key
    kept = kubeflow.keep_try(objects, run, "ngrpo_training.long", "succeeded", log="kept of long\n")
    assert kept.place.startswith(f"tries/ngrpo_training/{key}/")
    run_logs.show_logs(None, "ngrpo_training.long", Console())
    assert "kept of long" in capsys.readouterr().out


# --- one machine --------------------------------------------------------------------------------------------------------

TRAINING = """
(output / "steps").write_text(str(config.training.steps))
print("steps", config.training.steps)
"""
EVALUATION = """
steps = float((inputs["trained"] / "steps").read_text())
small_shared.EVALUATION["models"]["trained"]["arithmetic"]["mean"] = steps / 100
"""


def runs_of(house):
    """Return the MLflow runs of stages: name, tag of the stage, and state."""
    with contextlib.closing(sqlite3.connect(house.home / "mlflow.db")) as database:
        return list(
            database.execute(
                "SELECT name, value, status FROM runs JOIN tags USING (run_uuid) WHERE key = 'ngrpo.stage' ORDER BY start_time"
            )
        )


@pytest.mark.pipeline
def test_arms_run_on_one_machine_and_a_changed_arm_alone_runs_again(house):
    source = (house.root / "ngrpo_kfp" / "pipelines" / "post_training.py").read_text()
    source += Path(__file__).with_name("arms.py").read_text() + "\n\npost_training = arms\n"
    pipeline = house.root / "ngrpo_kfp" / "pipelines" / "post_training.py"
    pipeline.write_text(source)
    house.write_stage("ngrpo_training", TRAINING)
    house.write_stage("benchmark_evaluation", EVALUATION)
    before = len(runs_of(house))
    printed = house.ngrpo("run", COLUMNS="200").stdout
    assert sorted(house.ran()) == sorted(["ngrpo_training", "benchmark_evaluation"] * 2)
    assert "ngrpo_training.long: done" in printed
    assert "Results of benchmark_evaluation.long" in printed
    summary = house.summary
    stages = summary["stages"]
    assert list(stages) == SHARED + SHORT + LONG + AGAIN
    assert [name for name, stage in stages.items() if not stage["cached"]] == SHORT + LONG
    assert stages["ngrpo_training.again"]["artifact"] == stages["ngrpo_training.short"]["artifact"]
    means = {node: evaluation["trained"]["mean"] for node, evaluation in summary["evaluations"].items()}
    assert means == dict(zip((SHORT[1], LONG[1], AGAIN[1]), (0.1, 0.2, 0.1), strict=True))
    assert summary["promotions"] == {}
    run = house.last_run
    assert "steps 20\n" in (run / "logs" / "ngrpo_training.long.log").read_text()
    assert sorted(path.stem for path in (run / "stages").iterdir()) == sorted(SHORT + LONG)
    assert sorted(runs_of(house)[before:]) == sorted(
        (node, node.partition(".")[0], "FINISHED") for node in SHORT + LONG
    )
    assert (run / "report.html").exists()

    pipeline.write_text(source.replace('"long": 20', '"long": 30'))
    printed = house.ngrpo("run", COLUMNS="200").stdout
    assert "configuration changed: training.steps 20 → 30" in printed
    again = house.summary["stages"]
    assert [name for name, stage in again.items() if not stage["cached"]] == LONG
    assert {name: stage["key"] for name, stage in again.items() if name not in LONG} == {
        name: stage["key"] for name, stage in stages.items() if name not in LONG
    }
    assert house.summary["evaluations"][LONG[1]]["trained"]["mean"] == 0.3
