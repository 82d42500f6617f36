"""What our worker costs inside vLLM: decode steps of our engine, with and without mixing, against stock vLLM.

The peer is a `vllm.LLM` as it comes, with its own worker and sampler, that returns the log-probability of every token, as training asks
of it. All take turns in one process, on the shape of SmolLM2-135M with random weights: which tokens come makes no difference to time.
"""

from __future__ import annotations

import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.measure import Times, median_interval, report, rotate
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

from ngrpo.environment import environment
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.strategies import Neighbor
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.vllm.engine import VLLMEngine
from ngrpo.rollout.vllm.options import platform_defaults

BATCH, STEPS, PROMPT, ROUNDS, K, RATE = 32, 8, 1, 60, 3, 0.1
"""A prompt of one token, so that a generation is decode steps and nothing else."""
SHAPE = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def run(
    rounds: int = ROUNDS,
    shape: dict[str, Any] = SHAPE,
    batch: int = BATCH,
    steps: int = STEPS,
    dtype: str = "float32",
    **options: Any,
) -> list[dict]:
    """Measure our engine with and without mixing; by default as on a processor, where it is compared with the CPU build.

    On a processor the forward pass of the engine that starts first is some percent slower, whichever it is. So half of the rounds are
    measured in a process where ours starts first, and half in one where stock vLLM does.
    """
    times = {"mixing": Times(), "off": Times(), "stock": Times()}
    for ours_first in (True, False):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            half = process.submit(_measure, ours_first, rounds // 2, shape, batch, steps, dtype, options).result()
        for name, each in half.items():
            times[name].seconds.extend(each.seconds)
            times[name].processor_seconds.extend(each.processor_seconds)
    details = {"unit": "ms per decode step", "scale": 1000 / steps, "batch": batch, "k": K, "peer_is": "stock vLLM"}
    return [
        report(
            f"vllm_stock_{name}",
            times[name].seconds,
            times["stock"].seconds,
            rate=rate,
            **_processor(times[name], times["stock"]),
            **details,
        )
        for name, rate in (("mixing", RATE), ("off", 0.0))
    ]


def _measure(
    ours_first: bool,
    rounds: int,
    shape: dict[str, Any],
    batch: int,
    steps: int,
    dtype: str,
    options: dict[str, Any],
) -> dict[str, Times]:
    """Start the engines in one order, and return the times of the rounds."""
    with tempfile.TemporaryDirectory() as directory:
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            LlamaForCausalLM(LlamaConfig(**shape)).to(getattr(torch, dtype)).save_pretrained(directory)
        vocabulary, length = shape["vocab_size"], PROMPT + steps
        eligible = torch.ones(vocabulary, dtype=torch.bool)
        neighbors = torch.randint(0, vocabulary, (vocabulary, 8), dtype=torch.int32)
        mixer = Mixer(Neighbor(K), RATE, neighbors, eligible, 0)
        prompts = torch.randint(0, vocabulary, (batch, PROMPT)).tolist()

        def start_ours() -> VLLMEngine:
            # This is no one of several training processes, though the other engine may have initialized torch.distributed.
            alone = {"distributed_executor_backend": "uni"} | options
            return VLLMEngine(Path(directory), [], max_length=length, batch_size=batch, dtype=dtype, **alone)

        def start_stock() -> LLM:
            with environment({"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}):  # in this process, as ours
                return LLM(
                    model=directory,
                    skip_tokenizer_init=True,
                    dtype=dtype,
                    max_model_len=length,
                    max_num_seqs=batch,
                    use_tqdm_on_load=False,
                    **(platform_defaults() | options),
                )

        if ours_first:
            ours, stock = start_ours(), start_stock()
        else:
            stock = start_stock()
            ours = start_ours()
        asked = SamplingParams(temperature=0.7, max_tokens=steps, logprobs=0, detokenize=False)

        def generate(mixer: Mixer | None) -> None:
            rollouts = ours.generate(prompts, range(batch), Sampling(steps, 0.7), mixer)
            assert all(len(rollout.token_ids) == steps for rollout in rollouts)

        def generate_stock() -> None:
            outputs = stock.generate(
                [{"prompt_token_ids": prompt} for prompt in prompts], [asked] * batch, use_tqdm=False
            )
            assert all(len(output.outputs[0].token_ids) == steps for output in outputs)

        times = rotate(
            {"mixing": lambda: generate(mixer), "off": lambda: generate(None), "stock": generate_stock}, rounds
        )
        ours.close()
        stock.llm_engine.engine_core.shutdown()
        return times


def _processor(ours: Times, stock: Times) -> dict[str, Any]:
    """Return the ratio of what both took of the processors: a machine that does other things disturbs it less than the clock."""
    ratios = [a / b for a, b in zip(ours.processor_seconds, stock.processor_seconds, strict=True)]
    return {
        "processor_ratio": round(statistics.median(ratios), 4),
        "processor_ratio_interval": [round(bound, 4) for bound in median_interval(ratios)],
    }
