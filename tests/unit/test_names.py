"""Names that become paths, keys and metrics, and the spellings that they stand for."""

import json
from pathlib import Path

import pytest

from made_up_run import Run
from ngrpo.config import PrepareDataConfig, RunConfig, load_config, select
from ngrpo.errors import ConfigError
from ngrpo.section import check_name, name_of
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo_kfp.pipelines.planning.needs import downloads
from ngrpo_kfp.pipelines.planning.summary import results_table
from page import text_of

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
TINY = PRESETS / "tiny.toml"

# What a user may write, and the name that stands for it.
SPELLINGS = {
    "math500": "math500",
    "gpqa_diamond": "gpqa_diamond",
    "AIME24": "AIME24",
    "AIME (2024)": "AIME-2024",
    "math/500": "math-500",
    "math 500": "math-500",
    "v1.5": "v1-5",
    "Élève": "Eleve",
    "1 %, at most": "1-at-most",
    "a:b*c?": "a-b-c",
    "a\\b": "a-b",
}
# What is no name and stands for none.
IMPOSSIBLE = [
    "",
    " ",
    ".",
    "..",
    "...",
    "../../escaped",
    "/etc/passwd",
    "\\\\server",
    "-x",
    "_x",
    ".hidden",
    "~root",
    "数学",
    "a\nb",
    "a\0b",
    "a\x1b[31m",
    "a\u202eb",
    "a\ud800",
    "x" * 65,
    "x" * 300,
    "CON",
    "nul",
    "com1",
]


def named(name: str, *more: str) -> list[str]:
    """Overrides for the one benchmark with a name."""
    source = {"kind": "arithmetic", "fold": "held_out", "size": 5}
    benchmark = f"promotion.benchmark={json.dumps(name)}"
    return [f"data.benchmarks={json.dumps({name: source})}", benchmark, "training.selection=null", *more]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_benchmark_may_be_spelled_freely_and_has_a_name_that_is_a_path(spelling):
    config = load_config(TINY, named(spelling, f"evaluation.string_match={json.dumps([spelling])}"))
    name = SPELLINGS[spelling]
    assert check_name(name) == name == name_of(spelling)
    assert set(config.data.benchmarks) == {config.promotion.benchmark, *config.evaluation.string_match} == {name}
    assert config.title(name) == spelling
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_name_of_a_benchmark_is_refused_in_a_line_that_says_what_is_allowed(name):
    with pytest.raises(ConfigError, match="benchmarks") as failure:
        load_config(TINY, named(name))
    lines = str(failure.value).splitlines()
    assert len(lines) <= 2, "of the benchmark, and of promotion.benchmark"
    assert all("letters" in line or "Windows" in line or "unicode" in line for line in lines)


@pytest.mark.parametrize("name", IMPOSSIBLE + [spelling for spelling in SPELLINGS if not spelling.isalnum()][1:])
@pytest.mark.parametrize("setting", ["promotion.model_name", "preset"])
def test_names_of_models_and_presets_are_not_changed_but_refused(setting, name):
    if name == "v1.5":
        assert load_config(TINY, [f"{setting}={json.dumps(name)}"])
        return
    with pytest.raises(ConfigError, match=rf"^{setting}: ") as failure:
        load_config(TINY, [f"{setting}={json.dumps(name)}"])
    assert "\n" not in str(failure.value)


def test_a_refused_name_comes_with_one_that_is_allowed():
    with pytest.raises(ConfigError, match=r"for example escaped \(value '\.\./\.\./escaped'\)$"):
        load_config(TINY, ["promotion.model_name=../../escaped"])


@pytest.mark.parametrize("names", [("AIME", "aime"), ("AIME (24)", "aime 24"), ("math/500", "math-500")])
def test_names_that_would_be_one_file_are_refused(names):
    with pytest.raises(ConfigError) as failure:
        load_config(TINY, [f"promotion.tolerated_regression={json.dumps(dict.fromkeys(names, 1))}"])
    assert all(repr(name) in str(failure.value) for name in names)
    source = {"kind": "arithmetic", "fold": "held_out", "size": 5}
    with pytest.raises(ConfigError, match=r"data\.benchmarks: .* would be the same file"):
        load_config(TINY, [f"data.benchmarks={json.dumps(dict.fromkeys(names, source))}"])


@pytest.mark.parametrize("stem", ["my preset!", "-x", "con", "x" * 65, "Ünicode"])
def test_a_preset_whose_file_has_no_name_is_refused(tmp_path, stem):
    preset = tmp_path / f"{stem}.toml"
    preset.write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"rename the file$") as failure:
        load_config(preset)
    assert repr(str(preset)) in str(failure.value)


def test_settings_of_a_benchmark_are_reached_by_any_of_its_spellings():
    overrides = ['data.benchmarks."AIME (2024)".size=6', "data.benchmarks.AIME-2024.min_operands=2"]
    config = load_config(TINY, named("AIME (2024)", *overrides))
    source = config.data.benchmarks["AIME-2024"]
    assert (source.size, source.min_operands) == (6, 2)


def test_the_spelling_is_no_part_of_what_a_stage_depends_on():
    spelled, plain = (load_config(TINY, named(name)) for name in ("AIME (2024)", "AIME-2024"))
    assert select(spelled, PrepareDataConfig) == select(plain, PrepareDataConfig)


def test_prepared_data_stays_where_it_belongs(tmp_path):
    source = {"kind": "arithmetic", "fold": "held_out", "size": 5}
    overrides = [
        "data.train.size=5",
        "data.warm_start.size=5",
        "training.selection=null",
        'promotion.benchmark="a/../b"',
    ]
    names = {"a/../b": source, "AIME (2024)": source}
    config = load_config(TINY, [*overrides, f"data.benchmarks={json.dumps(names)}"])
    output = tmp_path / "output"
    output.mkdir()
    prepare_data.run(select(config, PrepareDataConfig), {}, output, Context(tmp_path / "work"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "work"]
    written = sorted(path.name for path in (output / "benchmarks").iterdir())
    assert written == ["AIME-2024.parquet", "a-b.parquet"]


def test_people_read_the_spelling(tmp_path):
    title = "AIME (2024) & [more]"
    run = Run(tmp_path)
    source = {"kind": "arithmetic", "fold": "held_out", "size": 120}
    run.add_source(title, source)
    run.write_benchmark("AIME-2024-more", 0.3, 0.4)
    text = text_of(run.report())
    assert f"{title}: problems solved" in text
    assert f"{title} mean@16" not in text  # the heading stands apart
    assert text.count(title) >= 3, "table, curve, failures"
    table = results_table(run.evaluation, run.config.titles)
    assert r"AIME (2024) & \[more]" in list(table.columns[0].cells)


def test_downloads_are_listed_by_the_spelling():
    source = {"kind": "hub", "id": "a/b", "revision": "0" * 40, "split": "test"}
    config = load_config(TINY, [f"data.benchmarks.{json.dumps('AIME (2024)')}={json.dumps(source)}"])
    assert any("(benchmark AIME (2024), " in line for line in downloads(config))
