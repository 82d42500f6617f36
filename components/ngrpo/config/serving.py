"""What of a run decides whether vLLM can serve its model, beside the sections of rollouts and of evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from ngrpo.section import Section, Spelled, count


class Serving(Section):
    """Where vLLM would run, and with what."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    training_gpus: Annotated[int, count(0, 1024)] = 0
    """GPUs of `ngrpo_training`, on each node."""
    evaluation_gpus: Annotated[int, count(0, 1024)] = 0
    """GPUs of `benchmark_evaluation`."""
    nodes: Annotated[int, count(1, 10_000)] = 1
    """Nodes of `ngrpo_training`."""
    warm_start: bool = True
    """Whether there is a warm start, which writes the model's files anew."""
    selection: Spelled | None = None
    """The benchmark that training is measured by, with the engine of the rollouts and its settings."""
