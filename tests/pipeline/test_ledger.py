"""What results took: recorded beside the artifacts by real runs, summed, tracked, and expected of the next run."""

import time
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from small_house import EVALUATION, STAGES
from test_local_runtime import objects_of

from ngrpo.config.costs import CostsConfig
from ngrpo.ledger.shapes import expected, remember
from ngrpo.ledger.spending import Spent, keep, records_of
from ngrpo.report.costs import cost_lines
from ngrpo.stages import metering
from ngrpo.stages.metering import metered
from ngrpo.stages.surroundings import Surroundings
from ngrpo.stages.task import Task

pytestmark = pytest.mark.pipeline

PRICED = ("--set", "costs.cpu_hour=3600", "--set", "costs.currency=CHF")  # a second of processor time costs a franc


def test_a_run_says_what_it_took_and_the_next_one_what_the_cache_saved(house):
    costs = house.summary["costs"]
    assert "last_run" not in house.summary
    assert costs["saved"] is None
    assert costs["unknown"] == []
    assert list(costs["stages"]) == list(STAGES)
    for cost in costs["stages"].values():
        assert cost["tries"] == 1
        assert not cost["saved"]
        assert 0 < cost["hours"] < 0.1
        assert 0 < cost["processor_hours"] < 0.1
        assert cost["gpu_hours"] == 0
        assert not {"kwh", "money"} & cost.keys(), "a run on a processor has no energy, and without prices no money"
    assert costs["spent"]["hours"] == pytest.approx(sum(cost["hours"] for cost in costs["stages"].values()))
    assert costs["point_gained"]["in_words"].startswith("none: the gain is not above zero (+0.0 points")

    plan = house.ngrpo("plan", *PRICED, COLUMNS="120").stdout
    assert "configuration changed" not in plan, "prices move no key"
    said = house.ngrpo("run", *PRICED, COLUMNS="200").stdout
    assert house.summary["last_run"]["evaluation"] == house.summary["stages"]["benchmark_evaluation"]["key"]
    again = house.summary["costs"]
    assert [name for name, cost in again["stages"].items() if not cost["saved"]] == ["model_promotion"]
    for name in STAGES[:-1]:
        assert again["stages"][name]["hours"] == costs["stages"][name]["hours"], "what its own record says"
    assert again["currency"] == "CHF"
    assert again["saved"]["money"] == pytest.approx(3600 * again["saved"]["processor_hours"])
    assert f"saved {again['saved']['in_words']}" in said
    assert f"cost      {again['spent']['in_words']}" in said


def test_mlflow_has_the_costs_and_the_result_of_a_run_and_the_costs_of_its_stages(finished_house):
    tracking = finished_house.summary["mlflow"]
    client = MlflowClient(tracking["tracking_uri"])
    run = client.get_run(tracking["run_id"])
    metrics = run.data.metrics
    assert metrics["cost/processor_hours"] == finished_house.summary["costs"]["spent"]["processor_hours"]
    assert {name: metrics[name] for name in ("final/arithmetic/mean", "gain/arithmetic", "promoted")} == {
        "final/arithmetic/mean": 0.5,
        "gain/arithmetic": 0.0,
        "promoted": 1.0,
    }
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{tracking['run_id']}'")
    assert {child.info.run_name for child in children} == set(STAGES)
    assert all(child.data.metrics["cost/hours"] > 0 for child in children)


def test_a_plan_tells_what_stages_of_the_same_shape_took_and_nothing_else(house):
    plan = house.ngrpo("plan", "--set", "training.steps=40", "--seed", "0", COLUMNS="160").stdout
    lines = {line.split()[1]: line for line in plan.splitlines() if line.startswith("│")}
    table = plan[plan.index("What it will take") :]
    assert table.count("unknown") == 2, "another number of steps: of training neither time nor GPU-hours are known"
    assert "no earlier result of this shape" in table
    assert "without the 1 that have no earlier result" in table
    assert "benchmark_evaluation" in lines
    faster = house.ngrpo("plan", "--set", "training.learning_rate=0.5", COLUMNS="160").stdout
    table = faster[faster.index("What it will take") :]
    assert "unknown" not in table, "another learning rate: the same work"
    assert "1 result on" in table


KILLED_ONCE = """
import time
time.sleep(1.5)
if not (work / "checkpoint").exists():
    (work / "checkpoint").write_text("step 1")
    os.kill(os.getpid(), 9)
"""


def test_a_try_that_was_killed_is_spent_too(house):
    metering = house.root / "ngrpo" / "stages" / "metering.py"
    often = metering.read_text().replace("_EVERY_SECONDS = 60.0", "_EVERY_SECONDS = 0.2")
    assert often != metering.read_text()
    metering.write_text(often)
    house.write_stage("ngrpo_training", KILLED_ONCE)
    house.ngrpo("run", code=2)
    house.ngrpo("run")
    training = house.summary["costs"]["stages"]["ngrpo_training"]
    assert training["tries"] == 2
    second = house.summary["stages"]["ngrpo_training"]["seconds"]
    assert 3600 * training["hours"] > second + 0.5, "the first one's time too"


def test_damaged_records_are_said_and_cost_no_run(house):
    with objects_of(house) as objects:
        for name in objects.list("spent/prepare_data/"):
            objects.put_bytes(b"{", name)
        assert objects.list("spent/prepare_data/")
    said = house.ngrpo("run")
    assert "spent/prepare_data/" in said.stderr
    assert "it only records the cost of a result" in said.stderr
    assert house.summary["costs"]["unknown"] == ["prepare_data"]


def record(key: str, started: int, hardware: str = "2 cores", **fields) -> Spent:
    name = f"20261129T{started:06}Z-pod.1"
    began = f"2026-11-29T00:{started:02}:00+00:00"
    return Spent("s", key, name, "r", "f00d", hardware, began, outcome="published", seconds=10.0 * started, **fields)


def test_an_expectation_is_the_mean_of_the_newest_results_on_the_same_hardware(objects):
    assert expected(objects, "s", "f00d", "2 cores") is None
    for number in range(1, 9):
        made_on = "8 x GPU" if number == 8 else "2 cores"
        keep(objects, record(f"k{number}", number, made_on))
        remember(objects, record(f"k{number}", number, made_on))
    here = expected(objects, "s", "f00d", "2 cores")
    assert (here.results, here.cost.seconds) == (5, 50.0)
    assert expected(objects, "s", "f00d", "1 x GPU") is None
    anywhere = expected(objects, "s", "f00d", None)
    assert (anywhere.results, anywhere.cost.seconds, anywhere.hardware) == (1, 80.0, "8 x GPU")
    assert [one.key for one in records_of(objects, "s", "k3")] == ["k3"]
    assert expected(objects, "s", "beef", None) is None


def test_the_model_card_says_what_a_point_gained_cost(objects):
    better = EVALUATION | {"per_problem": {"p0": 2, "p1": 2, "p2": 1, "p3": 2}}
    evaluation = {"models": {"warm_start": {"arithmetic": EVALUATION}, "trained": {"arithmetic": better}}}
    for stage, seconds in (("neighbor_index", 1800), ("ngrpo_training", 5400)):
        spent = record("k", 1, gpus=8)
        keep(objects, replace(spent, stage=stage, seconds=float(seconds)))
    keys = {"prepare_data": "k", "neighbor_index": "k", "ngrpo_training": "k"}
    prices = CostsConfig(gpu_hour=2.5)

    def lines(measured):
        return cost_lines(objects.uri, keys, prices, measured, benchmark="arithmetic", seed=0)

    said = lines(evaluation)
    assert said[:3] == [
        "- prepare_data: not recorded",
        "- neighbor_index: 30.0 min, 0 processor-hours, 4 GPU-hours, energy unknown, 10.00 EUR",
        "- ngrpo_training: 90.0 min, 0 processor-hours, 12 GPU-hours, energy unknown, 30.00 EUR",
    ]
    # +1, +0.5, 0 and 0 of two samples of four problems: 37.5 points for 40 EUR, unless the interval holds zero
    assert said[3].startswith(
        "- a point gained by training on arithmetic: none: the gain is not above zero (+37.5 points"
    )
    sure = {"per_problem": {"p0": 1, "p1": 2, "p2": 2, "p3": 2}}
    evaluation["models"] |= {
        "warm_start": {"arithmetic": EVALUATION | {"per_problem": {"p0": 0, "p1": 1, "p2": 1, "p3": 1}}},
        "trained": {"arithmetic": EVALUATION | sure},
    }
    assert lines(evaluation)[3] == (
        "- a point gained by training on arithmetic: 0.8 EUR (0.8 to 0.8, by the interval of the gain: +50.0 points, +50.0 to +50.0)"
    )
    assert cost_lines(None, keys, prices, evaluation, benchmark="arithmetic", seed=0) == []
    keys["neighbor_index"] = "unknown"
    assert lines(evaluation)[1:] == ["- neighbor_index: not recorded", said[2]], "no sum of what is not whole"


def test_records_that_cannot_be_read_or_kept_are_said_and_cost_no_result(objects, tmp_path, monkeypatch, capsys):
    task = Task("prepare_data", "{}", "k", "c", {})
    for name, value in (("STORE", objects.uri), ("CACHE_DIR", tmp_path), ("WORK_DIR", tmp_path)):
        monkeypatch.setenv(f"NGRPO_{name}", str(value))
    around = Surroundings.from_environment()
    earlier = replace(record("k", 1), stage="prepare_data", outcome="failed")
    keep(objects, earlier)
    with metered(task, around, follows=False) as process:
        time.sleep(0.01)  # seconds are told in thousandths
        assert process.cost(objects).seconds > earlier.seconds
        process.outcome = "published"
    assert [one.outcome for one in records_of(objects, "prepare_data", "k")] == ["failed", "published"]

    objects.put_bytes(b"{", earlier.place)
    monkeypatch.setattr(metering, "_PATIENCE", 0.1)
    with metered(task, around, follows=False) as process:
        assert process.cost(objects).seconds < earlier.seconds
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        process.outcome = "published"
    said = capsys.readouterr().err
    assert "prepare_data: what other tries took is not known" in said
    assert said.count("prepare_data: what it takes is not recorded") == 1
