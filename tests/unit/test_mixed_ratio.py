"""`training.mixed_ratio`: the importance ratio of mixed steps, against losses and gradients written out independently."""

import pytest
import torch
from test_ngrpo_trainer import SEQUENCES, rollout_batch, trainer
from test_presets import PRESETS
from test_replay import TEMPERATURE
from transformers import AutoModelForCausalLM

from ngrpo.config import load_config
from ngrpo.errors import ConfigError
from one_hot import one_hot_logps
from tiny import save_tiny_model

LENGTH, BETA, CLIP = 16, 0.3, 0.2


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def move(model) -> None:
    """Change the weights, as an update with another share of the rollout batch would."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))


def clipped(ratio: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def expected_loss(model, batch: dict, level: str) -> torch.Tensor:
    logps = one_hot_logps(model, batch, TEMPERATURE)
    inside, mixed = batch["completion_mask"].float(), batch["mix_mask"].float() * batch["completion_mask"]
    advantages = batch["advantages"][:, None]
    old, now = batch["old_per_token_logps"], logps.detach()
    unmixed = inside - mixed
    if level == "token":
        # The value of a mixed step is its advantage, and its gradient the advantage times that of log p: one plus what is zero.
        ratio = 1 + (logps - now)
        objective = clipped((logps - old).exp(), advantages) * unmixed + ratio * advantages * mixed
        weight = (logps - old).exp() * unmixed + ratio * mixed
    else:
        # The geometric mean of the ratios of a sequence, those of its mixed steps being one.
        product = ((logps - old) * unmixed).sum(1, keepdim=True) + ((logps - now) * mixed).sum(1, keepdim=True)
        weight = (product / inside.sum(1, keepdim=True)).exp()
        objective = clipped(weight, advantages).expand_as(logps) * inside
    gap = batch["ref_per_token_logps"] - logps
    divergence = weight * (gap.exp() - gap - 1)
    return -((objective - BETA * divergence) * inside).sum() / (SEQUENCES * LENGTH)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_loss_and_gradient_are_those_of_ratios_of_one(directory, level):
    settings = {"loss_type": "dr_grpo", "beta": BETA, "importance_sampling_level": level}
    learner = trainer(directory, "neighbor", mixed_ratio="one", **settings)
    batch = rollout_batch(learner)
    before = {name: value.clone() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    move(learner.model)
    learner.current_gradient_accumulation_steps = 1
    loss = learner._compute_loss(learner.model, batch)
    loss.backward()
    assert all(torch.equal(value, batch[name]) for name, value in before.items()), "the batch is used again"

    model = AutoModelForCausalLM.from_pretrained(directory)
    move(model)
    expected = expected_loss(model, batch, level)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours = dict(learner.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name].grad, parameter.grad, atol=1e-5, rtol=1e-3, msg=name)

    policy = trainer(directory, "neighbor", **settings)
    rollout_batch(policy)
    move(policy.model)
    policy.current_gradient_accumulation_steps = 1
    assert abs(policy._compute_loss(policy.model, batch).item() - loss.item()) > 1e-4, "the policy's ratios are others"


def test_a_mixed_step_is_never_clipped(directory):
    """Where the old policy gave every label much less, the ratio is far above the range: unmixed steps with gains are clipped."""
    learner = trainer(directory, "neighbor", mixed_ratio="one", loss_type="dr_grpo", beta=0.0)
    batch = rollout_batch(learner)
    batch["old_per_token_logps"] -= 2.0
    batch["advantages"] = torch.ones_like(batch["advantages"])
    learner.current_gradient_accumulation_steps = 1
    loss = learner._compute_loss(learner.model, batch)
    loss.backward()
    inside = batch["completion_mask"].bool()
    mixed = batch["mix_mask"] & inside
    assert loss.item() == pytest.approx(
        -(mixed.sum() + (1 + CLIP) * (inside & ~mixed).sum()).item() / (SEQUENCES * LENGTH), abs=1e-6
    )
    model = AutoModelForCausalLM.from_pretrained(directory)
    (-(one_hot_logps(model, batch, TEMPERATURE) * mixed).sum() / (SEQUENCES * LENGTH)).backward()
    torch.testing.assert_close(
        learner.model.get_input_embeddings().weight.grad,
        model.get_input_embeddings().weight.grad,
        atol=1e-5,
        rtol=1e-3,
    )


def test_without_mixed_steps_it_changes_nothing(directory):
    losses = []
    for mixed_ratio in ("policy", "one"):
        learner = trainer(directory, "token", mixed_ratio=mixed_ratio)
        batch = rollout_batch(learner)
        move(learner.model)
        learner.current_gradient_accumulation_steps = 2
        losses.append(learner._compute_loss(learner.model, batch).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["mixed_ratio=one"], "training.mixed_ratio='one' has no effect with updates_per_batch=1 and num_iterations=1"),
        (
            ["mixed_ratio=one", "updates_per_batch=2", "mask_mixed_positions=true"],
            "training.mixed_ratio='one' has no effect with mask_mixed_positions=true",
        ),
        (["mixed_ratio=1"], "training.mixed_ratio: "),
    ],
)
def test_where_it_has_no_effect_it_is_refused(settings, said):
    with pytest.raises(ConfigError) as refused:
        load_config(PRESETS / "tiny.toml", [f"training.{setting}" for setting in settings])
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_the_default_is_in_no_key():
    assert "mixed_ratio" not in load_config(PRESETS / "tiny.toml").training.model_dump()
    asked = load_config(PRESETS / "tiny.toml", ["training.num_iterations=2", "training.mixed_ratio=one"]).training
    assert asked.model_dump()["mixed_ratio"] == "one"
