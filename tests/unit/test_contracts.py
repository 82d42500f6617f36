"""Files that pass between stages: written ones can be read, and an unreadable one is one line with the file and the cure."""

import json

import pytest

from ngrpo.contracts.evaluation import EVALUATION, read_evaluation, write_evaluation
from ngrpo.contracts.history import read_history, write_history
from ngrpo.contracts.metrics import read_metrics, write_metrics
from ngrpo.contracts.promotion import read_promotion, write_promotion
from ngrpo.contracts.sources import SOURCES, read_sources
from ngrpo.errors import StoreError

RESULT = {
    "mean": 0.5,
    "mean_ci": [0.25, 0.75],
    "pass_at_k": {"1": 0.5},
    "n_problems": 2,
    "n_samples": 4,
    "per_problem": {"a": 1, "b": 3},
    "per_problem_maj": {"a": 0.0, "b": 1.0},
    "added later": "kept",
}
ENTRY = {
    "benchmark": "arithmetic",
    "statistic": "mean@4",
    "candidate": 50.0,
    "champion": 25.0,
    "gain": 25.0,
    "interval": [1.0, 40.0],
    "p_value": 0.01,
    "confidence": 0.95,
    "n_problems": 2,
    "n_samples": 4,
}
FILES = {
    EVALUATION: {"layout": 1, "models": {"warm_start": {"arithmetic": RESULT}, "trained": {"arithmetic": RESULT}}},
    "promotion.json": {
        "layout": 1,
        "decision": "promoted",
        "reason": "better",
        "comparison": ENTRY
        | {"min_gain": 0.0, "against": "the champion", "regressions": {"hard": ENTRY | {"tolerated": 1.0}}},
        "model": "ngrpo",
        "version": 2,
        "alias": "champion",
        "champion_version": 1,
    },
    SOURCES: {"layout": 1, "tables": {"train.parquet": {"source": {"kind": "arithmetic"}, "rows": 3, "sha256": "0"}}},
    "metrics.json": {"steps": 3, "loss": 0.5},
    "log_history.json": [{"step": 1, "loss": float("nan"), "note": "x"}, {"step": 2, "loss": 0.25}],
}
READERS = {
    EVALUATION: lambda artifact: read_evaluation(artifact / EVALUATION, "run again"),
    "promotion.json": lambda artifact: read_promotion(artifact, "run again"),
    SOURCES: lambda artifact: read_sources(artifact, "run again"),
    "metrics.json": lambda artifact: read_metrics(artifact, "run again"),
    "log_history.json": lambda artifact: read_history(artifact, "run again"),
}
VERSIONED = [name for name, value in FILES.items() if "layout" in value]


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_read(tmp_path, name):
    value = FILES[name]
    if name == EVALUATION:
        write_evaluation(tmp_path / name, value)
    elif name == "log_history.json":
        write_history(tmp_path, value)
    elif name == "metrics.json":
        write_metrics(tmp_path, value)
    elif name == "promotion.json":
        write_promotion(tmp_path, value)
    else:
        (tmp_path / name).write_text(json.dumps(value))
    assert json.dumps(READERS[name](tmp_path), sort_keys=True) == json.dumps(value, sort_keys=True)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"layout": 1, "steps": "none"}', '{"steps": "none"}', None])
def test_what_cannot_be_read_is_one_line_with_file_and_cure(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(StoreError) as raised:
        READERS[name](tmp_path)
    told = str(raised.value)
    assert told.startswith(f"{tmp_path / name}: ")
    assert told.endswith("; run again")
    assert "\n" not in told


@pytest.mark.parametrize("name", VERSIONED)
def test_another_layout_is_told_from_damage(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(FILES[name] | {"layout": 2}))
    with pytest.raises(StoreError, match=r"json: of layout 2, but this version of ngrpo reads layout 1; run again$"):
        READERS[name](tmp_path)


@pytest.mark.parametrize("name", VERSIONED)
def test_of_files_without_a_layout_only_evaluations_are_read_for_the_registry_keeps_those_of_champions(tmp_path, name):
    value = {field: value for field, value in FILES[name].items() if field != "layout"}
    (tmp_path / name).write_text(json.dumps(value))
    if name == EVALUATION:
        assert READERS[name](tmp_path) == value
    else:
        with pytest.raises(StoreError, match=r"json: without a layout, but this version of ngrpo reads layout 1"):
            READERS[name](tmp_path)


def test_an_evaluation_without_the_model_that_is_judged_is_refused(tmp_path):
    value = {"models": {"warm_start": {"arithmetic": RESULT}}}
    (tmp_path / EVALUATION).write_text(json.dumps(value))
    with pytest.raises(StoreError, match="the model trained is missing"):
        READERS[EVALUATION](tmp_path)
