"""`extends`: presets that build on another."""

import itertools
import tomllib
from pathlib import Path

import pytest

from ngrpo.config import NGRPOTrainingConfig, PrepareDataConfig, load_config, reading, select
from ngrpo.config.inheritance import merge
from ngrpo.errors import ConfigError
from nonsense import PRESETS


def write(folder, name, text):
    path = folder / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(path, *overrides):
    return load_config(path, overrides, presets=PRESETS)


def refused(path, *overrides):
    with pytest.raises(ConfigError) as failure:
        read(path, *overrides)
    return str(failure.value)


def test_a_preset_is_the_one_that_it_extends_but_for_its_own_settings(tmp_path):
    mine = write(tmp_path, "mine", 'extends = "tiny"\n[training]\nsteps = 20\n[evaluation]\npass_at = [1]\n')
    base, config = read(PRESETS / "tiny.toml"), read(mine)
    assert (config.preset, config.training.steps, config.evaluation.pass_at) == ("mine", 20, (1,))
    expected = base.model_dump() | {"preset": "mine"}
    expected["training"]["steps"], expected["evaluation"]["pass_at"] = 20, (1,)
    assert config.model_dump() == expected


def test_what_is_inherited_moves_the_keys_that_it_would_move_if_it_were_written_out(tmp_path):
    text = (PRESETS / "tiny.toml").read_text(encoding="utf-8").replace("rate = 0.1", "rate = 0.2")
    whole = read(write(tmp_path, "whole", text))
    short = read(write(tmp_path / "elsewhere", "short", 'extends = "tiny"\nmixing.rate = 0.2\n'))
    for section in (PrepareDataConfig, NGRPOTrainingConfig):
        assert select(short, section) == select(whole, section)


def test_a_chain(tmp_path):
    write(tmp_path, "first", 'extends = "tiny"\n[mixing]\nrate = 0.2\nk = 4\n')
    write(tmp_path / "further", "second", 'extends = "../first.toml"\n[mixing]\nk = 5\n')
    third = write(tmp_path, "third", 'extends = "further/second.toml"\nseed = 3\n')
    config = read(third)
    assert (config.mixing.rate, config.mixing.k, config.seed, config.rollout.group_size) == (0.2, 5, 3, 8)
    assert read(third, "mixing.k=6").mixing.k == 6


def test_a_table_of_another_kind_replaces(tmp_path):
    mine = write(
        tmp_path,
        "mine",
        'extends = "tiny"\n[data.train]\nkind = "reasoning_gym"\ngenerator = "chain_sum"\nsize = 9\nseed = 1\n'
        '[data.benchmarks.arithmetic]\nkind = "arithmetic"\nsize = 9\n',
    )
    data = read(mine).data
    assert data.train.model_dump(exclude={"grading"}) == {
        "kind": "reasoning_gym",
        "generator": "chain_sum",
        "size": 9,
        "seed": 1,
        "options": {},
    }
    held_out = data.benchmarks["arithmetic"]
    assert (held_out.size, held_out.fold) == (9, "held_out"), "of the same kind: merged"


def test_several_training_sets_replace_one_and_one_replaces_several(tmp_path):
    sums = 'kind = "arithmetic"\nsize = 9\nfold = "train"\n'
    several = write(tmp_path, "several", f'extends = "tiny"\n[data.train.easy]\n{sums}[data.train.hard]\n{sums}')
    assert list(read(several).data.train) == ["easy", "hard"]
    more = write(tmp_path, "more", f'extends = "several.toml"\n[data.train.hard]\nsize = 8\n[data.train.other]\n{sums}')
    assert {name: each.size for name, each in read(more).data.train.items()} == {"easy": 9, "hard": 8, "other": 9}
    one = write(tmp_path, "one", f'extends = "several.toml"\n[data.train]\n{sums}')
    assert read(one).data.train.size == 9


def test_false_removes_an_inherited_table(tmp_path):
    mine = write(
        tmp_path,
        "mine",
        'extends = "tiny"\nwarm_start.steps = 0\ntraining.selection = false\n'
        "[data]\nwarm_start = false\nbenchmarks.validation = false\n",
    )
    config = read(mine)
    assert (config.data.warm_start, config.training.selection) == (None, None)
    assert list(config.data.benchmarks) == ["arithmetic"]
    again = write(
        tmp_path,
        "again",
        'extends = "mine.toml"\n[data.benchmarks.validation]\nkind = "arithmetic"\nsize = 5\nfold = "selection"\n',
    )
    assert list(read(again).data.benchmarks) == ["arithmetic", "validation"]


def test_false_removes_nothing_that_is_not_there(tmp_path):
    mine = write(tmp_path, "mine", 'extends = "tiny"\ndata.benchmarks.validaton = false\n')
    assert refused(mine) == (
        "data.benchmarks.validaton: false removes a table that the preset inherits, and it inherits none of this name; leave it out"
    )


def test_another_spelling_of_a_benchmark_is_the_same_benchmark(tmp_path):
    first = 'extends = "tiny"\n[data.benchmarks."Sums (hard)"]\nkind = "arithmetic"\nsize = 5\nfold = "held_out"\n'
    write(tmp_path, "first", first)
    second = write(tmp_path, "second", 'extends = "first.toml"\n[data.benchmarks.Sums-hard]\nsize = 6\n')
    config = read(second)
    assert config.data.benchmarks["Sums-hard"].size == 6
    assert config.title("Sums-hard") == "Sums (hard)"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('extends = "smolm2"', "extends='smolm2': unknown; name a TOML file, relative to this one, or one of authors-"),
        ("extends = 3", "extends=3: unknown; name a TOML file"),
        ('extends = ["tiny"]', "extends=['tiny']: unknown; name a TOML file"),
        ('extends = ""', "extends='': unknown; name a TOML file"),
        ('extends = "../tiny"', "extends='../tiny': unknown; name a TOML file"),
        ('extends = "absent.toml"', "absent.toml': no such file"),
        ('extends = "mine.toml"', "mine.toml': a circle, mine.toml -> mine.toml: leave out one of them"),
        ('extends = "other.toml"', "mine.toml': a circle, mine.toml -> other.toml -> mine.toml: leave out one of them"),
        ('extends = "broken.toml"', "broken.toml': not TOML"),
        ('extends = "x\\u0000.toml"', "cannot be read"),
        (f"a{'.a' * 3000} = 1", "mine.toml': not TOML: nested too deeply"),
        ('[data]\nextends = "tiny"', "data.extends: unknown setting (value 'tiny')"),
    ],
)
def test_what_cannot_be_extended(tmp_path, text, said):
    write(tmp_path, "other", 'extends = "./mine.toml"')
    write(tmp_path, "broken", "a = ")
    message = refused(write(tmp_path, "mine", text))
    assert said in message
    if "data.extends" not in message:
        assert len(message.splitlines()) == 1
        assert message.startswith("preset '")


def test_the_mark_that_editors_of_windows_put_first_is_not_content(tmp_path):
    mine = write(tmp_path, "mine", 'extends = "tiny"\n')
    marked = write(tmp_path, "marked", '\ufeffextends = "tiny"\r\n')
    assert read(marked).model_copy(update={"preset": "mine"}) == read(mine)


def test_names_of_presets_need_a_place_where_presets_are(tmp_path):
    mine = write(tmp_path, "mine", 'extends = "tiny"')
    with pytest.raises(ConfigError, match=r"extends='tiny': unknown; name a TOML file, relative to this one$"):
        load_config(mine)


def test_an_error_names_the_file_that_the_setting_is_in(tmp_path):
    first = write(
        tmp_path, "first", 'extends = "tiny"\nspeed = 1\n[mixing]\nrate = 2\nk = 0\n[training]\nsave_steps = 7\n'
    )
    mine = write(tmp_path, "mine", 'extends = "first.toml"\n[mixing]\nk = -1\n[promotion]\nbenchmark = "absent"\n')
    lines = {
        line.partition(":")[0].partition("=")[0]: line for line in refused(mine, "rollout.temperature=0").splitlines()
    }
    assert lines["mixing.rate"].endswith(f"(value 2) [in {first}]")
    assert lines["speed"].endswith(f"[in {first}]")
    assert lines["mixing.k"].endswith("(value -1)")
    assert lines["rollout.temperature"].endswith("(value 0)"), "is set on the command line"
    assert lines["promotion.benchmark"].endswith("arithmetic, validation")


def test_paths_are_relative_to_the_file_that_they_stand_in(tmp_path, monkeypatch):
    """Whichever file of a chain it is, and wherever the command runs."""
    location = '[data.train]\nkind = "hub"\nsplit = "train"\n'
    write(tmp_path / "there", "first", f'extends = "tiny"\n{location}id = "./problems"\n')
    mine = write(tmp_path / "here", "mine", 'extends = "../there/first.toml"\n')
    tree = {}
    for _, settings in reversed(reading._read_chain(mine, PRESETS)):
        tree = merge(tree, settings)
    assert tree["data"]["train"]["id"].directory.resolve() == (tmp_path / "there").resolve()
    for place in (tmp_path, tmp_path / "here"):
        monkeypatch.chdir(place)
        assert Path(read(mine).data.train.id) == tmp_path / "there" / "problems"


def test_merging_changes_neither_tree():
    one, other = {"a": {"b": 1, "c": {"d": 2}}}, {"a": {"c": {"d": 3}, "e": 4}}
    assert merge(one, other) == {"a": {"b": 1, "c": {"d": 3}, "e": 4}}
    assert (one, other) == ({"a": {"b": 1, "c": {"d": 2}}}, {"a": {"c": {"d": 3}, "e": 4}})


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(["tiny", "smollm2", "paper-7b"], 2)])
def test_a_whole_preset_over_another_is_itself(one, other):
    """But for what only the other has: no table of one kind is mixed with one of another."""
    own = tomllib.loads((PRESETS / f"{other}.toml").read_text(encoding="utf-8"))
    merged = merge(tomllib.loads((PRESETS / f"{one}.toml").read_text(encoding="utf-8")), own)
    assert merged["model"]["source"] == own["model"]["source"]
    assert merged["data"]["train"] == own["data"]["train"]
