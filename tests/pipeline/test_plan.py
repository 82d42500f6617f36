"""The plan: keys along the pipeline, what is found in the store, and the reasons given."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ngrpo.config import load_config
from ngrpo.errors import StoreError
from ngrpo.stages import keys
from ngrpo.stages.declarations import STAGES
from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning import plan as planning
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record

PRESET = Path(__file__).with_name("small.toml")
BASE = list(STAGES)


class Store:
    """What the planner asks of an artifact store."""

    def __init__(self):
        self.keys = set()
        self.problems = {}

    def find(self, stage, key):
        return Reference(uri=f"s3://b/{stage}/{key}/", key=key, digest="d") if key in self.keys else None

    def verify(self, reference):
        return self.problems.get(reference.key, [])

    def hold(self, plan):
        self.keys |= {stage.key for stage in plan}


@pytest.fixture
def sources(monkeypatch):
    """The source files of each stage, which a test may change."""
    files = {f"ngrpo.stages.{name}": {f"stages/{name}.py": "0" * 64, "shared.py": "0" * 64} for name in BASE}
    monkeypatch.setattr(planning, "source_files", lambda module: files[module])
    monkeypatch.setattr(planning, "code_version", lambda module: str(files[module]))
    return files


@pytest.fixture
def plan(sources):
    """Plan with a store and a history that the test may change."""
    given = SimpleNamespace(store=Store(), tokens={}, history=History(), libraries={})

    def versions(stage, names):
        return {name: given.libraries.get(name, "1.0") for name in names}

    def make(*overrides, run="r1", config=None):
        return make_plan(
            config or load_config(PRESET, overrides),
            run=run,
            store=given.store,
            rerun_tokens=given.tokens,
            history=given.history,
            versions=versions,
        )

    def finish(planned):
        given.store.hold(planned)
        given.history = History(plan_record(planned), frozenset(BASE))

    given.make, given.finish = make, finish
    return given


def to_run(planned):
    return [stage.name for stage in planned.to_run]


def reasons(planned):
    return {stage.name: "; ".join(stage.reasons) for stage in planned}


def test_first_run_has_no_results_and_a_second_one_has_all_but_the_promotion(plan):
    first = plan.make()
    assert to_run(first) == BASE
    assert reasons(first)["prepare_data"] == "no result yet"
    plan.finish(first)
    second = plan.make(run="r2")
    assert to_run(second) == ["model_promotion"]
    assert reasons(second)["model_promotion"] == "never cached: it acts on the current state of the model registry"
    assert [stage.reference.key for stage in second if stage.cached] == [first[name].key for name in BASE[:-1]]


@pytest.mark.parametrize(
    ("override", "reruns"),
    [
        ("training.steps=40", BASE[3:]),
        ("evaluation.temperature=0.5", BASE[4:]),
        ("neighbors.candidates=16", ["neighbor_index", *BASE[3:]]),
        ("warm_start.learning_rate=0.1", BASE[2:]),
        ("data.train.size=9", ["prepare_data", *BASE[2:]]),
        ("seed=1", BASE[2:]),
        ("promotion.min_gain=1", BASE[5:]),
        ("resources.ngrpo_training.gpus=1", BASE[5:]),
        ("cluster.gpu.per_pod=1", BASE[5:]),
    ],
)
def test_a_setting_reruns_the_stages_that_read_it_and_what_depends_on_them(plan, override, reruns):
    plan.finish(plan.make())
    assert to_run(plan.make(override)) == reruns


def test_reasons_name_the_settings_that_changed(plan):
    plan.finish(plan.make())
    why = reasons(plan.make("training.steps=40", "training.kl_coefficient=0.5"))
    assert why["ngrpo_training"] == "configuration changed: training.kl_coefficient 0.001 → 0.5, training.steps 30 → 40"
    assert why["benchmark_evaluation"] == "input trained changed"
    many = ["seed=1", *(f"training.{name}=0.5" for name in ("learning_rate", "adam_beta2", "weight_decay"))]
    why = reasons(plan.make(*many))
    assert why["ngrpo_training"] == (
        "configuration changed: seed 0 → 1, training.adam_beta2 0.999 → 0.5, training.learning_rate 1e-06 → 0.5 "
        "and 1 more; input warm_start changed"
    )
    why = reasons(
        plan.make('data.warm_start={"kind": "hub", "id": "x", "revision": "' + "0" * 40 + '", "split": "train"}')
    )
    assert why["prepare_data"].startswith('configuration changed: data.warm_start.answer_column (none) → "answer", ')


def test_reasons_name_the_code_that_changed(plan, sources):
    plan.finish(plan.make())
    sources["ngrpo.stages.ngrpo_training"]["shared.py"] = "1" * 64
    sources["ngrpo.stages.ngrpo_training"]["new.py"] = "1" * 64
    del sources["ngrpo.stages.benchmark_evaluation"]["shared.py"]
    why = reasons(plan.make())
    assert why["ngrpo_training"] == "code changed: ngrpo/new.py, ngrpo/shared.py"
    assert why["benchmark_evaluation"] == "code changed: ngrpo/shared.py; input trained changed"
    assert why["sft_warm_start"] == ""


def test_a_librarys_version_reruns_the_stages_that_declare_it_and_the_plan_says_which(plan):
    plan.finish(plan.make())
    plan.libraries["trl"] = "1.17.0"
    again = plan.make()
    assert to_run(again) == BASE[2:]
    assert reasons(again)["sft_warm_start"] == "library trl 1.0 → 1.17.0"
    assert reasons(again)["ngrpo_training"] == "library trl 1.0 → 1.17.0; input warm_start changed"
    assert reasons(again)["benchmark_evaluation"] == "input warm_start changed; input trained changed"


def test_of_the_engines_only_the_selected_ones_version_counts(plan):
    plan.finish(plan.make())
    plan.libraries["vllm"] = "0.33.0"
    assert to_run(plan.make()) == BASE[5:]
    with_vllm = plan.make("rollout.engine=vllm")
    assert "library vllm (none) → 0.33.0" in reasons(with_vllm)["ngrpo_training"]
    plan.finish(with_vllm)
    plan.libraries["vllm"] = "0.34.0"
    again = plan.make("rollout.engine=vllm")
    assert to_run(again) == BASE[3:]
    assert reasons(again)["ngrpo_training"] == "library vllm 0.33.0 → 0.34.0"


def test_a_history_without_versions_is_of_before_they_counted(plan):
    first = plan.make()
    record = {name: {**stage, "key": "old"} for name, stage in plan_record(first).items()}
    del record["prepare_data"]["libraries"]
    plan.history = History(record, frozenset(BASE))
    assert reasons(plan.make())["prepare_data"] == "its key now covers the versions of libraries"


@pytest.mark.parametrize(
    ("file", "reruns"),
    [
        ("rollout/vllm/worker.py", BASE[3:]),
        ("training/warm_start.py", BASE[2:]),
        ("report/progress_lines.py", BASE[5:]),
        ("storage/objects.py", BASE[5:]),
    ],
)
def test_an_edit_reruns_the_stages_that_reach_the_file_and_the_plan_names_it(tmp_path, monkeypatch, file, reruns):
    package = tmp_path / "ngrpo"
    shutil.copytree(keys.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))

    def planned(root, store, history):
        monkeypatch.setattr(planning, "source_files", lambda module: keys.source_files(module, root))
        monkeypatch.setattr(planning, "code_version", lambda module: keys.code_version(module, root))
        return make_plan(load_config(PRESET), run="r", store=store, rerun_tokens={}, history=history)

    store = Store()
    first = planned(keys.PACKAGE, store, History())
    store.hold(first)
    with (package / file).open("a") as source:
        source.write("# edited\n")
    again = planned(package, store, History(plan_record(first), frozenset(BASE)))
    assert to_run(again) == reruns
    if len(reruns) > 1:
        assert reasons(again)[reruns[0]] == f"code changed: ngrpo/{file}"


def test_the_plan_says_that_a_change_of_graders_grades_the_champion_again(plan, sources):
    grader = "grading/grader.py"
    for stage in ("benchmark_evaluation", "model_promotion"):
        sources[f"ngrpo.stages.{stage}"][grader] = "0" * 64
    plan.finish(plan.make())
    always = "never cached: it acts on the current state of the model registry"
    sources["ngrpo.stages.model_promotion"]["shared.py"] = "1" * 64
    assert reasons(plan.make())["model_promotion"] == always
    for stage in ("benchmark_evaluation", "model_promotion"):
        sources[f"ngrpo.stages.{stage}"][grader] = "1" * 64
    why = reasons(plan.make())
    assert why["benchmark_evaluation"] == "code changed: ngrpo/grading/grader.py"
    assert why["model_promotion"] == (
        f"{always}; graders changed: stored samples of the champion are graded again, none is generated"
    )


def test_a_result_that_is_gone_or_damaged_is_made_again_and_nothing_else(plan):
    first = plan.make()
    plan.finish(first)
    plan.store.keys.remove(first["prepare_data"].key)
    plan.store.problems[first["ngrpo_training"].key] = ["model/model.safetensors: sha256 differs"]
    second = plan.make()
    assert to_run(second) == ["prepare_data", "ngrpo_training", "model_promotion"]
    assert reasons(second)["prepare_data"] == "its artifact is gone from the store"
    assert reasons(second)["ngrpo_training"] == "artifact damaged: model/model.safetensors: sha256 differs"
    assert second["ngrpo_training"].damaged.key == first["ngrpo_training"].key
    assert second["ngrpo_training"].reference is None


def test_a_manifest_that_decayed_is_said(plan):
    first = plan.make()
    plan.finish(first)
    plan.store.problems[first["ngrpo_training"].key] = ["its manifest is damaged: it is empty"]
    second = plan.make()
    assert to_run(second) == ["ngrpo_training", "model_promotion"]
    assert reasons(second)["ngrpo_training"] == "artifact damaged: its manifest is damaged: it is empty"


def test_what_is_not_known_of_an_artifact_is_no_reason_to_make_it_again(plan, monkeypatch):
    plan.finish(plan.make())

    def unknown(reference):
        raise StoreError("artifact s3://b/x/: its content differed between 4 reads, so its state is unknown")

    monkeypatch.setattr(plan.store, "verify", unknown)
    with pytest.raises(StoreError, match="its state is unknown"):
        plan.make()


def test_an_unfinished_stage_is_told_from_one_whose_result_is_gone(plan):
    first = plan.make()
    plan.history = History(plan_record(first), frozenset({"prepare_data"}))
    why = reasons(plan.make())
    assert why["prepare_data"] == "its artifact is gone from the store"
    assert why["sft_warm_start"] == "did not finish last time"


def test_a_rerun_token_makes_another_result_of_that_stage_and_of_what_depends_on_it(plan):
    first = plan.make()
    plan.finish(first)
    plan.tokens[first["sft_warm_start"].base_key] = "again"
    second = plan.make()
    assert to_run(second) == BASE[2:]
    assert reasons(second)["sft_warm_start"] == "rerun asked for"
    assert reasons(second)["ngrpo_training"] == "input warm_start changed"
    plan.finish(second)
    assert to_run(plan.make()) == ["model_promotion"]
    # The token belongs to one result: results of other settings, and the stage upstream, do not run again because of it.
    assert plan.make("warm_start.learning_rate=0.1")["sft_warm_start"].key != second["sft_warm_start"].key
    assert plan.make("evaluation.samples=4")["sft_warm_start"].key == second["sft_warm_start"].key


def test_without_a_store_nothing_is_looked_up(plan):
    planned = make_plan(load_config(PRESET), run="", store=None, rerun_tokens={}, history=History())
    assert to_run(planned) == BASE
    assert reasons(planned)["prepare_data"] == "store not consulted"


def test_the_plan_follows_the_pipeline_it_is_given(plan):
    def short(stage):
        stage("model_promotion", trained=stage("prepare_data"))

    planned = make_plan(
        load_config(PRESET), run="", store=plan.store, rerun_tokens={}, history=History(), pipeline=short
    )
    assert [stage.name for stage in planned] == ["prepare_data", "model_promotion"]
    assert planned["model_promotion"].inputs == {"trained": planned["prepare_data"]}


def test_a_changed_file_of_the_user_reruns_training_and_is_named_and_never_shown(plan, tmp_path):
    def load(**files):
        for path in tmp_path.glob("*.py"):
            path.unlink()
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        table = "[training.rewards.short]\nfunction = 'rewards.py:f'\n"
        (tmp_path / "mine.toml").write_text(f"{PRESET.read_text()}\n{table}")
        return load_config(tmp_path / "mine.toml")

    def make(config):
        return plan.make(config=config)

    function = "def f(completions, **kwargs): ...\n"
    plan.finish(make(load(rewards=f"import old, same\n{function}", old="", same="")))
    assert to_run(make(load(rewards=f"import old, same\n{function}", old="", same="", unused="1"))) == [
        "model_promotion"
    ]
    planned = make(load(rewards=f"import new, same\n{function}", new="secret = 1", same=""))
    assert to_run(planned) == BASE[3:]
    said = reasons(planned)["ngrpo_training"]
    assert said == "training.rewards.short: new.py added, old.py removed, rewards.py changed"


def test_a_package_with_a_function_of_the_users_is_a_library(plan):
    rewards = (
        'training.rewards={"think": {"function": "trl.rewards:think_format_reward"}, "x": {"function": "yaml.nodes:f"}}'
    )
    planned = plan.make(rewards)
    assert {"trl", "pyyaml"} <= planned["ngrpo_training"].libraries.keys()
    assert "pyyaml" not in planned["prepare_data"].libraries
    plan.finish(planned)
    plan.libraries["pyyaml"] = "2.0"
    again = plan.make(rewards)
    assert to_run(again) == BASE[3:]
    assert reasons(again)["ngrpo_training"] == "library pyyaml 1.0 → 2.0"
