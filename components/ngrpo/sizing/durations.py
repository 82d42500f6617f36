"""Estimate how long a stage takes, from measurements or a GPU's data sheet; otherwise report the amount of work."""

from __future__ import annotations

from dataclasses import dataclass

from ngrpo.config import RunConfig
from ngrpo.sizing import figures, gpu_time
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.known_data import problems_in, problems_of
from ngrpo.sizing.model_shape import ModelShape
from ngrpo.sizing.training import engines, processes, rollouts

COMPUTED = "computed for A100s, not measured, with every response as long as it may be"
"""Basis of the times on GPUs; see `ngrpo.sizing.gpu_time`."""


@dataclass(frozen=True)
class Duration:
    """An estimated duration."""

    seconds: float | None
    """None if there is neither a measurement nor a way to compute it."""
    basis: str
    """What the estimate is based on, or the amount of work."""
    tokens: int | None = None
    """Largest number of tokens that the stage can generate; None if it does not generate or the number is unknown."""
    computed: bool = False
    """Whether the estimate is computed from a GPU's data sheet, without any measurement."""

    @property
    def text(self) -> str:
        """The estimate in words."""
        if self.seconds is None:
            return f"not known ({self.basis})" if self.basis else "not known"
        minutes = self.seconds / 60
        said = f"about {minutes:.0f} min" if minutes >= 1 else "below 1 min"
        if minutes >= 120:
            said = f"about {minutes / 60:,.0f} h"
        return f"{said} ({self.basis})"


def duration(config: RunConfig, stage: str, shape: ModelShape, answers: Generation) -> Duration:
    """Return how long a stage takes.

    Args:
        config: Configuration of the run.
        stage: Name of the stage.
        shape: Shape of the model.
        answers: The generation of each process of the stage `benchmark_evaluation`.
    """
    if stage == "neighbor_index" and not config.needs(stage).gpus:
        cores = config.needs(stage).cpus
        work = shape.vocabulary**2 * shape.hidden_size
        return Duration(work / (cores * figures.BUILD_FLOPS_A_CORE), f"the build, by its benchmark, {cores} cores")
    if stage == "ngrpo_training":
        return _of_training(config, shape)
    if stage == "benchmark_evaluation":
        return _of_evaluation(config, answers)
    return Duration(None, "")


def _of_training(config: RunConfig, shape: ModelShape) -> Duration:
    training, rollout = config.training, config.rollout
    batches = training.steps // training.steps_per_batch
    a_batch = training.prompts_per_batch * rollout.group_size
    basis = f"generates at most {_millions(batches * a_batch * rollout.max_tokens)} tokens{_measurements(config)}"
    tokens = batches * a_batch * rollout.max_tokens
    measured = _measured_answers(config)
    if not config.needs("ngrpo_training").gpus or rollout.engine != "vllm" or measured is None:
        return Duration(None, basis, tokens)
    generation, share = rollouts(config, shape), engines(config)
    generating = gpu_time.generating(generation, a_batch / share)
    learning = gpu_time.training(config, shape, processes(config, "ngrpo_training"))
    a_batch_takes = max(generating, learning) if rollout.placement == "separate" else generating + learning
    measuring = gpu_time.generating(generation, measured / share) if measured else 0.0
    return Duration(batches * a_batch_takes + measuring, f"{COMPUTED}; {basis}", tokens, computed=True)


def _of_evaluation(config: RunConfig, answers: Generation) -> Duration:
    problems, asked = problems_in(config.data.benchmarks), config.needs("benchmark_evaluation")
    if problems is None:
        return Duration(None, "")
    models = 3 if config.warm_start.steps else 2
    sequences = models * problems * config.evaluation.samples
    tokens = sequences * config.evaluation.max_tokens
    basis = f"generates at most {_millions(tokens)} tokens"
    if not asked.gpus or config.evaluation.engine != "vllm":
        return Duration(None, basis, tokens)
    share = asked.gpus // config.evaluation.vllm.tensor_parallel_size
    return Duration(gpu_time.generating(answers, sequences / share), f"{COMPUTED}; {basis}", tokens, computed=True)


def _times(config: RunConfig) -> int:
    """Return how often training evaluates its policy to select a checkpoint."""
    training, selection = config.training, config.training.selection
    return 0 if selection is None else -(-training.steps // (selection.steps or training.save_steps))


def _measurements(config: RunConfig) -> str:
    """Describe what training generates besides rollouts, to evaluate its policy."""
    selection = config.training.selection
    if selection is None:
        return ""
    return f" in rollouts, and {_times(config):,} times {selection.samples} answers to each problem of {selection.benchmark}"


def _measured_answers(config: RunConfig) -> int | None:
    """Return how many answers training generates to evaluate its policy, or None if the number of problems is unknown."""
    selection = config.training.selection
    if selection is None:
        return 0
    problems = problems_of(config.data.benchmarks[selection.benchmark])
    return None if problems is None else _times(config) * selection.samples * problems


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} million"
