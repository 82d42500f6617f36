"""The nucleus computed by vLLM's kernel, which needs no sort of the vocabulary."""

from __future__ import annotations

from torch import Tensor

from ngrpo.rollout import sampling


def keep_nucleus(scaled_logits: Tensor, top_p: Tensor) -> Tensor:
    """Keep each row's nucleus: see `ngrpo.rollout.sampling.keep_nucleus`, which needs neither GPU nor vLLM.

    The two may differ in tokens of equal probability at the edge of a nucleus, and where rounding decides on the last token.

    Args:
        scaled_logits: float32 `[B, V]`; may be overwritten.
        top_p: float32 `[B]`.

    Returns:
        `[B, V]`, minus infinity outside the nucleus.
    """
    if scaled_logits.is_cuda:
        try:
            from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton
        except ImportError:
            return sampling.keep_nucleus(scaled_logits, top_p)
        kept: Tensor = apply_top_k_top_p_triton(scaled_logits, None, top_p)
        return kept
    return sampling.keep_nucleus(scaled_logits, top_p)
