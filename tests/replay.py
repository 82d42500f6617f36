"""The replay law, measured: one teacher-forced forward pass over the recorded inputs against what generation saw."""

from collections.abc import Sequence

import torch

from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import collate
from ngrpo.rollout.engine import Rollout


def replay_error(
    model, prompts: Sequence[Sequence[int]], rollouts: Sequence[Rollout], mixer: Mixer | None, temperature: float
) -> float:
    """Largest difference of log-probabilities between generation and one forward pass a rollout, unpadded."""
    worst = 0.0
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        chosen = torch.arange(len(rollout.token_ids)), torch.tensor(rollout.token_ids)
        logprobs = replayed(model, prompt, rollout, mixer, temperature)[chosen]
        worst = max(worst, (logprobs - torch.tensor(rollout.logprobs)).abs().max().item())
    return worst


def replayed(model, prompt: Sequence[int], rollout: Rollout, mixer: Mixer | None, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of all tokens at each place of a rollout, `[length, V]`, by one pass over its recorded inputs."""
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
    ids = torch.tensor([[*prompt, *rollout.token_ids]])
    with torch.no_grad(), mixed_inputs(model.get_input_embeddings(), mixture):
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(dim=-1)
