"""The configuration of a run: one frozen tree, validated before anything starts.

A preset is a TOML file with the same shape. `load_config` reads one, applies `key=value` overrides and validates the result. Each
stage receives only the sections it depends on (`ngrpo.config.stages`).
"""

from ngrpo.config.endpoint import EndpointConfig
from ngrpo.config.mixing import MixingConfig
from ngrpo.config.reading import load_config, read_toml, validate
from ngrpo.config.rewards import RewardConfig
from ngrpo.config.run import RunConfig
from ngrpo.config.sections import (
    DataConfig,
    EvaluationConfig,
    NeighborsConfig,
    PromotionConfig,
    RolloutConfig,
    WarmStartConfig,
)
from ngrpo.config.sources import (
    ArithmeticSource,
    BaseModelSource,
    Columns,
    Copied,
    CopiedModel,
    CountdownSource,
    DirectoryModel,
    FilesSource,
    HubModel,
    HubSource,
    InitializedModel,
    PackagedModel,
    ReasoningGymSource,
    RegisteredModel,
    Source,
    Weighted,
)
from ngrpo.config.stages import (
    BenchmarkEvaluationConfig,
    DeployConfig,
    ExampleLimits,
    Generation,
    ModelPromotionConfig,
    NeighborIndexConfig,
    NGRPOTrainingConfig,
    PrepareDataConfig,
    SFTWarmStartConfig,
    TokenizerConfig,
    select,
)
from ngrpo.config.training import SelectionConfig, TrainingConfig
from ngrpo.section import Section

__all__ = [
    "ArithmeticSource",
    "BaseModelSource",
    "BenchmarkEvaluationConfig",
    "Columns",
    "Copied",
    "CopiedModel",
    "CountdownSource",
    "DataConfig",
    "DeployConfig",
    "DirectoryModel",
    "EndpointConfig",
    "EvaluationConfig",
    "ExampleLimits",
    "FilesSource",
    "Generation",
    "HubModel",
    "HubSource",
    "InitializedModel",
    "MixingConfig",
    "ModelPromotionConfig",
    "NGRPOTrainingConfig",
    "NeighborIndexConfig",
    "NeighborsConfig",
    "PackagedModel",
    "PrepareDataConfig",
    "PromotionConfig",
    "ReasoningGymSource",
    "RegisteredModel",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTWarmStartConfig",
    "Section",
    "SelectionConfig",
    "Source",
    "TokenizerConfig",
    "TrainingConfig",
    "WarmStartConfig",
    "Weighted",
    "load_config",
    "read_toml",
    "select",
    "validate",
]
