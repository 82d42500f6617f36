"""The card of an exported model: that of its version, what was exported, and the lines that load it."""

from __future__ import annotations

import json
from dataclasses import dataclass

from huggingface_hub import ModelCardData

_QUESTION = [{"role": "user", "content": "What is 7+4?"}]


@dataclass(frozen=True)
class Exported:
    """What was exported."""

    model: str
    """The registered model."""
    version: int | None
    """Its version; none where it was never registered."""
    digest: str
    """Digest of the model's files as they were evaluated."""
    adapter: bool
    """Whether it is the adapter alone."""
    dtype: str | None
    """Type that the weights were converted to; none where they are byte for byte what was evaluated."""
    place: str
    """Directory, or repository of the hub, that it is loaded from."""
    in_float32: bool = False
    """Whether the exported weights are in float32, which vLLM rounds to 16 bits unless `dtype` is set."""
    filled_up: bool = False
    """Whether attention heads were padded with zeros, for vLLM's CPU build."""


def exported_card(exported: Exported, card: str | None) -> str:
    """Return the card in the form of the Hugging Face hub.

    Args:
        exported: What was exported.
        card: Card of its version in the registry; none where it has none.
    """
    if card is None:
        data = ModelCardData(library_name="transformers", pipeline_tag="text-generation", model_name=exported.model)
        said = "It has no version in the registry: no gate has decided on it."
        card = "\n".join(["---", data.to_yaml(), "---", f"# {exported.model}", f"\nPost-trained. {said}\n"])
    return "\n".join(
        [
            card.rstrip("\n"),
            "\n## Files\n",
            _files(exported),
            "\n## Use\n",
            "```python",
            *loading_lines(exported),
            "```\n",
        ]
    )


def loading_lines(exported: Exported, vllm_problem: str | None = None, *, on_cpu: bool = False) -> list[str]:
    """Return lines of Python that load an exported model: in transformers, then in vLLM.

    Args:
        exported: What was exported.
        vllm_problem: Why vLLM cannot serve it on this machine; none if nothing is known.
        on_cpu: Whether vLLM runs on processors, where by default it asks for nearly all memory of the machine.
    """
    own_type = ', dtype="float32"' if exported.in_float32 else ""
    place, chat = json.dumps(exported.place, ensure_ascii=False), f"chat = {json.dumps(_QUESTION)}"
    if exported.adapter:
        return [
            "# transformers; BASE is the model that training started from",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            f"model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), {place})",
        ]
    return [
        "# transformers",
        "from transformers import pipeline",
        chat,
        f'model = pipeline("text-generation", {place})',
        'print(model(chat, max_new_tokens=256, do_sample=False)[0]["generated_text"][-1]["content"])',
        "",
        "# vLLM",
        *([] if vllm_problem is None else [f"# not on this machine: {vllm_problem}"]),
        "from vllm import LLM, SamplingParams",
        chat,
        f"model = LLM({place}{own_type}{', gpu_memory_utilization=0.4' if on_cpu else ''})",
        "print(model.chat(chat, SamplingParams(max_tokens=256, temperature=0))[0].outputs[0].text)",
    ]


def _files(exported: Exported) -> str:
    version = "a model without a version" if exported.version is None else f"version {exported.version}"
    source = f"{version} of `{exported.model}`, whose files have the digest sha256 `{exported.digest}`"
    if exported.adapter:
        return f"The adapter that was merged into {source}."
    if exported.dtype is not None:
        return f"Exported from {source}. The weights were converted to {exported.dtype}; what was evaluated are the original ones."
    if exported.filled_up:
        return (
            f"Exported from {source}. Attention heads were padded with zeros, which vLLM's CPU build requires. The model's outputs "
            "are the same; the evaluation used the original weights."
        )
    return f"Exported from {source}. Weights, settings and tokenizer are byte for byte what was evaluated."
