"""Properties of a model that a later stage could not use are refused by the first stage, or fixed and reported."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from ngrpo.config import DirectoryModel, HubModel, PrepareDataConfig, load_config, select
from ngrpo.data.chat import ChatLengths, end_of_turn
from ngrpo.data.embedding import read_embedding
from ngrpo.data.model_check import ModelFacts, examine_model, positions_of, require_positions
from ngrpo.data.models import examine, materialize
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import DataError
from ngrpo.rollout.loading import declare_ends, load_model
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo_kfp.pipelines.cli.options import PRESETS
from ngrpo_kfp.pipelines.planning.content import stage_settings
from tiny import EOS, save_tiny_model

SELECTED = (
    'data.benchmarks.long={"kind": "arithmetic", "size": 4, "fold": "selection", "min_operands": 6, "max_operands": 6}',
    'training.selection={"benchmark": "long", "samples": 2}',
)
"""A benchmark whose prompts are longer than those of training, and that training is measured by."""
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def model(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def examined(directory: Path, tokenizer=None) -> ModelFacts:
    return examine_model(directory, tokenizer or AutoTokenizer.from_pretrained(directory), "model 'x'")


def refused(call) -> str:
    with pytest.raises(DataError) as failure:
        call()
    message = str(failure.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def byte_level(*added: str, unknown: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that spells everything, of GPT-2's kind."""
    letters = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=added[0], unk_token=unknown)


def test_a_sound_model_is_examined_in_no_time_and_without_its_weights(model):
    (model / "model.safetensors").unlink()
    examined(model)
    began = time.monotonic()
    facts = examined(model)
    assert time.monotonic() - began < 2
    assert {name.rpartition(".")[2] for name in facts.linear} == {*PROJECTIONS, "lm_head"}
    assert replace(facts, linear=()) == ModelFacts(rows=48, positions=2048, served=2048, ends=(EOS,))


# --- generation settings ----------------------------------------------------------------------------------------------


def test_generation_settings_that_cannot_be_saved_are_left_out_and_that_is_said(model, tmp_path):
    edit(model / "generation_config.json", temperature=0.6, do_sample=False, eos_token_id=[EOS, 3])
    (note,) = examined(model).notes
    assert "only its tokens are kept" in note
    loaded = load_model(model, "float32")
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.temperature) == ([EOS, 3], None)
    loaded.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "copy it again"),
        ('{"max_new_tokens": 0}', "max_new_tokens"),
        ('{"eos_token_id": "x"}', "eos_token_id='x' is not a token id"),
        ('{"num_return_sequences": 4}', "num_return_sequences"),
    ],
)
def test_damaged_generation_settings_are_refused(model, content, named):
    (model / "generation_config.json").write_text(content)
    message = refused(lambda: examined(model))
    assert named in message
    assert "generation_config.json" in message
    assert "correct it in a copy of the model, or delete it" in message or content == "{"


# --- the end of a response --------------------------------------------------------------------------------------------


def test_a_turn_ends_responses_though_the_model_does_not_declare_it(model):
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = CHATML
    edit(model / "config.json", vocab_size=300)
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    facts = examined(model, tokenizer)
    assert facts.ends == (EOS, tokenizer.eos_token_id, im_end)
    (note,) = facts.notes
    assert "'<|im_end|>'" in note
    loaded = load_model_of(48)
    declare_ends(loaded, tokenizer)
    assert im_end in loaded.generation_config.eos_token_id


def load_model_of(rows: int):
    from transformers import LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes))


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}", "<|user|>"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
        (
            "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}"
            "{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
            "<|endoftext|>",
        ),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", None),
    ],
)
def test_the_end_of_a_turn_is_read_off_the_template(template, token):
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>")
    tokenizer.chat_template = template
    found = end_of_turn(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == token


def test_a_response_that_nothing_ends_is_refused(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    edit(model / "generation_config.json", eos_token_id=None)
    assert "no token ends a response" in refused(lambda: examined(model, tokenizer))
    edit(model / "generation_config.json", eos_token_id=99)
    assert "token 99 ends a response" in refused(lambda: examined(model, tokenizer))


# --- tokens and rows --------------------------------------------------------------------------------------------------


def test_an_added_token_beyond_the_rows_is_refused_only_where_it_is_used(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([AddedToken("<image>", special=True)])
    assert examined(model, tokenizer).rows == 48
    lengths = ChatLengths(tokenizer, 48)
    lengths.require_known("data.train", ["a"], [[{"role": "user", "content": "1 + 2 ="}]])
    message = refused(
        lambda: lengths.require_known("data.train", ["a"], [[{"role": "user", "content": "1 <image> ="}]])
    )
    assert "problem 'a' has token 48 ('<image>')" in message
    tokenizer.chat_template = tokenizer.chat_template.replace("<user>", "<image>")
    assert "token 48 is '<image>'" in refused(lambda: examined(model, tokenizer))


def test_an_unknown_token_that_also_ends_texts_is_no_unknown_text():
    tokenizer = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", unknown="<|endoftext|>")
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|endoftext|>")
    ChatLengths(tokenizer).require_known("data.train", ["a"], [[{"role": "user", "content": "What is 1 + 2?"}]])
    words = word_tokenizer()
    words.unk_token = words.eos_token
    words.backend_tokenizer.model.unk_token = words.eos_token
    turns = [{"role": "user", "content": "what is 7+4-2?"}]
    ChatLengths(words).require_known("data.train", ["a"], [turns])
    turns = [{"role": "user", "content": "how many apples are 7+4-2?"}]
    assert "cannot encode problem 'b'" in refused(
        lambda: ChatLengths(words).require_known("data.train", ["b"], [turns])
    )


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(n_positions=512), 512),
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (
            LlamaConfig(
                max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 4096,
                    "rope_theta": 1e4,
                },
            ),
            16384,
        ),
    ],
)
def test_how_long_a_sequence_may_be(config, positions):
    assert positions_of(config) == positions


def test_a_response_beyond_the_last_position_is_refused_with_what_fits():
    facts = ModelFacts(positions=100)
    require_positions(facts, "data.train", 40, "rollout.max_tokens", 60)
    message = refused(lambda: require_positions(facts, "data.train", 40, "rollout.max_tokens", 61))
    assert "rollout.max_tokens=61" in message
    assert "set rollout.max_tokens to at most 60" in message
    assert "remove the long prompts" in refused(
        lambda: require_positions(facts, "data.train", 100, "rollout.max_tokens", 1)
    )


def test_positions_that_vllm_does_not_count_are_refused_where_it_generates():
    facts = ModelFacts(positions=16384, served=4096)
    require_positions(facts, "data.train", 100, "rollout.max_tokens", 8000)
    message = refused(lambda: require_positions(facts, "data.train", 100, "rollout.max_tokens", 8000, "vllm"))
    assert "vLLM serves the model with 4096 positions; set rollout.max_tokens to at most 3996" in message


def test_the_benchmark_that_training_is_measured_by_must_leave_room_for_its_rollouts(tmp_path):
    overrides = [
        "rollout.max_tokens=1012",
        "data.train.size=8",
        "data.train.max_operands=2",
        "data.train.min_operands=2",
        "data.benchmarks.validation.size=8",
        "data.benchmarks.validation.max_operands=2",
        "data.benchmarks.validation.min_operands=2",
    ]
    overrides += ["data.warm_start.size=8", "data.max_prompt_tokens=24"]
    config = load_config(PRESETS / "tiny.toml", overrides)
    selected = load_config(PRESETS / "tiny.toml", [*overrides, *SELECTED])
    (tmp_path / "output").mkdir()
    prepare_data.run(select(config, PrepareDataConfig), {}, tmp_path / "output", Context(tmp_path / "work"))
    (tmp_path / "other").mkdir()
    message = refused(
        lambda: prepare_data.run(
            select(selected, PrepareDataConfig), {}, tmp_path / "other", Context(tmp_path / "work")
        )
    )
    assert "rollout.max_tokens=1012: with the longest prompt of data.benchmarks.long" in message


@pytest.mark.parametrize("setting", ["rollout.max_tokens", "evaluation.max_tokens"])
def test_the_stage_refuses_responses_that_the_model_has_no_room_for(setting, tmp_path):
    config = load_config(PRESETS / "tiny.toml", [f"{setting}=1020", "data.train.size=8", "data.warm_start.size=8"])
    (tmp_path / "output").mkdir()
    prepare = select(config, PrepareDataConfig)
    message = refused(lambda: prepare_data.run(prepare, {}, tmp_path / "output", Context(tmp_path / "work")))
    assert f"{setting}=1020" in message
    assert "1024 positions" in message


def test_the_key_of_the_data_does_not_depend_on_how_long_responses_may_be():
    keyed = [
        stage_settings(select(load_config(PRESETS / "tiny.toml", overrides), PrepareDataConfig), {})
        for overrides in ([], ["rollout.max_tokens=40"])
    ]
    assert keyed[0].keyed == keyed[1].keyed
    assert keyed[0].given != keyed[1].given


# --- weights that cannot be trained, engines that cannot serve ---------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "mxfp4", "fp8"])
def test_quantized_weights_are_refused(model, method):
    edit(model / "config.json", quantization_config={"quant_method": method})
    message = refused(lambda: examined(model))
    assert f"quant_method='{method}'" in message
    assert "use the model that it was quantized from, or dequantize it" in message


def test_weights_that_are_not_in_the_files_are_refused_before_and_when_they_are_loaded(model, tmp_path):
    lost = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(model / "model.safetensors")
    save_file({name: weights[name] for name in weights if name != lost}, model / "model.safetensors", {"format": "pt"})
    source = DirectoryModel(kind="directory", path=str(model))
    message = refused(lambda: examine(source, tmp_path / "examined"))
    assert (
        f"1 of its weights are not in its files ({lost}), and would be random numbers; copy the model again" in message
    )
    assert f"1 of them are missing, {lost} for example" in refused(lambda: load_model(model, "float32"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtype": "int8"}, "no model can be built from its config.json: "),
        ({"pad_token_id": 10**6}, "no model can be built from its config.json: "),
        ({"rope_parameters": {"rope_type": "nothing"}}, "config.json"),
        ({"intermediate_size": 64}, "its files hold model.layers.0.mlp.gate_proj.weight with the shape ["),
    ],
)
def test_settings_that_do_not_fit_the_files_are_refused_before_weights_are_read(model, tmp_path, settings, said):
    edit(model / "config.json", **settings)
    assert said in refused(lambda: examine(DirectoryModel(kind="directory", path=str(model)), tmp_path / "examined"))


def test_an_adapter_beside_the_model_is_not_put_into_it_in_silence(model, tmp_path):
    (model / "adapter_config.json").write_text("{}")
    source = DirectoryModel(kind="directory", path=str(model))
    message = refused(lambda: examine(source, tmp_path / "examined"))
    assert "an adapter (adapter_config.json) lies beside the model; merge the two" in message
    assert refused(lambda: load_model(model, "float32")).endswith("or leave the adapter's files out of a copy")


def test_an_index_of_shards_that_names_other_places_is_refused_before_weights_are_read(model, tmp_path):
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    source = DirectoryModel(kind="directory", path=str(model))
    assert "which is not a safetensors file beside it" in refused(lambda: examine(source, tmp_path / "examined"))


@pytest.mark.parametrize("name", ["gemma3_multimodal", "qwen3_moe", "gpt2", "gpt_neox", "mamba", "bloom"])
def test_files_of_many_layouts_hold_all_weights(name, tmp_path):
    from one_step import save

    examine(DirectoryModel(kind="directory", path=str(save(name, tmp_path / "model"))), tmp_path / "examined")


def test_the_stage_refuses_a_model_that_vllm_could_not_serve(model, tmp_path):
    (tmp_path / "output").mkdir()
    edit(model / "config.json", architectures=None)
    overrides = [f'model.source={{"kind": "directory", "path": "{model}"}}', 'evaluation.engine="vllm"']
    overrides += ["warm_start.steps=0"]
    prepare = select(load_config(PRESETS / "tiny.toml", overrides), PrepareDataConfig)
    message = refused(lambda: prepare_data.run(prepare, {}, tmp_path / "output", Context(tmp_path / "work")))
    assert message.startswith(f"evaluation.engine='vllm': model '{model}': config.json has no architectures")
    assert 'add "architectures": ["LlamaForCausalLM"] in a copy of the model' in message


# --- which tensor the input embedding is ------------------------------------------------------------------------------


def test_the_embedding_of_another_module_is_not_taken_for_the_input_embedding(model):
    weights = load_file(model / "model.safetensors")
    expected = weights["model.embed_tokens.weight"].clone()
    for name in ("a.audio_tower.embed_tokens.weight", "model.vision.embed_tokens.weight"):
        weights = {name: torch.ones(7, 3), **weights}
    save_file(weights, model / "model.safetensors")
    assert torch.equal(read_embedding(model), expected)


def test_a_model_of_images_and_text_is_read_whatever_its_files_call_it(tmp_path):
    from one_step import save

    directory = save("mistral3", tmp_path)
    held = load_file(directory / "model.safetensors")
    (name,) = [name for name in held if name.endswith("embed_tokens.weight")]
    assert name != "model.language_model.embed_tokens.weight", "the files have names of their own"
    assert torch.equal(read_embedding(directory), held[name])
    materialize(HubModel(kind="hub", id=str(directory), revision="0" * 40), tmp_path / "there")
    loaded = load_model(directory, "float32")
    assert torch.equal(loaded.get_input_embeddings().weight, held[name])
