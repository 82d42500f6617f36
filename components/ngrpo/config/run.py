"""The configuration of a whole run, and what its sections must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator

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
from ngrpo.section import Line, Name, Section, Seed, StageName, name_of, refuse


class RunConfig(Section):
    """A whole run."""

    # Defaults are held against the other sections too.
    model_config = ConfigDict(validate_default=True)

    preset: Name
    """Name of the preset the run started from."""
    seed: Seed = 0
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
    titles: dict[Name, Line] = {}
    """How benchmarks are called where people read, by name; a benchmark that is not here is called by its name. No stage's key depends
    on it."""

    def title(self, benchmark: str) -> str:
        """Return how a benchmark is called where people read."""
        return self.titles.get(benchmark, benchmark)

    def needs(self, stage: str) -> ResourcesConfig:
        """Return what a stage asks for."""
        return next((needs for name, needs in self.resources.items() if name == stage), ResourcesConfig())

    @model_validator(mode="before")
    @classmethod
    def _keep_spellings(cls, tree: Any) -> Any:
        """Keep how benchmarks are spelled that are not named by what stands for them in paths and keys."""
        benchmarks, titles = _get(_get(tree, "data"), "benchmarks"), _get(tree, "titles") or {}
        if not isinstance(benchmarks, dict) or not isinstance(titles, dict):
            return tree
        spelled = {name_of(spelling): spelling for spelling in benchmarks if name_of(spelling) != spelling}
        return tree | {"titles": spelled | titles} if spelled else tree

    # Rules over several sections stand with the last of them: what is absent from `info.data` has faults of its own, and rules that
    # do not need it still hold, so that everything wrong is said at once.

    @field_validator("warm_start")
    @classmethod
    def _has_examples(cls, warm_start: WarmStartConfig, info: ValidationInfo) -> WarmStartConfig:
        data: DataConfig | None = info.data.get("data")
        if warm_start.steps and data is not None and data.warm_start is None:
            raise ValueError(
                f"warm_start.steps={warm_start.steps} needs data.warm_start: name a source or set steps to 0"
            )
        return warm_start

    @field_validator("mixing")
    @classmethod
    def _has_candidates(cls, mixing: MixingConfig, info: ValidationInfo) -> MixingConfig:
        neighbors: NeighborsConfig | None = info.data.get("neighbors")
        if neighbors is not None and mixing.k > neighbors.candidates + 1:
            raise ValueError(
                f"mixing.k={mixing.k} exceeds neighbors.candidates={neighbors.candidates} plus the anchor: "
                f"raise neighbors.candidates to at least {mixing.k - 1} or lower mixing.k"
            )
        return mixing

    @field_validator("training")
    @classmethod
    def _can_train(cls, training: TrainingConfig, info: ValidationInfo) -> TrainingConfig:
        refuse(_training_problems(training, info.data.get("rollout"), info.data.get("data")))
        return training

    @field_validator("evaluation")
    @classmethod
    def _matches_what_there_is(cls, evaluation: EvaluationConfig, info: ValidationInfo) -> EvaluationConfig:
        data: DataConfig | None = info.data.get("data")
        if data is not None:
            refuse(
                f"evaluation.string_match: {name!r} is not one of data.benchmarks: {_known(data)}"
                for name in evaluation.string_match
                if name not in data.benchmarks
            )
        return evaluation

    @field_validator("promotion")
    @classmethod
    def _can_decide(cls, promotion: PromotionConfig, info: ValidationInfo) -> PromotionConfig:
        refuse(_promotion_problems(promotion, *(info.data.get(name) for name in ("data", "training", "evaluation"))))
        return promotion

    @field_validator("cluster")
    @classmethod
    def _can_share(cls, cluster: ClusterConfig, info: ValidationInfo) -> ClusterConfig:
        refuse(_sharing_problems(cluster, *(info.data.get(name) for name in ("training", "rollout", "resources"))))
        return cluster


def _get(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _known(data: DataConfig) -> str:
    return ", ".join(sorted(data.benchmarks))


def _sequences(training: TrainingConfig, rollout: RolloutConfig) -> tuple[int, str]:
    """Return the sequences of a rollout batch, and the settings that they follow from."""
    sequences = training.prompts_per_batch * rollout.group_size
    return sequences, (
        f"training.prompts_per_batch={training.prompts_per_batch} x rollout.group_size={rollout.group_size} = {sequences} sequences"
    )


def _training_problems(
    training: TrainingConfig, rollout: RolloutConfig | None, data: DataConfig | None
) -> Iterator[str]:
    if rollout is not None:
        sequences, what = _sequences(training, rollout)
        if sequences % (training.updates_per_batch * training.micro_batch_size):
            yield (
                f"{what} must be a multiple of updates_per_batch x micro_batch_size = "
                f"{training.updates_per_batch} x {training.micro_batch_size}"
            )
    selection = training.selection
    if selection is not None and data is not None and selection.benchmark not in data.benchmarks:
        yield f"training.selection.benchmark={selection.benchmark!r} is not one of data.benchmarks: {_known(data)}"


def _promotion_problems(
    promotion: PromotionConfig,
    data: DataConfig | None,
    training: TrainingConfig | None,
    evaluation: EvaluationConfig | None,
) -> Iterator[str]:
    if data is not None:
        if promotion.benchmark not in data.benchmarks:
            yield f"promotion.benchmark={promotion.benchmark!r} is not one of data.benchmarks: {_known(data)}"
        for name in promotion.tolerated_regression:
            if name not in data.benchmarks:
                yield f"promotion.tolerated_regression.{name}: not one of data.benchmarks: {_known(data)}"
    selection = None if training is None else training.selection
    if selection is not None and selection.benchmark in {promotion.benchmark, *promotion.tolerated_regression}:
        yield (
            f"training.selection.benchmark={selection.benchmark!r} is one that promotion decides by: a model cannot be "
            "judged by the problems that it was chosen for; name another"
        )
    if evaluation is not None and int(promotion.statistic.partition("@")[2] or 1) > evaluation.samples:
        yield (
            f"promotion.statistic={promotion.statistic!r} needs more than evaluation.samples={evaluation.samples}: "
            "lower K or raise evaluation.samples"
        )


def _sharing_problems(
    cluster: ClusterConfig,
    training: TrainingConfig | None,
    rollout: RolloutConfig | None,
    resources: dict[StageName, ResourcesConfig] | None,
) -> Iterator[str]:
    if cluster.nodes == 1 or resources is None:
        return
    gpus = resources.get("ngrpo_training", ResourcesConfig()).gpus
    if not gpus:
        yield (
            f"cluster.nodes={cluster.nodes} needs GPUs on each node, resources.ngrpo_training.gpus={gpus}: raise it, or set "
            "nodes to 1"
        )
    elif training is not None and rollout is not None:
        sequences, what = _sequences(training, rollout)
        each = training.updates_per_batch * training.micro_batch_size
        if sequences % (each * cluster.nodes * gpus):
            yield (
                f"{what} cannot be shared by cluster.nodes={cluster.nodes} x {gpus} GPUs: they must be a multiple of "
                f"updates_per_batch x micro_batch_size x nodes x GPUs = {each * cluster.nodes * gpus}"
            )
