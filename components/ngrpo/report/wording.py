"""Models, data and methods in words, without paths of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ngrpo.config import MixingConfig, TrainingConfig
from ngrpo.data.locations import is_bucket, is_local

ESTIMATORS = (
    "pass@k is the unbiased estimate; best@k is 1 - (1 - c/n)^k, which papers often call pass@k. "
    "Never compare one with the other."
)


# Characters that HTML does not allow, and those that reorder the text around them.
_UNPRINTABLE = dict.fromkeys(
    [*(set(range(0x20)) - {0x09, 0x0A, 0x0D}), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\ufffd",
)


def printable(page: str) -> str:
    """Return a page without what HTML or UTF-8 cannot hold, such as half a surrogate pair, which JSON can."""
    return page.translate(_UNPRINTABLE).encode("utf-8", errors="replace").decode("utf-8")


def method_name(mixing: MixingConfig, training: TrainingConfig) -> str:
    """Return the name of the algorithm that the settings make."""
    plain = "GSPO" if training.importance_sampling_level == "sequence" else "GRPO"
    strategy = mixing.strategy if mixing.rate else "token"
    ready = {
        "neighbor": f"N-{plain}" if mixing.k > 1 else f"{plain} with greedy steps",
        "token": plain,
        "gaussian": f"{plain} with Gaussian noise",
        "soft": f"{plain} with soft thinking",
        "gumbel": f"{plain} with Gumbel soft thinking",
    }
    return ready.get(strategy, f"{plain} with {strategy}")


def describe(source: Mapping[str, Any]) -> str:
    """Return a source of data or of a model in one line, its kind first and without paths of this machine; or several sources by name."""
    if not isinstance(source.get("kind"), str):
        return "; ".join(f"{name}: {describe(each)}" for name, each in source.items())
    kind = source["kind"].replace("_", " ")
    parts = [
        f"{name} {value}"
        for name, value in public(dict(source)).items()
        if name not in ("kind", "prompt_suffix") and value not in (None, {}, []) and value is not False
    ]
    return ", ".join([kind, *parts])


def public(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace places that are paths of this machine by the last part of the path."""
    shown = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            value = public(value)
        elif name == "id" and is_local(value):
            value = f"local directory {PurePath(value).name}"
        elif name == "path" and not is_bucket(value):
            value = f".../{PurePath(value).name}"
        shown[name] = value
    return shown
