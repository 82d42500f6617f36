"""What a run says in the terminal in the end."""

import pytest
from small_house import EVALUATION

from ngrpo_kfp.pipelines.planning.summary import results_table


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
