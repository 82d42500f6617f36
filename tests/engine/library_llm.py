"""What the library's `LLM` is put through, in the process of an engine."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from how_tos import WORDS_OF_MODEL
from ngrpo import NeighborIndex, NGRPOConfig, NGRPOTrainer, mixing_llm
from ngrpo.errors import NGRPOError
from ngrpo.rollout.engine import Sampling
from ngrpo.rollout.transformers_engine import TransformersEngine
from tiny import PAD, SPECIAL

PROMPTS = ["<user> 3 + 4 = <assistant>", "<user> cat dog <assistant>", "<user> 17 - 5 = <assistant>"]
THINK = len(SPECIAL) + WORDS_OF_MODEL.index("</think>")


def use_library(directory: Path) -> dict:
    """Put an `LLM` that mixes through what vLLM's users do; what a test asserts on."""
    from vllm import SamplingParams

    NeighborIndex.from_model(directory, candidates=4).save("neighbors")
    llm = mixing_llm(directory, k=4, rate=0.3, index="neighbors", dtype="float32", max_num_seqs=32)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    warm = SamplingParams(temperature=0.7, n=3, seed=15, max_tokens=60, ignore_eos=True)
    many = llm.generate(PROMPTS, warm, use_tqdm=False)
    responses = [(output.prompt_token_ids, response) for output in many for response in output.outputs]
    theirs = [
        rollout.token_ids
        for output in many
        for rollout in TransformersEngine(model, [], PAD, 8).generate(
            [output.prompt_token_ids] * 3, [15, 16, 17], Sampling(60, 0.7), llm._mixer
        )
    ]
    again = llm.generate(PROMPTS, warm, use_tqdm=False)
    plain = SamplingParams(temperature=1.0, max_tokens=12)
    first, second = (llm.generate(PROMPTS[:1], plain, use_tqdm=False) for _ in range(2))
    stopping = SamplingParams(temperature=1.5, seed=1, max_tokens=400, ignore_eos=True, stop=["="])
    (stopped,) = llm.generate(PROMPTS[0], stopping, use_tqdm=False)[0].outputs
    seeded = SamplingParams(temperature=0.7, seed=2, max_tokens=20)
    as_text, as_ids = (
        llm.generate(prompt, seeded, use_tqdm=False)[0].outputs[0].token_ids
        for prompt in (PROMPTS[0], {"prompt_token_ids": tokenizer.encode(PROMPTS[0])})
    )
    result = {
        "mixed": sum(len(response.mixing.positions) for _, response in responses),
        "error": max(_error(model, prompt, response, response.mixing.positions) for prompt, response in responses),
        "records_ignored": max(_error(model, prompt, response, []) for prompt, response in responses),
        "tokens": [list(response.token_ids) for _, response in responses],
        "their_tokens": theirs,
        "texts": [response.text.strip() for _, response in responses],
        "decoded": [tokenizer.decode(response.token_ids, skip_special_tokens=True) for _, response in responses],
        "shapes": [
            [type(output).__name__, [response.index for response in output.outputs]] for output in (many[0], first[0])
        ],
        "same_seed": [output.outputs[0].text for output in many] == [output.outputs[0].text for output in again],
        "unseeded_differ": first[0].outputs[0].token_ids != second[0].outputs[0].token_ids,
        "stopped": [stopped.finish_reason, stopped.stop_reason],
        "text_and_ids": as_text == as_ids,
        "after_marker": [
            position
            for _, response in responses
            if THINK in response.token_ids
            for position in response.mixing.positions
            if position > list(response.token_ids).index(THINK)
        ],
        "refusals": _refusals(llm),
    }
    llm.llm_engine.engine_core.shutdown()
    return result | {"training": train_on_vllm(directory)}


def train_on_vllm(directory: Path) -> dict:
    """Train as a user of TRL does who sets `use_vllm`; what a test asserts on."""
    settings = NGRPOConfig(
        "trained",
        use_vllm=True,
        rate=0.3,
        max_steps=4,
        per_device_train_batch_size=4,
        steps_per_generation=2,  # so that TRL scores a rollout batch before it trains on it
        num_generations=4,
        max_completion_length=16,
        learning_rate=3e-3,
        bf16=False,
        save_strategy="no",
        logging_steps=1,
    )
    prompts = Dataset.from_dict({"prompt": [f"<user> {number} + 1 =" for number in range(8)]})
    trainer = NGRPOTrainer(
        directory, lambda completions, **_: [float(len(set(text))) for text in completions], settings, prompts
    )
    generate, errors = trainer._generate_and_score_completions, []

    def watched(inputs: Any) -> Any:
        batch = generate(inputs)
        apart = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"])[batch["completion_mask"].bool()]
        errors.append(apart.abs().max().item())
        return batch

    trainer._generate_and_score_completions = watched
    trainer.train()
    trainer.close()
    return {
        "errors": errors,
        "gate_rates": [entry["mixing/gate_rate"] for entry in trainer.state.log_history if "mixing/gate_rate" in entry],
        "longest_prompt": trainer._longest_prompt(),
    }


def _refusals(llm: Any) -> dict[str, str]:
    from vllm import SamplingParams

    def refused(**settings: Any) -> Any:
        return lambda: llm.generate(PROMPTS, SamplingParams(**settings), use_tqdm=False)

    attempts = {
        "cold": refused(temperature=0.0),
        "top_k": refused(top_k=20),
        "min_p": refused(min_p=0.1),
        "penalty": refused(repetition_penalty=1.2),
        "logprobs": refused(logprobs=1),
        "bias": refused(logit_bias={3: 1.0}),
        "count": lambda: llm.generate(PROMPTS, [SamplingParams()] * 2, use_tqdm=False),
        "enqueue": lambda: llm.enqueue(PROMPTS),
        "beams": lambda: llm.beam_search(PROMPTS, None),
    }
    messages = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except NGRPOError as error:
            messages[name] = str(error)
    return messages


@torch.no_grad()
def _error(model: torch.nn.Module, prompt: list[int], response: Any, positions: list[int]) -> float:
    """Largest difference to the log-probabilities of one forward pass, the mixtures of some positions computed from the records."""
    mixing, tokens = response.mixing, list(response.token_ids)
    weight = model.get_input_embeddings().weight
    inputs = weight[torch.tensor([*prompt, *tokens])].clone()
    for position, candidates, weights in zip(mixing.positions, mixing.candidates, mixing.weights, strict=True):
        assert candidates[0] == tokens[position]
        if position in positions:
            inputs[len(prompt) + position] = torch.tensor(weights) @ weight[torch.tensor(candidates)]
    logits = model(inputs_embeds=inputs[None]).logits[0, len(prompt) - 1 : -1] / 0.7
    logprobs = logits.log_softmax(-1)[torch.arange(len(tokens)), torch.tensor(tokens)]
    return (logprobs - torch.tensor(mixing.logprobs)).abs().max().item()
