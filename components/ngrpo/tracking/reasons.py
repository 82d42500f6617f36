"""Reasons that people give for a decision: stored permanently, and shown in terminals and on web pages."""

from __future__ import annotations

import unicodedata

from ngrpo.errors import ConfigError

_LONGEST = 1000
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, halves of surrogate pairs, and breaks of lines and paragraphs."""
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_VISIBLE = frozenset("LNPS")
"""Letters, numbers, punctuation and symbols, by the first letter of their category."""


def checked_reason(text: str, what: str) -> str:
    """Return a reason without surrounding white space.

    Args:
        text: What a person wrote.
        what: Command or option that the reason is for, for the error.

    Raises:
        ConfigError: It is empty, too long for a tag, or contains control or reordering characters.
    """
    for character in text:
        if unicodedata.category(character) in _REFUSED or character in _REORDERING:
            raise ConfigError(
                f"{what}: the reason has the character U+{ord(character):04X}; write one line of plain text"
            )
    reason = text.strip()
    if not any(unicodedata.category(character)[0] in _VISIBLE for character in reason):
        raise ConfigError(f"{what}: the reason is empty; say why, it is kept in the history")
    if len(reason) > _LONGEST:
        raise ConfigError(f"{what}: the reason has {len(reason)} characters; write at most {_LONGEST}")
    return reason
