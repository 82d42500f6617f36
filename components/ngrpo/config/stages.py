"""The stages, each declared once: what it receives of a configuration, and all else that must be known of it.

A changed setting changes the keys of the stages that read it, and of no other. What stands elsewhere because a stage is there, the face of
its component for example, is held to this by `tests/pipeline/test_components.py`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict

from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.config.declared import Declaration, StageName, StageSection
from ngrpo.config.deployment import DeploymentConfig
from ngrpo.config.grading import GradingConfig
from ngrpo.config.lora import LoRAConfig
from ngrpo.config.mixing import MixingConfig
from ngrpo.config.run import RunConfig
from ngrpo.config.sections import (
    ChatFormat,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NeighborsConfig,
    PromotionConfig,
    RolloutConfig,
    VLLMConfig,
    WarmStartConfig,
)
from ngrpo.config.serving import Serving
from ngrpo.config.signing import SigningConfig
from ngrpo.config.sources import BaseModelSource, Source
from ngrpo.config.training import TrainingConfig
from ngrpo.section import Day, Name, Section, Seed, StepsOrNone, Tokens, unless_set

S = TypeVar("S", bound=Section)

_MODELS = ("jinja2", "safetensors", "tokenizers", "torch", "transformers")
_TRAINING = ("accelerate", "datasets", "peft", "pyarrow", "trl")
_GRADING = ("antlr4-python3-runtime", "latex2sympy2_extended", "mpmath", "sympy")


class ModelFiles(Section):
    """What of `ModelConfig` decides the files of the base model."""

    model_config = ConfigDict(from_attributes=True)

    source: BaseModelSource


class TokenizerConfig(ChatFormat):
    """What of `ModelConfig` decides what the tokenizer makes of a chat."""

    model_config = ConfigDict(from_attributes=True)

    source: BaseModelSource
    template_date: Day


class ExampleLimits(Section):
    """What of `WarmStartConfig` decides which examples are kept."""

    model_config = ConfigDict(from_attributes=True)

    max_tokens: Tokens


class WarmStartLength(Section):
    """What of `WarmStartConfig` decides whether the warm start is another model than the base model."""

    model_config = ConfigDict(from_attributes=True)

    steps: StepsOrNone


class Generation(Section):
    """What of `RolloutConfig` and `EvaluationConfig` decides whether the model can be used, and has room for a response."""

    model_config = ConfigDict(from_attributes=True)

    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VLLMConfig = VLLMConfig()
    max_tokens: Tokens


def _of_gold_answers(data: DataConfig) -> DataConfig:
    """Leave out how responses are graded: a change of that makes no other tables."""
    alike = {name: _read_alike(source) for name, source in data.benchmarks.items()}
    warm_start = None if data.warm_start is None else _read_alike(data.warm_start)
    train = (
        {name: _read_alike(source) for name, source in data.train.items()}
        if isinstance(data.train, dict)
        else _read_alike(data.train)
    )
    return data.model_copy(update={"train": train, "warm_start": warm_start, "benchmarks": alike})


def _read_alike(source: Source) -> Source:
    return source.model_copy(update={"grading": source.grading.of_gold})


class PrepareDataConfig(StageSection):
    """Settings of the stage `prepare_data`; no other setting of the model or of the warm start changes its result."""

    stage: ClassVar = Declaration(
        "prepare_data",
        "Dataset",
        libraries=(*_MODELS, *_GRADING, "datasets", "gguf", "pyarrow", "reasoning-gym"),
    )

    model: TokenizerConfig
    data: Annotated[DataConfig, AfterValidator(_of_gold_answers)]
    warm_start: ExampleLimits
    rollout: Generation
    evaluation: Generation
    serving: Serving = Serving()
    adapters: dict[str, LoRAConfig] = {}

    unkeyed: ClassVar[frozenset[str]] = frozenset({"rollout", "evaluation", "serving", "adapters"})
    """These are not part of the key: what the stage refuses depends on them, its result does not."""


class NeighborIndexConfig(StageSection):
    """Settings of the stage `neighbor_index`."""

    stage: ClassVar = Declaration("neighbor_index", libraries=(*_MODELS, "gguf"))

    model: ModelFiles
    neighbors: NeighborsConfig


class SFTWarmStartConfig(StageSection):
    """Settings of the stage `sft_warm_start`."""

    stage: ClassVar = Declaration(
        "sft_warm_start",
        "Model",
        {"dataset": "prepare_data"},
        libraries=(*_MODELS, *_TRAINING, "gguf"),
    )

    seed: Seed
    model: ModelConfig
    warm_start: WarmStartConfig


class NGRPOTrainingConfig(StageSection):
    """Settings of the stage `ngrpo_training`."""

    stage: ClassVar = Declaration(
        "ngrpo_training",
        "Model",
        {"dataset": "prepare_data", "neighbor_index": "neighbor_index", "warm_start": "sft_warm_start"},
        parallel=True,
        libraries=(*_MODELS, *_TRAINING, *_GRADING, "numpy", "regex", "vllm"),
    )

    seed: Seed
    model: ModelConfig
    neighbors: NeighborsConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig
    train_grading: GradingConfig = GradingConfig()
    """How `correctness` grades rollouts."""
    selection_grading: GradingConfig = GradingConfig()
    """How answers to the benchmark of `training.selection` are graded."""


class BenchmarkEvaluationConfig(StageSection):
    """Settings of the stage `benchmark_evaluation`."""

    stage: ClassVar = Declaration(
        "benchmark_evaluation",
        inputs={"dataset": "prepare_data", "warm_start": "sft_warm_start", "trained": "ngrpo_training"},
        libraries=(*_MODELS, *_GRADING, "gguf", "numpy", "pyarrow", "vllm"),
    )

    seed: Seed
    model: ModelConfig
    neighbors: NeighborsConfig
    warm_start: WarmStartLength
    evaluation: EvaluationConfig
    benchmark_gradings: dict[Name, GradingConfig] = {}
    """How responses are graded, by benchmark."""
    gate: PromotionConfig | None = unless_set(None)
    """The gate whose verdict ends the evaluation early; none where none does."""


class ModelPromotionConfig(StageSection):
    """Settings of the stage `model_promotion`; what does not decide is there for the model card."""

    # The champion moves between two runs: a decision is made anew every time.
    stage: ClassVar = Declaration(
        "model_promotion",
        inputs={"trained": "ngrpo_training", "evaluation": "benchmark_evaluation"},
        cacheable=False,
        libraries=(*_GRADING, "numpy", "pyarrow"),
    )

    seed: Seed
    model: ModelConfig
    data: DataConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig
    promotion: PromotionConfig
    signing: SigningConfig = unless_set(SigningConfig())


class PromptLimit(Section):
    """What of `DataConfig` decides how much room a served model needs for a prompt."""

    model_config = ConfigDict(from_attributes=True)

    max_prompt_tokens: Tokens


class ResponseLimit(Section):
    """What of `RolloutConfig` decides how much room it needs for a response."""

    model_config = ConfigDict(from_attributes=True)

    max_tokens: Tokens


def _through_an_endpoint(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Leave out what is of no account where a served model answers: no engine is started, and no verdict is to be settled."""
    return evaluation.model_copy(update={"engine": "transformers", "early_stop": None})


class DeployConfig(StageSection):
    """Settings of the stage `deploy`."""

    # It changes what the cluster serves.
    stage: ClassVar = Declaration(
        "deploy",
        inputs={
            "dataset": "prepare_data",
            "trained": "ngrpo_training",
            "evaluation": "benchmark_evaluation",
            "promotion": "model_promotion",
        },
        cacheable=False,
        libraries=(*_MODELS, *_GRADING, "gguf", "numpy", "pyarrow", "vllm"),
        wanted=lambda config: config.deployment.after_promotion,
    )

    preset: Name
    seed: Seed
    model: ModelConfig
    data: PromptLimit
    neighbors: NeighborsConfig
    rollout: ResponseLimit
    evaluation: Annotated[EvaluationConfig, AfterValidator(_through_an_endpoint)]
    benchmark_gradings: dict[Name, GradingConfig] = {}
    promotion: PromotionConfig
    signing: SigningConfig = unless_set(SigningConfig())
    resources: dict[StageName, ResourcesConfig] = {}
    cluster: ClusterConfig
    deployment: DeploymentConfig


def select(config: RunConfig, section: type[S]) -> S:
    """Return the part of a run's configuration that a stage depends on."""
    return section.model_validate({name: getattr(config, name) for name in section.model_fields})


def stages_of(config: RunConfig) -> list[str]:
    """Return the names of the stages that a run has."""
    declared = [section.stage for section in StageSection.__subclasses__()]
    return [stage.name for stage in declared if stage.wanted is None or stage.wanted(config)]
