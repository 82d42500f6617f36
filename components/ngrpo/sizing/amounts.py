"""Amounts of bytes, term by term: each term is called as `docs/sizing.md` calls it, which says how it is computed and from what."""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20
_SMALLEST = 0.05
"""GiB of a term that is worth a word."""


@dataclass(frozen=True)
class Term:
    """A part of an amount."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Amount:
    """Bytes that are in use at the same time."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, **terms: float) -> Amount:
        """Return an amount of terms by name, with `_` for a space; terms of no bytes are left out."""
        return cls(tuple(Term(name.replace("_", " "), size) for name, size in terms.items() if size))

    def __add__(self, other: Amount) -> Amount:
        """Return what takes both."""
        return Amount(self.terms + other.terms)

    @property
    def bytes(self) -> float:
        """The whole."""
        return sum(term.bytes for term in self.terms)

    @property
    def gib(self) -> int:
        """The whole in GiB, rounded up."""
        return math.ceil(self.bytes / GIB)

    @property
    def text(self) -> str:
        """Its terms in GiB, the largest first, less those that would read 0.0."""
        return ", ".join(_said(term) for term in self._ordered if term.bytes >= _SMALLEST * GIB) or "next to nothing"

    @property
    def largest_terms(self) -> str:
        """The three largest of them."""
        return ", ".join(map(_said, self._ordered[:3]))

    @property
    def _ordered(self) -> list[Term]:
        return sorted(self.terms, key=lambda term: -term.bytes)


def largest(*phases: Amount) -> Amount:
    """Return the phase that takes most: phases come one after another."""
    return max(phases, key=lambda phase: phase.bytes)


def _said(term: Term) -> str:
    return f"{term.name} {term.bytes / GIB:.1f}"
