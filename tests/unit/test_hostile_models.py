"""Untrusted models and data sets: their code never runs, nothing prompts or hangs, and damage is one line."""

import gzip
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from ngrpo.config import HubModel, HubSource
from ngrpo.data.chat import require_template
from ngrpo.data.embedding import load_embedding, read_embedding
from ngrpo.data.locations import download
from ngrpo.data.models import materialize, materialize_tokenizer
from ngrpo.data.problems import load_problems
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import DataError
from ngrpo.rollout.loading import load_model, load_tokenizer
from tiny import save_tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
VOCABULARY = 48
CODE = "from pathlib import Path\nPath({canary!r}).touch()\nclass Own: pass\n"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "model"))


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch):
    """Standard input says yes to everything: what asks runs code."""
    monkeypatch.setattr("builtins.input", lambda *arguments: pytest.fail("somebody is asked"))


def source(directory) -> HubModel:
    return HubModel(kind="hub", id=str(directory), revision=COMMIT)


def refused(call) -> str:
    with pytest.raises(DataError) as failure:
        call()
    message = str(failure.value)
    assert "\n" not in message
    assert len(message) < 800
    return message


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def everyone(directory, tmp_path):
    """All that reads a model directory."""
    return {
        "base model": lambda: materialize(source(directory), tmp_path / "scratch"),
        "tokenizer": lambda: materialize_tokenizer(source(directory), tmp_path / "scratch"),
        "index": lambda: load_embedding(source(directory), tmp_path / "scratch"),
        "weights": lambda: load_model(directory, "float32"),
        "chats": lambda: load_tokenizer(directory, VOCABULARY),
    }


def test_a_sound_model_is_read_by_everyone(model, tmp_path):
    for read in everyone(model, tmp_path).values():
        read()


# --- code -------------------------------------------------------------------------------------------------------------

AUTO = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
CODES = {
    "a model of its own": lambda m: edit(m / "config.json", model_type="own", auto_map=AUTO),
    "a known model with code": lambda m: edit(m / "config.json", auto_map=AUTO),
    "code of another repository": lambda m: edit(
        m / "config.json", model_type="own", auto_map={"AutoConfig": "org/repo--own.Own"}
    ),
    "code further down": lambda m: edit(m / "config.json", text_config={"auto_map": AUTO}),
    "a tokenizer of its own": lambda m: edit(
        m / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]}
    ),
    "a kernel of the hub": lambda m: edit(m / "config.json", attn_implementation="org/kernel"),
    "a generation of its own": lambda m: (m / "custom_generate").mkdir(),
}


@pytest.mark.parametrize("how", CODES)
def test_a_model_with_code_is_refused_by_everyone_and_its_code_does_not_run(model, tmp_path, how):
    canary = tmp_path / "ran"
    CODES[how](model)
    for name in ("own.py", "custom_generate/generate.py"):
        if (model / name).parent.exists():
            (model / name).write_text(CODE.format(canary=str(canary)))
    for who, read in everyone(model, tmp_path).items():
        assert "comes with custom code" in refused(read), who
    assert not canary.exists()


class Bomb:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (Path(self.canary),)


@pytest.mark.parametrize("kind", ["alone", "in the index"])
def test_pickled_weights_are_not_read(model, tmp_path, kind):
    canary = tmp_path / "ran"
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(str(canary))}, model / "pytorch_model.bin")
    if kind == "in the index":
        index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for who, read in everyone(model, tmp_path).items():
        if who not in ("tokenizer", "chats"):
            assert "safetensors" in refused(read), who
    assert not canary.exists()


def test_an_index_of_shards_does_not_lead_out_of_its_directory(model, tmp_path):
    shutil.move(model / "model.safetensors", tmp_path / "model.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "../model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not a safetensors file beside it" in refused(lambda: read_embedding(model))
    assert "not a safetensors file beside it" in refused(lambda: load_model(model, "float32"))


# --- damage -----------------------------------------------------------------------------------------------------------

DAMAGES = {
    "empty": b"",
    "cut": b'{"model_type": "lla',
    "not UTF-8": b'{"model_type": "\xff\xfe"}',
    "a list": b"[1]",
    "a number": b"7",
    "deep": b"[" * 100_000,
    "wrong types": b'{"model_type": ["llama"], "vocab_size": "many", "hidden_size": {}, "weight_map": [], "model": 5}',
    "null": b"null",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "model.safetensors.index.json"],
)
def test_a_damaged_file_of_a_model_is_one_line_for_everyone(model, tmp_path, file, damage):
    (model / file).write_bytes(DAMAGES[damage])
    messages = {}
    for who, read in everyone(model, tmp_path).items():
        try:
            read()
        except DataError as error:
            messages[who] = str(error)
    assert all("\n" not in message and len(message) < 800 for message in messages.values())
    if (file, damage) != ("tokenizer_config.json", "wrong types"):
        assert messages, "somebody has to notice"


# --- chat templates ---------------------------------------------------------------------------------------------------

GOOD = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "nested loops": (LOOP, "does not finish within"),
    "a loop over the text": (
        GOOD
        + "{% set c = messages[0].content %}{% for a in c %}{% for b in c %}{% for d in c %}{% endfor %}{% endfor %}{% endfor %}",
        "does not finish within",
    ),
    "a power": (GOOD + "{{ 10 ** (10 ** 9) }}", "does not finish within"),
    "a long range": (GOOD + "{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
    "100 MB in one piece": (GOOD + "{{ messages[0].role * 25000000 }}", "writes more than"),
    "100 MB in many": (GOOD + "{% for i in range(9999) %}{{ 'a' * 10000 }}{% endfor %}", "writes more than"),
    "10 GB": (GOOD + "{{ 'a' * 10000000000 }}", "MemoryError"),
    "memory without output": (GOOD + "{% set x = ('a' * 10000000000) | length %}", "MemoryError"),
    "recursion": ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
    "deep nesting": (GOOD + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "RecursionError"),
    "an exception": (GOOD + "{{ raise_exception('no system prompt') }}", "no system prompt"),
    "a division": (GOOD + "{{ 1 / 0 }}", "ZeroDivisionError"),
    "no syntax": ("{% for %}", "TemplateSyntaxError"),
    "out of the sandbox": (GOOD + "{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "nothing": ("", "writes nothing"),
    "white space": ("{# nothing #}  \n", "writes nothing"),
    "the messages ignored": ("Hello! {{ messages | length }}", "leaves out the question"),
    "a number": (5, "it is of type int, not text"),
    "a list": (["{{ messages }}"], "it is of type list, not text"),
}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_template_that_cannot_be_used_is_refused_in_bounded_time(what):
    tokenizer = word_tokenizer()
    tokenizer.chat_template, named = TEMPLATES[what]
    began = time.monotonic()
    message = refused(lambda: require_template(tokenizer, "model 'x'"))
    assert time.monotonic() - began < 30
    assert message.startswith("model 'x': its chat template cannot be used: ")
    assert named in message


def test_a_template_that_loops_stops_everyone_who_writes_chats(model, tmp_path):
    (model / "chat_template.jinja").write_text(GOOD + "{% if messages|length > 1 %}" + LOOP + "{% endif %}")
    readers = everyone(model, tmp_path)
    for who in ("base model", "tokenizer", "chats"):
        assert "does not finish within" in refused(readers[who]), who


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{%- for m in messages %}{% if m.role == 'user' %}{{ bos_token }}{{ m.content | trim }}{% else %}{% generation %}"
        "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endgeneration %}{% endif %}{% if loop.last %}{% break %}{% endif %}"
        "{% endfor %}{{ strftime_now('%Y') }}{{ [1, {'a': none}] | tojson(indent=2) }}{% if tools %}{{ 1 / 0 }}{% endif %}",
    ],
)
def test_what_templates_of_real_models_use_is_known(template):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    require_template(tokenizer, "model 'x'")


def test_the_template_is_tried_without_the_secrets_of_this_process(monkeypatch):
    import ngrpo.data.chat as chat

    monkeypatch.setenv("HF_TOKEN", "canary")
    seen = {}
    run = chat.subprocess.run
    monkeypatch.setattr(chat.subprocess, "run", lambda *a, **k: (seen.update(k["env"]), run(*a, **k))[1])
    tokenizer = word_tokenizer()
    tokenizer.chat_template = GOOD + "{# not tried before #}"
    require_template(tokenizer, "model 'x'")
    assert "canary" not in json.dumps(seen)
    assert set(seen) == {"PYTHONPATH", "PYTHONUTF8"}


# --- data sets --------------------------------------------------------------------------------------------------------


def data_set(directory) -> HubSource:
    return HubSource(kind="hub", id=str(directory), revision=COMMIT, split="train")


def test_a_script_of_a_data_set_does_not_run(tmp_path):
    directory = tmp_path / "math"
    directory.mkdir()
    canary = tmp_path / "ran"
    (directory / "math.py").write_text(CODE.format(canary=str(canary)))
    message = refused(lambda: load_problems(data_set(directory)))
    assert "script" in message
    (directory / "train.jsonl").write_text('{"problem": "1+1?", "answer": "2"}\n')
    refused(lambda: load_problems(data_set(directory)))
    assert not canary.exists()


FILES = {
    "a cut table": ("data/train-00000-of-00001.parquet", b"PAR1\x15\x00\x15"),
    "an empty table": ("data/train-00000-of-00001.parquet", b""),
    "an empty text": ("train.json", b""),
    "no objects": ("train.json", b"[1, 2]"),
    "a number": ("train.json", b"7"),
    "cut lines": ("train.jsonl", b'{"problem": "a", "answer": "b"}\n{"problem": '),
    "changing types": ("train.jsonl", b'{"problem": "a", "answer": "b"}\n{"problem": {"x": 1}, "answer": []}\n'),
    "not UTF-8": ("train.jsonl", b'{"problem": "\xff\xfe", "answer": "b"}\n'),
    "a cut archive": ("train.jsonl.gz", gzip.compress(b'{"problem": "a", "answer": "b"}\n' * 9)[:-9]),
    "an archive of nothing": ("train.zip", b"PK\x03\x04"),
    "a pickle": ("train.pkl", b"cos\nsystem\n(S'touch ran'\ntR."),
    "columns of another shape": ("train.json", b'{"problem": ["a", "b"], "answer": ["c"]}'),
    "other columns": ("train.jsonl", b'{"question": "a"}\n'),
    "a broken card": ("README.md", b"---\nconfigs: [\n---\n"),
}


@pytest.mark.parametrize("what", FILES)
def test_a_damaged_file_of_a_data_set_is_one_line(tmp_path, what):
    directory = tmp_path / "math"
    name, content = FILES[what]
    (directory / name).parent.mkdir(parents=True)
    (directory / name).write_bytes(content)
    assert str(directory) in refused(lambda: load_problems(data_set(directory)))


@pytest.mark.parametrize("name", ["../outside.jsonl", "{outside}/outside.jsonl", "file://{outside}/outside.jsonl"])
def test_the_card_of_a_data_set_does_not_lead_to_other_files(tmp_path, name):
    directory = tmp_path / "math"
    directory.mkdir()
    for place in (directory / "inside.jsonl", tmp_path / "outside.jsonl"):
        place.write_text('{"problem": "1+1?", "answer": "2"}\n')
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n---\n"
    (directory / "README.md").write_text(card.format(name.format(outside=tmp_path)))
    assert "which is not part of it" in refused(lambda: load_problems(data_set(directory)))
    (directory / "README.md").write_text(card.format("inside.jsonl"))
    assert len(load_problems(data_set(directory))) == 1


@pytest.mark.parametrize("key", ["../escaped.json", "a/../../escaped.json", "/escaped.json"])
def test_a_copy_in_a_bucket_does_not_write_out_of_its_directory(tmp_path, monkeypatch, key):
    class Store:
        def __init__(self, uri):
            pass

        def list(self, prefix=""):
            return ["train.jsonl", key]

        def get_file(self, name, path):
            path.write_text("{}")

    monkeypatch.setattr("ngrpo.storage.objects.ObjectStore", Store)
    (tmp_path / "a").mkdir()
    message = refused(lambda: download("s3://bucket/math", tmp_path / "copy"))
    assert "is not a valid file name" in message
    assert not (tmp_path / "copy").exists()
