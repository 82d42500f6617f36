"""GSPO against GRPO in the pipeline's trainer: equal if a batch is used once, different if it is used four times."""

import pytest
import torch
from test_ngrpo_trainer import SEQUENCES, trainer

from tiny import save_tiny_model


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def moved(directory, level: str, updates: int) -> torch.Tensor:
    """Return how far two rollout batches of N-GRPO move all weights, with an optimizer that follows the gradient."""
    learner = trainer(
        directory,
        "neighbor",
        importance_sampling_level=level,
        max_steps=2 * updates,
        gradient_accumulation_steps=SEQUENCES // 8 // updates,
        use_bias_correction_kl=False,
        optim="sgd",
        learning_rate=0.02,
        max_grad_norm=100.0,
    )
    before = torch.cat([value.detach().flatten().clone() for value in learner.model.parameters()])
    learner.train()
    return torch.cat([value.detach().flatten() for value in learner.model.parameters()]) - before


def apart(directory, updates: int) -> float:
    """Return how far GSPO ends from GRPO, relative to the distance that GRPO moves."""
    grpo, gspo = (moved(directory, level, updates) for level in ("token", "sequence"))
    assert grpo.norm() > 0.05, "something was learned"
    return float((gspo - grpo).norm() / grpo.norm())


def test_with_one_update_a_batch_gspo_is_grpo(directory):
    assert apart(directory, 1) < 1e-5


def test_with_four_updates_a_batch_gspo_is_not_grpo(directory):
    assert apart(directory, 4) > 0.05
