"""The replay law, measured: one teacher-forced forward pass over the recorded inputs against what generation saw."""

from collections.abc import Sequence

import torch

from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import collate
from ngrpo.rollout.engine import Rollout


@torch.no_grad()
def replay_error(
    model, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], mixer: Mixer | None, temperature: float
) -> float:
    """Largest difference of log-probabilities between generation and one forward pass a rollout, unpadded."""
    worst = 0.0
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        ids = torch.tensor([[*prompt, *rollout.token_ids]])
        mixture = None
        if mixer is not None:
            mixture = collate(
                [rollout.records],
                [rollout.token_ids],
                len(rollout.token_ids),
                strategy=mixer.strategy,
                neighbors=mixer.neighbors,
                index_version=mixer.index_version,
                device="cpu",
            )
        with mixed_inputs(model.get_input_embeddings(), mixture):
            logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature
        logprobs = logits.log_softmax(-1)[torch.arange(len(rollout.token_ids)), torch.tensor(rollout.token_ids)]
        worst = max(worst, (logprobs - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst
