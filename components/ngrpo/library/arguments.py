"""TRL's `GRPOConfig` with the settings of mixing."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from trl import GRPOConfig

from ngrpo.library.settings import Settings, read_settings

_SAMPLING = "rollouts are sampled by temperature and top_p alone; leave it out"
_NOT_HERE = {
    "top_k": _SAMPLING,
    "min_p": _SAMPLING,
    "repetition_penalty": _SAMPLING,
    "generation_kwargs": _SAMPLING,
    "use_transformers_continuous_batching": "rollouts come from ngrpo's engines; leave it out, or set engine='vllm'",
    "cache_implementation": "rollouts come from ngrpo's engines, which choose their cache; leave it out",
    "vllm_structured_outputs_regex": "a mixed rollout cannot be held to a pattern; leave it out",
    "vllm_model_impl": "only vLLM's own models can mix; leave it out",
    "fp16": "training stops at the first number that is not finite, and scaled losses overflow now and then; set bf16=True",
}
"""Arguments of TRL that have no meaning here, each with the reason and the cure. Their defaults are TRL's."""


@dataclass
class NGRPOConfig(GRPOConfig):
    """Arguments of `NGRPOTrainer`: those of TRL's `GRPOConfig`, and how rollouts are mixed.

    `use_vllm=True` means `engine="vllm"`, with TRL's `vllm_gpu_memory_utilization`, `vllm_tensor_parallel_size` and
    `vllm_max_model_length`. What TRL can do and we cannot is refused.
    """

    k: int = field(default=3, metadata={"help": "Size of the candidate set, the anchor counted."})
    rate: float = field(default=0.1, metadata={"help": "Share of the decode steps that are mixed."})
    strategy: str = field(
        default="neighbor",
        metadata={
            "help": "`neighbor` (N-GRPO), `token` (plain GRPO), `gaussian` (noise on the token's embedding), `soft` (soft thinking) "
            "or `gumbel` (soft thinking with Gumbel noise)."
        },
    )
    label: str = field(
        default="anchor",
        metadata={"help": "`neighbor` and `soft`: what a mixed step emits, the `anchor` or the `sampled` token."},
    )
    weights: str = field(
        default="softmax",
        metadata={"help": "`neighbor` only: `softmax` (equation 9), or as in the authors' `release`."},
    )
    noise_std: float = field(default=0.1, metadata={"help": "`gaussian` only: standard deviation of the noise."})
    gumbel_temperature: float = field(default=0.5, metadata={"help": "`gumbel` only: temperature of the weights."})
    noise_in_weights: bool = field(
        default=True,
        metadata={"help": "`gumbel` only: whether the weights have the noise too, or the choice of tokens alone."},
    )
    end_marker: str | None = field(
        default="</think>", metadata={"help": "Mixing ends once a rollout has produced this text; none: it never ends."}
    )
    candidates: int = field(default=32, metadata={"help": "Neighbors kept for each token; at least k - 1."})
    metric: str = field(default="cosine", metadata={"help": "Similarity of tokens: `cosine`, `dot`, `l2` or `l1`."})
    index_refresh: str = field(
        default="at_start",
        metadata={"help": "When the index follows the weights: `at_start`, or `every_batch` of rollouts."},
    )
    mask_mixed_positions: bool = field(default=False, metadata={"help": "Leave mixed steps out of the loss."})
    mixed_ratio: Literal["policy", "one"] = field(
        default="policy",
        metadata={"help": "Importance ratio of mixed steps: the `policy`'s, or `one`, which is never clipped."},
    )
    correct_mismatch: bool = field(
        default=False,
        metadata={
            "help": "Weigh the policy loss of unmixed steps by the probabilities of trainer and engine, as TRL does for vLLM: by "
            "`vllm_importance_sampling_mode`, `vllm_importance_sampling_clip_max` and `vllm_importance_sampling_clip_min`."
        },
    )
    mismatch_bound: float | None = field(
        default=None,
        metadata={"help": "Mean difference of their log-probabilities above which training stops; none: it goes on."},
    )
    engine: str = field(default="transformers", metadata={"help": "What generates: `transformers` or `vllm`."})
    rollout_batch_size: int = field(default=256, metadata={"help": "Sequences decoded together."})

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ConfigError: A setting of mixing is impossible, or one of TRL's cannot be had; a line for each.
            ValueError: TRL refuses one of its own.
        """
        super().__post_init__()
        self._settle()

    def _settle(self) -> None:
        """Take `use_vllm` for our engine, and validate."""
        given = self.__dict__
        if given["use_vllm"]:
            warnings.warn(
                "use_vllm=True: rollouts come from ngrpo's vLLM engine (engine='vllm'); TRL's importance sampling correction is "
                "off unless correct_mismatch=True",
                stacklevel=4,
            )
            given |= {"use_vllm": False, "engine": "vllm"}
        self.settings()

    @classmethod
    def of(cls, arguments: GRPOConfig) -> Self:
        """Return TRL's arguments with the defaults of mixing.

        Raises:
            ConfigError: One of TRL's cannot be had.
        """
        taken: Any = copy.copy(arguments)
        taken.__class__ = cls
        given = {each.name for each in fields(type(arguments))}
        for each in fields(cls):
            if each.name not in given:
                setattr(taken, each.name, each.default)
        result: Self = taken
        result._settle()
        return result

    def settings(self) -> Settings:
        """Return the settings of mixing and of its index.

        Raises:
            ConfigError: One is impossible; a line for each.
        """
        return read_settings("NGRPOConfig", vars(self), self._problems())

    def _problems(self) -> Iterator[str]:
        """Yield what is wrong beside the settings of mixing."""
        defaults = {each.name: each.default for each in fields(GRPOConfig)}
        for name, cure in _NOT_HERE.items():
            if getattr(self, name) != defaults[name]:
                yield f"{name}={getattr(self, name)!r}: {cure}"
        if self.vllm_mode != "colocate":
            yield f"vllm_mode={self.vllm_mode!r}: the engine lives in the training process; set 'colocate'"
        if not self.temperature >= 1e-3:
            yield f"temperature={self.temperature!r}: mixing divides by it; choose at least 0.001"
        for name, allowed in (
            ("engine", ("transformers", "vllm")),
            ("index_refresh", ("at_start", "every_batch")),
            ("mixed_ratio", ("policy", "one")),
        ):
            if getattr(self, name) not in allowed:
                yield f"{name}={getattr(self, name)!r}: choose one of {', '.join(map(repr, allowed))}"
        if self.mixed_ratio == "one" and self.mask_mixed_positions:
            yield "mixed_ratio='one': has no effect with mask_mixed_positions=True; leave one of them out"
        if (
            self.mixed_ratio == "one"
            and self.num_iterations * self.steps_per_generation <= self.gradient_accumulation_steps
        ):
            yield (
                "mixed_ratio='one': has no effect where a rollout batch is used for one step; raise steps_per_generation or "
                "num_iterations"
            )
        bound = self.mismatch_bound
        if bound is not None and (type(bound) not in (int, float) or not 0 < bound < math.inf):
            yield f"mismatch_bound={bound!r}: a number above 0, or None"
        if type(self.rollout_batch_size) is not int or self.rollout_batch_size < 1:
            yield f"rollout_batch_size={self.rollout_batch_size!r}: a whole number above 0"
