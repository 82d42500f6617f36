"""The list of settings, its page, and the schema for editors."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ngrpo.config import RunConfig, load_config
from ngrpo.config.listing import fields_at, tables
from ngrpo_kfp.pipelines.cli import app as cli
from ngrpo_kfp.pipelines.cli.options import PRESETS

DOCS = Path(__file__).parents[2] / "docs"


def printed(capsys, *arguments):
    assert cli.main(["config", *arguments]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments):
    assert cli.main(["config", *arguments]) == 2
    return capsys.readouterr().err.removeprefix("ngrpo: ").rstrip()


def test_every_setting_has_type_default_and_meaning():
    found = tables(RunConfig)
    assert sum(len(table.settings) for table in found) > 150
    for table in found:
        assert table.meaning, table.paths
        for setting in table.settings:
            assert setting.type, (table.paths, setting.name)
            assert setting.default
            assert setting.meaning.endswith("."), (table.paths, setting)


def test_a_setting_of_every_kind(capsys):
    text = " ".join(printed(capsys, "training").split())
    for part in (
        "steps integer from 1 to 10_000_000; required Optimizer steps.",
        "delta number above 1 to 1000; default none",
        'scale_rewards "group" | "batch" | "none"; default "group"',
        "use_bias_correction_kl true | false; default true",
        "trl table of values; default {}",
    ):
        assert all(word in text for word in part.split())
    assert "training.selection" in text
    assert "rollout.vllm" not in text


@pytest.mark.parametrize("arguments", [(), ("training",), ("data.benchmarks.math500",), ("cluster.tolerations",)])
def test_it_fits_into_eighty_columns(capsys, monkeypatch, arguments):
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys, *arguments).splitlines()
    assert len(lines) > 3
    # Titles are not wrapped: they are paths.
    titles = {line for line in lines if line.startswith(("data.train, ", "data.train.grading", "cluster.tolerations"))}
    assert max(len(line) for line in lines if line not in titles) <= 80


def test_a_single_setting(capsys):
    text = printed(capsys, "training.steps")
    assert "Optimizer steps." in text
    assert "prompts_per_batch" not in text
    assert "limit" in printed(capsys, "data.benchmarks.aime24.limit")


def test_everything_is_listed(capsys):
    text = printed(capsys)
    for section in RunConfig.model_fields:
        assert section in text or section == "preset"
    assert "extends" in text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("trainig", "SECTION 'trainig': unknown; did you mean training?"),
        ("training.stps", "SECTION 'training.stps': unknown; did you mean training.steps?"),
        ("group_size", "SECTION 'group_size': unknown; did you mean rollout.group_size?"),
        ("", "SECTION '': unknown; choose one of "),
        ("xyzzy", "SECTION 'xyzzy': unknown; choose one of "),
    ],
)
def test_what_is_no_section(capsys, section, said):
    assert refused(capsys, section).startswith(said)


@pytest.mark.parametrize(
    "arguments", [("training", "--schema"), ("--schema", "--markdown"), ("training", "--markdown")]
)
def test_one_thing_is_printed(capsys, arguments):
    assert refused(capsys, *arguments) == "SECTION, --schema and --markdown exclude each other: name one"


def test_the_page_of_the_settings_is_fresh(capsys):
    """If this fails: `make reference`."""
    assert printed(capsys, "--markdown") == (DOCS / "settings.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_on_presets(tmp_path):
    text, _ = re.findall(r"```toml\n(.*?)```", (DOCS / "presets.md").read_text(encoding="utf-8"), re.DOTALL)
    mine = tmp_path / "mine.toml"
    mine.write_text(text, encoding="utf-8")
    config = load_config(mine, presets=PRESETS)
    assert (config.data.train.kind, config.data.train.size) == ("arithmetic", 500)
    assert (config.training.epsilon_high, config.training.trl) == (0.28, {"adam_epsilon": 1e-7})
    assert config.model == load_config(PRESETS / "smollm2.toml").model


# --- the schema ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    from ngrpo_kfp.pipelines.cli.settings import schema

    return jsonschema.Draft202012Validator(json.loads(schema()))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_are_what_the_schema_says(validator, path):
    validator.validate(tomllib.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ('extends = "tiny"', True),
        ('extends = "tiny"\ntraining.steps = 3', True),
        (
            'extends = "tiny"\ntraining.selection = false\ndata.warm_start = false\ndata.benchmarks.validation = false',
            True,
        ),
        ('extends = "tiny"\ntraining.steps = "three"', False),
        ('extends = "tiny"\ntraining.stps = 3', False),
        ('extends = "tiny"\nmixing.rate = 2', False),
        ("extends = 3", False),
        ('preset = "tiny"', False),
    ],
)
def test_an_editor_that_knows_the_schema_says_what_is_wrong(validator, text, fine):
    assert validator.is_valid(tomllib.loads(text)) is fine


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ((), "training"),
        (("training",), "loss_type"),
        (("training", "selection"), "benchmark"),
        (("data", "train", "hub"), "split"),
        (("data", "benchmarks", "any", "arithmetic"), "fold"),
        (("resources", "prepare_data"), "gpus"),
        (("cluster", "gpu"), "per_pod"),
    ],
)
def test_the_fields_of_a_table_are_found_by_the_path_of_an_error(path, field):
    assert field in fields_at(RunConfig, path)


def test_a_kind_has_its_own_fields():
    assert "split" not in fields_at(RunConfig, ("data", "warm_start", "arithmetic"))
    assert fields_at(RunConfig, ("nowhere", "at", "all")) == []


def test_importing_the_settings_reads_no_source_and_builds_no_section():
    """Docstrings are for `ngrpo config`, validators for the section that is read; every command imports the settings."""
    script = (
        "import linecache\nfrom ngrpo.config import RunConfig\n"
        "print(RunConfig.__pydantic_complete__, [file for file in linecache.cache if 'ngrpo' in file])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "[]"]
