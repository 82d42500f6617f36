"""An experiment: arms, which are settings on top of one preset, each run once with every seed, and how they are compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from ngrpo.config import RunConfig, Section, load_config, validate
from ngrpo.config.reading import named_preset, read_toml
from ngrpo.errors import ConfigError
from ngrpo.section import NonEmpty, Points, Seed, Spelled, check_name, count, number
from ngrpo.stages.declarations import DECLARED
from ngrpo_kfp.pipelines.planning.nodes import label_problem
from ngrpo_kfp.pipelines.post_training import StageTracer, post_training

_MEASURE = re.compile(r"mean|maj|(?:pass|best)@[1-9][0-9]{0,5}")
_PUBLISHED = re.compile(r"(?:mean|maj)(?:@[1-9][0-9]{0,5})?|(?:pass|best)@[1-9][0-9]{0,5}")
BASE_MODEL = "base"
"""Name of the base model in `published`. It is not an arm: every evaluation measures it."""
_OF_ALL = {
    "seed": "the seeds of an experiment are its setting `seeds`",
    "preset": "all arms build on the preset that the experiment names",
    "extends": "all arms build on the preset that the experiment names",
}
_SAMPLING = ("samples", "temperature", "top_p", "max_tokens")
_PROMPTS = ("prompt_suffix", "system_prompt")
"""Settings of `evaluation` and `data` that are part of the protocol of an evaluation (`ngrpo.evaluation.protocol`)."""
_CLUSTER = "all arms run on one cluster: put it into [settings.cluster], or name a file by --cluster"


def _check_arm(name: str) -> str:
    problem = label_problem(name)
    if problem is not None:
        raise ValueError(f"the name of an arm is a label of its nodes: {problem}")
    return name


def _check_measure(text: str) -> str:
    if _MEASURE.fullmatch(text) is None:
        raise ValueError("one of mean, maj, pass@K and best@K, with a number for K")
    return text


def _check_published(text: str) -> str:
    if _PUBLISHED.fullmatch(text) is None:
        raise ValueError("one of mean, maj, mean@N, maj@N, pass@K and best@K, with numbers for N and K")
    return text


ArmName = Annotated[str, AfterValidator(_check_arm)]


class ExperimentFile(Section):
    """The file of an experiment."""

    preset: NonEmpty
    """Name of a preset, or a TOML file relative to this one."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """Every arm runs once with each of them as its `seed`."""
    baseline: ArmName
    """The arm that the others are compared with."""
    benchmark: Spelled
    """Benchmark of the primary comparison."""
    measure: Annotated[str, AfterValidator(_check_measure)]
    """Measure of the primary comparison: `mean`, `maj`, `pass@K` or `best@K`."""
    equivalence: Annotated[float, number(above=0.0, most=100.0)]
    """Arms whose difference lies within so many points are equivalent."""
    parallel: Annotated[int, count(1, 1000)] | None = None
    """Most runs, each an arm with a seed, at the same time on a cluster; no limit by default."""
    settings: dict[str, Any] = {}
    """Settings of all arms, on top of the preset."""
    arms: Annotated[dict[ArmName, dict[str, Any]], Field(min_length=1)]
    """Settings of each arm, on top of those of all arms; an arm may have none."""
    published: dict[ArmName, dict[Spelled, dict[Annotated[str, AfterValidator(_check_published)], Points]]] = {}
    """Published results of an arm, or of `base`, in percent, by benchmark and measure."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(str, twice))} stands there twice: a run is counted once")
        return seeds


@dataclass(frozen=True)
class ArmRun:
    """An arm with one seed: a run of its own."""

    arm: str
    seed: int

    @property
    def labels(self) -> tuple[str, str]:
        """Labels of its nodes."""
        return self.arm, f"seed{self.seed}"

    @property
    def name(self) -> str:
        """Its name in texts and files."""
        return ".".join(self.labels)

    def __str__(self) -> str:
        """Return its name."""
        return self.name


@dataclass(frozen=True)
class Experiment:
    """An experiment that was read: every arm is a whole configuration."""

    name: str
    file: ExperimentFile
    arms: Mapping[str, RunConfig]
    """Configuration of each arm, without the seed of a run (`config`)."""

    @property
    def baseline(self) -> RunConfig:
        """Configuration of the arm that the others are compared with."""
        return self.arms[self.file.baseline]

    @property
    def by_seed(self) -> list[ArmRun]:
        """All runs, seed by seed: whenever the experiment stops, finished seeds have every arm."""
        return [ArmRun(arm, seed) for seed in self.file.seeds for arm in self.arms]

    @property
    def by_arm(self) -> list[ArmRun]:
        """All runs, arm by arm: runs at the same time then have different seeds, so that no two make the same result."""
        return [ArmRun(arm, seed) for arm in self.arms for seed in self.file.seeds]

    def config(self, run: ArmRun) -> RunConfig:
        """Return the configuration of a run."""
        return self.arms[run.arm].model_copy(update={"seed": run.seed})

    def with_arms(self, arms: Mapping[str, RunConfig]) -> Experiment:
        """Return the experiment with other configurations of its arms."""
        return replace(self, arms=arms)

    def require(self, check: Callable[[str, RunConfig], object]) -> None:
        """Check every arm before refusing any.

        Args:
            check: Called with each arm and its configuration.

        Raises:
            ConfigError: All errors of the checks, each line with its arm.
        """
        refused: dict[str, list[str]] = {}
        for arm, config in self.arms.items():
            try:
                check(arm, config)
            except ConfigError as error:
                refused[arm] = str(error).splitlines()
        if refused:
            raise ConfigError("\n".join(_by_arm(self.name, refused, len(self.arms))))

    def require_measured(self) -> None:
        """Refuse an experiment with an arm that does not fit the primary comparison.

        Raises:
            ConfigError: A line for each reason.
        """
        lines = list(
            dict.fromkeys(line for name, config in self.arms.items() for line in self._unmeasured(name, config))
        )
        if lines:
            raise ConfigError("\n".join(f"experiment {self.name}: {line}" for line in lines))

    def _unmeasured(self, arm: str, config: RunConfig) -> Iterator[str]:
        file, samples = self.file, config.evaluation.samples
        if file.benchmark not in config.data.benchmarks:
            yield f"benchmark={file.benchmark!r} is not one of data.benchmarks: {', '.join(sorted(config.data.benchmarks))}"
        needed = int(file.measure.partition("@")[2] or 1)
        if needed > samples:
            yield (
                f"measure={file.measure!r} needs {needed} samples of a problem, but evaluation.samples={samples} in arm {arm}: lower K or "
                "raise evaluation.samples"
            )
        if config.evaluation.early_stop is not None:
            yield (
                f"evaluation.early_stop in arm {arm}: arms are compared by all their samples, and an evaluation that stops early has only "
                "what settles a promotion; leave it out"
            )
        if config.training.selection is not None and config.training.selection.benchmark == file.benchmark:
            yield (
                f"benchmark={file.benchmark!r} is what training.selection chooses the checkpoint by in arm {arm}: a model cannot be "
                "compared by the problems that it was chosen for; name another"
            )
        yield from self._measured_otherwise(arm, config)

    def _measured_otherwise(self, arm: str, config: RunConfig) -> Iterator[str]:
        """Yield settings by which the evaluations of an arm would not be comparable with those of the baseline."""
        for section, fields in (("evaluation", _SAMPLING), ("data", _PROMPTS)):
            ours, theirs = getattr(config, section), getattr(self.baseline, section)
            for field in fields:
                if getattr(ours, field) != getattr(theirs, field):
                    yield (
                        f"{section}.{field}={getattr(ours, field)!r} in arm {arm}, but {getattr(theirs, field)!r} in arm "
                        f"{self.file.baseline}: arms are compared only if they are measured alike; put it into [settings.{section}]"
                    )
        ours, theirs = config.data.benchmarks, self.baseline.data.benchmarks
        for name in sorted(ours.keys() & theirs.keys()):
            if ours[name] != theirs[name]:
                yield (
                    f"data.benchmarks.{name} in arm {arm} is not that of arm {self.file.baseline}: arms are compared only if they are "
                    f"measured alike; put it into [settings.data.benchmarks.{name}]"
                )


def read_experiment(
    path: Path, presets: Path, overrides: Sequence[str] = (), cluster: Path | None = None
) -> Experiment:
    """Read the file of an experiment, and the configuration of each of its arms.

    Args:
        path: The file; its stem, a name, is that of the experiment.
        presets: Directory of the presets that have names.
        overrides: Settings of all arms, `section.field=value`, on top of those of the file.
        cluster: TOML file with the section `cluster`.

    Raises:
        ConfigError: A file cannot be read or is not TOML, or settings are unknown or impossible. A line for each names the arm, the field,
            the value and what is allowed.
    """
    try:
        check_name(path.stem)
    except ValueError as error:
        raise ConfigError(f"experiment {str(path)!r}: {error}; rename the file") from error
    name = path.stem
    tree = read_toml("experiment", path)
    try:
        file = validate(ExperimentFile, tree)
    except ConfigError as error:
        raise ConfigError("\n".join(f"experiment {name}: {line}" for line in str(error).splitlines())) from error
    problems = [
        *(f"--set {field}: {why}; leave it out" for field, why in _OF_ALL.items() if _sets(overrides, field)),
        *_disagreements(file),
    ]
    if problems:
        raise ConfigError("\n".join(f"experiment {name}: {line}" for line in problems))
    preset = named_preset(file.preset, f"experiment {name}: preset", path.parent, presets)
    arms: dict[str, RunConfig] = {}
    refused: dict[str, list[str]] = {}
    for arm, settings in file.arms.items():
        above = [(path, file.settings), (path, settings)]
        try:
            arms[arm] = load_config(preset, overrides, cluster, presets, above)
        except ConfigError as error:
            refused[arm] = str(error).splitlines()
    if refused:
        raise ConfigError("\n".join(_by_arm(name, refused, len(file.arms))))
    experiment = Experiment(name, file, arms)
    experiment.require_measured()
    measured = {benchmark for config in arms.values() for benchmark in config.data.benchmarks}
    unknown = sorted({each for of_arm in file.published.values() for each in of_arm} - measured)
    if unknown:
        raise ConfigError(
            f"experiment {name}: published: {', '.join(unknown)}: not one of data.benchmarks: {', '.join(sorted(measured))}"
        )
    return experiment


def experiment_pipeline(
    experiment: Experiment, runs: Sequence[ArmRun], pipeline: Callable[[StageTracer], None] = post_training
) -> Callable[[StageTracer], None]:
    """Return the pipeline of an experiment: that of a run for each arm and seed, with settings of its own.

    Nodes with the same key are planned once: data and index, which have no seed, for all runs, and a warm start for all arms of a seed.
    Stages that are never cached are left out, that is, the promotion: it acts on the registry, where the last arm would win.

    Args:
        experiment: The experiment.
        runs: Its runs in order.
        pipeline: The pipeline of one run.
    """

    def trace_all(stage: StageTracer) -> None:
        for run in runs:
            pipeline(_tracer(stage, run, experiment.config(run)))

    return trace_all


def _tracer(stage: StageTracer, run: ArmRun, config: RunConfig) -> StageTracer:
    def trace(
        name: str,
        /,
        *labels: str,
        settings: Mapping[str, Any] | None = None,
        config: RunConfig | None = config,
        **inputs: Any,
    ) -> Any:
        if not DECLARED[name].cacheable:
            return None
        return stage(name, *labels, *run.labels, settings=settings, config=config, **inputs)

    return trace


def _sets(overrides: Sequence[str], field: str) -> bool:
    return any(each.partition("=")[0] == field for each in overrides)


def _disagreements(file: ExperimentFile) -> Iterator[str]:
    """Yield contradictions between the parts of the file."""
    arms = ", ".join(file.arms)
    if file.baseline not in file.arms:
        yield f"baseline={file.baseline!r} is not an arm; name one of {arms}"
    if BASE_MODEL in file.arms:
        yield f"arms.{BASE_MODEL}: the base model has this name in every comparison; choose another"
    for name in file.published:
        if name not in file.arms and name != BASE_MODEL:
            yield f"published.{name}: no such arm; name one of {arms}, or {BASE_MODEL} for the base model"
    for where, settings in (("settings", file.settings), *((f"arms.{arm}", each) for arm, each in file.arms.items())):
        for field, why in _OF_ALL.items():
            if field in settings:
                yield f"{where}.{field}: {why}; leave it out"
        if "cluster" in settings and where != "settings":
            yield f"{where}.cluster: {_CLUSTER}"


def _by_arm(name: str, refused: Mapping[str, Sequence[str]], arms: int) -> Iterator[str]:
    """Yield the lines of errors, each with its arm; an error of every arm is yielded once, without one, as the common settings cause it."""
    common = set.intersection(*map(set, refused.values())) if len(refused) == arms > 1 else set()
    for line in dict.fromkeys(line for lines in refused.values() for line in lines if line in common):
        yield f"experiment {name}: {line}"
    for arm, lines in refused.items():
        for line in lines:
            if line not in common:
                yield f"experiment {name}: arm {arm}: {line}"
