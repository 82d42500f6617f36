"""How long a stage takes: an estimate where there is a measurement to go by, else what is to be done, and that the time is not known."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config import RunConfig
from ngrpo.sizing import figures
from ngrpo.sizing.model_shape import ModelShape


@dataclass(frozen=True)
class Duration:
    """An estimate."""

    seconds: float | None
    """None where nothing was measured to go by."""
    basis: str
    """What the estimate goes by, or what is to be done."""
    tokens: int | None = None
    """How many tokens are generated at most, where that is what is to be done."""

    @property
    def text(self) -> str:
        """The estimate in words."""
        if self.seconds is None:
            return f"not known ({self.basis})" if self.basis else "not known"
        minutes = self.seconds / 60
        said = f"about {minutes:.0f} min" if minutes >= 1 else "below 1 min"
        return f"{said} ({self.basis})"


def duration(config: RunConfig, stage: str, shape: ModelShape) -> Duration:
    """Return how long a stage takes.

    Args:
        config: Configuration of the run.
        stage: Name of the stage.
        shape: Shape of the model.
    """
    if stage == "neighbor_index" and not config.needs(stage).gpus:
        cores = config.needs(stage).cpus
        work = shape.vocabulary**2 * shape.hidden_size
        return Duration(work / (cores * figures.BUILD_FLOPS_A_CORE), f"the build, by its benchmark, {cores} cores")
    if stage == "ngrpo_training":
        training, rollout = config.training, config.rollout
        batches = training.steps // training.steps_per_batch
        most = batches * training.prompts_per_batch * rollout.group_size * rollout.max_tokens
        return _generating(most, _measurements(config))
    if stage == "benchmark_evaluation":
        sizes = [
            getattr(each, "size", None) or getattr(each, "limit", None) for each in config.data.benchmarks.values()
        ]
        if all(sizes):
            models = 3 if config.warm_start.steps else 2
            most = models * sum(size or 0 for size in sizes) * config.evaluation.samples * config.evaluation.max_tokens
            return _generating(most)
    return Duration(None, "")


def _measurements(config: RunConfig) -> str:
    """Say what a training generates beside its rollouts, to measure the policy."""
    training = config.training
    if training.selection is None:
        return ""
    selection = training.selection
    times = -(-training.steps // (selection.steps or training.save_steps))
    return f" in rollouts, and {times:,} times {selection.samples} answers to each problem of {selection.benchmark}"


def _generating(tokens: int, besides: str = "") -> Duration:
    return Duration(None, f"generates at most {_millions(tokens)} tokens{besides}", tokens)


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} million"
