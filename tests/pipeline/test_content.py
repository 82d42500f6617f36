"""Keys of data in a local directory or in object storage: the content counts, but not its location or its timestamps."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from test_plan import BASE, Store
from transformers import LlamaConfig, LlamaForCausalLM

from ngrpo.config import HubModel, HubSource, PrepareDataConfig, load_config, select, validate
from ngrpo.data.hub import load
from ngrpo.data.hub_model import fetch
from ngrpo.data.models import materialize_tokenizer
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import ConfigError, DataError
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo_kfp.pipelines.kubeflow.compilation import compile_whole
from ngrpo_kfp.pipelines.kubeflow.images import Images
from ngrpo_kfp.pipelines.local.run_pipeline import dry_run
from ngrpo_kfp.pipelines.local.stage_records import read_plan
from ngrpo_kfp.pipelines.local.workspace import Workspace
from ngrpo_kfp.pipelines.planning import content
from ngrpo_kfp.pipelines.planning.content import read_contents, require_in_pods
from ngrpo_kfp.pipelines.planning.nodes import History
from ngrpo_kfp.pipelines.planning.plan import make_plan, plan_record

PRESET = Path(__file__).with_name("small.toml")
FROM_DATA = ["prepare_data", *BASE[2:]]


def rows(count: int) -> list[dict]:
    """Distinct problems that the small model's tokenizer can spell."""
    pairs = [(a, b, c) for a in range(1, 10) for b in range(1, 10) for c in range(1, 10)][:count]
    return [{"problem": f"what is {a}+{b}+{c}?", "answer": f"{a + b + c}"} for a, b, c in pairs]


def write(path: Path, table: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


@pytest.fixture
def place(tmp_path):
    """Local copies: 300 problems to learn from, a benchmark, and a base model's tokenizer."""
    write(tmp_path / "math" / "train.jsonl", rows(300))
    write(tmp_path / "exam" / "test.jsonl", [{"problem": f"what is {a}-1?", "answer": f"{a - 1}"} for a in range(2, 9)])
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16_384,
        eos_token_id=tokenizer.eos_token_id,
    ).save_pretrained(tmp_path / "model")
    save_file({"weights": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    return tmp_path


def hub(path, **more) -> str:
    return json.dumps({"kind": "hub", "id": str(path), **more})


def settings(place) -> list[str]:
    return [
        f"data.train={hub(place / 'math', split='train')}",
        f"data.benchmarks.arithmetic={hub(place / 'exam', split='test')}",
        f"model.source={hub(place / 'model')}",
    ]


class Planner:
    """Plans runs; what was planned counts as done."""

    def __init__(self, root):
        self.root, self.store, self.history = root, Store(), History()
        self.known = root / "digests.json"

    def plan(self, *overrides):
        config = load_config(PRESET, overrides)
        found = make_plan(
            config,
            run="r",
            store=self.store,
            rerun_tokens={},
            history=self.history,
            contents=read_contents(config, self.known),
        )
        self.store.hold(found)
        # As a later process reads it back.
        (self.root / "plan.json").write_text(json.dumps(plan_record(found)))
        self.history = History(read_plan(self.root), frozenset(BASE))
        return found

    def again(self, *overrides):
        """Return the stages that have to run, and why."""
        return {stage.name: "; ".join(stage.reasons) for stage in self.plan(*overrides).to_run}


@pytest.fixture
def planner(tmp_path):
    return Planner(tmp_path)


def test_edited_data_run_again_what_depends_on_them_and_the_plan_says_what_changed(place, planner):
    planner.plan(*settings(place))
    assert list(planner.again(*settings(place))) == ["model_promotion"]
    write(place / "math" / "train.jsonl", rows(50))
    why = planner.again(*settings(place))
    assert list(why) == FROM_DATA
    assert why["prepare_data"] == "data.train: 250 rows fewer, 1 file changed (train.jsonl)"
    assert why["ngrpo_training"] == "input dataset changed; input warm_start changed"
    assert list(planner.again(*settings(place))) == ["model_promotion"]


def test_a_cut_benchmark_runs_again_what_depends_on_it(place, planner):
    planner.plan(*settings(place))
    path = place / "exam" / "test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    why = planner.again(*settings(place))
    assert list(why) == FROM_DATA
    assert why["prepare_data"] == "data.benchmarks.arithmetic: 4 rows fewer, 1 file changed (test.jsonl)"


def test_another_chat_template_in_a_local_model_runs_everything_again(place, planner):
    planner.plan(*settings(place))
    template = place / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    why = planner.again(*settings(place))
    assert list(why) == BASE
    assert why["neighbor_index"] == "model.source: 1 file changed (chat_template.jinja)"


def test_files_that_come_and_go_are_counted(place, planner):
    planner.plan(*settings(place))
    write(place / "math" / "more" / "train-2.jsonl", rows(3))
    assert (
        planner.again(*settings(place))["prepare_data"] == "data.train: 3 rows more, 1 file added (more/train-2.jsonl)"
    )
    shutil.rmtree(place / "math" / "more")
    pq.write_table(pa.Table.from_pylist(rows(300)), place / "math" / "train.parquet")
    (place / "math" / "train.jsonl").rename(place / "math" / "train.csv")
    (place / "math" / "train.csv").write_text("problem,answer\n" + "".join(f'"{n},\n{n}",1\n' for n in range(7)))
    assert planner.again(*settings(place))["prepare_data"] == (
        "data.train: 4 rows more, 2 files added, 2 files removed"
    )


def test_neither_place_nor_times_nor_files_that_nobody_reads_are_in_a_key(place, planner, tmp_path):
    planner.plan(*settings(place))
    for path in place.rglob("*"):
        os.utime(path, (1, 1))
    (place / "math" / ".git").mkdir()
    (place / "math" / ".git" / "index").write_text("x")
    (place / "model" / "README.md").write_text("x")
    assert list(planner.again(*settings(place))) == ["model_promotion"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("math", "exam", "model"):
        (place / name).rename(elsewhere / name)
    assert list(planner.again(*settings(elsewhere))) == ["model_promotion"]
    # The name of a data set is in the ids of its problems; that of a model is in nothing.
    (elsewhere / "model").rename(elsewhere / "renamed")
    (elsewhere / "math").rename(elsewhere / "maths")
    renamed = [one.replace("elsewhere/model", "elsewhere/renamed") for one in settings(elsewhere)]
    renamed = [one.replace("/math", "/maths") for one in renamed]
    assert planner.again(*renamed)["prepare_data"] == 'configuration changed: data.train.name "math" → "maths"'


def test_a_revision_of_a_copy_is_in_no_key(place, planner):
    planner.plan(*settings(place))
    made_up = [*settings(place), f"data.train.revision={'b' * 40}", f"model.source.revision={'a' * 40}"]
    assert list(planner.again(*made_up)) == ["model_promotion"]
    with pytest.raises(ConfigError, match=r"^data\.train\.revision: missing; .* 'org/math' .* as a path, \./org/math"):
        load_config(PRESET, [f"data.train={hub('org/math', split='train')}"])


def test_a_copy_in_object_storage_is_known_by_a_listing(objects, place, planner, monkeypatch):
    objects.put_file(place / "math" / "train.jsonl", "math/train.jsonl")
    there = [*settings(place)[1:], f"data.train={hub(f'{objects.uri}/math', split='train')}"]
    monkeypatch.setattr(type(objects), "get_file", lambda *arguments: pytest.fail("downloaded"))
    planner.plan(*there)
    assert list(planner.again(*there)) == ["model_promotion"]
    write(place / "math" / "train.jsonl", rows(299))
    objects.put_file(place / "math" / "train.jsonl", "math/train.jsonl")
    why = planner.again(*there)
    assert list(why) == FROM_DATA
    assert why["prepare_data"] == "data.train: 1 file changed (train.jsonl)"


def test_links_are_followed_but_not_round_in_a_circle_and_what_is_no_file_is_passed_over(place, planner, tmp_path):
    write(tmp_path / "elsewhere" / "train-2.jsonl", rows(3))
    (place / "math" / "more").symlink_to(tmp_path / "elsewhere")
    (place / "math" / "round").symlink_to(place / "math")
    (place / "math" / "gone.jsonl").symlink_to(place / "nowhere")
    os.mkfifo(place / "math" / "pipe.jsonl")
    planner.plan(*settings(place))
    write(tmp_path / "elsewhere" / "train-2.jsonl", rows(2))
    assert (
        planner.again(*settings(place))["prepare_data"]
        == "data.train: 1 row fewer, 1 file changed (more/train-2.jsonl)"
    )


# --- digests that are remembered --------------------------------------------------------------------------------------


def test_a_file_is_hashed_once_and_again_when_it_changed_or_what_is_remembered_is_damaged(place, tmp_path, monkeypatch):
    hashed = []
    real = content.file_sha256
    monkeypatch.setattr(content, "file_sha256", lambda path: (hashed.append(path.name), real(path))[1])
    monkeypatch.setattr(content, "_FRESH_NANOSECONDS", 0)
    config, known = load_config(PRESET, settings(place)), tmp_path / "known.json"
    first = read_contents(config, known)
    assert sorted(hashed).count("train.jsonl") == 1
    hashed.clear()
    assert read_contents(config, known) == first
    assert hashed == []
    for damage in ('{"/x": 3}', "{", json.dumps({str(place / "math" / "train.jsonl"): [[1, 2, 3, 4], "../x", 1]})):
        known.write_text(damage)
        assert read_contents(config, known) == first
    hashed.clear()
    # Same size, and the old time put back.
    path = place / "math" / "train.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("what is 1+1+1?", "what is 1+1+2?", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read_contents(config, known)["data.train"].digest != first["data.train"].digest
    assert hashed == ["train.jsonl"]


def test_what_has_just_changed_is_not_remembered(place, tmp_path):
    known = tmp_path / "known.json"
    read_contents(load_config(PRESET, settings(place)), known)
    assert not known.exists() or json.loads(known.read_text()) == {}


# --- content that changes under a run ---------------------------------------------------------------------------------


def given(planner, place, stage):
    return json.loads(planner.plan(*settings(place))[stage].config)


def test_the_stage_refuses_data_that_are_not_those_of_the_plan(place, planner, tmp_path):
    LlamaForCausalLM(LlamaConfig.from_pretrained(place / "model")).save_pretrained(place / "model")
    config = validate(PrepareDataConfig, given(planner, place, "prepare_data"))
    output = tmp_path / "output"
    output.mkdir()
    prepare_data.run(config, {}, output, Context(tmp_path / "work"))
    written = (output / "sources.json").read_text()
    assert str(place) not in written, "the same key has the same bytes, wherever the copy lies"
    assert config.data.train.digest in written
    write(place / "math" / "train.jsonl", rows(50))
    shutil.rmtree(output)
    output.mkdir()
    with pytest.raises(
        DataError, match=r"^data\.train: id='.*math': its content is not what the run was planned with"
    ) as e:
        prepare_data.run(config, {}, output, Context(tmp_path / "work"))
    assert "\n" not in str(e.value)


def test_data_that_change_while_they_are_read_are_refused(place, planner, monkeypatch):
    source = HubSource.model_validate(given(planner, place, "prepare_data")["data"]["train"])
    import datasets

    real = datasets.load_dataset

    def meanwhile(*arguments, **options):
        result = real(*arguments, **options)
        write(place / "math" / "train.jsonl", rows(50))
        return result

    monkeypatch.setattr(datasets, "load_dataset", meanwhile)
    with pytest.raises(DataError, match="not what the run was planned with"):
        load(source)


def test_a_model_that_is_not_that_of_the_plan_is_refused_even_where_only_its_tokenizer_is_read(
    place, planner, tmp_path
):
    source = HubModel.model_validate(given(planner, place, "neighbor_index")["model"]["source"])
    materialize_tokenizer(source, tmp_path / "scratch")
    (place / "model" / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(DataError, match=r"model': its content is not what the run was planned with"):
        materialize_tokenizer(source, tmp_path / "scratch")


def test_what_was_downloaded_of_other_content_is_not_kept(objects, place, planner, tmp_path, monkeypatch):
    for path in (place / "model").iterdir():
        objects.put_file(path, path.name)
    config = load_config(PRESET, [f"model.source={hub(objects.uri)}"])
    source = config.model.source.model_copy(update={"digest": read_contents(config)["model.source"].digest})
    real = type(objects).get_file

    def meanwhile(store, key, path):
        real(store, key, path)
        objects.put_bytes(b"others", "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(type(objects), "get_file", meanwhile)
        with pytest.raises(DataError, match="not what the run was planned with"):
            fetch(source, tmp_path / "copy", weights=True)
    objects.put_file(place / "model" / "model.safetensors", "model.safetensors")
    fetch(source, tmp_path / "copy", weights=True)
    weights = "model.safetensors"
    assert (tmp_path / "copy" / weights).read_bytes() == (place / "model" / weights).read_bytes()


# --- where a place cannot be read -------------------------------------------------------------------------------------


def test_a_directory_of_this_machine_is_refused_on_a_cluster_with_the_digest_for_one_that_pods_have(place):
    config = load_config(PRESET, settings(place))
    with pytest.raises(ConfigError) as failure:
        compile_whole(config, Images(PRESET.parent / "golden" / "images.lock"))
    message = str(failure.value)
    assert message.startswith(f"model.source.id='{place}/model': a directory of this machine, which pods do not have")
    assert "ngrpo mirror s3://" in message
    digest = message.rpartition("=")[2]
    assert digest == read_contents(config)["model.source"].digest


def test_a_digest_in_the_settings_stands_for_a_place_that_only_pods_have(place, planner):
    mounted = [*settings(place)[1:2], f"data.train={hub('/mnt/math', split='train', digest='0' * 64)}"]
    require_in_pods(load_config(PRESET, mounted[1:]))
    planner.plan(*mounted)
    assert list(planner.again(*mounted)) == ["model_promotion"]
    why = planner.again(mounted[0], mounted[1].replace("0" * 64, "1" * 64))
    assert why["prepare_data"] == "data.train: other content"
    with pytest.raises(DataError, match=r"^data\.train: .*'/mnt/math': no such directory.*data\.train\.digest"):
        planner.plan(f"data.train={hub('/mnt/math', split='train')}")


def test_a_dry_run_asks_no_store_that_is_not_there(place, tmp_path, monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.delenv("NGRPO_STORE", raising=False)
    config = load_config(PRESET, [*settings(place)[1:], f"data.train={hub('s3://nowhere/math', split='train')}"])
    dry_run(config, Workspace(tmp_path / "home"), Console())
    shown = capsys.readouterr().out
    assert "store not consulted" in shown
    assert "data set s3://nowhere/math (train, split train)" in shown
    assert not (tmp_path / "home").exists()


def test_selected_settings_are_those_of_the_run_but_for_the_digests(place, planner):
    config = load_config(PRESET, settings(place))
    plain = select(config, PrepareDataConfig).model_dump(mode="json")
    told = given(planner, place, "prepare_data")
    for node in (told["data"]["train"], told["data"]["benchmarks"]["arithmetic"], told["model"]["source"]):
        assert node["digest"] is not None
        node["digest"] = None
    assert told == plain
