"""Compare the needs of stages with the configured resources; find settings that are too low, with the cure."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ngrpo.config import RunConfig
from ngrpo.config.sections import VLLMConfig
from ngrpo.sizing import training
from ngrpo.sizing.amounts import GIB, Amount
from ngrpo.sizing.generation import Generation
from ngrpo.sizing.model_shape import ModelShape, model_shape
from ngrpo.sizing.stages import Needs, answers, gpu_gib, needs_of

PAGE = "docs/sizing.md explains how it is computed"


@dataclass(frozen=True)
class Misfit:
    """A setting that is too low."""

    setting: str
    """Full name of the setting."""
    found: str
    """Its value, and what is needed."""
    cure: str
    on_cluster: bool
    """Whether the setting only affects pods; a local run does not request memory or disk."""

    @property
    def line(self) -> str:
        """The misfit as a one-line error message."""
        return f"{self.setting}{self.found}; {self.cure}"


def misfits(config: RunConfig, stages: Collection[str]) -> list[Misfit]:
    """Return the settings that are too low for some stages; empty if the shape of the model is unknown.

    Args:
        config: Configuration of the run.
        stages: Names of the stages to check.
    """
    shape = model_shape(config.model.source)
    if shape is None:
        return []
    return [misfit for stage in stages for misfit in _of_stage(config, stage, shape)]


def gpu_cure(config: RunConfig, stage: str) -> str:
    """Return ways to reduce the memory that a stage needs on each GPU, as text."""
    return ", ".join(_gpu_cures(config, stage))


def _of_stage(config: RunConfig, stage: str, shape: ModelShape) -> Iterator[Misfit]:
    needs, asked = needs_of(config, stage, shape), config.needs(stage)
    if needs is None:
        return
    yield from _engine(config, stage, shape)
    yield from _shared_memory(config, stage, shape)
    place = f"resources.{stage}"
    if needs.gpu is not None and 0 < asked.gpu_memory_gib < needs.gpu.gib:
        found = _needed(f"={asked.gpu_memory_gib}", needs.gpu, "of each GPU")
        yield Misfit(f"{place}.gpu_memory_gib", found, f"{gpu_cure(config, stage)}, or larger GPUs; {PAGE}", False)
    yield from _pod(config, stage, needs)


def _pod(config: RunConfig, stage: str, needs: Needs) -> Iterator[Misfit]:
    asked, place = config.needs(stage), f"resources.{stage}"
    if needs.memory.gib > asked.memory_gib:
        found = _needed(f"={asked.memory_gib}", needs.memory, "of memory")
        yield Misfit(f"{place}.memory_gib", found, f"set it to {needs.memory.gib} or more; {PAGE}", True)
    disk = config.cluster.scratch_of(asked)
    if needs.scratch.gib > disk:
        where = f"{place}.scratch_gib" if asked.scratch_gib else "cluster.scratch_gib"
        found = _needed(f"={disk}", needs.scratch, f"of scratch in {stage}")
        yield Misfit(where, found, f"set {place}.scratch_gib to {needs.scratch.gib} or more; {PAGE}", True)


def _needed(asked: str, amount: Amount, what: str) -> str:
    return f"{asked}: up to {amount.gib} GiB {what} are needed ({amount.largest_terms})"


def _engine(config: RunConfig, stage: str, shape: ModelShape) -> Iterator[Misfit]:
    """Yield a misfit if vLLM's share of a GPU cannot hold the weights and one sequence."""
    asked = config.needs(stage)
    engines: dict[str, tuple[str, VLLMConfig, Generation]] = {
        "ngrpo_training": ("rollout", config.rollout.vllm, training.rollouts(config, shape)),
        "benchmark_evaluation": ("evaluation", config.evaluation.vllm, answers(config, shape)),
    }
    if not asked.gpus or stage not in engines:
        return
    section, settings, generation = engines[stage]
    memory = gpu_gib(config, asked)
    share, least = generation.share_of_vllm(memory), generation.least_of_vllm
    if generation.settings.engine == "vllm" and share < least:
        yield Misfit(
            f"{section}.vllm.gpu_memory_utilization",
            f"={settings.gpu_memory_utilization:g}: {share / GIB:.1f} of {memory} GiB cannot hold a model of "
            f"{generation.weights_of_vllm / GIB:.1f} GiB and one sequence of {generation.cache / GIB:.1f} GiB",
            f"raise it, or {section}.vllm.tensor_parallel_size, or lower {section}.max_tokens; {PAGE}",
            False,
        )


def _shared_memory(config: RunConfig, stage: str, shape: ModelShape) -> Iterator[Misfit]:
    """Yield a misfit if shared memory cannot hold the weights that are sent to separate engines."""
    if stage != "ngrpo_training" or config.rollout.placement == "colocated" or not config.needs(stage).gpus:
        return
    sent, asked = Amount.of(weights_as_they_are_sent=training.sent_weights(config, shape)), config.cluster.gpu
    if sent.gib > asked.shared_memory_gib:
        found = _needed(f"={asked.shared_memory_gib}", sent, "of shared memory")
        yield Misfit("cluster.gpu.shared_memory_gib", found, f"set it to {sent.gib} or more; {PAGE}", True)


def _gpu_cures(config: RunConfig, stage: str) -> Iterator[str]:
    if stage == "ngrpo_training":
        yield "more GPUs (resources.ngrpo_training.gpus, cluster.nodes)"
        if config.training.micro_batch_size > 1:
            yield "a smaller training.micro_batch_size"
        if not config.training.gradient_checkpointing:
            yield "training.gradient_checkpointing=true"
        if config.rollout.engine == "transformers":
            yield "rollout.engine='vllm'"
        else:
            yield "a smaller rollout.vllm.gpu_memory_utilization"
        yield "a smaller rollout.max_tokens"
    elif stage == "benchmark_evaluation":
        if config.evaluation.engine == "transformers":
            yield "evaluation.engine='vllm'"
            yield "a smaller evaluation.batch_size"
        else:
            yield "a smaller evaluation.vllm.gpu_memory_utilization"
    elif stage == "sft_warm_start":
        yield "a smaller warm_start.micro_batch_size"
        yield "a smaller warm_start.max_tokens"
    else:
        yield f"no GPU (remove resources.{stage}.gpus)"
