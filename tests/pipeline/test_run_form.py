"""The run form of Kubeflow's UI: what a person sees there, and what its task does with what was filled in."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from commanding import IMAGES as LOCK
from golden_ir import GOLDEN, IMAGES
from kfp_server_api import V2beta1Run
from test_scheduled_run import EMPTY, STAGES, ending, of_the_day, submitted

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.errors import ConfigError
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.kubeflow.client import connect, experiment_id
from ngrpo_kfp.pipelines.kubeflow.compilation import load_ir
from ngrpo_kfp.pipelines.kubeflow.scheduling.form import compile_form
from ngrpo_kfp.pipelines.kubeflow.scheduling.planning_task import submit_what_is_asked
from ngrpo_kfp.pipelines.kubeflow.scheduling.requested import Requested

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]

KNOWS_THE_API = "cluster.environment.KF_PIPELINES_ENDPOINT=http://ml-pipeline.kubeflow.svc:8888"


def test_the_form_has_typed_parameters_with_defaults_and_a_description_each():
    config = load_config(PRESETS / "smollm2.toml", [KNOWS_THE_API, "seed=3"])
    spec, platform = load_ir(compile_form(config, IMAGES, {}))
    shown = spec["root"]["inputDefinitions"]["parameters"]
    assert {name: (it["parameterType"], it["defaultValue"]) for name, it in shown.items()} == {
        "preset": ("STRING", "smollm2"),
        "seed": ("NUMBER_INTEGER", 3),
        "overrides": ("LIST", []),
        "base": ("STRING", ""),
    }
    assert all(len(it["description"]) > 20 and it["isOptional"] for it in shown.values())
    (task,) = spec["root"]["dag"]["tasks"].values()
    given = task["inputs"]["parameters"]
    assert {name for name, value in given.items() if "componentInputParameter" in value} == set(shown)
    assert "enableCache" not in task["cachingOptions"]
    placed = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-requested-run"]
    assert placed["podMetadata"]["labels"] == {"ngrpo/stage": "requested_run"}, (
        "no queue: it waits for what is in there"
    )


def test_the_form_is_uploaded_once_or_written(kubeflow, ngrpo, tmp_path, capsys):
    arguments = ["form", *LOCK, "--set", KNOWS_THE_API]
    for _ in range(2):
        assert "pipeline ngrpo-form, version tiny-" in ngrpo(*arguments)
    assert ([each.display_name for each in kubeflow.pipelines.values()], len(kubeflow.versions)) == (["ngrpo-form"], 1)
    asked = len(kubeflow.requests)
    ngrpo(*arguments, "-o", str(tmp_path / "form.yaml"))
    (version,) = kubeflow.versions.values()
    assert load_ir((tmp_path / "form.yaml").read_text())[0] == version.pipeline_spec["pipeline_spec"]
    assert "its directory does not exist" in ngrpo(*arguments, "-o", str(tmp_path / "no" / "form.yaml"), code=2)
    assert "cluster.environment.KF_PIPELINES_ENDPOINT: missing" in ngrpo("form", *LOCK, code=2)
    assert len(kubeflow.requests) == asked


@pytest.fixture
def asked(kubeflow, objects, monkeypatch, tmp_path):
    """A run of the form, and what its task is given."""
    for name in ("NGRPO_CACHE_DIR", "NGRPO_WORK_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    parent = kubeflow._create_run(
        V2beta1Run(display_name="a run of the form", experiment_id=experiment_id(connect()), pipeline_spec=EMPTY)
    )
    cluster = load_config(PRESETS / "tiny.toml", [f"cluster.store={objects.uri}"]).cluster.model_dump(mode="json")
    return parent, {
        "preset": "tiny",
        "seed": 0,
        "overrides": [],
        "base": "",
        "cluster": cluster,
        "presets": {},
        "images": (GOLDEN / "images.lock").read_text(),
        "parent": parent.run_id,
    }


def test_what_was_filled_in_is_planned_with_the_store_and_submitted_as_a_run_of_its_own(
    kubeflow, asked, finish, capsys
):
    parent, given = asked
    given |= {"seed": 5, "overrides": ["training.steps=7"]}
    with ThreadPoolExecutor() as pool:
        task = pool.submit(submit_what_is_asked, **given, pause_seconds=0.05)
        run = submitted(kubeflow, parent, task.done)
        assert kubeflow.pod_stages(run) == list(STAGES)
        settings = json.loads(kubeflow.parameter(run, "ngrpo-training", "config"))
        assert (settings["seed"], settings["training"]["steps"]) == (5, 7)
        finish()
        task.result(timeout=60)
    assert capsys.readouterr().out.endswith(f"run  {run.run_id}: SUCCEEDED\n")
    with ending(kubeflow, "SUCCEEDED"):
        submit_what_is_asked(**given, pause_seconds=0.05)
    assert of_the_day(kubeflow, parent) == [run], "the next pod joins the run that was submitted"


def test_wrong_parameters_end_the_task_with_the_command_lines_line_and_are_not_tried_again(kubeflow, asked, tmp_path):
    parent, given = asked
    given |= {"overrides": ["training.nonsense=1"]}
    seen = len(kubeflow.requests)
    done = subprocess.run(
        [sys.executable, "-m", "ngrpo_kfp.pipelines.kubeflow.scheduling.planning_task"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, "no other try would change it"
    (line,) = done.stderr.splitlines()
    assert line.startswith("training.nonsense: unknown setting (value 1)")
    assert len(kubeflow.requests) == seen
    assert of_the_day(kubeflow, parent) == []


def requested(**changed) -> Requested:
    return replace(Requested("tiny", 0, [], "", {}, {}), **changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"preset": "tinny"},
            "preset 'tinny': unknown; choose one of .*tiny.*; for a file of your own make the form anew",
        ),
        ({"preset": "../tiny.toml"}, "preset '../tiny.toml': unknown; choose one of"),
        ({"preset": ""}, "preset '': unknown; choose one of"),
        ({"seed": -1}, r"seed: .* \(value -1\)"),
        ({"overrides": {"a": 1}}, "overrides {'a': 1}: write a JSON list of texts SECTION.FIELD=VALUE"),
        ({"overrides": [1]}, r"overrides \[1\]: write a JSON list of texts"),
        ({"overrides": ["steps"]}, "override 'steps': expected section.field=value"),
        ({"overrides": ["training.steps=0"]}, r"training.steps: .* \(value 0\)"),
        ({"base": "best"}, "base 'best': unknown; write champion, or leave it empty"),
    ],
)
def test_a_parameter_that_cannot_be_is_named(changed, said):
    with pytest.raises(ConfigError) as refused:
        requested(**changed).config()
    (line,) = str(refused.value).splitlines()
    assert re.match(said, line), line


def test_a_preset_of_ones_own_goes_with_the_form(tmp_path):
    (tmp_path / "mine.toml").write_text('extends = "tiny"\n[training]\nsteps = 11\n')
    mine = load_config(tmp_path / "mine.toml", [KNOWS_THE_API], presets=PRESETS)
    spec, _ = load_ir(compile_form(mine, IMAGES, {"mine": mine}))
    (task,) = spec["root"]["dag"]["tasks"].values()
    constants = {
        name: json.loads(task["inputs"]["parameters"][name]["runtimeValue"]["constant"])
        for name in ("presets", "cluster")
    }
    config, left_out = requested(preset="mine", seed=2, **constants).config()
    assert config == validate(RunConfig, mine.model_dump(mode="json") | {"seed": 2})
    assert left_out == []


def test_the_command_line_says_the_same_of_the_same_mistake(capsys):
    with pytest.raises(ConfigError) as refused:
        requested(overrides=["training.nonsense=1", "rollout.group_size=1"]).config()
    assert cli.main(["plan", "--set", "training.nonsense=1", "--set", "rollout.group_size=1"]) == 2
    assert sorted(capsys.readouterr().err.removeprefix("ngrpo: ").splitlines()) == sorted(
        str(refused.value).splitlines()
    )
