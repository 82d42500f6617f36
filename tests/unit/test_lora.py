"""Training of adapters: engines and files get the merged model, and the embeddings never change."""

import json

import pytest
import torch
from peft import PeftModel
from test_ngrpo_trainer import GROUP, arguments, length_reward, problems, rollout_batch, worst
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from ngrpo.config import WarmStartConfig, validate
from ngrpo.config.lora import LoRAConfig
from ngrpo.errors import ConfigError
from ngrpo.mixing.records import InputMixture
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.stages.libraries import selected
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from ngrpo.training.policy_weights import adapters, base_of, merged, merged_parameters
from ngrpo.training.trained_model import save_model
from tiny import EOS, PAD, mixer_for, save_tiny_model

LORA = LoRAConfig(rank=4, alpha=16.0)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def learner_of(directory, lora=LORA, make_engine=lambda model: TransformersEngine(model, [EOS], PAD, 64), **changes):
    model = AutoModelForCausalLM.from_pretrained(directory)
    return NGRPOTrainer(
        model=model,
        reward_funcs=[length_reward],
        args=arguments(directory, learning_rate=2e-2, **changes),
        train_dataset=problems(),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
        peft_config=adapters(lora, model, "training"),
        make_engine=make_engine,
        current_mixer=lambda model: mixer_for(model, "neighbor", 0.4),
    )


def by_peft(directory, learner):
    """The merged model, as PEFT merges it."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(directory), directory / "saved" / "adapter")
    return model.merge_and_unload()


def test_adapters_learn_and_all_that_leaves_training_is_the_merged_model(directory):
    learner = learner_of(directory)
    learner.train()
    save_model(learner, directory / "saved" / "model")
    saved = AutoModelForCausalLM.from_pretrained(directory / "saved" / "model")
    assert type(saved) is LlamaForCausalLM
    before = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    expected, found = by_peft(directory, learner).state_dict(), saved.state_dict()
    assert found.keys() == expected.keys() == before.keys()
    moved = {name for name in found if not torch.equal(found[name], before[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    engine = dict(merged_parameters(learner.model))
    assert engine.keys() == dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters()).keys()
    assert all(torch.equal(value, found[name]) for name, value in engine.items())
    adapter = json.loads((directory / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["base_model_name_or_path"]) == (4, 16.0, None)
    assert not list((directory / "saved").rglob("*.bin"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rollouts_replay_on_adapted_weights_and_the_reference_is_the_model_without_them(directory, checkpointing):
    learner = learner_of(directory, gradient_checkpointing=checkpointing)
    learner.train()
    batch = rollout_batch(learner)
    assert batch["mix_mask"].sum() > 20
    assert worst(batch["old_per_token_logps"], batch["sampling_per_token_logps"], batch) <= 1e-4
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    columns = batch["completion_ids"].shape[1]
    plain = learner_of(directory, lora=None)
    start = torch.zeros_like(batch["mix_seeds"])
    plain._mixture = InputMixture(
        batch["mix_mask"],
        batch["mix_candidates"],
        batch["mix_weights"],
        batch["mix_seeds"],
        start,
        learner._mixer.strategy,
    )
    with torch.no_grad():
        expected, _, _ = plain._get_per_token_logps_and_entropies(plain.model, ids, mask, columns)
    assert worst(batch["ref_per_token_logps"], expected, batch) <= 1e-5
    assert worst(batch["ref_per_token_logps"], batch["old_per_token_logps"], batch) > 1e-3


def test_an_engine_with_weights_of_its_own_is_given_the_merged_ones(directory):
    given = []

    class Own(TransformersEngine):
        def load_weights(self, weights):
            given.append(dict(weights))
            super().load_weights(given[-1].items())

    learner = learner_of(
        directory, make_engine=lambda _: Own(AutoModelForCausalLM.from_pretrained(directory), [EOS], PAD, 64)
    )
    learner.train()
    batch = rollout_batch(learner)
    assert given[0].keys() == dict(AutoModelForCausalLM.from_pretrained(directory).named_parameters()).keys()
    assert worst(batch["old_per_token_logps"], batch["sampling_per_token_logps"], batch) <= 1e-4
    assert GROUP * len(given) > GROUP


def test_weights_that_a_class_holds_transposed_are_merged_so(tmp_path):
    from peft import get_peft_model

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=48, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    policy = get_peft_model(model, adapters(LORA, model, "training"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    found = dict(merged(policy, policy.get_base_model().state_dict().items()))
    expected = policy.merge_and_unload().state_dict()
    assert found.keys() == expected.keys() == before.keys()
    assert not torch.equal(found["transformer.h.0.attn.c_attn.weight"], before["transformer.h.0.attn.c_attn.weight"])
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)


def test_a_model_without_adapters_is_itself(directory):
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert base_of(model) is model
    assert all(
        value is parameter for (_, value), parameter in zip(merged_parameters(model), model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"targets": ["q_proj", "embed_tokens"]}, "embeddings and output head are not adapted"),
        ({"targets": ["model.lm_head"]}, "embeddings and output head are not adapted"),
        ({"targets": []}, "targets"),
        ({"rank": 0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"r": 8}, r"lora\.r: .*lora\.rank"),
    ],
)
def test_what_adapters_cannot_be_is_one_line(lora, said):
    with pytest.raises(ConfigError, match=said) as failure:
        validate(WarmStartConfig, {"steps": 5, "lora": lora})
    assert str(failure.value).startswith("lora")


@pytest.mark.parametrize("target", ["q_prj", "norm", "layers"])
def test_a_target_that_is_no_linear_layer_is_refused_with_those_that_are(directory, target):
    model = AutoModelForCausalLM.from_pretrained(directory)
    with pytest.raises(
        ConfigError, match=rf"^training\.lora\.targets=\['q_proj', '{target}'\]: .*no linear layer"
    ) as failure:
        adapters(LoRAConfig(targets=("q_proj", target)), model, "training")
    assert str(failure.value).endswith("it has down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")
    assert adapters(LoRAConfig(targets=("self_attn.q_proj",)), model, "training") is not None


def test_pefts_version_counts_where_adapters_are_trained():
    declared = ("peft", "torch")
    assert selected(declared, '{"training": {"lora": {"rank": 4}}}') == declared
    assert selected(declared, '{"training": {"steps": 4}, "warm_start": {"lora": null}}') == ("torch",)
