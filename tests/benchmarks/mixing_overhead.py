"""What mixing costs a rollout: decode steps of the transformers engine with mixing on, against the same engine with it off."""

from __future__ import annotations

import torch
from tests.benchmarks.measure import alternate, report
from transformers import LlamaConfig, LlamaForCausalLM

from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Neighbor
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.transformers_engine import TransformersEngine

STEPS, PROMPT = 48, 16
SIZES = {
    "tiny": (dict(hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4), 64, 256, 9),
    "smollm2_shape": (
        dict(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
        ),
        8192,
        16,
        5,
    ),
}
"""Shape, vocabulary, batch and rounds. The vocabulary of SmolLM2's shape is cut down, which leaves less to hide mixing behind."""


def run() -> list[dict]:
    """Measure each size at rate 0.1 and k = 3."""
    results = []
    for size, (shape, vocabulary, batch, rounds) in SIZES.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, **shape)).eval()
        eligible = torch.ones(vocabulary, dtype=torch.bool)
        index = NeighborIndex.build(model.get_input_embeddings().weight, eligible, candidates=8, block_rows=1024)
        mixer = Mixer(Neighbor(3), 0.1, index.neighbors, eligible, 0)
        # No token ends a response: both modes decode the same number of steps.
        engine = TransformersEngine(model, [vocabulary], 0, batch)
        prompts = torch.randint(0, vocabulary, (batch, PROMPT)).tolist()
        sampling = Sampling(STEPS, 0.7)
        ours, peer = alternate(
            lambda: engine.generate(prompts, range(batch), sampling, mixer),  # noqa: B023 - called in this turn
            lambda: engine.generate(prompts, range(batch), sampling, None),  # noqa: B023
            rounds,
        )
        results.append(
            report(
                f"mixing_overhead_{size}",
                ours,
                peer,
                unit="ms per decode step",
                scale=1000 / STEPS,
                peer_is="the same engine with mixing off",
                batch=batch,
                rate=0.1,
                k=3,
            )
        )
    return results
