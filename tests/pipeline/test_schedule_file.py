"""`ngrpo schedule apply`, through kfp's real client, against an API with the rules of the real one."""

import json

import pytest
import tomli_w
from commanding import IMAGES as LOCK

from ngrpo_kfp.pipelines.cli import app as cli

pytestmark = pytest.mark.pipeline
pytest_plugins = ["commanding"]


@pytest.fixture
def apply(kubeflow, objects, tmp_path, capsys):
    """Write a file of schedules, apply it, and return what was printed; `code` is the exit code."""

    def command(schedules, *arguments, code=0, owner="team", file="schedules.toml"):
        where = {
            "cluster": {"store": objects.uri, "environment": {"KF_PIPELINES_ENDPOINT": kubeflow.address}},
        }
        tree = {"schedules": {name: {"preset": "tiny", "settings": where} | it for name, it in schedules.items()}}
        path = tmp_path / file
        path.write_text(tomli_w.dumps(tree | ({} if owner is None else {"owner": owner})))
        capsys.readouterr()
        assert cli.main(["schedule", "apply", str(path), *LOCK, *arguments]) == code, capsys.readouterr()
        printed = capsys.readouterr()
        return printed.out + printed.err

    return command


def state(kubeflow):
    """What there is of each schedule, by name."""
    return {
        each.display_name: (each.trigger.cron_schedule.cron, str(each.status), each.max_concurrency, each.no_catchup)
        for each in kubeflow.schedules.values()
    }


NIGHT, WEEK = {"cron": "0 0 3 * * *"}, {"cron": "0 0 3 * * MON", "time_zone": "Europe/Berlin", "seed": "each-run"}


def test_a_file_is_applied_differences_first_and_again_changes_nothing(kubeflow, apply, ngrpo):
    told = apply({"night": NIGHT, "week": WEEK | {"base": "champion"}}, "--dry-run")
    assert "+ night  0 0 3 * * * UTC, preset tiny" in told
    assert "+ week  0 0 3 * * MON Europe/Berlin, preset tiny" in told
    assert "schedules  2 to add" in told
    assert (kubeflow.schedules, kubeflow.versions) == ({}, {}), "a dry run changes nothing"
    apply({"night": NIGHT, "week": WEEK | {"base": "champion"}}, "--yes")
    assert state(kubeflow) == {
        "night": ("0 0 3 * * *", "ENABLED", "1", True),
        "week": ("0 0 1,2 * * 1", "ENABLED", "1", True),
    }
    before = dict(kubeflow.schedules)
    told = apply({"night": NIGHT, "week": WEEK | {"base": "champion"}})  # nobody need be asked
    assert "schedules  2 unchanged" in told
    assert kubeflow.schedules == before
    (listed, _) = json.loads(ngrpo("schedule", "list", "--json"))
    assert (listed["name"], listed["file"], listed["owner"]) == ("night", "schedules.toml", "team")
    assert "schedules.toml of team" in ngrpo("schedule", "list")


def test_what_changed_is_shown_field_by_field_and_a_schedule_takes_the_place_of_the_old_one(kubeflow, apply):
    apply({"night": NIGHT, "week": WEEK}, "--yes")
    run = kubeflow.fire(next(iter(kubeflow.schedules.values())))
    other = NIGHT | {"cron": "0 0 4 * * *", "seed": 7, "max_concurrency": 2, "catch_up": True, "base": "champion"}
    told = apply({"night": other, "week": WEEK | {"enabled": False}}, "--yes")
    for line in (
        "~ night",
        "    cron: 0 0 3 * * * -> 0 0 4 * * *",
        "    seed: 0 -> 7",
        "    max_concurrency: 1 -> 2",
        "    catch_up: false -> true",
        "    base: none -> champion",
        "~ week",
        "    enabled: true -> false",
        f"run  {run.run_id} of the old schedule goes on",
    ):
        assert line in told
    assert sum(line.startswith("    ") for line in told.splitlines()) == 6
    assert state(kubeflow) == {
        "week": ("0 0 1,2 * * 1", "DISABLED", "1", True),
        "night": ("0 0 4 * * *", "ENABLED", "2", False),
    }
    assert kubeflow.deleted_workflows == []


def test_a_setting_of_the_preset_and_what_was_changed_by_hand_are_differences_too(kubeflow, apply, ngrpo, tmp_path):
    (tmp_path / "own.toml").write_text('extends = "tiny"\n[training]\nsteps = 11\n')
    apply({"night": NIGHT | {"preset": "own.toml"}}, "--yes")
    ngrpo("schedule", "pause", "night")
    (tmp_path / "own.toml").write_text('extends = "tiny"\n[training]\nsteps = 12\n')
    told = apply({"night": NIGHT | {"preset": "own.toml"}}, "--dry-run")
    assert "    training.steps: 11 -> 12" in told
    assert "    enabled: false -> true" in told
    assert "from schedules.toml" not in told
    said = ngrpo("schedule", "replace", "night", "--seed", "7", code=2)
    assert "schedule night comes from schedules.toml of team: change it there" in said


def test_only_what_the_owner_made_is_changed_and_removed(kubeflow, apply, ngrpo):
    ngrpo("schedule", "create", "by-hand", "--cron", "0 0 5 * * *", "--set", "seed=1")
    apply({"theirs": NIGHT}, "--yes", owner="others")
    apply({"old": NIGHT, "new": NIGHT}, "--yes")
    told = apply({"new": NIGHT})
    assert "? old  (not in the file: --prune removes it)" in told
    assert set(state(kubeflow)) == {"by-hand", "theirs", "old", "new"}
    told = apply({"new": NIGHT, "theirs": NIGHT, "by-hand": NIGHT}, "--prune", "--yes", code=2)
    assert set(state(kubeflow)) == {"by-hand", "theirs", "new"}, "what could be done was done"
    assert "theirs: a schedule of this name comes from schedules.toml of owner others: `ngrpo schedule delete" in told
    assert "by-hand: a schedule of this name was made by hand" in told
    assert "theirs" in apply({"theirs": NIGHT}, "--dry-run", code=2)


def test_one_that_fails_leaves_the_others_applied(kubeflow, apply):
    apply({"a": NIGHT, "b": NIGHT, "c": NIGHT}, "--yes")
    kubeflow.fail("DELETE", "/recurringruns/", 503)
    told = apply({name: {"cron": "0 0 4 * * *"} for name in "abc"}, "--yes", code=2)
    assert "schedules.toml: a: not changed: schedule a: " in told
    assert "schedule  b changed" in told
    assert "schedule  c changed" in told
    assert sorted(cron for cron, *_ in state(kubeflow).values()) == ["0 0 3 * * *", "0 0 4 * * *", "0 0 4 * * *"]
    assert "schedules  1 to change, 2 unchanged" in apply(
        {name: {"cron": "0 0 4 * * *"} for name in "abc"}, "--dry-run"
    )


def test_nobody_to_ask_is_told_of_yes_and_nothing_is_changed(kubeflow, apply, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert "nobody can answer here: add --yes" in apply({"night": NIGHT}, code=2)
    assert kubeflow.schedules == {}
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, made in ((False, 0), (True, 1)):
        monkeypatch.setattr("typer.confirm", lambda question, answer=answer: answer)
        apply({"night": NIGHT})
        assert len(kubeflow.schedules) == made


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "schedules.night.cron: missing; this setting has no default"),
        ({"cron": "0 3 * * MON"}, "schedules.night.cron '0 3 * * MON': five fields"),
        (NIGHT | {"time_zone": "Berlin"}, "schedules.night.time_zone='Berlin': no such time zone"),
        (NIGHT | {"crom": 1}, "schedules.night.crom: unknown setting (value 1)"),
        (NIGHT | {"preset": "tinny"}, "schedules.night.preset='tinny': unknown; name a TOML file"),
        (NIGHT | {"preset": "gone.toml"}, "gone.toml': no such file"),
        (NIGHT | {"seed": "any"}, "schedules.night.seed: a whole number from 0 to 4294967295, or 'each-run'"),
        (NIGHT | {"seed": True}, "schedules.night.seed: a whole number from 0 to"),
        (NIGHT | {"base": "challenger"}, "schedules.night.base: Input should be 'champion' (value 'challenger')"),
        (NIGHT | {"max_concurrency": 11}, "schedules.night.max_concurrency: "),
        (NIGHT | {"enabled": "yes"}, "schedules.night.enabled: Input should be a valid boolean (value 'yes')"),
        (NIGHT | {"settings": {"training": {"nonsense": 1}}}, "schedules.night: training.nonsense: unknown setting"),
        (NIGHT | {"settings": {"seed": 1}}, "schedules.night.settings.seed: it is a setting of the schedule itself"),
        (NIGHT | {"cluster": "gone.toml", "settings": {}}, "gone.toml': no such file"),
        (NIGHT | {"settings": {}}, "schedules.night: cluster.environment.KF_PIPELINES_ENDPOINT: missing"),
        (WEEK | {"catch_up": True}, "schedules.night.catch_up=true needs times in UTC, and time_zone='Europe/Berlin'"),
        (WEEK | {"cron": "@every 12h"}, "schedules.night.cron '@every 12h': it names no time of day"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(kubeflow, apply, settings, said):
    told = apply({"night": settings, "other": NIGHT}, "--yes", code=2)
    assert f"schedules.toml: {said}" in told or (said in told and "schedules.toml: schedules.night" in told), told
    assert len(told.splitlines()) == 1, told
    assert kubeflow.requests == []


def test_a_file_without_an_owner_or_that_is_no_toml_is_refused(kubeflow, apply, tmp_path, capsys):
    assert "schedules.toml: owner: missing" in apply({"night": NIGHT}, code=2, owner=None)
    (tmp_path / "bad.toml").write_text("owner = ")
    assert cli.main(["schedule", "apply", str(tmp_path / "bad.toml"), *LOCK]) == 2
    assert "bad.toml': not TOML" in capsys.readouterr().err
    assert kubeflow.requests == []
