"""Random settings: nonsense is refused in lines that name it, and no other exception is raised."""

import json
import os
import random
import re
import string
from pathlib import Path
from typing import Any

import pytest

from ngrpo.config import RunConfig, load_config, validate
from ngrpo.errors import ConfigError
from nonsense import BASES, PRESETS, base, put, wrong_settings

SECRET = re.compile(
    r"cluster\.(environment|secrets|image_pull_secrets|training_token)|notifications|signing\.private_key|deployment\.token"
)
"""Settings whose values no message shows."""
TINY = PRESETS / "tiny.toml"
SETTINGS = 5000


def refused(path: Path, *overrides: str, cluster: Path | None = None) -> str:
    """Read a configuration that must be refused, and return what was said."""
    with pytest.raises(ConfigError) as failure:
        load_config(path, overrides, cluster)
    message = str(failure.value)
    assert message.isprintable() or "\n" in message
    assert max(map(len, message.splitlines())) < 2000
    return message


def test_no_nonsense_is_accepted_in_any_field():
    seen: set = set()
    tried = 0
    for name in BASES:
        tree = base(name)
        for path, value in wrong_settings(name, seen):
            tried += 1
            with pytest.raises(ConfigError) as failure:
                validate(RunConfig, put(tree, path, value))
            require_named(str(failure.value).splitlines(), path, value)
    assert tried > 2000


def require_named(lines: list[str], path: tuple[str, ...], value: Any) -> None:
    """Whatever follows from it, one line is about the setting, with its value, and none about a setting that nobody can write."""
    name = ".".join(path).removesuffix(".code")  # filled by itself: it is about the function
    about = [line for line in lines if line.startswith(name) and line[len(name)] in ":=."]
    assert about, (path, value, lines)
    assert not any("[" in line.partition(": ")[0].partition("=")[0] for line in lines), lines
    if isinstance(value, bool | int | float) and not SECRET.match(name):
        assert len(about) == 1, (path, value, lines)
        assert repr(value)[:40] in about[0], (path, value, lines)


def test_what_the_fuzzer_starts_from_is_accepted():
    for name in BASES:
        assert validate(RunConfig, base(name))


def test_every_number_has_bounds():
    defs = RunConfig.model_json_schema()["$defs"]
    numbers = [
        (section, name, kind)
        for section, schema in defs.items()
        for name, field in schema["properties"].items()
        for kind in (field, *field.get("anyOf", ()), field.get("items", {}), field.get("additionalProperties") or {})
        if kind.get("type") in ("integer", "number")
    ]
    assert len(numbers) > 70
    for section, name, kind in numbers:
        assert kind.keys() & {"minimum", "exclusiveMinimum"}, (section, name)
        assert kind.keys() & {"maximum", "exclusiveMaximum"}, (section, name)


@pytest.mark.parametrize(
    ("override", "bound"),
    [
        ("training.steps=100000000000000000000000", "less than or equal to 10000000"),
        ("training.learning_rate=1e308", "less than or equal to 1"),
        ("evaluation.temperature=1e308", "less than or equal to 100"),
        ("resources.ngrpo_training.gpus=1025", "less than or equal to 1024"),
        ("cluster.timeout_hours=9999", "less than or equal to 8760"),
    ],
)
def test_a_bound_is_named(override, bound):
    message = refused(TINY, override)
    assert bound in message
    assert message.startswith(override.partition("=")[0])
    assert "(value " in message


def test_five_thousand_settings_at_random():
    """Wrong values of fields, and characters at random in the place of a field or below one."""
    chance = random.Random(17)
    wrong = [(path, value) for path, value in wrong_settings("tiny") if not any(part.isdigit() for part in path)]
    characters = string.printable.replace("=", "") + "é数\0\x1b\u202e\ud800" + '[]{}"' * 5
    for number in range(SETTINGS):
        path, value = chance.choice(wrong)
        noise = "".join(chance.choices(characters, k=chance.randrange(30)))
        if number % 5 < 3:
            override = f"{'.'.join(path)}={json.dumps(value)}"
        elif number % 5 == 3:
            override = f"{'.'.join(path)}.{noise}"
        else:
            override = f"{noise}={json.dumps(value)}"
        refused(TINY, override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("", "expected section.field=value"),
        ("=", "expected section.field=value"),
        ("=3", "expected section.field=value"),
        ("training.steps", "expected section.field=value"),
        ("training..steps=3", "expected section.field=value"),
        (".training.steps=3", "expected section.field=value"),
        ("training.steps.=3", "expected section.field=value"),
        ("training.steps =3", "expected section.field=value"),
        ("evaluation.pass_at.0=3", "'pass_at' is a value, not a section"),
        ("training.steps.more=3", "'steps' is a value, not a section"),
        ("training=3", "training: "),
        ("training=null", "training: "),
        ("seed=" + "9" * 5000, "5000 digits"),
        ("seed=-" + "9" * 5000, "5001 digits"),
        ("seed=4294967296", "4294967295"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=NaN", "valid integer"),
        ("rollout.temperature=NaN", "finite"),
        ("rollout.temperature=Infinity", "finite"),
        ("rollout.temperature=1e999", "finite"),
        ("rollout.temperature=1e-300", "0.001"),
        ("data.train=" + "[" * 100_000, "nested too deeply"),
        ("data.train=" + '{"a":' * 100_000, "nested too deeply"),
        ("data.train=" + "[" * 500 + "]" * 500, "data.train"),
        (".".join("a" * 5000) + "=1", "a: unknown setting"),
        ('data.train={"kind": "arithmetic", "kind": "hub"}', "twice"),
        ("mixing.end_marker=a\0b", "control characters"),
        ("mixing.end_marker=a\udcffb", "unicode"),
        ("promotion.statistic=pass@" + "9" * 5000, "promotion.statistic"),
        ("cluster.store=s3://b/run#1", "s3://bucket/prefix"),
        ("cluster.store=s3://b/run?x", "s3://bucket/prefix"),
        ("cluster.store=s3://b/../x", "s3://bucket/prefix"),
        ("cluster.store=s3://b/a b", "s3://bucket/prefix"),
        ("cluster.store=s3://b//x", "s3://bucket/prefix"),
        ("cluster.store=s3://b/%2e%2e", "s3://bucket/prefix"),
        ("cluster.store=s3://", "s3://bucket/prefix"),
        ("cluster.store=s3://u:p@b/x", "s3://bucket/prefix"),
        ("model.source.seed=4294967296", "4294967295"),
    ],
)
def test_overrides_that_cannot_be(override, said):
    message = refused(TINY, override)
    assert said in message
    assert "\n" not in message


def test_what_is_wrong_is_said_all_at_once():
    """Fields, rules of a section, rules over sections and what is no override at all, in one go."""
    message = refused(
        TINY,
        "mixing.rate=2",
        "mixing.k=true",
        "rollout.temperature=0",
        "no override",
        "a..b=3",
        "training.updates_per_batch=4",
        "training.micro_batch_size=64",
        "training.save_steps=6",
        "training.steps=30",
        "promotion.benchmark=aime24",
        "promotion.statistic=pass@17",
        'promotion.tolerated_regression={"amc": 1}',
        'evaluation.string_match=["amc23", "aime25"]',
        "cluster.nodes=2",
        'cluster.environment={"HF_TOKEN": "x", "NGRPO_S3_SECRET_ACCESS_KEY": "y"}',
        "speed=1",
    )
    named = [
        "override 'no override'",
        "override 'a..b=3'",
        "mixing.rate: ",
        "mixing.k: ",
        "rollout.temperature: ",
        "training.save_steps=6",
        "training.steps=30",
        "evaluation.string_match: 'amc23'",
        "evaluation.string_match: 'aime25'",
        "promotion.benchmark='aime24'",
        "promotion.statistic='pass@17'",
        "promotion.tolerated_regression.amc: ",
        "cluster.environment.NGRPO_S3_SECRET_ACCESS_KEY",
        "cluster.environment.HF_TOKEN",
        "speed: unknown setting",
    ]
    for start in named:
        assert sum(line.startswith(start) for line in message.splitlines()) == 1, (start, message)
    assert len(message.splitlines()) == len(named)


def test_the_value_of_a_variable_of_the_cluster_is_not_shown():
    assert "hunter2" not in refused(TINY, 'cluster.environment={"A": "http://u:hunter2@h/\\u0000"}')
    assert "hunter2" not in refused(TINY, 'cluster.environment=["hunter2"]')


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"a = '\xed\xa0\x80'", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "not TOML"),
        (b"a = 2020-13-45", "not TOML"),
        (b"a = 25:61:61", "not TOML"),
        (b"a = 1\na = 2", "not TOML"),
        (b"\0", "not TOML"),
        (b"seed = 2020-01-01", "seed: Input should be a valid integer"),
        (b"seed = inf", "seed: Input should be a valid integer"),
        (b"seed = 1.0", "seed: Input should be a valid integer"),
        (b"#" * (1 << 21), "larger than 1048576 bytes"),
        (b"", "model: missing"),
    ],
)
def test_files_that_are_no_settings(tmp_path, content, said):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    assert said in refused(path)
    if content:
        assert ("unknown setting" if "seed" in said else said) in refused(TINY, cluster=path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name, said in {
        "pipe.toml": "no regular file",
        "folder.toml": "Is a directory",
        "loop.toml": "cannot be read",
        "absent.toml": "no such file",
        "a\0b": "cannot be read",
        "x" * 300: "cannot be read",
        "absent/mine.toml": "no such file",
    }.items():
        message = refused(TINY, cluster=tmp_path / name)
        assert said in message
        assert message.startswith("cluster ")
        assert "\n" not in message
