"""Which models vLLM implements itself, and which it serves through the classes of transformers."""

from __future__ import annotations

import json
from pathlib import Path

_BACKEND = "vllm.model_executor.models.transformers"


def rewrites_classes(model: Path) -> bool:
    """Whether vLLM would rewrite classes of transformers to serve a model, and so break one that is trained in the same process.

    Args:
        model: Directory of the model.
    """
    from vllm import ModelRegistry

    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    known = [ModelRegistry.models[name] for name in settings.get("architectures") or () if name in ModelRegistry.models]
    # It tries unknown models in the same way.
    return not known or any(getattr(one, "module_name", "").startswith(_BACKEND) for one in known)
