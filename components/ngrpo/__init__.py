"""N-GRPO: Semantic Neighbor Mixing, its neighbor index, training, evaluation and promotion. Knows nothing of Kubeflow.

For programs of your own there are `NGRPOTrainer`, `NGRPOConfig`, `NeighborIndex` and `mixing_llm` (`docs/library.md`), imported when they
are asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ngrpo.library.arguments import NGRPOConfig
    from ngrpo.library.generation import mixing_llm
    from ngrpo.library.index import NeighborIndex
    from ngrpo.library.trainer import NGRPOTrainer

__all__ = ["NGRPOConfig", "NGRPOTrainer", "NeighborIndex", "mixing_llm"]


def __getattr__(name: str) -> Any:
    if name == "NGRPOConfig":
        from ngrpo.library.arguments import NGRPOConfig

        return NGRPOConfig
    if name == "NGRPOTrainer":
        from ngrpo.library.trainer import NGRPOTrainer

        return NGRPOTrainer
    if name == "NeighborIndex":
        from ngrpo.library.index import NeighborIndex

        return NeighborIndex
    if name == "mixing_llm":
        from ngrpo.library.generation import mixing_llm

        return mixing_llm
    raise AttributeError(f"module 'ngrpo' has no attribute {name!r}")
