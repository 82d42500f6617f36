"""`ngrpo chat`: one prompt, a conversation by the standard input, models with and without a template."""

import io
import json
import re
import sys
from datetime import date
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from ngrpo.config import load_config
from ngrpo.errors import ConfigError, DataError
from ngrpo.storage.digest import model_digest
from ngrpo_kfp.pipelines.local import chatting
from ngrpo_kfp.pipelines.local.chatting import Sampling, chat
from ngrpo_kfp.pipelines.local.interrupted import Interrupted
from ngrpo_kfp.pipelines.local.named_model import NamedModel
from ngrpo_kfp.pipelines.local.workspace import Workspace
from promoting import TINY
from tiny import save_tiny_model

pytestmark = pytest.mark.pipeline
GREEDY = Sampling(max_tokens=6, temperature=0)


@pytest.fixture
def model(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "model")


@pytest.fixture
def workspace(tmp_path, model, s3_environment, monkeypatch) -> Workspace:
    """A workspace where every name is that of the tiny model."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = NamedModel("champion", model, model_digest(model), None, "ngrpo-tiny")
    monkeypatch.setattr(chatting, "require_name", lambda *_: None)
    monkeypatch.setattr(chatting, "named_model", lambda *_: found)
    return Workspace(tmp_path / "outputs")


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """The texts that the model was given."""
    given: list[str] = []
    original = chatting._Conversation.__init__

    def noting(self, *arguments):
        original(self, *arguments)
        generate = self._model.generate

        def noted(ids, **options):
            given.append(self._tokenizer.decode(ids[0]))
            return generate(ids, **options)

        self._model.generate = noted

    monkeypatch.setattr(chatting._Conversation, "__init__", noting)
    return given


def piped(monkeypatch, text: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))


def finished_run(workspace: Workspace, *settings: str) -> None:
    run = workspace.new_run("20260101-000000-000000-tiny")
    (run / "config.json").write_text(load_config(TINY, settings).model_dump_json())
    workspace.set_latest(run)


def test_one_prompt_is_answered_and_printed(workspace, prompts, capsys):
    chat("champion", None, "3 + 4", GREEDY, workspace)
    first = capsys.readouterr().out
    chat("champion", None, "3 + 4", GREEDY, workspace)
    assert capsys.readouterr().out == first
    assert prompts == ["<user> 3 + 4 <assistant>"] * 2
    assert 1 <= len(first.split()) <= 6
    assert "<" not in first, "neither the prompt nor special tokens"


def test_lines_of_the_standard_input_are_one_conversation(workspace, prompts, monkeypatch, capsys):
    piped(monkeypatch, b"3 + 4\n\n 9 - 2\r\n")
    chat("champion", None, None, GREEDY, workspace)
    answers = capsys.readouterr().out.splitlines()
    assert prompts[0] == "<user> 3 + 4 <assistant>"
    assert prompts[1] == f"<user> 3 + 4 <assistant> {answers[0]} <eos><user> 9 - 2 <assistant>".replace(
        "<eos><", "<eos> <"
    )
    assert len(answers) == len(prompts) == 2


def test_bytes_that_are_no_text_are_no_reason_to_fail(workspace, prompts, monkeypatch):
    piped(monkeypatch, b"3 \xff 4")
    chat("champion", None, None, GREEDY, workspace)
    assert len(prompts) == 1


def test_a_model_without_a_template_continues_the_text(workspace, model, prompts, capsys):
    (model / "chat_template.jinja").unlink()
    chat("champion", None, "3 + 4 =", GREEDY, workspace)
    assert prompts == ["3 + 4 ="]
    assert capsys.readouterr().out.strip()


def test_a_dated_template_is_told_the_date_of_the_run_and_the_system_prompt_is_that_of_training(
    workspace, model, prompts, capsys
):
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(
        "{{ strftime_now('%d') }} " + template.replace("== 'user'", "in ['user', 'system']")
    )
    chat("champion", None, "3", GREEDY, workspace)
    assert capsys.readouterr().err == "champion: no system prompt, temperature 1, for no run here made it\n"
    finished_run(workspace, f"model.template_date={date(2031, 5, 17)}", "data.system_prompt=stop")
    chat("champion", None, "3", GREEDY, workspace)
    told = "champion: settings of the latest run, 20260101-000000-000000-tiny, for no run here made it\n"
    assert capsys.readouterr().err == told
    default = re.fullmatch(r"(\d+) <user> 3 <assistant>", prompts[0])
    assert default
    assert prompts[1] == "17 <user> stop<user> 3 <assistant>".replace("stop<", "stop <")


def test_sampling_is_that_of_the_evaluation_unless_told_otherwise(workspace, model, monkeypatch):
    used: list[GenerationConfig] = []
    settings = {"repetition_penalty": 1.5, "do_sample": True, "top_k": 7, "eos_token_id": 1}
    (model / "generation_config.json").write_text(json.dumps(settings))
    finished_run(workspace, "evaluation.temperature=0.25", "evaluation.max_tokens=5")
    original = chatting._Conversation.ask

    def noting(self, text):
        original(self, text)
        used.append(self._model.generation_config)

    monkeypatch.setattr(chatting._Conversation, "ask", noting)
    chat("champion", None, "3", Sampling(), workspace)
    chat("champion", None, "3", Sampling(max_tokens=4, temperature=0), workspace)
    assert [(each.do_sample, each.temperature, each.max_new_tokens) for each in used] == [
        (True, 0.25, 5),
        (False, None, 4),
    ]
    assert {(each.repetition_penalty, each.top_k if each.do_sample else 0) for each in used} <= {(None, 0), (1.0, 0)}
    assert {tuple(each.eos_token_id) for each in used} == {(1,)}


def test_what_a_terminal_would_obey_is_not_written(model, capsys):
    tokenizer = AutoTokenizer.from_pretrained(model)
    streamer = chatting._streamer(tokenizer)
    streamer.on_finalized_text("a\x1b[2Jb\tc\n\x9b", stream_end=True)
    assert capsys.readouterr().out == "a�[2Jb\tc\n�\n"


def test_ctrl_c_ends_it_and_a_signal_goes_on(workspace, monkeypatch, capsys):
    for error in (KeyboardInterrupt(), Interrupted(15)):

        def interrupted(*_, error=error):
            raise error

        monkeypatch.setattr(chatting._Conversation, "ask", interrupted)
        if isinstance(error, Interrupted):
            with pytest.raises(Interrupted):
                chat("champion", None, "3", GREEDY, workspace)
        else:
            chat("champion", None, "3", GREEDY, workspace)
            assert capsys.readouterr().out == "\n"


def test_a_conversation_that_is_too_long(workspace, model):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 4}))
    with pytest.raises(DataError, match="the conversation has 5 tokens, and the model 4 positions: begin a new one"):
        chat("champion", None, "3 + 4", GREEDY, workspace)


@pytest.mark.parametrize(
    ("prompt", "sampling", "said"),
    [
        (" \n", Sampling(), "--prompt: empty"),
        ("3", Sampling(max_tokens=0), "--max-tokens 0: a response has 1 to 1,000,000 tokens"),
        ("3", Sampling(temperature=-1.0), "--temperature -1: name a number from 0"),
        ("3", Sampling(temperature=float("nan")), "--temperature nan: name a number from 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_first(prompt, sampling, said, tmp_path, monkeypatch):
    monkeypatch.setattr(chatting, "services", lambda *_: pytest.fail("started"))
    with pytest.raises(ConfigError) as refusal:
        chat("champion", None, prompt, sampling, Workspace(tmp_path))
    assert said in str(refusal.value)
