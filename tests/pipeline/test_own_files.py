"""Own files in a plan: their content counts, and a cluster is told that it cannot read them."""

import json

import pytest
from rich.console import Console
from test_content import FROM_DATA, PRESET, Planner, place, rows, write  # noqa: F401  (a fixture)
from test_plan import BASE

from ngrpo.config import DirectoryModel, FilesSource, load_config
from ngrpo.data.problems import load_problems
from ngrpo.errors import ConfigError, DataError
from ngrpo_kfp.pipelines.planning.content import read_contents, require_in_pods
from ngrpo_kfp.pipelines.planning.needs import downloads
from ngrpo_kfp.pipelines.planning.summary import plan_table


@pytest.fixture
def planner(tmp_path):
    return Planner(tmp_path)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("question,answer\n" + "".join(f"what is {a}+1?,{a + 1}\n" for a in range(1, 9)))
    return path


def files(path, **more) -> str:
    return json.dumps({"kind": "files", "path": str(path), **more})


def settings(csv, model=None) -> list[str]:
    own = {"kind": "directory", "path": str(model)}
    return [
        f"data.train={files(csv, problem_column='question')}",
        *([f"model.source={json.dumps(own)}"] if model else []),
    ]


def test_an_edited_row_runs_again_what_depends_on_it_and_the_plan_says_so(csv, planner):
    planner.plan(*settings(csv))
    assert list(planner.again(*settings(csv))) == ["model_promotion"]
    csv.write_text("".join(csv.read_text().splitlines(keepends=True)[:-1]))
    why = planner.again(*settings(csv))
    assert list(why) == FROM_DATA
    assert why["prepare_data"] == "data.train: 1 row fewer, 1 file changed (mine.csv)"
    csv.write_text(csv.read_text().replace("what is 1+1?,2", "what is 1+1?,3"))
    assert planner.again(*settings(csv))["prepare_data"] == "data.train: 1 file changed (mine.csv)"


def test_the_place_of_files_is_in_no_key_and_their_names_are(csv, planner, tmp_path):
    planner.plan(*settings(csv))
    moved = tmp_path / "elsewhere" / "mine.csv"
    moved.parent.mkdir()
    csv.rename(moved)
    assert list(planner.again(*settings(moved))) == ["model_promotion"]
    renamed = moved.rename(moved.with_name("other.csv"))
    assert planner.again(*settings(renamed))["prepare_data"] == (
        "data.train: 1 file added (other.csv), 1 file removed (mine.csv)"
    )


def test_a_set_is_named_and_its_weight_is_a_setting(csv, planner, tmp_path):
    (tmp_path / "other.csv").write_text("question,answer\nwhat is 9+1?,10\n")
    sets = {
        name: {"kind": "files", "path": str(tmp_path / f"{file}.csv"), "problem_column": "question"}
        for name, file in (("easy", "mine"), ("hard", "other"))
    }
    planner.plan(f"data.train={json.dumps(sets)}")
    (tmp_path / "other.csv").write_text("question,answer\nwhat is 9+1?,10\nwhat is 9+2?,11\n")
    assert planner.again(f"data.train={json.dumps(sets)}")["prepare_data"] == (
        "data.train.hard: 1 row more, 1 file changed (other.csv)"
    )
    sets["hard"]["weight"] = 3
    why = planner.again(f"data.train={json.dumps(sets)}")
    assert why["prepare_data"] == "configuration changed: data.train.hard.weight 1.0 → 3.0"


def test_a_model_of_a_directory_is_known_by_its_content(csv, planner, place):  # noqa: F811
    planner.plan(*settings(csv, place / "model"))
    (place / "model").rename(place / "moved")
    assert list(planner.again(*settings(csv, place / "moved"))) == ["model_promotion"]
    (place / "moved" / "model.safetensors").write_bytes(b"others")
    why = planner.again(*settings(csv, place / "moved"))
    assert list(why) == BASE
    assert why["neighbor_index"] == "model.source: 1 file changed (model.safetensors)"


@pytest.mark.parametrize("setting", ["data.train", "data.train.mine", "data.benchmarks.arithmetic", "model.source"])
def test_files_of_this_machine_are_refused_on_a_cluster_with_the_cure(csv, place, setting):  # noqa: F811
    path = place / "model" if setting == "model.source" else csv
    source = {"kind": "directory" if setting == "model.source" else "files", "path": str(path)}
    tree = {"mine": source} if setting == "data.train.mine" else source
    changed = f"{setting.removesuffix('.mine')}={json.dumps(tree)}"
    config = load_config(PRESET, [changed])
    with pytest.raises(ConfigError) as failure:
        require_in_pods(config)
    message = str(failure.value)
    assert message.startswith(f"{setting}.path='{path}': a ")
    assert "of this machine, which pods do not have" in message
    assert "ngrpo mirror s3://" in message
    cure = message.rpartition("set ")[2]
    assert cure == f"{setting}.digest={read_contents(config)[setting].digest}"
    require_in_pods(load_config(PRESET, [changed, cure]))


def test_files_in_object_storage_are_read_by_pods_and_are_a_download():
    config = load_config(PRESET, [f"data.train={files('s3://b/mine/*.csv')}"])
    require_in_pods(config)
    assert downloads(config) == ["files s3://b/mine/*.csv (train)"]


def test_a_stage_refuses_files_with_other_content_than_was_planned(csv):
    config = load_config(PRESET, settings(csv))
    source = config.data.train.model_copy(update={"digest": read_contents(config)["data.train"].digest})
    assert len(load_problems(source)) == 8
    csv.write_text("question,answer\nwhat is 1+1?,2\n")
    with pytest.raises(DataError, match=r"^path='.*mine\.csv': its content is not what the run was planned with"):
        load_problems(source)


def test_a_plan_without_the_files_says_which_setting_names_them(planner, tmp_path):
    with pytest.raises(DataError, match=r"^data\.train: path='.*nowhere\.csv': no such file or directory; in a preset"):
        planner.plan(f"data.train={files(tmp_path / 'nowhere.csv')}")
    source = json.dumps({"kind": "directory", "path": str(tmp_path / "nowhere")})
    with pytest.raises(DataError, match=r"^model\.source: path='.*nowhere': no such directory"):
        planner.plan(f"model.source={source}")


@pytest.mark.pipeline
def test_files_in_object_storage_are_known_by_their_content(objects, planner, csv):
    objects.put_file(csv, "mine.csv")
    there = settings(f"{objects.uri}/mine.csv")
    planner.plan(*there)
    assert list(planner.again(*there)) == ["model_promotion"]
    csv.write_text("question,answer\nwhat is 1+1?,2\n")
    objects.put_file(csv, "mine.csv")
    assert planner.again(*there)["prepare_data"] == "data.train: 1 file changed (mine.csv)"


@pytest.mark.pipeline
def test_a_model_in_object_storage_is_known_by_its_content(objects, planner, csv, place):  # noqa: F811
    for path in (place / "model").iterdir():
        objects.put_file(path, f"mine/{path.name}")
    there = settings(csv, f"{objects.uri}/mine")
    planner.plan(*there)
    assert list(planner.again(*there)) == ["model_promotion"]
    (place / "model" / "model.safetensors").write_bytes(b"others")
    objects.put_file(place / "model" / "model.safetensors", "mine/model.safetensors")
    assert planner.again(*there)["neighbor_index"] == "model.source: 1 file changed (model.safetensors)"


@pytest.mark.pipeline
def test_a_mirror_of_own_files_is_read_with_the_same_ids(objects, csv, place, tmp_path):  # noqa: F811
    from ngrpo.data.mirror import mirror

    write(tmp_path / "parts" / "more" / "a.jsonl", rows(3))
    for path, column in ((csv, "question"), (tmp_path / "parts", "problem"), (tmp_path / "parts/*/*.jsonl", "problem")):
        source = FilesSource(kind="files", path=str(path), problem_column=column)
        for target in (objects.uri, str(tmp_path / "mirror")):
            assert load_problems(source.model_copy(update={"path": mirror(source, target)})) == load_problems(source)
    model = DirectoryModel(kind="directory", path=str(place / "model"))
    assert mirror(model, objects.uri).endswith("/model")


def test_a_plan_shows_what_is_set_for_chats(planner):
    overrides = [
        'model.generation_prompt="<think>\\n"',
        'model.end_of_turn=["<|user|>"]',
        "data.system_prompt=Be brief.",
    ]
    found = planner.plan(*overrides)
    console = Console(width=150, record=True)
    console.print(plan_table(found, load_config(PRESET, overrides)))
    shown = console.export_text()
    assert r'generation prompt: the chat template\'s, then "<think>\n"'.replace("\\'", "'") in shown
    assert 'end of turn: the model\'s ends, and "<|user|>"' in shown
    assert 'system prompt: "Be brief."' in shown


def test_a_changed_template_is_said(planner, tmp_path):
    template = tmp_path / "mine.jinja"
    text = "{{ messages[0].content }} {{ 'a long text' }} TEXT {{ 'a long text' }}"
    template.write_text(text.replace("TEXT", "one"))
    planner.plan(f"model.chat_template={template}")
    template.write_text(text.replace("TEXT", "two"))
    why = planner.again(f"model.chat_template={template}")
    assert "neighbor_index" not in why
    assert why["prepare_data"] == "configuration changed: model.chat_template (a long text)"
