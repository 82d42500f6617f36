"""`ngrpo compare` on runs of a workspace: which runs are an arm, how arms are called, and what is refused. The store is a folder here."""

import json
from contextlib import contextmanager
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from compared_arms import counts_of, run_of
from ngrpo.config import load_config
from ngrpo.ledger.spending import Spent
from ngrpo.storage.state import write_state
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.local import comparing


class House:
    """A workspace with runs, and a store that has their artifacts."""

    def __init__(self, root):
        self.root = root
        self.artifacts = {}
        self._records = {}

    @property
    def objects(self):
        return SimpleNamespace(uri="s3://here", list=self._records_below, get_bytes=self._records.get)

    def _records_below(self, prefix):
        return [name for name in self._records if name.startswith(prefix)]

    def took(self, stage, key, **spent):
        """Record what a result took."""
        record = Spent(
            stage, key, "20260101T000000Z-m-1", "r", "s", "h", "2026-01-01T00:00:00+00:00", outcome="published", **spent
        )
        self._records[record.place] = json.dumps(asdict(record)).encode()

    def find(self, stage, key):
        return self.artifacts.get((stage, key))

    def fetch(self, reference, only):
        assert only, "of a training its log alone: its model is large"
        return reference

    def nodes(self, name, seed, skill, labels=()):
        run = run_of(self.root, name, seed, {"arithmetic": counts_of(skill, name, seed)})
        (run.samples / "evaluation.json").write_text(json.dumps(run.evaluation))
        nodes = {}
        for stage, artifact in (("benchmark_evaluation", run.samples), ("ngrpo_training", run.training)):
            key = f"{stage}-{name}-{seed}"
            self.artifacts[stage, key] = artifact
            nodes[".".join((stage, *labels))] = {
                "key": key,
                "artifact": "s3://gone",
                "seconds": 3600.0,
                "cached": False,
            }
        return nodes

    def run(self, name, seed, skill, *settings, finished=True):
        directory = self.root / "outputs" / "runs" / name
        directory.mkdir(parents=True)
        config = load_config(PRESETS / "tiny.toml", [f"seed={seed}", *settings])
        write_state(directory / "config.json", config.model_dump(mode="json"))
        if finished:
            summary = {"stages": self.nodes(name, seed, skill), "mlflow": {"run_id": "r"}, "wall_seconds": 1.0}
            write_state(directory / "summary.json", summary)
        return directory

    def experiment(self, name, **arms):
        directory = self.root / "outputs" / "experiments" / name
        directory.mkdir(parents=True)
        known = {
            arm: {
                str(seed): {"nodes": self.nodes(f"{name}-{arm}", seed, skill, (arm, f"seed{seed}"))}
                for seed in range(2)
            }
            for arm, skill in arms.items()
        }
        last = list(known)[-1]
        known[last]["2"] = {"nodes": {}, "failed": "ngrpo_training: no memory"}
        summary = {
            "benchmark": "arithmetic",
            "measure": "pass@8",
            "equivalence": 2.0,
            "arms": known,
            "merged": {"copy": last},
        }
        write_state(directory / "summary.json", summary)


@pytest.fixture
def house(tmp_path, monkeypatch):
    house = House(tmp_path)
    monkeypatch.chdir(tmp_path)  # a word is looked up as a directory first

    @contextmanager
    def services(workspace):
        yield SimpleNamespace(artifact_store=lambda workspace: house)

    monkeypatch.setattr(comparing, "services", services)
    monkeypatch.setenv("NGRPO_HOME", str(tmp_path / "outputs"))
    monkeypatch.setenv("COLUMNS", "80")
    return house


def said(capsys, *arguments):
    assert cli.main(["compare", *arguments]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1, printed.err
    return printed.err


def test_runs_that_differ_by_their_seed_alone_are_one_arm(house, tmp_path, capsys):
    house.run("a0", 0, 0.4)
    house.run("a1", 1, 0.4)
    house.run("b0", 0, 0.6, "mixing.k=1")
    other = house.run("b1", 1, 0.6, "mixing.k=1")
    assert (
        cli.main(["compare", "a0", "a1", "b0", str(other), "--measure", "mean", "--output", str(tmp_path / "out")]) == 0
    )
    printed = capsys.readouterr().out
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 80
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert tree["seeds"] == {"k=3": [0, 1], "k=1": [0, 1]}
    assert tree["baseline"] == "k=3"
    assert tree["benchmark"] == "arithmetic"
    assert tree["benchmarks"]["arithmetic"]["differences"]["k=1"]["mean@8"]["seeds"] == [0, 1]
    assert tree["curves"]["reward"].keys() == {"k=3", "k=1"}
    assert tree["facts"]["k=1"]["gpu_hours"]["by_seed"] == {}, "tiny asks for no GPU: what it had is not known"
    assert (tmp_path / "out" / "comparison.html").exists()
    assert cli.main(["compare", "a0", "b0", "--measure", "mean", "--output", str(tmp_path / "two"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "two" / "comparison.json").read_text())


def test_names_make_arms_and_the_baseline_can_be_named_by_either(house, capsys):
    house.run("a0", 0, 0.4)
    house.run("b0", 0, 0.6)
    assert cli.main(["compare", "before=a0", "after=b0", "--baseline", "after", "--measure", "mean"]) == 0
    printed = capsys.readouterr().out
    assert "mean@8 on arithmetic, against after" in printed
    place = printed.rpartition("comparison  ")[2].strip()
    assert place.endswith("comparison.html")
    assert str(house.root / "outputs" / "comparisons") in place
    assert "have the same settings" not in printed
    assert "another run of" in said(capsys, "a0", "b0")


def test_arms_of_an_experiment_bring_its_primary_comparison(house, tmp_path, capsys):
    house.experiment("laptop", grpo=0.4, ngrpo=0.6)
    house.run("mine", 0, 0.5)
    arguments = ["laptop:grpo", "laptop:ngrpo", "own=mine", "--output", str(tmp_path / "out")]
    assert cli.main(["compare", *arguments]) == 0
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (tree["measure"], tree["margin"], tree["baseline"]) == ("pass@8", 2.0, "grpo")
    assert tree["seeds"] == {"grpo": [0, 1], "ngrpo": [0, 1], "own": [0]}
    assert tree["failed"] == {"ngrpo": {"2": "ngrpo_training: no memory"}}
    assert "choose one of grpo, ngrpo" in said(capsys, "laptop:other", "own=mine")
    assert "run it first: ngrpo experiment run paper" in said(capsys, "paper:grpo", "own=mine")
    assert cli.main(["compare", "laptop:grpo", "laptop:copy"]) == 0, "an arm that was merged with another"


def test_an_experiment_that_has_not_run_is_refused_before_the_store_is_started(house, monkeypatch, capsys):
    house.run("mine", 0, 0.5)
    monkeypatch.setattr(comparing, "services", lambda workspace: pytest.fail("the store was started"))
    assert "run it first: ngrpo experiment run paper" in said(capsys, "paper:grpo", "own=mine")


def test_a_run_that_failed_is_a_seed_of_its_arm_and_no_arm_by_itself(house, capsys):
    house.run("a0", 0, 0.4)
    failed = house.run("a1", 1, 0.4, finished=False)
    (failed / "stages").mkdir()
    write_state(failed / "stages" / "ngrpo_training.json", {"key": "k", "pid": 1, "error": "the loss is not finite"})
    house.run("b0", 0, 0.6, "mixing.k=1")
    assert cli.main(["compare", "a0", "a1", "b0", "--measure", "mean"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "k=3 failed with seed 1 (ngrpo_training: the loss is not finite); its other 1 count" in printed
    assert "'a1': it has no evaluation (ngrpo_training: the loss is not finite)" in said(capsys, "a1", "b0")


def test_costs_are_those_that_were_recorded_and_what_arms_share_counts_once(house, tmp_path, capsys):
    prices = ("costs.gpu_hour=2.5", "costs.currency=USD")
    house.run("a0", 0, 0.4, *prices)
    house.run("a1", 1, 0.4, *prices)
    last = house.run("b0", 0, 0.6, *prices, "mixing.k=1")
    for run in (last, last.parent / "a0"):
        summary = json.loads((run / "summary.json").read_text())
        summary["stages"]["sft_warm_start"] = {"key": "shared", "artifact": "s3://gone", "seconds": 1.0}
        write_state(run / "summary.json", summary)
    house.took("ngrpo_training", "ngrpo_training-a0-0", seconds=3600, gpus=2)
    house.took("sft_warm_start", "shared", seconds=1800, gpus=1)
    assert cli.main(["compare", "a=a0", "a=a1", "b0", "--measure", "mean", "--output", str(tmp_path / "out")]) == 0
    tree = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert tree["facts"]["a"]["gpu_hours"]["by_seed"] == {"0": 2.0}
    assert tree["facts"]["k=1"]["gpu_hours"]["by_seed"] == {}
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "1 of 2 seeds" in page
    said = "each counted once: 90.0 min, 0 processor-hours, 2.5 GPU-hours, energy unknown, 6.25 USD; 5 of 7 are not recorded."
    assert said in " ".join(capsys.readouterr().out.split())
    assert said in page


def test_what_is_no_run_or_cannot_be_compared_is_said(house, tmp_path, capsys):
    first = house.run("a0", 0, 0.4)
    house.run("a1", 1, 0.4)
    bare = house.run("bare", 0, 0.5, "mixing.k=1")
    write_state(bare / "summary.json", {"stages": {}, "mlflow": {"run_id": "r"}, "wall_seconds": 1.0})
    assert "'nowhere': no run of that name" in said(capsys, "a0", "nowhere")
    assert "no name before the equals sign" in said(capsys, "a0", "=a1")
    assert "no config.json" in said(capsys, "a0", str(tmp_path))
    assert "it has no evaluation, for no node of it is a benchmark_evaluation" in said(capsys, "a0", "bare")
    assert "one arm only" in said(capsys, "a0", "a1")
    summary = json.loads((first / "summary.json").read_text())
    summary["stages"]["benchmark_evaluation"]["key"] = "gone"
    write_state(first / "summary.json", summary)
    assert "is gone: run the preset again" in said(capsys, "x=a0", "y=a1")


def test_runs_that_were_not_measured_alike_are_refused(house, capsys):
    house.run("a0", 0, 0.4)
    house.run("b0", 0, 0.6, "mixing.k=1")
    path = house.artifacts["benchmark_evaluation", "benchmark_evaluation-b0-0"] / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["protocols"]["trained"]["arithmetic"]["grader"] = "other"
    path.write_text(json.dumps(evaluation))
    assert "differ in their graders; evaluate both alike" in said(capsys, "a0", "b0", "--measure", "mean")
