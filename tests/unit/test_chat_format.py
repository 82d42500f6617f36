"""What a run sets for its model's chats: template, generation prompt, end-of-turn tokens."""

import json
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from test_data import prepare, stage_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.config import DirectoryModel, InitializedModel, load_config, select
from ngrpo.config.sections import ChatFormat
from ngrpo.data.chat_format import with_generation_prompt
from ngrpo.data.embedding import load_embedding
from ngrpo.data.models import materialize, materialize_tokenizer
from ngrpo.errors import ConfigError, DataError
from ngrpo.rollout.loading import end_of_sequence_ids, load_model, load_tokenizer, saved_end_of_sequence_ids
from ngrpo.stages.declarations import STAGES

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
CHAT = [{"role": "user", "content": "what is 1+1?"}]


def render(template: str, follows: bool) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=CHAT, add_generation_prompt=follows)


@pytest.mark.parametrize("text", ["<think>\n", 'say "so" \\ {{ 3 }} {% if %} {# no #}', "思考🙂", "'", " "])
@pytest.mark.parametrize("end", ["", "\n", "\n\n", "{%- if true -%}\n x{% endif %}\n", "  \n", "\r\n"])
def test_a_generation_prompt_is_written_after_the_templates_own_and_nowhere_else(text, end):
    template = (
        "{% for m in messages %}\n<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ '<a>' if add_generation_prompt }}" + end
    )
    added = with_generation_prompt(template, text)
    assert render(added, True) == render(template, True) + text
    assert render(added, False) == render(template, False)
    assert with_generation_prompt(added, text) == added
    assert render(with_generation_prompt(added, "other"), True) == render(template, True) + "other"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of the user's, whose generation settings name one end."""
    return materialize(
        InitializedModel(kind="initialized", hidden_size=16, layers=1), tmp_path_factory.mktemp("own") / "m"
    )


@pytest.mark.parametrize(
    ("tokens", "start"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"),
        ({"eos_token": "</s>"}, ""),
        ({"bos_token": "</s>", "eos_token": "</s>"}, ""),
    ],
)
def test_the_plain_template_writes_what_is_said_and_ends_a_response(tokens, start):
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(ChatFormat.model_validate({"chat_template": "plain"}).chat_template)
    chat = [{"role": "system", "content": "Compute."}, *CHAT]
    asked = template.render(messages=chat, add_generation_prompt=True, **tokens)
    assert asked == f"{start}Compute.\n\nwhat is 1+1?\n\n"
    answered = [*chat, {"role": "assistant", "content": "2"}]
    assert template.render(messages=answered, **tokens) == f"{asked}2</s>"


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_set_is_in_the_files_that_every_stage_starts_from_and_the_users_stay(place, tmp_path):
    before = files(place)
    template = (
        "{% for m in messages %}{{ '<|user|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n"
    )
    chat = ChatFormat(chat_template=template, generation_prompt="<think>", end_of_turn=("<|user|>",))
    source = DirectoryModel(kind="directory", path=str(place))
    for _ in range(2):  # a stage may be tried again
        path = materialize(source, tmp_path / "base", chat)
    assert files(place) == before
    model = load_model(path, "float32")
    tokenizer = load_tokenizer(path, 63)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "<|user|>what is 1+1?"
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>what is 1+1?<|assistant|><think>"
    ends = end_of_sequence_ids(model, tokenizer)
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|end|>", "<|user|>"]
    assert saved_end_of_sequence_ids(path, tokenizer) == ends, "without the weights"
    saved = tmp_path / "trained"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    assert end_of_sequence_ids(AutoModelForCausalLM.from_pretrained(saved), tokenizer) == ends
    served = AutoTokenizer.from_pretrained(saved)
    assert served.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == prompt
    # A run that goes on from the trained model, with the same settings, writes the text once.
    again = DirectoryModel(kind="directory", path=str(saved))
    follower = materialize_tokenizer(again, tmp_path / "next", chat=ChatFormat(generation_prompt="<think>"))
    assert follower.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == prompt


def test_ends_that_only_the_configuration_declares_are_kept(place, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files(place).items():
        if name != "generation_config.json":
            (copy / name).write_bytes(content)
    tokenizer = load_tokenizer(copy, 63)
    assert saved_end_of_sequence_ids(copy, tokenizer) == end_of_sequence_ids(load_model(copy, "float32"), tokenizer)
    source = DirectoryModel(kind="directory", path=str(copy))
    path = materialize(source, tmp_path / "base", ChatFormat(end_of_turn=("<|user|>",)))
    written = json.loads((path / "generation_config.json").read_text())
    config = json.loads((copy / "config.json").read_text())
    assert written["eos_token_id"] == [
        config["eos_token_id"],
        load_tokenizer(path, 63).convert_tokens_to_ids("<|user|>"),
    ]
    assert written["pad_token_id"] == config["pad_token_id"]


def test_a_model_without_a_template_gets_one_and_its_index_needs_none(place, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, content in files(place).items():
        if name != "chat_template.jinja":
            (copy / name).write_bytes(content)
    source = DirectoryModel(kind="directory", path=str(copy))
    with pytest.raises(DataError, match="no chat template"):
        materialize(source, tmp_path / "base")
    with pytest.raises(DataError, match=r"no chat template; for a base model set model\.chat_template='plain'"):
        materialize_tokenizer(source, tmp_path / "base", chat=ChatFormat(generation_prompt="<think>"))
    assert len(load_embedding(source, tmp_path / "index")[0]) == 63
    for chosen in ((place / "chat_template.jinja").read_text(), "plain"):
        chat = ChatFormat.model_validate({"chat_template": chosen})
        tokenizer = materialize_tokenizer(source, tmp_path / "base", chat=chat)
        assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True).count("1+1") == 1


@pytest.mark.parametrize("token", ["<|stop|>", "what", "1+1"])
def test_what_is_no_token_of_the_model_ends_nothing(place, tmp_path, token):
    source = DirectoryModel(kind="directory", path=str(place))
    with pytest.raises(DataError, match=r"^model\.end_of_turn: '.*' is not a token of model .*<\|end\|>") as failure:
        materialize_tokenizer(source, tmp_path / "base", chat=ChatFormat(end_of_turn=(token,)))
    assert "\n" not in str(failure.value)


# --- the settings -----------------------------------------------------------------------------------------------------


def preset(tmp_path: Path, lines: str) -> Path:
    path = tmp_path / "presets" / "mine.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(TINY.read_text().replace('dtype = "float32"\n', f'dtype = "float32"\n{lines}\n', 1))
    return path


def test_a_template_is_named_by_its_file_and_its_text_is_the_setting(tmp_path, monkeypatch):
    path = preset(
        tmp_path, 'chat_template = "../mine.jinja"\ngeneration_prompt = "<think>\\n"\nend_of_turn = ["<|user|>"]'
    )
    (tmp_path / "mine.jinja").write_bytes(b"\xef\xbb\xbf{{ messages[0].content }}\r\n")
    config = load_config(path)
    assert config.model.chat_template == "{{ messages[0].content }}\n"
    assert config.model.generation_prompt == "<think>\n"
    (tmp_path / "mine.jinja").unlink()
    assert type(config).model_validate_json(config.model_dump_json()) == config
    changed = [
        name
        for name, stage in STAGES.items()
        if select(config, stage.config) != select(load_config(TINY), stage.config)
    ]
    assert "neighbor_index" not in changed
    assert "prepare_data" in changed


def test_settings_that_are_not_used_are_not_in_the_json():
    model = load_config(TINY).model_dump(mode="json")["model"]
    assert not {"chat_template", "generation_prompt", "end_of_turn"} & {*model}


BAD = {
    'chat_template = "nowhere.jinja"': r"model\.chat_template: no such file: .*presets/nowhere\.jinja; a path is relative to the directory",
    'chat_template = "mine.toml"': r"model\.chat_template: no chat template: it has neither",
    'chat_template = "latin.jinja"': r"model\.chat_template: not UTF-8",
    'chat_template = "."': r"model\.chat_template: no such file",
    'chat_template = ""': r"model\.chat_template: name a Jinja file",
    "chat_template = 3": r"model\.chat_template: .*valid string",
    "generation_prompt = 3": r"model\.generation_prompt: .*valid string",
    'generation_prompt = "a\\u0000"': r"model\.generation_prompt: a text may not contain control characters",
    'end_of_turn = "<|im_end|>"': r"model\.end_of_turn: ",
    'end_of_turn = [""]': r"model\.end_of_turn\.0: ",
}


@pytest.mark.parametrize("line", BAD)
def test_settings_that_cannot_be_are_refused_in_one_line(tmp_path, line):
    path = preset(tmp_path, line)
    (path.parent / "latin.jinja").write_bytes("{{ 'ö' }}".encode("latin-1"))
    with pytest.raises(ConfigError, match=f"^{BAD[line]}") as failure:
        load_config(path)
    assert "\n" not in str(failure.value)


# --- the first stage --------------------------------------------------------------------------------------------------


def with_chat(config, **settings):
    return config.model_copy(update={"model": config.model.model_copy(update=settings)})


def test_worked_solutions_begin_with_the_generation_prompt(tmp_path):
    import pyarrow.parquet as pq

    config = with_chat(stage_config(tmp_path), generation_prompt="<think>")
    output = prepare(config, tmp_path)
    solutions = [row[0]["content"] for row in pq.read_table(output / "warm_start.parquet")["completion"].to_pylist()]
    assert all(solution.startswith("<think>") and not solution.startswith("<think><think>") for solution in solutions)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
            "refuses a chat of system, user",
        ),
        (
            "{% set messages = messages[1:] if messages[0].role == 'system' else messages %}",
            "leaves out or changes the system message",
        ),
    ],
)
def test_a_template_that_cannot_write_the_system_prompt_is_refused_by_the_first_stage(
    tmp_path, place, template, message
):
    own = (place / "chat_template.jinja").read_text()
    config = with_chat(stage_config(tmp_path, system_prompt="compute 1+1."), chat_template=template + own)
    with pytest.raises(DataError, match=message):
        prepare(config, tmp_path)
