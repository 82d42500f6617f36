"""Pass a request's settings through vLLM, in the extra arguments of its sampling parameters."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from vllm import SamplingParams

from ngrpo.rollout.slots import MixingSlots, RequestSettings

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

SETTINGS = "ngrpo"
"""Name of the settings of a request among the extra arguments of its sampling parameters."""


def sampling_params(settings: RequestSettings, stop_token_ids: list[int]) -> SamplingParams:
    """Return vLLM's parameters of a request.

    Its token is drawn by `MixingSlots`, from the request's seed, so vLLM's own seed, which is refused with chunked prefill on
    a CPU, stays unset.
    """
    return SamplingParams(
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        stop_token_ids=list(stop_token_ids),
        detokenize=False,
        skip_clone=True,  # made for this request alone; vLLM's deep copy of each takes longer than a step of Python
        extra_args={SETTINGS: asdict(settings)},
    )


def read_settings(params: SamplingParams | None) -> RequestSettings | None:
    """Return the settings that `sampling_params` put in, none for other requests."""
    if params is None or not params.extra_args or SETTINGS not in params.extra_args:
        return None
    return RequestSettings(**params.extra_args[SETTINGS])


def follow(slots: MixingSlots, step: SchedulerOutput) -> list[tuple[str, int]]:
    """Update the slots for a scheduler step; return each request that joins or returns, with its slot (-1 for other requests)."""
    slots.finish(step.finished_req_ids)
    settings = {request.req_id: read_settings(request.sampling_params) for request in step.scheduled_new_reqs}
    ours = [(request, each) for request, each in settings.items() if each is not None]
    joined = dict.fromkeys(settings, -1) | dict(zip(dict(ours), slots.join(ours), strict=True))
    return list(joined.items())
