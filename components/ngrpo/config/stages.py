"""What each stage receives of a configuration: a changed setting changes the keys of the stages that read it, and of no other."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict

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
    TrainingConfig,
    VLLMConfig,
    WarmStartConfig,
)
from ngrpo.config.serving import Serving
from ngrpo.config.signing import SigningConfig
from ngrpo.config.sources import BaseModelSource, Source
from ngrpo.section import Day, Name, Section, Seed, StepsOrNone, Tokens, unless_set

S = TypeVar("S", bound=Section)


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


class PrepareDataConfig(Section):
    """Settings of the stage `prepare_data`; no other setting of the model or of the warm start changes its result."""

    model: TokenizerConfig
    data: Annotated[DataConfig, AfterValidator(_of_gold_answers)]
    warm_start: ExampleLimits
    rollout: Generation
    evaluation: Generation
    serving: Serving = Serving()
    adapters: dict[str, LoRAConfig] = {}

    unkeyed: ClassVar[frozenset[str]] = frozenset({"rollout", "evaluation", "serving", "adapters"})
    """These are not part of the key: what the stage refuses depends on them, its result does not."""


class NeighborIndexConfig(Section):
    """Settings of the stage `neighbor_index`."""

    model: ModelFiles
    neighbors: NeighborsConfig


class SFTWarmStartConfig(Section):
    """Settings of the stage `sft_warm_start`."""

    seed: Seed
    model: ModelConfig
    warm_start: WarmStartConfig


class NGRPOTrainingConfig(Section):
    """Settings of the stage `ngrpo_training`."""

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


class BenchmarkEvaluationConfig(Section):
    """Settings of the stage `benchmark_evaluation`."""

    seed: Seed
    model: ModelConfig
    neighbors: NeighborsConfig
    warm_start: WarmStartLength
    evaluation: EvaluationConfig
    benchmark_gradings: dict[Name, GradingConfig] = {}
    """How responses are graded, by benchmark."""
    gate: PromotionConfig | None = unless_set(None)
    """The gate whose verdict ends the evaluation early; none where none does."""


class ModelPromotionConfig(Section):
    """Settings of the stage `model_promotion`; what does not decide is there for the model card."""

    seed: Seed
    model: ModelConfig
    data: DataConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig
    promotion: PromotionConfig
    signing: SigningConfig = unless_set(SigningConfig())


def select(config: RunConfig, section: type[S]) -> S:
    """Return the part of a run's configuration that a stage depends on."""
    return section.model_validate({name: getattr(config, name) for name in section.model_fields})
