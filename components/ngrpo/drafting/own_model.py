"""What the directory of a model says of itself, found without a library of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ngrpo.checking.places import cure_of_no_model, positions_of
from ngrpo.data.locations import explained
from ngrpo.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CHARACTERS = 3
"""Characters of a token, where the tokenizer is not asked."""
_ASKED = 10_000
"""Characters of a text that the tokenizer is asked about: one word of a million letters keeps it busy for a minute."""


@dataclass(frozen=True)
class OwnModel:
    """The directory of a model."""

    path: Path
    positions: int | None
    """Positions that it was made for; none if it names no number."""
    has_template: bool
    """Whether it comes with a chat template."""

    def tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has; an estimate where the directory has no `tokenizer.json`."""
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return [len(text) // _CHARACTERS + 1 for text in texts]
        counted = tokenizer.encode_batch([text[:_ASKED] for text in texts], add_special_tokens=False)
        return [
            len(head.ids) + max(0, len(text) - _ASKED) // _CHARACTERS for head, text in zip(counted, texts, strict=True)
        ]

    def spells(self, text: str) -> bool:
        """Return whether a text has no unknown tokens; true if the directory has no `tokenizer.json`."""
        tokenizer = self._tokenizer()
        unknown = getattr(tokenizer.model, "unk_token", None) if tokenizer is not None else None
        return tokenizer is None or unknown not in tokenizer.encode(text, add_special_tokens=False).tokens

    def _tokenizer(self) -> Tokenizer | None:
        file = self.path / "tokenizer.json"
        if not file.is_file():
            return None
        from tokenizers import Tokenizer

        with explained(f"--model {str(self.path)!r}: tokenizer.json cannot be used", "copy it again"):
            return Tokenizer.from_file(str(file))


def look_at_model(path: Path) -> OwnModel:
    """Return what is known of a model's directory.

    Raises:
        ConfigError: It is not a model directory.
    """
    if not path.is_dir():
        what = "no such directory" if not path.exists() else "no directory"
        raise ConfigError(
            f"--model {str(path)!r}: {what} (seen from {Path.cwd()}); name one that save_pretrained wrote"
        )
    if not (path / "config.json").is_file():
        raise ConfigError(f"--model {str(path)!r}: it has no config.json; {cure_of_no_model(path)}")
    return OwnModel(path, positions_of(path), _has_template(path))


def _has_template(path: Path) -> bool:
    if (path / "chat_template.jinja").is_file():
        return True
    try:
        settings = json.loads((path / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
