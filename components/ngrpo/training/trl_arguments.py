"""TRL's arguments, with an error that names the setting where they contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from transformers import TrainingArguments

from ngrpo.errors import ConfigError

A = TypeVar("A", bound=TrainingArguments)


def built(kind: type[A], arguments: Mapping[str, Any], setting: str) -> A:
    """Return arguments of a trainer.

    Args:
        kind: Their class.
        arguments: By name.
        setting: The table of further arguments, which is among them.

    Raises:
        ConfigError: They contradict each other.
    """
    try:
        result: A = kind(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{setting}: {' '.join(str(error).split())} (so says {kind.__name__} of TRL); correct the table"
        ) from error
    return result
