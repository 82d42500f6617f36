"""The words of the tasks that a model with random weights can be made for."""

from __future__ import annotations

from ngrpo.data import arithmetic, countdown

VOCABULARIES = {"arithmetic": arithmetic.VOCABULARY, "countdown": countdown.VOCABULARY}
"""By `kind` of the source, every piece that its problems and solutions are made of."""
