"""Vocabularies of the generated tasks that a randomly initialized model can be built for."""

from __future__ import annotations

from ngrpo.data import arithmetic, countdown

VOCABULARIES = {"arithmetic": arithmetic.VOCABULARY, "countdown": countdown.VOCABULARY}
"""Tokens of the problems and solutions of a task, by `kind` of the source."""
