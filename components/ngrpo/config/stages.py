"""What each stage receives of a configuration: a changed setting changes the keys of the stages that read it, and of no other."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ConfigDict

from ngrpo.config.mixing import MixingConfig
from ngrpo.config.run import RunConfig
from ngrpo.config.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NeighborsConfig,
    PromotionConfig,
    RolloutConfig,
    TrainingConfig,
    WarmStartConfig,
)
from ngrpo.config.sources import BaseModelSource
from ngrpo.section import Day, Section, Seed, StepsOrNone, Tokens

S = TypeVar("S", bound=Section)


class ModelFiles(Section):
    """What of `ModelConfig` decides the files of the base model."""

    model_config = ConfigDict(from_attributes=True)

    source: BaseModelSource


class TokenizerConfig(Section):
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


class PrepareDataConfig(Section):
    """Settings of the stage `prepare_data`; no other setting of the model or of the warm start changes its result."""

    model: TokenizerConfig
    data: DataConfig
    warm_start: ExampleLimits


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


class BenchmarkEvaluationConfig(Section):
    """Settings of the stage `benchmark_evaluation`."""

    seed: Seed
    model: ModelConfig
    neighbors: NeighborsConfig
    warm_start: WarmStartLength
    evaluation: EvaluationConfig


class ModelPromotionConfig(Section):
    """Settings of the stage `model_promotion`; what does not decide is there for the model card."""

    seed: Seed
    model: ModelConfig
    data: DataConfig
    mixing: MixingConfig
    rollout: RolloutConfig
    training: TrainingConfig
    promotion: PromotionConfig


def select(config: RunConfig, section: type[S]) -> S:
    """Return the part of a run's configuration that a stage depends on."""
    return section.model_validate({name: getattr(config, name) for name in section.model_fields})
