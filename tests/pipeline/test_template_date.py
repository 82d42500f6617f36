"""Chat templates that use the date get the one from the settings, so that the clock changes no result."""

import copy
import datetime as real
import json
from pathlib import Path

import pytest

from ngrpo.config import load_config, select
from ngrpo.config.sections import TEMPLATE_DATE
from ngrpo.data.models import materialize
from ngrpo.data.template_clock import TemplateClock
from ngrpo.errors import ConfigError, DataError
from ngrpo.rollout.loading import load_tokenizer
from ngrpo.stages.context import Context
from ngrpo.stages.declarations import STAGES

PRESET = Path(__file__).with_name("small.toml")
INPUTS = {
    "prepare_data": {},
    "neighbor_index": {},
    "sft_warm_start": {"dataset": "prepare_data"},
    "ngrpo_training": {"dataset": "prepare_data", "neighbor_index": "neighbor_index", "warm_start": "sft_warm_start"},
    "benchmark_evaluation": {"dataset": "prepare_data", "warm_start": "sft_warm_start", "trained": "ngrpo_training"},
}
TIMES = ("build_seconds", "step_time", "train_runtime", "_per_second")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose template writes the day before what is said, like those of Llama 3.2 and SmolLM3."""
    config = load_config(
        PRESET, ["model.source.hidden_size=16", "model.source.layers=1", "model.source.intermediate_size=16"]
    )
    directory = materialize(config.model.source, tmp_path_factory.mktemp("dated") / "model")
    template = directory / "chat_template.jinja"
    day = "{% for _ in range(strftime_now('%d')|int) %}then{% endfor %}{{ strftime_now('%d') }}"
    template.write_text("{{ '<|user|>' }}" + day.replace("then", " then ") + template.read_text())
    return directory


@pytest.fixture
def clock(monkeypatch):
    """The clock of transformers, which a test sets."""

    class Clock(real.datetime):
        day = 1

        @classmethod
        def now(cls, tz=None):
            return real.datetime(2030, 1, cls.day, 23, 59, tzinfo=tz)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    return Clock


def run(stage: str, root: Path, config) -> None:
    """Run a stage in this process."""
    for folder in (root / stage, root / "work" / stage):
        folder.mkdir(parents=True)
    inputs = {name: root / source for name, source in INPUTS[stage].items()}
    STAGES[stage].function()(select(config, STAGES[stage].config), inputs, root / stage, Context(root / "work" / stage))


def results(root: Path, stage: str) -> dict[str, object]:
    """Return the files of a result, less what a stage says of the time that it took."""
    found = {}
    for path in sorted((root / stage).rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if path.name in ("metrics.json", "log_history.json"):
                data = json.dumps(timeless(json.loads(data))).encode()
            found[path.relative_to(root).as_posix()] = data
    return found


def timeless(tree):
    if isinstance(tree, dict):
        return {name: timeless(value) for name, value in tree.items() if not any(time in name for time in TIMES)}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def settings(model, *more):
    source = json.dumps({"kind": "hub", "id": str(model)})
    short = ["data.max_prompt_tokens=40", "training.steps=1", "mixing.end_marker=null", "rollout.max_tokens=3"]
    return load_config(PRESET, [f"model.source={source}", *short, *more])


def test_a_run_across_midnight_is_byte_equal_and_every_stage_writes_the_day_of_the_settings(
    model, clock, tmp_path, monkeypatch
):
    config = settings(model, "model.template_date=2025-12-03")
    asked, call = set(), TemplateClock.__call__

    def recorded(self, form):
        asked.add((stage, self._now.date()))
        return call(self, form)

    monkeypatch.setattr(TemplateClock, "__call__", recorded)
    for root, moves in ((tmp_path / "one day", 0), (tmp_path / "many days", 1)):
        clock.day = 1
        for stage in INPUTS:
            clock.day += 5 * moves
            run(stage, root, config)
    assert {(stage, real.date(2025, 12, 3)) for stage in INPUTS if stage != "neighbor_index"} <= asked
    # What a model's files are looked at with does not go into a result.
    assert {day for _, day in asked} <= {real.date(2025, 12, 3), TEMPLATE_DATE}, "never that of the clock"
    for stage in INPUTS:
        one, many = (results(tmp_path / name, stage) for name in ("one day", "many days"))
        assert one.keys() == many.keys()
        assert [name for name in one if one[name] != many[name]] == []


def test_the_day_of_the_settings_is_written_and_nothing_of_it_is_saved(model, clock, tmp_path):
    tokenizer = load_tokenizer(model, 63, settings(model, "model.template_date=2025-12-24").model.template_date)
    chat = [{"role": "user", "content": "what is 1+1?"}]
    assert " then 24<|user|>what is 1+1?" in tokenizer.apply_chat_template(chat, tokenize=False)
    assert " then 24<|user|>" in copy.deepcopy(tokenizer).apply_chat_template(chat, tokenize=False)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_bytes() == (model / "chat_template.jinja").read_bytes()
    assert "2025" not in (tmp_path / "tokenizer_config.json").read_text()
    assert " then 26<|user|>" in load_tokenizer(model, 63).apply_chat_template(chat, tokenize=False)


def test_another_day_runs_again_what_writes_chats():
    one, other = load_config(PRESET), load_config(PRESET, ["model.template_date=2025-01-01"])
    changed = [name for name, stage in STAGES.items() if select(one, stage.config) != select(other, stage.config)]
    assert changed == [name for name in STAGES if name != "neighbor_index"]


def test_a_template_is_tried_with_the_day_that_it_will_be_told(model):
    template = model / "chat_template.jinja"
    before = template.read_text()
    template.write_text("{% if strftime_now('%Y') == '2031' %}{{ raise_exception('too late') }}{% endif %}" + before)
    try:
        load_tokenizer(model, 63)
        with pytest.raises(DataError, match="cannot be used: TemplateError: too late"):
            load_tokenizer(model, 63, real.date(2031, 1, 1))
    finally:
        template.write_text(before)


@pytest.mark.parametrize(
    "day", ["2024-02-30", "24-07-26", "today", "20240726", "2024-07-26T00:00", "1721952000", "0001-01-01"]
)
def test_what_is_no_day_is_refused(day):
    with pytest.raises(ConfigError, match=r"^model\.template_date: a day is written YYYY-MM-DD, for example"):
        load_config(PRESET, [f"model.template_date={day}"])


def test_a_preset_names_a_day_as_toml_has_it(tmp_path):
    preset = tmp_path / "mine.toml"
    preset.write_text(
        PRESET.read_text().replace("[model.source]", "[model]\ntemplate_date = 2025-03-01\n[model.source]")
    )
    config = load_config(preset)
    assert config.model.template_date == real.date(2025, 3, 1)
    assert type(config).model_validate_json(config.model_dump_json()) == config
