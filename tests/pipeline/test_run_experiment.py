"""An experiment on one machine, with stages of one line of Python; `test_experiment_runs.py` runs real ones."""

import contextlib
import json
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import stand_in_comparison
from rich.console import Console
from test_experiment import ARMS, HEAD
from test_plan import Store

from ngrpo.contracts.evaluation import write_evaluation
from ngrpo.errors import ConfigError
from ngrpo.stages.process import write_record
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import run_experiment, runner
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning.experiment import read_experiment

RESULT = {
    "mean": 0.5,
    "mean_ci": [0.25, 0.75],
    "pass_at_k": {"1": 0.5},
    "n_problems": 1,
    "n_samples": 2,
    "per_problem": {"p0": 1},
    "per_problem_maj": {"p0": 0.0},
}


class Directories(Store):
    """A store whose artifacts are all one directory; what they took was not recorded."""

    objects = SimpleNamespace(uri="s3://here", list=lambda prefix: [])

    def __init__(self, directory):
        super().__init__()
        self.directory = directory
        of = {"arithmetic": RESULT}
        write_evaluation(directory / "evaluation.json", {"layout": 1, "models": {"warm_start": of, "trained": of}})

    def fetch(self, reference, *, only=None):
        assert reference.key in self.keys
        return self.directory


class Tracked:
    """What would go to MLflow."""

    def __init__(self):
        self.announced, self.finished = [], None

    def announce(self, arm, directory):
        self.announced.append(arm)

    def require_open(self):
        pass

    def parent(self):
        return SimpleNamespace(run_id="parent")

    def finish(self, metrics, failed, files):
        self.finished = metrics, failed, [file.name for file in files]


class Lab:
    """An experiment whose stages take no time."""

    def __init__(self, folder, monkeypatch):
        artifacts = folder / "artifacts"
        artifacts.mkdir()
        self.file, self.workspace = folder / "lab.toml", Workspace(folder / "outputs")
        self.store, self.ran, self.failing, self.tracked = Directories(artifacts), [], {}, Tracked()
        self.write(HEAD + ARMS)
        monkeypatch.setattr(run_experiment, "services", self._services)
        monkeypatch.setattr(run_experiment, "experiment_runs", self._experiment_runs)
        monkeypatch.setattr(runner, "run_stages", self._run_stages)
        monkeypatch.setattr(run_experiment, "importlib", SimpleNamespace(import_module=lambda name: None))  # of MLflow
        monkeypatch.setitem(sys.modules, "ngrpo.report.comparison", stand_in_comparison)

    def write(self, text):
        self.file.write_text(text)

    def run(self, **asked):
        """Run the experiment; returns the nodes that did work, and what was printed."""
        self.ran.clear()
        console = Console(width=200, record=True)
        run_experiment.run(read_experiment(self.file, PRESETS), self.workspace, console, **asked)
        return Counter(node.partition(".")[0] for node in self.ran), console.export_text()

    def compared(self):
        return json.loads((self.workspace.experiments / "lab" / "comparison.json").read_text())["arms"]

    @contextlib.contextmanager
    def _services(self, workspace):
        yield SimpleNamespace(
            artifact_store=lambda workspace: self.store, store_uri="s3://a/b", tracking_uri="sqlite:///mlflow.db"
        )

    @contextlib.contextmanager
    def _experiment_runs(self, experiment, around, name):
        self.tracked = Tracked()
        yield self.tracked

    def _run_stages(self, plan, directory, console, make_runner=None):
        (directory / "stages").mkdir()
        for node in plan.to_run:
            self.ran.append(node.name)
            record = {"key": node.key, "pid": 1, "seconds": 2.0}
            if node.name in self.failing:
                write_record(directory, node.name, record | {"error": self.failing[node.name]})
                raise runner.StageError(f"{node.name}: {self.failing[node.name]} (log: there)", f"{node.name}: failed")
            assert all(source.key in self.store.keys for source in node.inputs.values()), "its inputs are there"
            made = Reference(f"s3://b/{node.stage}/{node.key}/", node.key, "d")
            self.store.keys.add(node.key)
            write_record(directory, node.name, record | {"cached": False, "artifact": made.uri, "digest": made.digest})


@pytest.fixture
def lab(tmp_path, monkeypatch):
    return Lab(tmp_path, monkeypatch)


ALL = {"prepare_data": 1, "neighbor_index": 1, "sft_warm_start": 2, "ngrpo_training": 4, "benchmark_evaluation": 4}
ARM = {"ngrpo_training": 2, "benchmark_evaluation": 2}


def test_only_what_is_not_there_runs(lab):
    ran, printed = lab.run()
    assert ran == ALL
    assert [line.split()[0] for line in printed.splitlines() if " of 4" in line] == [
        "grpo.seed0",
        "ngrpo.seed0",
        "grpo.seed1",
        "ngrpo.seed1",
    ]
    assert "of which stages 24.0 s" in printed
    assert {arm: sorted(each["means"]) for arm, each in lab.compared().items()} == {
        "grpo": ["0", "1"],
        "ngrpo": ["0", "1"],
    }
    metrics, failed, files = lab.tracked.finished
    assert metrics["ngrpo"]["arithmetic/mean"] == 0.5
    assert metrics["ngrpo"]["arithmetic/pass_at_1"] == 0.5
    assert metrics["ngrpo"]["seeds"] == 2
    assert not failed
    assert files == ["comparison.json", "comparison.html", "summary.json"]

    ran, printed = lab.run()
    assert ran == {}
    assert "every result is in the store" in printed

    lab.write(HEAD + ARMS + "[arms.k-1.mixing]\nk = 1\n")
    ran, printed = lab.run()
    assert ran == ARM
    assert set(lab.tracked.announced) == {"k-1"}
    assert list(lab.compared()) == ["grpo", "ngrpo", "k-1"]

    assert lab.run(rerun="grpo")[0] == ARM
    assert {node.split(".")[1] for node in lab.ran} == {"grpo"}
    assert lab.run()[0] == {}
    with pytest.raises(ConfigError, match="--rerun 'gspo': no such arm"):
        lab.run(rerun="gspo")


def test_programs_get_the_plan_and_the_comparison_alone(lab, capsys):
    experiment = read_experiment(lab.file, PRESETS)
    run_experiment.show_plan(experiment, lab.workspace, Console(), as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert (plan["experiment"], plan["arms"], plan["seeds"], plan["merged"]) == ("lab", ["grpo", "ngrpo"], [0, 1], {})
    work = {(row["stage"], *row["arms"]): row for row in plan["work"]}
    assert work["sft_warm_start", "grpo", "ngrpo"]["to_run"] == 2, "one a seed, for both"
    assert work["ngrpo_training", "grpo"]["seconds"] is None, "no GPU, for which it could be computed, and none has run"
    assert work["ngrpo_training", "grpo"]["tokens"] > 0
    assert {node["node"] for node in plan["nodes"]} >= {"ngrpo_training.grpo.seed0", "ngrpo_training.ngrpo.seed1"}
    lab.run()
    capsys.readouterr()
    run_experiment.show_plan(experiment, lab.workspace, Console(), as_json=True)
    assert all(node["cached"] for node in json.loads(capsys.readouterr().out)["nodes"])
    run_experiment.report(experiment, lab.workspace, Console(), as_json=True)
    told = capsys.readouterr()
    assert json.loads(told.out)["arms"] == lab.compared()
    assert told.err.startswith("report  ")


def test_a_run_that_fails_leaves_the_others_alone(lab):
    lab.failing = {"ngrpo_training.grpo.seed0": "the loss is not finite"}
    with pytest.raises(run_experiment.ExperimentError) as failure:
        lab.run()
    assert str(failure.value) == "grpo.seed0: ngrpo_training.grpo.seed0: the loss is not finite (log: there)"
    assert Counter(node.partition(".")[0] for node in lab.ran) == ALL | {"benchmark_evaluation": 3}
    compared = lab.compared()
    assert (list(compared["grpo"]["means"]), list(compared["ngrpo"]["means"])) == (["1"], ["0", "1"])
    assert "the loss is not finite" in compared["grpo"]["failed"]["0"]
    assert lab.tracked.finished[1] == {"grpo"}

    # The report remembers why, and forgets it when the arm is another one.
    experiment = read_experiment(lab.file, PRESETS)
    run_experiment.report(experiment, lab.workspace, Console())
    assert "the loss is not finite" in lab.compared()["grpo"]["failed"]["0"]
    lab.write(HEAD + ARMS.replace('strategy = "token"', 'strategy = "token"\nrate = 0.5'))
    experiment = read_experiment(lab.file, PRESETS)
    lab.failing = {"ngrpo_training.grpo.seed1": "no luck"}
    with pytest.raises(ConfigError, match="no run of it has finished"):
        run_experiment.report(experiment, lab.workspace, Console())

    lab.write(HEAD + ARMS)
    lab.failing = {}
    assert lab.run()[0] == {"ngrpo_training": 1, "benchmark_evaluation": 1}
    assert lab.compared()["grpo"]["failed"] == {}


@pytest.mark.parametrize(
    ("node", "runs", "once"),
    [
        ("prepare_data.grpo.seed0", ["grpo.seed0", "ngrpo.seed0", "grpo.seed1", "ngrpo.seed1"], "prepare_data"),
        ("sft_warm_start.grpo.seed1", ["grpo.seed1", "ngrpo.seed1"], "sft_warm_start"),
    ],
)
def test_what_runs_share_and_cannot_be_made_is_tried_once(lab, node, runs, once):
    lab.failing = {node: "no problems"}
    with pytest.raises(run_experiment.ExperimentError) as failure:
        lab.run()
    lines = str(failure.value).splitlines()
    assert [line.partition(":")[0] for line in lines][: len(runs)] == runs
    assert all(line.count("no problems") == 1 for line in lines[: len(runs)])
    assert "not started, because it shares a stage that failed" in lines[1]
    assert lab.ran.count(node) == 1
    assert sum(name.startswith(once) for name in lab.ran) == (1 if once == "prepare_data" else 2)


def test_runs_that_cannot_be_compared_are_refused_once_all_have_run(lab, monkeypatch):
    def refuse(*arguments, **asked):
        raise ConfigError("comparison: protocols differ")

    monkeypatch.setattr(stand_in_comparison, "compare", refuse)
    with pytest.raises(run_experiment.ExperimentError, match=r"^comparison: protocols differ$"):
        lab.run()
    assert (lab.workspace.experiments / "lab" / "summary.json").exists()


def test_merged_arms_run_once_and_are_told_of(lab):
    lab.write(HEAD + ARMS + "[arms.same]\n")
    ran, printed = lab.run()
    assert ran == ALL
    assert "arm same: the same settings as arm ngrpo" in printed
    assert list(lab.compared()) == ["grpo", "ngrpo"]
    summary = json.loads((lab.workspace.experiments / "lab" / "summary.json").read_text())
    assert summary["merged"] == {"same": "ngrpo"}
    assert sorted(summary["arms"]["grpo"]["0"]["nodes"]) == [f"{stage}.grpo.seed0" for stage in sorted(ALL)]


def test_a_report_of_nothing(lab):
    with pytest.raises(
        ConfigError, match=r"experiment lab: no run has finished: run it first \(ngrpo experiment run lab\)"
    ):
        run_experiment.report(read_experiment(lab.file, PRESETS), lab.workspace, Console())
