"""Evaluations that stop early: the verdict is that of all samples, nothing is lost, and partial evaluations are known as such."""

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from evaluation_simulation import Setting, simulated
from ngrpo.config import (
    BenchmarkEvaluationConfig,
    InitializedModel,
    PromotionConfig,
    RunConfig,
    load_config,
    select,
)
from ngrpo.contracts.evaluation import read_evaluation
from ngrpo.data.models import materialize
from ngrpo.errors import ConfigError, StoreError
from ngrpo.evaluation import configured_sampler
from ngrpo.evaluation.curtailment import Counts, error_of_a_look, foresee, looks
from ngrpo.evaluation.gains import gain_of
from ngrpo.evaluation.gate import Measured, compare
from ngrpo.evaluation.statistics import pass_at_k
from ngrpo.mixing.records import RolloutRecords
from ngrpo.report.results import benchmark_views
from ngrpo.rollout.engine import Rollout
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context
from ngrpo.stages.keys import config_json
from ngrpo.tracking.model_registry import ModelRegistry
from ngrpo_kfp.pipelines.local.measuring import _measurement
from ngrpo_kfp.pipelines.planning.early_stop import against_champion
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan

pytest_plugins = ["mlflow_database"]
PRESET = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"

# --- the statistic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "planned"), [("mean", 6), ("pass@2", 6)])
def test_over_all_orders_of_the_samples_the_gain_that_is_foreseen_is_that_of_all(statistic, planned):
    """With one problem, whose spread is none, the bound is the gain; every subset of m samples is as likely to come first."""
    m, right = 4, 2
    theirs = Counts([0], planned, planned)
    draw = int(statistic.partition("@")[2] or 1)
    seen, open_ = [], []
    for first in itertools.combinations([1] * right + [0] * (planned - right), m):
        gain = pass_at_k([sum(first)], m, draw)
        found = foresee(statistic, Counts([sum(first)], m, planned), theirs, gain.mean(), confidence=0.95)
        seen.append(float(found.bound))
        open_.append(float(found.deviation) ** 2)
    assert np.mean(seen) == pytest.approx(pass_at_k([right], planned, draw)[0])
    assert np.mean(open_) > np.var(seen), "what is still open is not underrated"


def test_the_variance_of_a_mean_is_that_of_sampling_without_replacement():
    counts = np.array([0, 1, 2, 3, 4, 4])
    m, n, problems = 4, 10, 6
    ours, theirs = Counts(counts, m, n), Counts(np.zeros(6, int), n, n)
    found = foresee("mean", ours, theirs, counts.mean() / m, confidence=0.5 + 1e-12)  # z = 0: the bound is the mean
    share = counts / m
    each = share * (1 - share) * m / (m - 1) / m * (1 - m / n)
    assert found.deviation**2 * problems**2 == pytest.approx(each.sum() + each.max(), rel=1e-6)


def test_where_all_samples_agree_not_everything_is_settled():
    """Of ten problems never solved in two samples, some may be solved in the other fourteen."""
    ours, theirs = Counts(np.zeros(10, int), 2, 16), Counts(np.zeros(10, int), 16, 16)
    found = foresee("mean", ours, theirs, 0.0, confidence=0.95)
    assert found.side(0.0, 0.01) == 0.0
    assert found.side(-0.3, 0.01) == 0.0


def test_an_evaluation_with_all_its_samples_has_nothing_open():
    theirs = Counts([0, 1, 2], 4, 4)
    found = foresee("mean", Counts([1, 2, 1], 2, 4), theirs, 0.0, confidence=0.95)
    assert found.deviation > 0
    with pytest.raises(ValueError, match="cannot be predicted"):
        foresee("pass@2", Counts([1, 2, 1], 2, 4), theirs, 0.0, confidence=0.95)


@pytest.mark.parametrize(
    ("planned", "statistic", "expected"),
    [
        (16, "mean", [2, 3, 4, 6, 8, 12]),
        (4, "mean", [2, 3]),
        (2, "mean", []),
        (8, "pass@4", [6]),
        (4, "pass@4", []),
        (8, "maj", []),
    ],
)
def test_when_it_is_looked(planned, statistic, expected):
    assert looks(planned, statistic) == expected


def test_the_error_is_shared_out_over_looks_and_bounds():
    whole, part = Counts([1], 8, 8), Counts([1], 4, 16)
    assert error_of_a_look(0.01, part, whole, "mean", 2) == pytest.approx(0.01 / 12)
    assert error_of_a_look(0.01, part, part, "mean", 1) == pytest.approx(0.01 / 36)


SIMULATED = (
    (Setting(100, 8, 0.0), 0.25),
    (Setting(200, 8, 0.1), 0.6),
    (Setting(200, 8, 0.018), 0.05),  # about where the full decision is a toss
    (Setting(200, 16, 0.01, difficulty=(0.15, 4.85)), 0.05),  # so hard that few samples say little
    (Setting(100, 8, 0.05, statistic="pass@4"), 0.02),
)


def test_the_verdict_is_that_of_all_samples():
    """In 99 of 100 simulations; `python -m tests.benchmarks early_stopping` has 1,000 of each of many settings."""
    found = [simulated(setting, 300) for setting, _ in SIMULATED]
    assert np.mean([each.agreement for each in found]) >= 0.99
    for each, (setting, saves) in zip(found, SIMULATED, strict=True):
        assert each.agreement >= 0.98, setting
        assert each.saved > saves, setting


# --- the gate -----------------------------------------------------------------------------------------------------------

PROBLEMS, PLANNED = 40, 16
PROTOCOL = {"problems": "q", "revision": "r", "prompts": "p", "sampling": {"samples": PLANNED}, "grader": "g"}


def measured(name: str, share: float, samples: int = PLANNED, benchmarks=("sums",)) -> Measured:
    counts = np.random.default_rng(len(name)).binomial(samples, share, PROBLEMS).tolist()
    result = {
        "n_samples": samples,
        "per_problem": {f"p{number}": count for number, count in enumerate(counts)},
        "per_problem_maj": {f"p{number}": float(count > samples / 2) for number, count in enumerate(counts)},
    }
    if samples < PLANNED:
        result["stopped"] = {"planned_samples": PLANNED, "error": 0.01}
    return Measured(name, dict.fromkeys(benchmarks, result), dict.fromkeys(benchmarks, PROTOCOL))


def verdict(candidate: Measured, opponent: Measured, **gate) -> dict:
    return compare(PromotionConfig(benchmark="sums", **gate), candidate, opponent, seed=1)


def test_a_clear_gain_is_promoted_of_few_samples_and_a_clear_loss_is_not():
    promoted = verdict(measured("new", 0.8, 4), measured("the champion", 0.3))
    assert (promoted["decision"], promoted["comparison"]["settled"]) == ("promoted", True)
    assert (promoted["comparison"]["n_samples"], promoted["comparison"]["planned_samples"]) == (4, 16)
    low, high = promoted["comparison"]["interval"]
    assert 0 < low < promoted["comparison"]["gain"] < high
    assert "4 of 16 samples of each problem of sums, which settle the verdict" in promoted["reason"]
    lost = verdict(measured("new", 0.3, 4), measured("the champion", 0.8))
    assert (lost["decision"], lost["comparison"]["settled"]) == ("kept", True)


def test_what_is_not_settled_is_not_promoted_and_says_how_it_can_be():
    gate = {"min_gain": 40.0}  # the bound of a gain of 50 points is about there
    found = verdict(measured("new", 0.8, 4), measured("the champion", 0.3), **gate)
    assert (found["decision"], found["comparison"]["settled"]) == ("kept", False)
    assert "that is not settled: evaluate to the end: run again without evaluation.early_stop" in found["reason"]


def test_a_champion_that_stopped_early_leaves_more_open():
    def distance(opponent: Measured) -> float:
        found = verdict(measured("new", 0.8, 4), opponent)
        return found["comparison"]["settled"]

    assert distance(measured("the champion", 0.3, 4)) is True
    assert verdict(measured("new", 0.45, 4), measured("the champion", 0.3))["comparison"]["settled"] is False


def test_one_bound_that_is_settled_as_lost_settles_the_verdict():
    both = ("sums", "words")
    candidate, opponent = measured("new", 0.3, 4, both), measured("the champion", 0.8, benchmarks=both)
    found = verdict(candidate, opponent, tolerated_regression={"words": 100.0})
    assert found["comparison"]["settled"] is True
    assert "planned_samples" in found["comparison"]["regressions"]["words"]


def test_majorities_of_few_samples_are_not_those_of_all():
    found = verdict(measured("new", 0.8, 4), measured("the champion", 0.3), statistic="maj")
    assert (found["decision"], found["comparison"]) == ("kept", None)
    assert "maj@n of all samples cannot be predicted" in found["reason"]


# --- settings -----------------------------------------------------------------------------------------------------------


def config(*settings: str) -> RunConfig:
    return load_config(PRESET, settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("promotion.statistic=maj",), "maj@n of fewer samples is another number"),
        (("evaluation.samples=2", "evaluation.pass_at=[1]"), "has no effect: raise samples to at least 3"),
        (
            ("evaluation.samples=4", "evaluation.pass_at=[1]", "promotion.statistic=pass@4"),
            "raise samples to at least 6",
        ),
        (("evaluation.early_stop.error=0.5",), "evaluation.early_stop.error"),
        (("evaluation.early_stop.error=0.0",), "evaluation.early_stop.error"),
    ],
)
def test_settings_that_would_never_stop_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        config("evaluation.early_stop.error=0.01", *settings)


def test_without_it_the_settings_of_the_stage_are_as_they_were_and_with_it_the_gate_decides():
    plain = select(config(), BenchmarkEvaluationConfig)
    assert "early_stop" not in config_json(plain)
    assert "gate" not in json.loads(config_json(plain))
    early = "evaluation.early_stop.error=0.01"
    first, other, renamed = (
        config_json(select(config(early, more), BenchmarkEvaluationConfig))
        for more in ("seed=0", "promotion.min_gain=2.5", "promotion.model_name=another")
    )
    assert first != other
    assert first == renamed


# --- the stage ----------------------------------------------------------------------------------------------------------

MODELS = ("warm_start", "trained")
SOURCE = {
    "kind": "initialized",
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 16,
}
BENCHMARKS = {"others": 5, "sums": 30}
SAMPLES = 8


class Engine:
    """Solves a share of the problems, told by the seed of a sample alone."""

    def __init__(self, tokenizer, share: float, made: list):
        self.tokenizer, self.share, self.requests = tokenizer, share, 0
        self.limit: int | None = None
        made.append(self)

    def generate(self, prompts, seeds, sampling, mixer=None):
        rollouts = []
        for seed in seeds:
            if self.limit is not None and self.requests >= self.limit:
                raise KeyboardInterrupt
            self.requests += 1
            right = (seed >> 3) % 1000 < 1000 * self.share
            ids = self.tokenizer.encode(rf"\boxed{{{3 if right else 4}}}<|end|>", add_special_tokens=False)
            rollouts.append(
                Rollout(ids, [0.0] * len(ids), "stop", RolloutRecords(torch.zeros(0), torch.zeros(0, 1), seed, 0))
            )
        return rollouts

    def close(self):
        pass


@pytest.fixture
def stage(tmp_path, tmp_path_factory, monkeypatch):
    """The stage, on two benchmarks and two models: returns what evaluates with a share that the trained model solves."""
    base = materialize(InitializedModel.model_validate(SOURCE), tmp_path / "base")
    inputs = {name: tmp_path / name for name in ("dataset", *MODELS)}
    (inputs["dataset"] / "benchmarks").mkdir(parents=True)
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("prompt", turns), ("answer", pa.string())])
    for name, size in BENCHMARKS.items():
        rows = [
            {"id": f"p{i}", "prompt": [{"role": "user", "content": f"{i} and 3"}], "answer": "3"} for i in range(size)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), inputs["dataset"] / "benchmarks" / f"{name}.parquet")
    (inputs["dataset"] / "sources.json").write_text('{"layout": 1, "tables": {}}')
    for name in MODELS:
        (inputs[name] / "model").mkdir(parents=True)
        for file in base.iterdir():
            (inputs[name] / "model" / file.name).symlink_to(file)
        (inputs[name] / "model" / "name.txt").write_text(name)

    class Stage:
        def __init__(self):
            self.made: list[Engine] = []
            self.limit: int | None = None
            self.lines: list[str] = []

        def evaluate(self, share: float, *, early=True, work="work", opponent=None, store=None, **gate):
            def fake(settings, *, directory, tokenizer, **_):
                trained = (directory / "name.txt").read_text() == "trained"
                engine = Engine(tokenizer, share if trained else 0.3, self.made)
                engine.limit = self.limit if trained else None
                return engine

            monkeypatch.setattr(configured_sampler, "start_engine", fake)
            evaluation = {
                "samples": SAMPLES,
                "pass_at": (1, 4),
                "max_tokens": 12,
                "batch_size": 7,
                "bootstrap_draws": 100,
            }
            settings = {
                "seed": 7,
                "model": {"source": SOURCE},
                "neighbors": {"candidates": 4},
                "warm_start": {"steps": 0},
                "evaluation": evaluation
                | ({"early_stop": {"opponent": opponent} if opponent else {}} if early else {}),
            }
            if early:
                settings["gate"] = {"benchmark": "sums"} | gate
            output = tmp_path_factory.mktemp("output")
            (tmp_path / work).mkdir(exist_ok=True)
            self.made.clear()
            context = Context(tmp_path / work, store=store, progress=self.lines.append)
            benchmark_evaluation.run(BenchmarkEvaluationConfig.model_validate(settings), inputs, output, context)
            return output

    return Stage()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_generating_ends_with_the_round_that_settles_the_verdict(stage):
    output = stage.evaluate(0.9)
    evaluation = read_evaluation(output / "evaluation.json", "")
    assert evaluation["early_stop"] == {
        "against": "the warm start",
        "verdict": "promoted",
        "planned": 240,
        "saved": 180,
    }
    trained, start = (evaluation["models"][model] for model in ("trained", "warm_start"))
    assert trained["sums"]["n_samples"] == 2
    assert trained["sums"]["stopped"] == {"planned_samples": 8, "error": 0.01}
    assert list(trained["sums"]["pass_at_k"]) == ["1"], "what cannot be told of two samples is left out"
    for complete in (start["sums"], start["others"], trained["others"]):
        assert complete["n_samples"] == SAMPLES
        assert "stopped" not in complete
    assert pq.read_table(output / "samples/trained/sums.parquet").num_rows == 2 * 30
    assert stage.made[1].requests == 2 * 30 + 8 * 5
    assert json.loads((output / "metrics.json").read_text())["early_stop/saved_samples"] == 180
    assert "early stop: 180 of 240 samples were saved" in stage.lines
    assert any("against the warm start the verdict is settled, promoted" in line for line in stage.lines)


def test_where_nothing_is_settled_all_samples_are_generated(stage):
    whole = read_evaluation(stage.evaluate(0.9, early=False, work="other") / "evaluation.json", "")
    ours, theirs = (Measured.of(whole, model, model) for model in reversed(MODELS))
    (low, _) = compare(PromotionConfig(benchmark="sums"), ours, theirs, 7)["comparison"]["interval"]
    evaluation = read_evaluation(stage.evaluate(0.9, min_gain=low) / "evaluation.json", "")
    assert evaluation["early_stop"]["verdict"] == "open"
    assert evaluation["early_stop"]["saved"] == 0
    assert "stopped" not in evaluation["models"]["trained"]["sums"]
    assert evaluation["models"] == whole["models"]


def test_a_full_evaluation_goes_on_from_the_samples_of_one_that_stopped(stage):
    stage.evaluate(0.9)
    output = stage.evaluate(0.9, early=False)
    assert [engine.requests for engine in stage.made] == [6 * 30]
    assert contents(output) == contents(stage.evaluate(0.9, early=False, work="other"))
    again = stage.evaluate(0.9)
    assert stage.made == [], "nothing is missing"
    assert read_evaluation(again / "evaluation.json", "")["early_stop"]["saved"] == 180, "what is kept decides nothing"


def test_a_kill_changes_nothing(stage):
    whole = contents(stage.evaluate(0.55, work="whole"))
    for limit in (10, 70, 90):
        stage.limit = limit
        try:
            stage.evaluate(0.55)
        except KeyboardInterrupt:
            continue
    stage.limit = None
    assert contents(stage.evaluate(0.55)) == whole


def test_the_opponent_may_be_a_champion_by_the_key_of_its_evaluation(stage, store, objects, tmp_path):
    """Against the warm start the verdict is settled at once; against a champion that is as good, it is another or open."""
    champion = stage.evaluate(0.9, early=False, work="champion")
    store.publish("benchmark_evaluation", "of-the-champion", champion, config_digest="c", code_version="v", inputs={})
    output = stage.evaluate(0.5, opponent="of-the-champion", store=objects.uri)
    ended = read_evaluation(output / "evaluation.json", "")["early_stop"]
    assert (ended["against"], ended["verdict"]) == ("the champion", "kept")
    assert ended["saved"] > 0
    with pytest.raises(StoreError, match="there is no such evaluation"):
        stage.evaluate(0.5, opponent="absent", store=objects.uri)
    with pytest.raises(ConfigError, match="no champion was looked up for this stage"):
        stage.evaluate(0.5, opponent="champion", store=objects.uri)


def test_a_model_that_is_only_measured_has_all_its_samples():
    early = config("evaluation.early_stop.error=0.01")
    pipeline = _measurement({"kind": "initialized"}, early)
    plan = make_plan(early, run="r", store=None, rerun_tokens={}, history=History(), pipeline=pipeline)
    assert "early_stop" not in plan["benchmark_evaluation"].config
    assert '"gate"' not in plan["benchmark_evaluation"].config


def test_the_champion_is_pinned_when_a_run_is_planned(database, monkeypatch):
    early = "evaluation.early_stop.opponent=champion"
    assert against_champion(config(early)).evaluation.early_stop.opponent == "warm_start", "there is none yet"
    version = ModelVersion("ngrpo", "1", 0, tags=[ModelVersionTag("ngrpo.evaluation_key", "abc")])
    monkeypatch.setattr(ModelRegistry, "by_alias", lambda *_: version)
    assert against_champion(config(early)).evaluation.early_stop.opponent == "abc"
    assert against_champion(config()) == config()


def test_a_gate_on_a_benchmark_that_is_not_there_needs_all_samples(stage):
    evaluation = read_evaluation(stage.evaluate(0.9, tolerated_regression={"absent": 1.0}) / "evaluation.json", "")
    assert evaluation["early_stop"]["saved"] == 0


def test_the_report_says_what_was_saved(stage):
    evaluation = read_evaluation(stage.evaluate(0.9) / "evaluation.json", "")
    view = benchmark_views(evaluation, config("promotion.benchmark=arithmetic"))
    (sums,) = [each for each in view if each.name == "sums"]
    assert "2 of 8 planned samples" in sums.stopped
    assert "180 of 240 samples were saved" in sums.stopped
    assert [each.stopped for each in view if each.name == "others"] == [None]


def test_the_gain_of_a_run_that_stopped_is_that_of_the_samples_that_each_model_has(stage):
    evaluation = read_evaluation(stage.evaluate(0.9) / "evaluation.json", "")
    trained, start = (evaluation["models"][model]["sums"] for model in ("trained", "warm_start"))
    assert trained["n_samples"] < max(start["per_problem"].values()), "or nothing is shown"
    gain = gain_of(evaluation, "sums", config().evaluation, seed=0)
    assert gain.points == pytest.approx(100 * (trained["mean"] - start["mean"]))
    assert gain.low < gain.points < gain.high
