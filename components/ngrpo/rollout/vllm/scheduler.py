"""vLLM's scheduler with a prefix cache that never confuses a mixed text with a plain one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from ngrpo.rollout.vllm.request import read_settings


class _Salting(Scheduler):
    """Gives cache blocks that hold part of a mixed response a hash that no other request has.

    Keys and values of a mixture are not those of its anchor, though the token ids are. Blocks of the prompt alone keep their hash
    and are shared; a request that comes back from a preemption finds its own blocks.
    """

    def add_request(self, request: Request) -> None:
        settings = read_settings(request.sampling_params)
        if settings is not None and settings.mixes and request._block_hasher is not None:
            # The prompt was hashed when the request was created: blocks hashed from now on hold part of the response.
            request._block_hasher = _salted(request._block_hasher, request.request_id.encode())
        super().add_request(request)


class _MixingScheduler(_Salting, Scheduler):
    pass


class _MixingAsyncScheduler(_Salting, AsyncScheduler):
    pass


def mixing_scheduler(vllm_config: Any, **arguments: Any) -> Scheduler:
    """Build the scheduler that vLLM would have chosen, salting; to be named as its `scheduler_cls`."""
    chosen = _MixingAsyncScheduler if vllm_config.scheduler_config.async_scheduling else _MixingScheduler
    return chosen(vllm_config=vllm_config, **arguments)


def _salted(hasher: Callable[[Request], list[Any]], salt: bytes) -> Callable[[Request], list[Any]]:
    return lambda request: [hashlib.sha256(salt + block).digest() for block in hasher(request)]
