"""What a decode step at V=151,936 launches and moves: our kernels, our torch code, stock vLLM's sampler; prints JSON.

Counted under Triton's interpreter, hence a process of its own. A step of ours decides, mixes and notes the log-probability; a step of
vLLM's samples and has the log-probability of the token (`logprobs=0`), as its Model Runner V2 does it.
"""

import json
import os

os.environ |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
import triton.backends

# vLLM uses Triton only where a backend for the platform is listed; the interpreter needs none.
triton.backends.backends["cpu"] = next(iter(triton.backends.backends.values()))

import torch
from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

from decode_traffic import Traffic, counted
from ngrpo.mixing.strategies import Neighbor
from ngrpo.rollout.slots import MixingSlots, RequestSettings

VOCABULARY, DIMENSION, ROWS = 151_936, 1536, 2


def stock(logits: torch.Tensor) -> Traffic:
    """Count a step of `vllm.v1.worker.gpu.sample.sampler.Sampler` without top-k and top-p."""
    rows = torch.arange(ROWS, dtype=torch.int32)
    temperatures, seeds = torch.full((ROWS,), 0.7), torch.arange(ROWS)
    with counted() as traffic:
        processed = torch.empty_like(logits, dtype=torch.float32).copy_(logits)
        apply_temperature(processed, rows, temperatures)
        sampled = gumbel_sample(
            processed, rows, temperatures, seeds, rows.long(), apply_temperature=False, is_drafting=False
        )
        compute_topk_scores(logits, 0, sampled)
    return traffic


def ours(logits: torch.Tensor, *, fused: bool) -> Traffic:
    """Count a step in which every row mixes."""
    slots = MixingSlots(torch.device("cpu"), ROWS, fused=fused)
    slots.set_index(torch.zeros(VOCABULARY, 1).expand(-1, 8).int(), torch.ones(VOCABULARY).bool(), None)
    slots.add_strategy(0, Neighbor(3))
    held = [slots.add(str(row), RequestSettings(str(row), row, 0.7, 1.0, 4, 1.0, 0)) for row in range(ROWS)]
    matrix = torch.zeros(1, DIMENSION, dtype=torch.bfloat16).expand(VOCABULARY, DIMENSION)
    buffer, rows = torch.zeros(ROWS, DIMENSION, dtype=torch.bfloat16), torch.arange(ROWS)
    where, start, emits = torch.tensor(held), torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS).bool()
    with counted() as traffic:
        slots.decide(logits, where, start, emits)
        slots.mix_in_place(
            lambda ids: torch.nn.functional.embedding(ids, matrix), buffer, rows, where, start, matrix=matrix
        )
    return traffic


def main() -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(ROWS, VOCABULARY)).bfloat16()
    counts = {"kernels": ours(logits, fused=True), "torch": ours(logits, fused=False), "stock": stock(logits)}
    print(
        json.dumps(
            {
                name: {"launches": len(traffic.launches), "bytes": traffic.bytes / ROWS, "names": traffic.launches}
                for name, traffic in counts.items()
            }
        )
    )


if __name__ == "__main__":
    main()
