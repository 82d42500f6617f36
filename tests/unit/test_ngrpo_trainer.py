"""The trainer against stock TRL and against independent replays."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training.ngrpo_trainer import NGRPOTrainer
from one_hot import one_hot_logps
from tiny import EOS, FURTHER, PAD, mixer_for, save_tiny_model

GROUP, SEQUENCES = 4, 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def problems() -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": f"{i} + {j} ="}], "answer": str(i + j)}
            for i in range(6)
            for j in range(6)
        ]
    )


def length_reward(completions, **_) -> list[float]:
    return [float(len(completion[0]["content"]) % 5) for completion in completions]


def arguments(directory, **changes) -> GRPOConfig:
    settings = {
        "output_dir": str(directory / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": SEQUENCES // 8,
        "num_generations": GROUP,
        "max_completion_length": 16,
        "temperature": 0.7,
        "beta": 0.05,
        "loss_type": "grpo",
        "learning_rate": 1e-3,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return GRPOConfig(**(settings | changes))


def trainer(
    directory, strategy: str, rate: float = 0.4, mask: bool = False, mixed_ratio: str = "policy", **changes
) -> NGRPOTrainer:
    return NGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=[length_reward],
        args=arguments(directory, **changes),
        train_dataset=problems(),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
        make_engine=lambda model: TransformersEngine(model, [EOS], PAD, 64),
        current_mixer=lambda model: None if strategy == "token" else mixer_for(model, strategy, rate),
        mask_mixed_positions=mask,
        mixed_ratio=mixed_ratio,
    )


def rollout_batch(learner: NGRPOTrainer) -> dict:
    learner.model.train()
    rows = problems()
    return learner._generate_and_score_completions([rows[row // GROUP] for row in range(SEQUENCES)])


def worst(first: torch.Tensor, second: torch.Tensor, batch: dict) -> float:
    return (first - second)[batch["completion_mask"].bool()].abs().max().item()


@pytest.mark.parametrize(
    ("strategy", "checkpointing"),
    [
        *(
            (strategy, checkpointing)
            for strategy in ("neighbor", "gaussian", "token")
            for checkpointing in (False, True)
        ),
        ("gumbel", False),
        *(pytest.param(name, True, marks=pytest.mark.long) for name in FURTHER),
    ],
)
def test_every_pass_sees_the_recorded_inputs(directory, strategy, checkpointing):
    learner = trainer(directory, strategy, gradient_checkpointing=checkpointing)
    batch = rollout_batch(learner)
    sampled = batch["sampling_per_token_logps"]
    # Policy, old policy and reference still hold the same weights, so all three must give the rollout's own numbers.
    assert worst(batch["old_per_token_logps"], sampled, batch) <= 1e-4
    assert worst(batch["ref_per_token_logps"], sampled, batch) <= 1e-4
    seen = []
    score = learner._get_per_token_logps_and_entropies

    def remember(*args, **kwargs):
        result = score(*args, **kwargs)
        seen.append(result[0])
        return result

    learner._get_per_token_logps_and_entropies = remember
    learner._step = 0
    learner.current_gradient_accumulation_steps = 2
    learner._compute_loss(learner.model, batch)
    assert worst(seen[-1].detach(), sampled, batch) <= 1e-4
    if strategy != "token":
        ignored = {**batch, "mix_mask": torch.zeros_like(batch["mix_mask"])}
        learner._compute_loss(learner.model, ignored)
        assert worst(seen[-1].detach(), sampled, batch) > 1.0, "replay must depend on the records"


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "bnpo", "sapo"])
def test_a_closed_gate_is_exactly_stock_trl(directory, level, loss_type):
    learner = trainer(directory, "neighbor", rate=0.0, importance_sampling_level=level, loss_type=loss_type)
    batch = rollout_batch(learner)
    assert not batch["mix_mask"].any()
    stock = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(directory),
        reward_funcs=[length_reward],
        args=arguments(directory, importance_sampling_level=level, loss_type=loss_type),
        train_dataset=problems(),
        processing_class=AutoTokenizer.from_pretrained(directory, padding_side="left"),
    )
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    columns = batch["completion_ids"].shape[1]
    with torch.no_grad():
        expected, _, _ = stock._get_per_token_logps_and_entropies(stock.model, ids, mask, columns, batch_size=8)
    # Their rows are padded to other lengths, which sums in another order; the rows of one pass below are not.
    torch.testing.assert_close(batch["old_per_token_logps"], expected, rtol=0, atol=1e-5)
    losses = []
    for one in (learner, stock):
        one.model.train()
        one.current_gradient_accumulation_steps = 2
        loss = one._compute_loss(one.model, batch)
        loss.backward()
        losses.append((loss.detach(), one.model.get_input_embeddings().weight.grad))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])


def test_mixed_positions_can_be_left_out_of_the_loss(directory):
    learner = trainer(directory, "neighbor", mask=True)
    batch = rollout_batch(learner)
    inside = batch["completion_mask"].bool()
    assert torch.equal(batch["tool_mask"].bool()[inside], ~batch["mix_mask"][inside])
    learner.current_gradient_accumulation_steps = 1
    reference = learner._compute_loss(learner.model, batch).item()
    # A changed label on a mixed position must not reach the loss.
    batch["old_per_token_logps"][batch["mix_mask"]] -= 1.0
    assert learner._compute_loss(learner.model, batch).item() == reference
    batch["old_per_token_logps"][inside & ~batch["mix_mask"]] -= 0.1
    assert learner._compute_loss(learner.model, batch).item() != reference


def test_the_embedding_gradient_matches_an_independent_forward(directory):
    learner = trainer(directory, "neighbor", loss_type="dr_grpo", beta=0.0)
    batch = rollout_batch(learner)
    learner.current_gradient_accumulation_steps = 1
    learner._compute_loss(learner.model, batch).backward()

    model = AutoModelForCausalLM.from_pretrained(directory)
    matrix = model.get_input_embeddings().weight
    logps = one_hot_logps(model, batch, 0.7)
    ratio = torch.exp(logps - batch["old_per_token_logps"])
    advantages = batch["advantages"][:, None]
    objective = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (-(objective * batch["completion_mask"]).sum() / (SEQUENCES * 16)).backward()
    torch.testing.assert_close(learner.model.get_input_embeddings().weight.grad, matrix.grad, atol=1e-5, rtol=1e-4)


class Listening(TransformersEngine):
    """Keeps what it was asked for."""

    def __init__(self, model):
        super().__init__(model, [EOS], PAD, 64)
        self.seeds: list[list[int]] = []
        self.samplings: list[Sampling] = []

    def generate(self, prompts, seeds, sampling, mixer=None):
        self.seeds.append(list(seeds))
        self.samplings.append(sampling)
        return super().generate(prompts, seeds, sampling, mixer)


def asked(directory, **changes) -> Listening:
    """Generate a rollout batch before the first step and after the second; return the engine."""
    learner = trainer(directory, "token", **changes)
    learner._engine = Listening(learner.model)
    for step in (0, 2):
        learner.state.global_step = step
        rollout_batch(learner)
    return learner._engine


def loss_after_an_update(directory, **changes) -> tuple[float, dict]:
    """Return the loss of mixed rollouts under weights that have moved since, and the batch."""
    learner = trainer(directory, "neighbor", **changes)
    batch = rollout_batch(learner)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    learner.current_gradient_accumulation_steps = 2
    return learner._compute_loss(learner.model, batch).item(), batch


@pytest.fixture(scope="module")
def usual(directory):
    return loss_after_an_update(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon_high": 0.6},
        {"delta": 1.3},
        {"scale_rewards": "none"},
        {"scale_rewards": "batch"},
        {"mask_truncated_completions": True},
        {"top_entropy_quantile": 0.2},
        {"entropy_coef": 0.1},
        {"use_bias_correction_kl": False},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"loss_type": "sapo"},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    ],
    ids=str,
)
def test_a_setting_of_the_objective_takes_effect_on_mixed_rollouts(directory, usual, changes):
    loss, batch = loss_after_an_update(directory, **changes)
    expected, same = usual
    assert batch["mix_mask"].any()
    assert torch.equal(batch["completion_ids"], same["completion_ids"])
    assert abs(loss - expected) > 1e-4


def test_only_truncated_rollouts_are_left_out(directory, usual):
    _, batch = loss_after_an_update(directory, mask_truncated_completions=True)
    truncated = ~(usual[1]["completion_ids"] == EOS).any(dim=1)
    assert 0 < truncated.sum() < len(truncated)
    assert torch.equal(batch["completion_mask"].any(dim=1), ~truncated)
    assert torch.equal(batch["mix_mask"], usual[1]["mix_mask"])


def test_a_step_whose_rollouts_are_all_truncated_changes_nothing_that_is_not_finite(directory):
    learner = trainer(directory, "neighbor", mask_truncated_completions=True, max_completion_length=1, max_steps=1)
    learner.train()
    assert learner.state.global_step == 1


@pytest.mark.parametrize("iterations", [1, 2])
def test_a_rollout_batch_is_gone_through_as_often_as_it_is_asked_for(directory, iterations):
    learner = trainer(directory, "neighbor", num_iterations=iterations, max_steps=4)
    batches = []
    generate = learner._generate_single_turn
    learner._generate_single_turn = lambda *asked: batches.append(learner.state.global_step) or generate(*asked)
    learner.train()
    assert batches == list(range(0, 4, 2 * iterations))


def test_the_logits_of_mixed_rollouts_are_in_float32_where_it_is_asked_for(directory):
    """The rest stays in bfloat16, so the scores are nearer to those of full precision, not the same."""
    scores = {}
    for name, half, cast in (("full", False, False), ("half", True, False), ("head", True, True)):
        learner = trainer(directory, "neighbor", cast_lm_head_to_fp32=cast)
        batch = rollout_batch(learner)
        assert batch["mix_mask"].any()
        score = learner._get_per_token_logps_and_entropies
        learner._get_per_token_logps_and_entropies = lambda *asked, of=name, by=score, **more: scores.setdefault(
            of, by(*asked, **more)
        )
        learner.current_gradient_accumulation_steps = 2
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            learner._compute_loss(learner.model, batch)
    errors = {name: worst(scores[name][0].float(), scores["full"][0], batch) for name in ("half", "head")}
    assert 0 < errors["head"] < errors["half"]


def test_every_rollout_has_a_seed_of_its_own(directory):
    first, second = asked(directory, seed=3).seeds
    assert len({*first, *second}) == len(first) + len(second) == 2 * SEQUENCES
    assert asked(directory, seed=3).seeds == [first, second], "as a run that was resumed draws them"
    assert not {*first, *second} & {seed for batch in asked(directory, seed=4).seeds for seed in batch}


def test_rollout_batches_of_one_step_have_seeds_of_their_own(directory):
    learner = trainer(directory, "token", steps_per_generation=1, gradient_accumulation_steps=2)
    learner._engine = Listening(learner.model)
    for learner._step in (0, 1):
        rollout_batch(learner)
    first, second = learner._engine.seeds
    assert not {*first} & {*second}
    assert first == asked(directory).seeds[0]


def test_rollouts_are_asked_for_with_the_settings_of_training(directory):
    engine = asked(directory, temperature=0.9, top_p=0.8, max_completion_length=7)
    assert engine.samplings == [Sampling(7, 0.9, 0.8)] * 2


def test_every_epoch_has_an_order_of_its_own(directory):
    def order(epoch: float, **changes) -> list[int]:
        learner = trainer(directory, "token", **changes)
        sampler = learner._get_train_sampler(learner.train_dataset)
        learner.state.epoch = epoch
        return list(dict.fromkeys(sampler))

    rows = len(problems())
    first, second = order(0.0), order(1.0)
    assert len(first) == len(second) == rows // (SEQUENCES // GROUP) * (SEQUENCES // GROUP)
    assert first != sorted(first)
    assert first != second
    assert order(1.5) == second, "as a run that is resumed within an epoch sees it"
    assert order(0.0, seed=1) != first


def test_scoring_without_records_is_an_error(directory):
    learner = trainer(directory, "neighbor")
    batch = rollout_batch(learner)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    with pytest.raises(RuntimeError, match="outside of a rollout batch"):
        learner._get_per_token_logps_and_entropies(learner.model, ids, torch.ones_like(ids), 4)
    del batch["mix_mask"]
    with pytest.raises(KeyError, match="mix_mask"):
        learner._compute_loss(learner.model, batch)


def test_training_on_mixed_rollouts_takes_steps(directory):
    learner = trainer(directory, "neighbor", max_steps=4)
    before = learner.model.get_input_embeddings().weight.detach().clone()
    learner.train()
    rewards = [entry["reward"] for entry in learner.state.log_history if "reward" in entry]
    assert len(rewards) == 2, "one rollout batch serves two optimizer steps"
    assert not torch.equal(before, learner.model.get_input_embeddings().weight)
