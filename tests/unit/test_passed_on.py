"""Tables that go to TRL and vLLM as they are."""

import ast
import dataclasses
import json
import subprocess
import sys

import pytest
from golden_arguments import PRESETS, evaluation, grpo, machine, rollouts, sft
from trl import GRPOConfig, SFTConfig

from ngrpo.config import (
    BenchmarkEvaluationConfig,
    NGRPOTrainingConfig,
    SFTWarmStartConfig,
    load_config,
    passed_on,
    select,
)
from ngrpo.config.passed_on import GRPO, SFT, VLLM, Library, check
from ngrpo.config.run import unchecked
from ngrpo.errors import ConfigError

TABLES = {"training.trl": GRPO, "warm_start.trl": SFT, "rollout.vllm.options": VLLM, "evaluation.vllm.options": VLLM}
needs_vllm = pytest.mark.skipif(not VLLM.installed, reason="vLLM is not installed")


def read(section, *overrides):
    return select(load_config(PRESETS / "tiny.toml", overrides), section)


def refused(setting, **table):
    with pytest.raises(ConfigError) as failure:
        load_config(PRESETS / "tiny.toml", [f"{setting}={json.dumps(table)}"])
    return str(failure.value)


@pytest.mark.parametrize(("library", "kind"), [(GRPO, GRPOConfig), (SFT, SFTConfig)])
def test_the_fields_are_those_of_the_class(library, kind):
    assert library.fields().keys() == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.long
@needs_vllm
def test_the_fields_of_vllm_are_those_of_the_class():
    from vllm.engine.arg_utils import EngineArgs

    assert VLLM.fields().keys() == {field.name for field in dataclasses.fields(EngineArgs)}


@pytest.mark.parametrize("library", [GRPO, SFT, pytest.param(VLLM, marks=needs_vllm)])
def test_what_cannot_be_set_is_a_field_and_is_in_one_table_only(library):
    assert not library.ours.keys() & library.unused.keys()
    gone = {"warmup_ratio", "reward_funcs"}  # which transformers had, and an argument of TRL's trainer
    assert (library.ours.keys() | library.unused.keys()) - library.fields().keys() <= gone


def test_what_we_pass_to_the_trainers_cannot_be_set_beside_it():
    """Nor silently overridden, except for two arguments for which the warm start only has a default."""
    for translate, section, library in ((grpo, NGRPOTrainingConfig, GRPO), (sft, SFTWarmStartConfig, SFT)):
        with machine():
            default = type(translate(read(section)))(output_dir="x").to_dict()
        ours = {name for name, value in translate(read(section)).to_dict().items() if value != default.get(name)}
        free = ours - library.ours.keys() - library.unused.keys()
        assert free <= {"dataloader_pin_memory", "lr_scheduler_type", "gradient_checkpointing"}, free


def test_what_is_passed_on_arrives():
    arguments = grpo(
        read(NGRPOTrainingConfig, 'training.trl={"sapo_temperature_pos": 0.9, "optim": "sgd", "adam_epsilon": 1}')
    )
    assert (arguments.sapo_temperature_pos, arguments.optim, arguments.adam_epsilon) == (0.9, "sgd", 1)
    arguments = sft(
        read(SFTWarmStartConfig, 'warm_start.trl={"lr_scheduler_type": "linear", "neftune_noise_alpha": 5}')
    )
    assert (arguments.lr_scheduler_type, arguments.neftune_noise_alpha) == ("linear", 5)


@needs_vllm
def test_what_is_passed_on_to_vllm_arrives():
    options = '{"enable_prefix_caching": false, "block_size": 32, "kv_cache_memory_bytes": 1000000}'
    engine = ("rollout.engine=vllm", "evaluation.engine=vllm")
    training, _ = rollouts(read(NGRPOTrainingConfig, *engine, f"rollout.vllm.options={options}"))
    measured = evaluation(read(BenchmarkEvaluationConfig, *engine, f"evaluation.vllm.options={options}"))
    for made in (training["made with"], measured["made with"]):
        assert json.loads(options).items() <= made.items()


@pytest.mark.parametrize(
    ("setting", "table", "said"),
    [
        ("training.trl", {"num_generations": 8}, "num_generations=8 is set by rollout.group_size here: leave it out"),
        ("training.trl", {"vllm_mode": "server"}, "vllm_mode='server' cannot be set: rollouts come from our engines, with the settings"),
        ("training.trl", {"neftune_noise_alpha": 5}, "neftune_noise_alpha=5 cannot be set: with noise in the embeddings, the scores"),
        ("training.trl", {"torch_compile": True}, "torch_compile=True cannot be set: mixing changes the forward pass"),
        ("training.trl", {"sync_ref_model": True}, "sync_ref_model=True cannot be set: a run resumed from a checkpoint would not"),
        ("training.trl", {"sapo_temperature": 1}, "sapo_temperature=1 is not a field of TRL's GRPOConfig; did you mean sapo_temperature_"),
        ("training.trl", {"xyzzy": 1}, "xyzzy=1 is not a field of TRL's GRPOConfig: leave it out"),
        ("training.trl", {"adam_epsilon": "tiny"}, "adam_epsilon='tiny' does not fit TRL's GRPOConfig, where it is float"),
        ("training.trl", {"adam_epsilon": True}, "adam_epsilon=True does not fit"),
        ("training.trl", {"use_adaptive_entropy": 1}, "use_adaptive_entropy=1 does not fit TRL's GRPOConfig, where it is bool"),
        ("training.trl", {"_VALID_DICT_FIELDS": []}, "should match pattern"),
        ("training.trl", {"optim": "a\nb"}, "one line of text"),
        ("training.trl", {"optim_args": float("1e300")}, "a number up to 10^12"),
        ("training.trl", {"optim_args": None}, "a setting of a library is true, false"),
        ("warm_start.trl", {"max_length": 8}, "max_length=8 is set by warm_start.max_tokens here: leave it out"),
        ("warm_start.trl", {"num_generations": 8}, "num_generations=8 is not a field of TRL's SFTConfig: leave it out"),
        ("warm_start.trl", {"packing": "yes"}, "packing='yes' does not fit TRL's SFTConfig, where it is bool"),
        ("rollout.vllm.options", {"max_num_seqs": 8}, "max_num_seqs=8 is set by batch_size of its section here: leave it out"),
        ("evaluation.vllm.options", {"worker_cls": "x"}, "worker_cls='x' cannot be set: mixing hooks into vLLM there"),
    ],
)  # fmt: skip
def test_what_cannot_be_passed_on(setting, table, said):
    message = refused(setting, **table)
    assert message.startswith(setting)
    assert said in message
    assert "\n" not in message


@needs_vllm
def test_what_cannot_be_passed_on_to_vllm():
    assert refused("rollout.vllm.options", enforce_eagr=True) == (
        "rollout.vllm.options.enforce_eagr=True is not a field of vLLM's EngineArgs; did you mean enforce_eager?"
    )
    assert "block_size='x' does not fit vLLM's EngineArgs, where it is int | None" in refused(
        "evaluation.vllm.options", block_size="x"
    )


def test_everything_wrong_with_a_table_is_said_at_once():
    assert len(refused("training.trl", num_generations=8, xyzzy=1, adam_epsilon="x", top_k=1).splitlines()) == 4


@pytest.mark.parametrize(("setting", "translate", "section"), [("training.trl", grpo, NGRPOTrainingConfig)])
def test_what_the_library_itself_refuses_names_the_table(setting, translate, section):
    config = read(section, f'{setting}={{"optim": "no such optimizer"}}')
    with pytest.raises(
        ConfigError, match=r"^training\.trl: .*no such optimizer.* \(so says GRPOConfig of TRL\); correct the table$"
    ):
        translate(config)


@pytest.mark.parametrize(
    ("value", "kind", "fits"),
    [
        (3, "int", True),
        (3, "float", True),
        (3.5, "int", False),
        (True, "int", False),
        (True, "float", False),
        ("a", "str | None", True),
        (3, "str | None", False),
        (3, "Optional[int]", True),
        ("a", "Optional[int]", False),
        (["a"], "list[str]", True),
        (["a", 3], "list[str]", False),
        ("a", "Literal['a', 'b']", True),
        ("c", "Literal['a', 'b']", False),
        ({"a": 1}, "dict[str, Any] | str", True),
        (3, "dict[str, Any] | str", False),
        ({"a": 1}, "'dict[str, Any] | Other'", True),
        ("anything", "Other", True),
        ("anything", "module.Other", True),
        (3, "Union[str, bool]", False),
    ],
)
def test_a_value_fits_an_annotation_as_far_as_it_says(value, kind, fits):
    assert passed_on._fits(value, ast.parse(kind, mode="eval").body) is fits


def test_where_a_library_is_missing_it_is_said_and_what_is_ours_is_refused_all_the_same(monkeypatch):
    monkeypatch.setattr(passed_on, "_package", lambda name: None)
    config = load_config(PRESETS / "tiny.toml", ['rollout.vllm.options={"no_such_field": 1}'])
    assert unchecked(config) == [("rollout.vllm.options", "vllm")]
    with pytest.raises(ConfigError, match="max_num_seqs=1 is set by batch_size"):
        load_config(PRESETS / "tiny.toml", ['rollout.vllm.options={"max_num_seqs": 1}'])


def test_an_empty_table_reads_no_source(monkeypatch):
    monkeypatch.setattr(Library, "fields", lambda self: pytest.fail("was read"))
    for library in TABLES.values():
        check({}, library)


def test_nothing_is_imported_to_check(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom ngrpo.config import load_config\n"
        f'load_config(Path({str(PRESETS / "tiny.toml")!r}), [\'training.trl={{"optim": "sgd"}}\'])\n'
        "assert not {'trl', 'transformers', 'torch', 'vllm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
