"""Experiments: their file, what their runs share, and the pipeline that a cluster runs."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from golden_ir import CLUSTER, GOLDEN, IMAGES
from rich.console import Console
from test_plan import Store

from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.experiment import EXPERIMENTS
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow import experiment_submission
from ngrpo_kfp.pipelines.kubeflow.compilation import load_ir
from ngrpo_kfp.pipelines.planning.experiment import experiment_pipeline, read_experiment
from ngrpo_kfp.pipelines.planning.experiment_plan import planned_experiment, show_experiment
from ngrpo_kfp.pipelines.planning.nodes import History, task_name
from ngrpo_kfp.pipelines.planning.plan import make_plan

pytest_plugins = ["commanding"]

SMALL = Path(__file__).with_name("small.toml")
HEAD = f"""
preset = "{SMALL}"
seeds = [0, 1]
baseline = "grpo"
benchmark = "arithmetic"
measure = "pass@2"
equivalence = 1.0
"""
ARMS = """
[arms.grpo.mixing]
strategy = "token"
[arms.ngrpo]
"""


@pytest.fixture
def read(tmp_path):
    def read(text=HEAD + ARMS, *overrides, cluster=None, name="lab.toml"):
        path = tmp_path / name
        path.write_text(text)
        return read_experiment(path, PRESETS, overrides, cluster)

    return read


def plan_of(experiment, *, store=None, runs=None, tokens=None):
    runs = runs or experiment.by_seed
    plan = make_plan(
        experiment.baseline,
        run="",
        store=store,
        rerun_tokens=tokens or {},
        history=History(),
        pipeline=experiment_pipeline(experiment, runs),
    )
    return planned_experiment(experiment, runs, plan)


def to_run(planned):
    return dict(Counter(node.stage for node in planned.plan.to_run))


# --- the file -----------------------------------------------------------------------------------------------------------


def test_an_arm_is_the_preset_with_the_settings_of_all_and_its_own(read):
    text = HEAD + ARMS + "rollout.temperature = 0.5\n[settings]\ntraining.steps = 7\nrollout.temperature = 0.6\n"
    experiment = read(text, "training.save_steps=3")
    assert {arm: config.mixing.strategy for arm, config in experiment.arms.items()} == {
        "grpo": "token",
        "ngrpo": "neighbor",
    }
    assert [config.training.steps for config in experiment.arms.values()] == [7, 7]
    assert [config.training.save_steps for config in experiment.arms.values()] == [3, 3]
    assert [config.rollout.temperature for config in experiment.arms.values()] == [0.6, 0.5]
    assert [(run.name, experiment.config(run).seed) for run in experiment.by_seed] == [
        ("grpo.seed0", 0),
        ("ngrpo.seed0", 0),
        ("grpo.seed1", 1),
        ("ngrpo.seed1", 1),
    ]
    assert [run.name for run in experiment.by_arm] == ["grpo.seed0", "grpo.seed1", "ngrpo.seed0", "ngrpo.seed1"]


def test_presets_and_files_of_the_user_are_relative_to_the_experiment(read, tmp_path, monkeypatch):
    (tmp_path / "base.toml").write_text(SMALL.read_text())
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}")
    text = HEAD.replace(str(SMALL), "base.toml") + ARMS + '[arms.own.model]\nchat_template = "template.jinja"\n'
    monkeypatch.chdir("/")
    experiment = read(text)
    assert experiment.arms["own"].model.chat_template == "{{ messages[0].content }}"
    assert experiment.arms["grpo"].preset == "base"
    assert read(HEAD.replace(str(SMALL), "tiny").replace("pass@2", "mean") + ARMS).arms["grpo"].preset == "tiny"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("seeds = [0, 1]", "seeds = []"), "seeds: Tuple should have at least 1 item"),
        (("seeds = [0, 1]", "seeds = [3, 1, 3]"), "seeds: 3 stands there twice: a run is counted once"),
        (("seeds = [0, 1]", "seeds = [-1]"), "seeds.0: "),
        (("equivalence = 1.0", "equivalence = 0"), "equivalence: Input should be greater than 0"),
        (("equivalence = 1.0", "equivalence = 101"), "equivalence: Input should be less than or equal to 100"),
        (("equivalence = 1.0", ""), "equivalence: missing; this setting has no default"),
        (
            ("equivalence = 1.0", "equivalence = 1.0\nparalel = 2"),
            "paralel: unknown setting (value 2); did you mean parallel?",
        ),
        (("equivalence = 1.0", "equivalence = 1.0\nparallel = 0"), "parallel: "),
        (('baseline = "grpo"', 'baseline = "gspo"'), "baseline='gspo' is not an arm; name one of grpo, ngrpo"),
        (('measure = "pass@2"', 'measure = "median"'), "measure: one of mean, maj, pass@K and best@K"),
        (('measure = "pass@2"', 'measure = "pass@0"'), "measure: one of mean, maj, pass@K and best@K"),
        (
            ('measure = "pass@2"', 'measure = "best@4"'),
            "measure='best@4' needs 4 samples of a problem, but evaluation.samples=2 in arm grpo",
        ),
        (
            ('benchmark = "arithmetic"', 'benchmark = "aime"'),
            "benchmark='aime' is not one of data.benchmarks: arithmetic",
        ),
        (
            (f'preset = "{SMALL}"', 'preset = "tinny"'),
            "preset='tinny': unknown; name a TOML file, relative to this one, or one of ",
        ),
        ((f'preset = "{SMALL}"', 'preset = "none.toml"'), "none.toml"),
        (("[arms.ngrpo]", "[arms.ngrpo]\n[arms.ngrpo]"), "not TOML: "),
        (
            ("[arms.ngrpo]", "[arms.N_1]"),
            "the name of an arm is a label of its nodes: a label has lower-case letters and digits only",
        ),
        (("[arms.ngrpo]", "[arms.a-driver]"), "does not end in 'driver'"),
        (("[arms.ngrpo]", "[arms]\nngrpo = 3"), "arms.ngrpo: Input should be a table (value 3)"),
        (
            ("[arms.ngrpo]", "[arms.ngrpo]\nseed = 3"),
            "arms.ngrpo.seed: the seeds of an experiment are its setting `seeds`; leave it out",
        ),
        (("[arms.ngrpo]", "[arms.ngrpo.cluster]\nnodes = 2"), "arms.ngrpo.cluster: all arms run on one cluster"),
        (("[arms.ngrpo]", "[settings]\npreset = 'x'\n[arms.ngrpo]"), "settings.preset: all arms build on the preset"),
        (
            ("[arms.ngrpo]", "[arms.ngrpo.training.selection]\nbenchmark = 'arithmetic'\nsamples = 1"),
            "cannot be judged by the problems",
        ),
        (
            ("[arms.ngrpo]", "[arms.base]"),
            "arms.base: the base model has this name in every comparison; choose another",
        ),
        (
            ("[arms.ngrpo]", "[arms.ngrpo.evaluation]\nsamples = 4"),
            "evaluation.samples=4 in arm ngrpo, but 2 in arm grpo: arms are compared only if they are measured alike; put it into "
            "[settings.evaluation]",
        ),
        (("[arms.ngrpo]", "[arms.ngrpo.data]\nprompt_suffix = ' '"), "data.prompt_suffix=' ' in arm ngrpo, but "),
        (
            ("[arms.ngrpo]", "[arms.ngrpo.data.benchmarks.arithmetic]\nsize = 3"),
            "data.benchmarks.arithmetic in arm ngrpo is not that of arm grpo: arms are compared only if they are measured alike",
        ),
        (
            ("[arms.ngrpo]", "[published.gspo.arithmetic]\nmean = 3"),
            "published.gspo: no such arm; name one of grpo, or base",
        ),
        (
            ("[arms.ngrpo]", "[published.base.aime25]\nmean = 3"),
            "published: aime25: not one of data.benchmarks: arithmetic",
        ),
        (("[arms.ngrpo]", "[published.base.arithmetic]\nmean = 300"), "published.base.arithmetic.mean: "),
        (("[arms.ngrpo]", "[published.base.arithmetic]\nmedian = 3"), "one of mean, maj, mean@N"),
    ],
)
def test_what_an_experiment_cannot_be_is_said(read, change, problem):
    text = (HEAD + ARMS).replace(*change)
    assert text != HEAD + ARMS
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert problem in str(refused.value)
    assert str(refused.value).startswith(("experiment lab: ", "experiment '", "preset '"))


def test_what_is_wrong_with_an_arm_is_said_with_its_name_and_once_where_all_have_it(read):
    with pytest.raises(ConfigError) as refused:
        read(HEAD + ARMS + "mixing.rtae = 0.1\n")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(
        "experiment lab: arm ngrpo: mixing.rtae: unknown setting (value 0.1); did you mean mixing.rate? [in "
    )
    with pytest.raises(ConfigError, match=r"experiment lab: arm ngrpo: mixing\.k=99 exceeds neighbors\.candidates"):
        read(HEAD + ARMS + "mixing.k = 99\n")
    with pytest.raises(ConfigError) as refused:
        read(HEAD + ARMS + "[settings]\ntraining.stepz = 1\n")
    (line,) = str(refused.value).splitlines()
    assert line.startswith("experiment lab: training.stepz: unknown setting (value 1); did you mean training.steps?")


def test_a_seed_on_the_command_line_is_refused(read):
    with pytest.raises(
        ConfigError, match="experiment lab: --set seed: the seeds of an experiment are its setting `seeds`"
    ):
        read(HEAD + ARMS, "seed=3")


def test_an_experiment_of_a_name_that_is_not_there(capsys):
    assert cli.main(["experiment", "plan", "nonesuch"]) == 2
    assert capsys.readouterr().err.startswith("ngrpo: experiment nonesuch: unknown; ")


def test_programs_get_the_experiments_as_a_list(tmp_path, monkeypatch, capsys):
    shutil.copy(EXPERIMENTS / "tiny-example.toml", tmp_path)
    monkeypatch.setattr("ngrpo_kfp.pipelines.cli.experiment.EXPERIMENTS", tmp_path)
    assert cli.main(["experiment", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"experiment": "tiny-example", "preset": "tiny", "arms": ["grpo", "k-1", "ngrpo"], "seeds": [0, 1]}
    ]


# --- what runs share ----------------------------------------------------------------------------------------------------


def test_runs_share_what_has_the_same_key(read):
    planned = plan_of(read(HEAD + ARMS + "[arms.k-1.mixing]\nk = 1\n"))
    assert len(planned.plan.nodes) == 5 * 6
    assert to_run(planned) == {
        "prepare_data": 1,
        "neighbor_index": 1,
        "sft_warm_start": 2,
        "ngrpo_training": 6,
        "benchmark_evaluation": 6,
    }, "data and index by all, a warm start by the arms of a seed; nothing is promoted"
    plan = planned.plan
    assert plan["sft_warm_start.k-1.seed1"].worker is plan["sft_warm_start.grpo.seed1"]
    assert json.loads(plan["ngrpo_training.k-1.seed1"].config)["mixing"]["k"] == 1
    assert json.loads(plan["ngrpo_training.k-1.seed1"].config)["seed"] == 1
    assert json.loads(plan["ngrpo_training.grpo.seed0"].config)["mixing"]["strategy"] == "token"
    assert plan["benchmark_evaluation.k-1.seed1"].inputs["trained"] is plan["ngrpo_training.k-1.seed1"]
    assert planned.merged == {}


def test_an_arm_alone_has_the_keys_that_it_has_in_an_experiment(read):
    experiment = read()
    run = experiment.by_seed[1]
    alone = make_plan(experiment.config(run), run="", store=None, rerun_tokens={}, history=History())
    planned = plan_of(experiment)
    assert alone["ngrpo_training"].key == planned.plan["ngrpo_training.ngrpo.seed0"].key
    assert alone["benchmark_evaluation"].key == planned.plan["benchmark_evaluation.ngrpo.seed0"].key


def test_an_arm_with_other_data_or_another_model_has_its_own(read):
    arms = "[arms.more.data.train]\nsize = 16\n[arms.wide.model.source]\nhidden_size = 96\n"
    planned = plan_of(read(HEAD + ARMS + arms))
    found = to_run(planned)
    assert (found["prepare_data"], found["neighbor_index"]) == (3, 2)
    assert found["sft_warm_start"] == 6


def test_an_arm_that_was_added_is_all_that_runs(read):
    store = Store()
    store.hold(plan_of(read()).plan)
    planned = plan_of(read(HEAD + ARMS + "[arms.k-1.mixing]\nk = 1\n"), store=store)
    assert to_run(planned) == {"ngrpo_training": 2, "benchmark_evaluation": 2}
    assert {node.name.split(".")[1] for node in planned.plan.to_run} == {"k-1"}


def test_arms_that_are_one_are_merged_and_the_baseline_keeps_its_name(read):
    planned = plan_of(read(HEAD + "[arms.first.mixing]\nstrategy = 'token'\n" + ARMS + "[arms.same]\n"))
    assert planned.merged == {"first": "grpo", "same": "ngrpo"}
    assert planned.arms == ["grpo", "ngrpo"]
    console = Console(width=200, record=True)
    show_experiment(planned, console, {})
    shown = console.export_text()
    assert "2 arms x 2 seeds" in shown
    assert "arm same: the same settings as arm ngrpo, for every stage: they are one, reported as ngrpo" in shown


def test_an_arm_that_is_run_again_runs_what_it_does_not_share(read):
    experiment = read()
    first = plan_of(experiment)
    store = Store()
    store.hold(first.plan)
    tokens = {node.base_key: "again" for node in first.first_of("ngrpo")}
    assert sorted(node.name for node in first.first_of("ngrpo")) == [
        f"ngrpo_training.ngrpo.seed{seed}" for seed in (0, 1)
    ]
    again = plan_of(experiment, store=store, tokens=tokens)
    assert to_run(again) == {"ngrpo_training": 2, "benchmark_evaluation": 2}
    with pytest.raises(ConfigError, match="--rerun 'gspo': no such arm; name one of grpo, ngrpo"):
        first.first_of("gspo")
    merged = plan_of(read(HEAD + ARMS + "[arms.same]\n"))
    with pytest.raises(ConfigError, match="--rerun 'same': it is one with arm ngrpo: name that"):
        merged.first_of("same")


def test_the_part_of_a_run_takes_what_earlier_runs_made(read):
    planned = plan_of(read())
    first, second = list(planned.nodes)[:2]
    part = planned.plan.part(planned.nodes[first], {})
    assert [node.stage for node in part.to_run] == [node.stage for node in part]
    store = Store()
    store.hold(part)
    made = {node.key: store.find(node.stage, node.key) for node in part}
    part = planned.plan.part(planned.nodes[second], made)
    assert [node.stage for node in part.to_run] == ["ngrpo_training", "benchmark_evaluation"]
    assert (
        part["ngrpo_training.ngrpo.seed0"].inputs["warm_start"].reference
        == made[part["sft_warm_start.ngrpo.seed0"].key]
    )


def test_the_plan_says_what_is_shared_what_it_needs_and_how_long_it_took(read):
    planned = plan_of(
        read(HEAD + ARMS, "resources.ngrpo_training.gpus=4", "resources.ngrpo_training.gpu_memory_gib=80")
    )
    took = {planned.plan["ngrpo_training.grpo.seed0"].key: 3600.0}
    console = Console(width=200, record=True)
    show_experiment(planned, console, took)
    shown = console.export_text()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    cells = {(row[0], row[1]): row[2:] for row in rows}
    assert cells["prepare_data", "all arms"][:2] == ["1", "1"]
    assert cells["sft_warm_start", "all arms"][:2] == ["2", "2"]
    assert cells["ngrpo_training", "grpo"][:3] == ["2", "2", "4 x 80 GiB"]
    assert cells["ngrpo_training", "grpo"][-1] == "2.0 h", "two of an hour each"
    assert cells["ngrpo_training", "ngrpo"][-1] == "?"
    assert cells["ngrpo_training", "ngrpo"][-2].endswith(" M"), "tokens that it generates at most"
    assert "8.0 GPU hours" in shown


def test_where_no_arm_ran_hours_are_computed():
    console = Console(width=200, record=True)
    show_experiment(plan_of(read_experiment(EXPERIMENTS / "paper-main.toml", PRESETS, [])), console, {})
    shown = console.export_text()
    trainings = [line for line in shown.splitlines() if "ngrpo_training" in line]
    assert len(trainings) == 6
    assert all(re.search(r"~\d+\.\d h ", line) for line in trainings)
    assert re.search(r"37 of them in about [\d,.]+ h one after another, [\d,.]+ GPU hours", " ".join(shown.split()))
    assert "computed for A100s, not measured" in " ".join(shown.split())


# --- a cluster ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def compiled(read):
    def compiled(text, *overrides, store=None):
        experiment = read(text, *overrides, cluster=CLUSTER)
        planned = plan_of(experiment, runs=experiment.by_arm, store=store)
        return load_ir(experiment_submission.compile_experiment(planned, IMAGES))

    return compiled


def test_a_cluster_runs_all_arms_side_by_side(compiled):
    spec, platform = compiled(HEAD + ARMS + "[arms.ngrpo.resources.ngrpo_training]\ncpus = 3\n")
    tasks = spec["root"]["dag"]["tasks"]
    assert Counter(name.split("-")[0] for name in tasks) == {
        "prepare": 1,
        "neighbor": 1,
        "sft": 2,
        "ngrpo": 4,
        "benchmark": 4,
    }
    assert tasks["ngrpo-training-ngrpo-seed1"]["dependentTasks"] == [
        "neighbor-index-grpo-seed0",
        "prepare-data-grpo-seed0",
        "sft-warm-start-grpo-seed1",
    ]
    executors = spec["deploymentSpec"]["executors"]
    cpus = {
        arm: executors[f"exec-ngrpo-training-{arm}-seed0"]["container"]["resources"]["resourceCpuLimit"]
        for arm in ("grpo", "ngrpo")
    }
    assert cpus["ngrpo"] == "3" != cpus["grpo"]
    labels = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-ngrpo-training-ngrpo-seed1"]
    assert labels["podMetadata"]["labels"]["ngrpo/stage"] == "ngrpo_training.ngrpo.seed1"


def waits(tasks, node):
    return set(tasks[task_name(node)].get("dependentTasks", ()))


def test_lanes_limit_how_many_runs_go_at_a_time(compiled):
    spec, _ = compiled(HEAD.replace("equivalence", "parallel = 2\nequivalence") + ARMS)
    tasks = spec["root"]["dag"]["tasks"]
    assert "benchmark-evaluation-grpo-seed0" in waits(tasks, "ngrpo_training.ngrpo.seed0")
    assert "benchmark-evaluation-grpo-seed1" in waits(tasks, "ngrpo_training.ngrpo.seed1")
    assert not any("evaluation" in name for name in waits(tasks, "ngrpo_training.grpo.seed1"))
    # The longest chain of trainings is as long as a lane, and so is the number of lanes.
    assert (
        sum(
            any("evaluation" in name for name in waits(tasks, node))
            for node in (
                "ngrpo_training.grpo.seed0",
                "ngrpo_training.grpo.seed1",
                "ngrpo_training.ngrpo.seed0",
                "ngrpo_training.ngrpo.seed1",
            )
        )
        == 2
    )
    assert not any("evaluation" in name for name in waits(tasks, "benchmark_evaluation.ngrpo.seed0"))


def test_a_pipeline_that_kubernetes_does_not_take_is_refused(compiled, monkeypatch):
    monkeypatch.setattr(experiment_submission, "_MOST_BYTES", 10_000)
    with pytest.raises(
        ConfigError, match=r"experiment lab: its pipeline of 12 stages has 0\.\d MB, and Kubernetes takes about"
    ):
        compiled(HEAD + ARMS)


@pytest.mark.pipeline
def test_an_experiment_is_submitted_as_one_run_and_is_no_run_of_a_preset(kubeflow, ngrpo, objects, tmp_path):
    path = tmp_path / "lab.toml"
    path.write_text(HEAD + ARMS)
    place = ("--set", f"cluster.store={objects.uri}", "--images", str(GOLDEN / "images.lock"))
    printed = ngrpo("experiment", "submit", str(path), *place, "--no-wait")
    assert "Experiment lab: 2 arms x 2 seeds" in printed
    run = kubeflow.run()
    assert len(kubeflow.tasks(run)) == 12
    assert kubeflow.parameter(run, "ngrpo-training-grpo-seed1", "config").startswith("{")
    assert "ngrpo_training.grpo.seed1" in ngrpo("status")
    refused = ngrpo("rerun", "prepare_data", "--from", run.run_id, code=2)
    assert "is an experiment of several configurations: submit it again (ngrpo experiment submit)" in refused


# --- ours ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("*.toml")))
def test_each_of_ours_can_be_planned_and_has_no_arm_twice(name):
    experiment = read_experiment(EXPERIMENTS / f"{name}.toml", PRESETS)
    planned = plan_of(experiment, runs=experiment.by_seed[: len(experiment.arms)])
    assert planned.merged == {}
    assert to_run(planned)["benchmark_evaluation"] == len(experiment.arms)
