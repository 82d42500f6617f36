"""The configuration of a whole run, and what its sections must agree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ngrpo.config.cluster import ClusterConfig, ResourcesConfig
from ngrpo.config.code import references
from ngrpo.config.costs import CostsConfig
from ngrpo.config.declared import StageName
from ngrpo.config.deployment import DeploymentConfig
from ngrpo.config.grading import GradingConfig
from ngrpo.config.lora import LoRAConfig
from ngrpo.config.mixing import MixingConfig
from ngrpo.config.notifications import NotificationConfig
from ngrpo.config.passed_on import GRPO, SFT, VLLM
from ngrpo.config.rewards import OF_ONE_ANSWER
from ngrpo.config.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    NeighborsConfig,
    PromotionConfig,
    RolloutConfig,
    WarmStartConfig,
)
from ngrpo.config.serving import Serving
from ngrpo.config.signing import SigningConfig
from ngrpo.config.source_files import LARGEST_CODE, TOO_LARGE
from ngrpo.config.training import TrainingConfig
from ngrpo.config.watch import WatchConfig
from ngrpo.errors import ConfigError
from ngrpo.section import Line, Name, Section, Seed, name_of, unless_set

DISAGREEMENT = "sections_disagree"
"""Type of the error whose lines name their settings in full."""


class RunConfig(Section):
    """A whole run."""

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
    signing: SigningConfig = unless_set(SigningConfig())
    watch: WatchConfig | None = unless_set(None)
    """How the served champion is watched; no stage's key depends on it."""
    resources: dict[StageName, ResourcesConfig] = {}
    """By stage name; other stages get the defaults."""
    cluster: ClusterConfig = ClusterConfig()
    """How stages run on a Kubernetes cluster; no stage's key depends on it."""
    notifications: dict[Name, NotificationConfig] = unless_set({})
    """Webhooks to notify, each under a name of your choice; no stage's key depends on them."""
    costs: CostsConfig = unless_set(CostsConfig())
    """Prices of an hour; no stage's key depends on them."""
    deployment: DeploymentConfig = unless_set(DeploymentConfig())
    """How a champion is deployed there; no stage's key depends on it."""
    titles: Annotated[dict[Name, Line], Field(validate_default=True)] = {}
    """Titles of benchmarks in tables and reports, by name; a benchmark without one is shown by its name. No stage's key depends on it."""

    def title(self, benchmark: str) -> str:
        """Return how a benchmark is called where people read."""
        return self.titles.get(benchmark, benchmark)

    def needs(self, stage: str) -> ResourcesConfig:
        """Return what a stage asks for."""
        return self.resources.get(stage, ResourcesConfig())

    def processes(self, stage: str) -> int:
        """Return how many processes of each node work together in a stage that can work as several: one a GPU, or one without GPUs."""
        generating = self.rollout.gpus if stage == "ngrpo_training" else 0
        return max(self.needs(stage).gpus - generating, 1)

    @property
    def train_grading(self) -> GradingConfig:
        """How rollouts are graded."""
        return next(iter(self.data.training_sets().values())).grading.of_response

    @property
    def benchmark_gradings(self) -> dict[str, GradingConfig]:
        """How responses are graded, by benchmark."""
        return {name: source.grading.of_response for name, source in self.data.benchmarks.items()}

    @property
    def selection_grading(self) -> GradingConfig:
        """How answers to the benchmark that selects the checkpoint are graded; the default where none does."""
        selection = self.training.selection
        return GradingConfig() if selection is None else self.benchmark_gradings[selection.benchmark]

    @property
    def gate(self) -> PromotionConfig | None:
        """The gate whose verdict ends an evaluation early; none where none does."""
        if self.evaluation.early_stop is None:
            return None
        return self.promotion.model_copy(update={"model_name": PromotionConfig.model_fields["model_name"].default})

    @property
    def adapters(self) -> dict[str, LoRAConfig]:
        """The adapters that are trained, by the section of their training."""
        warm_start = self.warm_start.lora if self.warm_start.steps else None
        both = {"warm_start": warm_start, "training": self.training.lora}
        return {section: lora for section, lora in both.items() if lora is not None}

    @property
    def serving(self) -> Serving:
        """What decides whether vLLM can serve the model, where it is the engine."""
        gpus = self.needs("ngrpo_training").gpus
        apart = self.rollout.placement == "separate"  # then each engine is alone in its process
        return Serving(
            dtype=self.model.dtype,
            training_gpus=min(gpus, 1) if apart else gpus,
            evaluation_gpus=self.needs("benchmark_evaluation").gpus,
            nodes=1 if apart else self.cluster.nodes,
            warm_start=self.warm_start.steps > 0,
            selection=None if self.training.selection is None else self.training.selection.benchmark,
        )

    @model_validator(mode="before")
    @classmethod
    def _keep_spellings(cls, tree: Any) -> Any:
        """Keep how benchmarks are spelled that are not named by what stands for them in paths and keys."""
        benchmarks, titles = _get(_get(tree, "data"), "benchmarks"), _get(tree, "titles") or {}
        if not isinstance(benchmarks, dict) or not isinstance(titles, dict):
            return tree
        spelled = {name_of(spelling): spelling for spelling in benchmarks if name_of(spelling) != spelling}
        return tree | {"titles": spelled | titles} if spelled else tree

    @field_validator("titles", mode="before")
    @classmethod
    def _consistent(cls, titles: Any, info: ValidationInfo) -> Any:
        """Refuse sections that do not agree.

        This stands with the last field, not with the whole: the whole is only looked at once every field is right, and what is wrong is
        to be said at once. Sections with faults of their own are not in `info.data`.
        """
        problems = list(_disagreements(info.data))
        if problems:
            raise PydanticCustomError(DISAGREEMENT, "{lines}", {"lines": "\n".join(problems)})
        return titles


def unchecked(config: RunConfig) -> list[tuple[str, str]]:
    """Return the tables for a library that is not installed here, where nobody can look up its fields, each with the library's name."""
    tables = {
        "warm_start.trl": (config.warm_start.trl, SFT),
        "training.trl": (config.training.trl, GRPO),
        "rollout.vllm.options": (config.rollout.vllm.options, VLLM),
        "evaluation.vllm.options": (config.evaluation.vllm.options, VLLM),
    }
    return [
        (setting, library.package) for setting, (table, library) in tables.items() if table and not library.installed
    ]


def _get(tree: Any, name: str) -> Any:
    return tree.get(name) if isinstance(tree, dict) else None


def _disagreements(sections: Mapping[str, Any]) -> Iterator[str]:
    """Yield what sections do not agree on, as far as they are there; each line names its settings in full."""
    model: ModelConfig | None = sections.get("model")
    data: DataConfig | None = sections.get("data")
    neighbors: NeighborsConfig | None = sections.get("neighbors")
    warm_start: WarmStartConfig | None = sections.get("warm_start")
    mixing: MixingConfig | None = sections.get("mixing")
    rollout: RolloutConfig | None = sections.get("rollout")
    training: TrainingConfig | None = sections.get("training")
    evaluation: EvaluationConfig | None = sections.get("evaluation")
    promotion: PromotionConfig | None = sections.get("promotion")
    resources: dict[StageName, ResourcesConfig] | None = sections.get("resources")
    cluster: ClusterConfig | None = sections.get("cluster")
    if mixing and neighbors and mixing.neighbors_needed > neighbors.candidates:
        yield (
            f"mixing.k={mixing.k} exceeds neighbors.candidates={neighbors.candidates} plus the anchor: "
            f"raise neighbors.candidates to at least {mixing.k - 1} or lower mixing.k"
        )
    if training and model and training.cast_lm_head_to_fp32 and model.dtype == "float32":
        yield (
            "training.cast_lm_head_to_fp32=true has no effect with model.dtype='float32': leave it out, or set model.dtype to 'bfloat16'"
        )
    if training and rollout:
        yield from _unequal_shares(training, rollout, cluster, resources)
    if warm_start and data and warm_start.steps and data.warm_start is None:
        yield f"warm_start.steps={warm_start.steps} needs data.warm_start: name a source or set steps to 0"
    if training and rollout:
        yield from _long_buffers(training, rollout)
    if training and rollout and rollout.placement == "separate":
        yield from _apart(training, rollout, resources)
    codes = {
        f"{name}.{path}": code
        for name, section in sections.items()
        if isinstance(section, Section)
        for path, code in references(section)
    }
    characters = sum(len(source) for code in codes.values() for source in code.code.values())
    if characters > LARGEST_CODE:
        yield f"{', '.join(codes)}: together {TOO_LARGE}"
    selection = training.selection if training else None
    if data and training:
        yield from _several_gold_answers(data, training)
    if data:
        for name, source in data.training_sets().items():
            first, other = next(iter(data.training_sets().items()))
            if source.grading.of_response != other.grading.of_response:
                yield (
                    f"data.{name}.grading is not that of data.{first}: responses to all training sets are graded by one reward; let both "
                    "say the same, but for gold and gold_pattern"
                )
        known = f"not one of data.benchmarks: {', '.join(sorted(data.benchmarks))}"
        if promotion and promotion.benchmark not in data.benchmarks:
            yield f"promotion.benchmark={promotion.benchmark!r} is {known}"
        for name in promotion.tolerated_regression if promotion else ():
            if name not in data.benchmarks:
                yield f"promotion.tolerated_regression.{name}: {known}"
        watch: WatchConfig | None = sections.get("watch")
        for name in watch.benchmarks if watch else ():
            if name not in data.benchmarks:
                yield f"watch.benchmarks: {name!r} is {known}"
        if selection and selection.benchmark not in data.benchmarks:
            yield f"training.selection.benchmark={selection.benchmark!r} is {known}"
        for name in evaluation.string_match if evaluation else ():
            if name not in data.benchmarks:
                yield f"evaluation.string_match: {name!r} is {known}"
            elif (grading := data.benchmarks[name].grading).response != "boxed" or grading.accepted == "all":
                yield (
                    f"evaluation.string_match: {name!r} has response={grading.response!r} and accepted={grading.accepted!r} in its "
                    "grading, but strings are compared with one answer in \\boxed{}: leave it out"
                )
    if selection and promotion and selection.benchmark in {promotion.benchmark, *promotion.tolerated_regression}:
        yield (
            f"training.selection.benchmark={selection.benchmark!r} is one that promotion decides by: a model cannot be "
            "judged by the problems that it was chosen for; name another"
        )
    deployment: DeploymentConfig | None = sections.get("deployment")
    if deployment and deployment.after_promotion and evaluation and evaluation.mixing is not None:
        yield (
            "deployment.after_promotion=true with evaluation.mixing: a served model does not mix, so that it could not be measured as "
            "it was evaluated; leave one of them out"
        )
    if promotion and evaluation and int(promotion.statistic.partition("@")[2] or 1) > evaluation.samples:
        yield (
            f"promotion.statistic={promotion.statistic!r} needs more than evaluation.samples={evaluation.samples}: "
            "lower K or raise evaluation.samples"
        )
    elif promotion and evaluation and evaluation.early_stop is not None:
        yield from _never_early(promotion, evaluation)


def _never_early(promotion: PromotionConfig, evaluation: EvaluationConfig) -> Iterator[str]:
    """Yield why an evaluation that may stop early never would; `ngrpo.evaluation.curtailment.looks` says when one is looked at."""
    if promotion.statistic == "maj":
        yield (
            "evaluation.early_stop with promotion.statistic='maj': maj@n of fewer samples is another number, from which that of all cannot "
            "be predicted; leave early_stop out, or set statistic to 'mean' or 'pass@K'"
        )
        return
    least = max(int(promotion.statistic.partition("@")[2] or 1) + 2, 3)
    if evaluation.samples < least:
        yield (
            f"evaluation.early_stop with evaluation.samples={evaluation.samples} and promotion.statistic={promotion.statistic!r} has no "
            f"effect: raise samples to at least {least}, or leave early_stop out"
        )


def _several_gold_answers(data: DataConfig, training: TrainingConfig) -> Iterator[str]:
    """Yield which ready rewards would be given lists of gold answers, which they do not know."""
    for setting, source in data.training_sets().items():
        if source.grading.accepted == "one":
            continue
        for name, reward in training.rewards.items():
            if reward.function in OF_ONE_ANSWER:
                yield (
                    f"training.rewards.{name}: {reward.function} knows one gold answer, but data.{setting}.grading.accepted="
                    f"{source.grading.accepted!r} gives lists: name correctness, or a function of yours"
                )


def _long_buffers(training: TrainingConfig, rollout: RolloutConfig) -> Iterator[str]:
    """Yield which rewards `overlong` would punish every response."""
    for name, reward in training.rewards.items():
        if reward.function == "overlong" and reward.options.get("max_tokens") is None:
            buffer = reward.options.get("buffer") or 0
            if buffer > rollout.max_tokens:
                yield (
                    f"training.rewards.{name}.options.buffer={buffer} exceeds rollout.max_tokens={rollout.max_tokens}, so that every "
                    "response would be too long: lower it"
                )


def _unequal_shares(
    training: TrainingConfig,
    rollout: RolloutConfig,
    cluster: ClusterConfig | None,
    resources: Mapping[StageName, ResourcesConfig] | None,
) -> Iterator[str]:
    """Yield why the sequences of a rollout batch cannot be cut into micro batches, or shared by the nodes."""
    sequences = training.prompts_per_batch * rollout.group_size
    each = training.updates_per_batch * training.micro_batch_size
    what = f"training.prompts_per_batch={training.prompts_per_batch} x rollout.group_size={rollout.group_size} = {sequences} sequences"
    if sequences % each:
        yield (
            f"{what} must be a multiple of updates_per_batch x micro_batch_size = "
            f"{training.updates_per_batch} x {training.micro_batch_size}"
        )
    if resources is None or cluster is None or cluster.nodes == 1:
        return
    gpus = max(resources.get("ngrpo_training", ResourcesConfig()).gpus - rollout.gpus, 0)
    kind = f"{gpus} GPUs" if gpus else "1 process"
    shares = each * cluster.nodes * max(gpus, 1)
    if sequences % shares:
        yield (
            f"{what} cannot be shared by cluster.nodes={cluster.nodes} x {kind}: they must be a multiple of "
            f"updates_per_batch x micro_batch_size x nodes x {'GPUs' if gpus else 'processes'} = {shares}"
        )


def _apart(
    training: TrainingConfig, rollout: RolloutConfig, resources: Mapping[StageName, ResourcesConfig] | None
) -> Iterator[str]:
    """Yield why rollouts cannot be generated apart from training."""
    where = "rollout.placement='separate'"
    if training.mismatch_correction == "off":
        yield (
            f"training.mismatch_correction='off' with {where}: rollouts are those of the weights one batch ago, which the loss must "
            "correct: set it to 'token_truncate', for example"
        )
    if resources is None:
        return
    gpus = resources.get("ngrpo_training", ResourcesConfig()).gpus
    each = rollout.vllm.tensor_parallel_size if rollout.engine == "vllm" else 1
    if not gpus and rollout.gpus:
        yield f"rollout.gpus={rollout.gpus} but resources.ngrpo_training.gpus=0: leave it out, or give the stage GPUs"
    elif gpus and not 0 < rollout.gpus < gpus:
        yield (
            f"rollout.gpus={rollout.gpus} with {where} and resources.ngrpo_training.gpus={gpus}: at least one GPU generates and one "
            "trains; raise one of them"
        )
    elif gpus and rollout.gpus % ((gpus - rollout.gpus) * each):
        yield (
            f"rollout.gpus={rollout.gpus} cannot be shared by {gpus - rollout.gpus} GPUs that train, each with engines of its own: set it "
            f"to a multiple of {(gpus - rollout.gpus) * each}"
        )


def watch_settings(config: RunConfig) -> WatchConfig:
    """Return how the champion is watched.

    Raises:
        ConfigError: The configuration has no section `watch`.
    """
    if config.watch is None:
        raise ConfigError(
            "watch: no settings; name the endpoint with --endpoint URL, or in the preset, [watch.endpoint] url = …"
        )
    return config.watch
