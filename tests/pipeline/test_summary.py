"""The output of a run in the terminal at its end."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from small_house import EVALUATION

from ngrpo_kfp.pipelines.planning.labelled_lines import print_labelled
from ngrpo_kfp.pipelines.planning.summary import places, results_table


@pytest.mark.parametrize(
    ("measured", "headings"),
    [
        (("base", "warm_start", "trained"), ["base", "warm start", "trained"]),
        (("warm_start", "trained"), ["base model", "trained"]),
    ],
)
def test_what_training_started_from_is_called_a_warm_start_only_where_there_was_one(measured, headings):
    means = dict(zip(measured, (0.125, 0.25, 0.5)[-len(measured) :], strict=True))
    models = {model: {"arithmetic": EVALUATION | {"mean": mean}} for model, mean in means.items()}
    table = results_table({"models": models})
    assert [str(column.header) for column in table.columns] == ["benchmark", "", *headings, "gain"]
    first = [next(iter(column.cells)) for column in table.columns]
    assert first[-2:] == ["50.0  [25.0, 75.0]", "+25.0"]


SUMMARY = {"mlflow": {"tracking_uri": "sqlite:///m.db", "run_id": "r"}}


def promotion(alias: str, version: int) -> dict:
    champion = version if alias == "champion" else 1
    return {
        "model": "m",
        "version": version,
        "alias": alias,
        "champion_version": champion,
        "decision": "d",
        "reason": "r",
    }


def test_a_run_names_its_weights_and_what_to_do_next(tmp_path):
    said = places(
        tmp_path, SUMMARY, {"model_promotion": promotion("challenger", 2)}, {"ngrpo_training": Path("/c/model")}
    )
    assert list(said)[-4:] == [
        "weights   /c/model",
        "next      ngrpo chat challenger",
        "          ngrpo serve challenger",
        "          ngrpo export challenger DIR",
    ]


def test_of_several_models_each_is_named_by_its_version(tmp_path):
    promotions = {f"model_promotion.{arm}": promotion("champion", number) for number, arm in ((1, "a"), (2, "b"))}
    weights = {f"ngrpo_training.{arm}": Path(f"/{arm}/model") for arm in "ab"}
    said = list(places(tmp_path, SUMMARY, promotions, weights))
    assert [line for line in said if line.startswith("weights")] == [
        "weights   /a/model (ngrpo_training.a)",
        "weights   /b/model (ngrpo_training.b)",
    ]
    assert [line.split()[-2] for line in said if line.endswith("DIR")] == ["1", "2"]


def test_without_a_promotion_there_are_the_weights_alone(tmp_path):
    *_, last = places(tmp_path, SUMMARY, {}, {"ngrpo_training": Path("/c/model")})
    assert last == "weights   /c/model"


@pytest.mark.parametrize("terminal", [True, False])
def test_long_lines_are_wrapped_between_words_on_a_terminal_and_stay_whole_elsewhere(terminal):
    shown = StringIO()
    path = "/a/very/long/path/" + "x" * 80
    reason = "the gain over the model that training started from is [red]above[/] +15.12 points, more than was required"
    print_labelled(
        [f"champion  {reason}", f"weights   {path}"],
        Console(file=shown, force_terminal=terminal, width=80, color_system=None),
    )
    lines = shown.getvalue().splitlines()
    assert lines[-1] == f"weights   {path}", "a path stays beside its label"
    assert " ".join(" ".join(lines).split()) == f"champion {reason} weights {path}"
    if terminal:
        assert max(len(line) for line in lines if path not in line) <= 80
        assert all(line.startswith(" " * 10) for line in lines if line.split()[0] not in {"champion", "weights"})
    else:
        assert len(lines) == 2
