"""Sections of a configuration. `training`, `cluster`, `resources` and others have modules of their own."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ngrpo.config.endpoint import EndpointConfig
from ngrpo.config.lora import LoRAConfig
from ngrpo.config.mixing import MixingConfig
from ngrpo.config.passed_on import SFTOptions, VLLMOptions
from ngrpo.config.sources import BaseModelSource, Source, TrainSource
from ngrpo.config.template_file import TemplateFromFile
from ngrpo.section import (
    Coefficient,
    Confidence,
    Day,
    LearningRate,
    Name,
    NonEmpty,
    Nucleus,
    Points,
    Probability,
    Samples,
    Section,
    Sequences,
    Spelled,
    Steps,
    StepsOrNone,
    Temperature,
    Text,
    Tokens,
    count,
    keep_apart,
    number,
    refuse,
    unless_set,
)

TEMPLATE_DATE = date(2024, 7, 26)
_LEAST_SERVED = 0.01
"""vLLM raises a temperature below it (`vllm.sampling_params._MAX_TEMP`)."""


class DataConfig(Section):
    """Problems to learn from and problems to be measured on."""

    train: TrainSource
    """Problems for N-GRPO: one source, or several by name, `[data.train.NAME]`, each with its `weight`."""
    warm_start: Source | None = None
    """Problems with solutions for the warm start; none if the warm start is turned off."""
    benchmarks: Annotated[dict[Spelled, Source], BeforeValidator(keep_apart), Field(min_length=1)]
    """Held-out problems by benchmark name."""
    prompt_suffix: Text = ""
    """Text appended to every problem, after a space unless it begins with white space itself."""
    system_prompt: Text = unless_set("")
    """System message before every prompt that has none of its own."""
    max_prompt_tokens: Tokens
    """Training problems whose prompt is longer are dropped and counted."""
    overlap_words: Annotated[int, count(1, 10_000)] = 13
    """Training problems that share as many words in a row with a problem of a benchmark are dropped and listed."""

    @model_validator(mode="after")
    def _to_learn_from(self) -> Self:
        refuse(
            f"{name}.{field}={getattr(source, field)!r}: only benchmarks may have it; leave it out"
            for name, source in (*self.training_sets().items(), ("warm_start", self.warm_start))
            for field in ("wrong_answer_columns", "prompt_suffix", "gated")
            if getattr(source, field, None)
        )
        return self

    def training_sets(self) -> dict[str, Source]:
        """Return the sources of the training problems by their setting below `data`: `train`, or `train.NAME` for each of several."""
        if isinstance(self.train, dict):
            return {f"train.{name}": source for name, source in self.train.items()}
        return {"train": self.train}


class ChatFormat(Section):
    """What a run sets for the chats of its model; all of it stays with the trained model."""

    chat_template: TemplateFromFile | None = unless_set(None)
    """Chat template in place of the model's: a Jinja file, relative to the preset file, whose text becomes part of the settings; or
    `plain`, for a base model that has none: problem and response as they are, the end token after the response."""
    generation_prompt: Text = unless_set("")
    """Text before every response, after the chat template's own text, for example `<think>\\n`. A worked solution gets it in front unless
    it begins with it."""
    end_of_turn: tuple[NonEmpty, ...] = unless_set(())
    """Tokens that end a response, besides those that the model declares."""

    def chat_format(self) -> ChatFormat:
        """Return this part of the settings alone."""
        return ChatFormat.model_validate({name: getattr(self, name) for name in ChatFormat.model_fields})


class ModelConfig(ChatFormat):
    """The base model."""

    source: BaseModelSource
    """Where weights and tokenizer come from."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training and evaluation."""
    template_date: Day = TEMPLATE_DATE
    """Date that chat templates get when they ask for it (`strftime_now`, as in Llama 3.2 and SmolLM3), in training and evaluation:
    `YYYY-MM-DD`. The clock is never used, because prompts would change every day. The default is the fallback in Llama's templates."""


class NeighborsConfig(Section):
    """The neighbor index (equations 7-8)."""

    candidates: Annotated[int, count(1, 10_000)] = 32
    """Neighbors kept for each token, not counting the token itself: `mixing.k` may be chosen up to `candidates + 1`."""
    metric: Literal["cosine", "dot", "l2", "l1"] = "cosine"
    """Similarity of two embedding rows; of the distances `l2` and `l1` the smallest count as most similar."""
    block_rows: Annotated[int, count(1, 1_000_000)] = 2048
    """Edge of the square tiles of the similarity matrix computed at a time. Besides two copies of the embedding matrix, a build takes
    about `block_rows ** 2 * 16` bytes and 2 KB per token."""


class WarmStartConfig(Section):
    """Supervised fine-tuning before N-GRPO. With `steps = 0` the base model is passed on unchanged."""

    steps: StepsOrNone
    """Optimizer steps."""
    batch_size: Sequences = 64
    """Examples per optimizer step."""
    micro_batch_size: Sequences = 64
    """Examples per forward pass; must divide `batch_size`."""
    learning_rate: LearningRate = 5e-3
    """Peak learning rate of a cosine schedule."""
    warmup_ratio: Probability = 0.03
    """Share of the steps with a rising learning rate."""
    weight_decay: Coefficient = 0.0
    """Weight decay of AdamW."""
    max_tokens: Tokens = 1024
    """Longer examples are refused by the data stage."""
    save_steps: Steps = 100
    """Steps between two checkpoints."""
    lora: LoRAConfig | None = unless_set(None)
    """Adapters to train in place of all weights, merged at the end; none trains all weights."""
    trl: SFTOptions = {}
    """Further arguments of TRL's `SFTConfig`."""

    @model_validator(mode="after")
    def _micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}: "
                "choose a divisor of the batch size"
            )
        return self


class VLLMConfig(Section):
    """How vLLM is started, if it is the engine."""

    tensor_parallel_size: Annotated[int, count(1, 1024)] = 1
    """Devices that share the model."""
    gpu_memory_utilization: Annotated[float, number(above=0.0, below=1.0)] = 0.4
    """Share of a GPU's memory for weights, keys and values; training needs the rest."""
    options: VLLMOptions = {}
    """Further arguments of vLLM, as its `EngineArgs` name them."""


class EvaluationVLLMConfig(VLLMConfig):
    """How vLLM is started for an evaluation, where it has its GPUs to itself."""

    gpu_memory_utilization: Annotated[float, number(above=0.0, below=1.0)] = 0.9
    """Share of a GPU's memory for weights, keys and values."""


class RolloutConfig(Section):
    """How rollouts are generated in training."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that generates the rollouts."""
    vllm: VLLMConfig = VLLMConfig()
    """How vLLM is started, if it is the engine."""
    placement: Literal["colocated", "separate"] = unless_set("colocated")
    """Where rollouts are generated: alternating with training on the same GPUs, or in separate processes while training uses the previous
    batch. Separate rollouts come from the weights of one batch ago, which `training.mismatch_correction` must correct."""
    gpus: Annotated[int, count(0, 1024)] = unless_set(0)
    """With separate `placement`, the number of GPUs of `ngrpo_training` on each node that only generate; the others train."""
    group_size: Annotated[int, count(2, 100_000)] = 4
    """Rollouts of one prompt, G."""
    temperature: Temperature = 0.7
    """Temperature tau of sampling, mixing weights and loss (equations 2-3)."""
    top_p: Nucleus = 1.0
    """Nucleus of sampling; training needs the full distribution, so it must be 1."""
    max_tokens: Tokens
    """Longest response."""
    batch_size: Sequences = 256
    """Sequences decoded together."""

    @model_validator(mode="after")
    def _full_distribution(self) -> Self:
        if self.top_p != 1.0:
            raise ValueError(
                f"top_p={self.top_p} is not allowed in training: the loss assumes samples of the full distribution; set 1.0"
            )
        if self.gpus and self.placement == "colocated":
            raise ValueError(
                f"gpus={self.gpus} has no effect with placement='colocated', where all GPUs train and generate by turns: leave it out, "
                "or set placement to 'separate'"
            )
        return self


class EarlyStopConfig(Section):
    """When the evaluation of the trained model stops before all its samples are there; see docs/watch.md."""

    error: Annotated[float, number(above=0.0, most=0.2)] = 0.01
    """Probability that the verdict of the gate may differ from that of all samples."""
    opponent: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)] = unless_set("warm_start")
    """The model that the verdict is sought against: `warm_start`; `champion`, the champion when the run is planned, or the warm start if
    there is none; or the key of a model's evaluation, by which `champion` is replaced."""


class EvaluationConfig(Section):
    """How models are measured."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that generates the answers."""
    vllm: EvaluationVLLMConfig = EvaluationVLLMConfig()
    """How vLLM is started, if it is the engine."""
    samples: Samples = 32
    """Answers for each problem."""
    pass_at: tuple[Samples, ...] = (1, 16, 32)
    """Values of k reported for pass@k; each at most `samples`."""
    temperature: Temperature = 0.6
    """Sampling temperature."""
    top_p: Nucleus = 0.95
    """Nucleus of sampling."""
    max_tokens: Tokens = 8192
    """Longest response."""
    batch_size: Sequences = 256
    """Sequences decoded together."""
    mixing: MixingConfig | None = None
    """Mixing at inference, for the paper's Table 5; off unless given."""
    bootstrap_draws: Annotated[int, count(1, 10_000_000)] = 2000
    """Draws of the bootstrap over problems."""
    confidence: Confidence = 0.95
    """Level of the intervals."""
    string_match: tuple[Spelled, ...] = ()
    """Benchmarks whose answers are compared as strings too, as the authors' release does (see `ngrpo.grading.string_match`): reported
    beside the verdict; nothing depends on it."""
    early_stop: EarlyStopConfig | None = unless_set(None)
    """Stops generating for the trained model, on the benchmarks of the gate, once the gate's verdict is settled.
    None generates all samples. The table may be empty, `[evaluation.early_stop]`."""
    endpoint: EndpointConfig | None = unless_set(None)
    """A served model that answers in place of a local engine, for `ngrpo evaluate`. The endpoint must serve the model that is
    measured."""

    @model_validator(mode="after")
    def _as_an_endpoint_can(self) -> Self:
        if self.endpoint is None:
            return self
        if self.mixing is not None:
            raise ValueError("mixing has no effect with endpoint: a served model does not mix; leave one of them out")
        if self.temperature < _LEAST_SERVED:
            raise ValueError(
                f"temperature={self.temperature:g} with endpoint: vLLM's server takes {_LEAST_SERVED} for it, so that the samples would be "
                f"others; set {_LEAST_SERVED} or more, and a small top_p for greedy answers"
            )
        return self

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if not self.pass_at:
            raise ValueError("pass_at=[] has no k: name at least one")
        if max(self.pass_at) > self.samples:
            raise ValueError(
                f"pass_at={list(self.pass_at)} asks for more than samples={self.samples}: pass@k needs k <= samples"
            )
        return self


class PromotionConfig(Section):
    """When a trained model becomes the champion."""

    model_name: Name = "ngrpo"
    """Name in the model registry."""
    benchmark: Spelled
    """Benchmark on which the candidate must gain."""
    statistic: Annotated[str, Field(pattern=r"^(mean|maj|pass@[1-9][0-9]{0,5})$")] = "mean"
    """What is compared on every benchmark: `mean` (mean@n), `maj` (maj@n) or `pass@K`."""
    min_gain: Annotated[float, number(least=-100.0, most=100.0)] = 0.0
    """Smallest gain over the champion, in percentage points."""
    tolerated_regression: Annotated[dict[Spelled, Points], BeforeValidator(keep_apart)] = {}
    """By benchmark, the largest loss against the champion that is tolerated there, in percentage points; benchmarks that are not listed
    may lose any amount."""
    confidence: Confidence = 0.95
    """One-sided confidence of each bound of the paired bootstrap: that the gain exceeds `min_gain`, and that no loss exceeds what is
    tolerated."""
