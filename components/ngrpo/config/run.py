"""The configuration of a whole run, and what its sections must agree on."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from ngrpo.cluster import ClusterConfig, ResourcesConfig
from ngrpo.config.sections import (
    DataConfig,
    EvaluationConfig,
    MixingConfig,
    ModelConfig,
    NeighborsConfig,
    PromotionConfig,
    RolloutConfig,
    TrainingConfig,
    WarmStartConfig,
)
from ngrpo.section import NonNegative, Section, StageName


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
