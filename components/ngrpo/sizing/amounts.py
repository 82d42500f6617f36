"""Amounts of bytes as sums of named terms. `docs/sizing.md` uses the same names and explains how each term is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20
_SMALLEST = 0.05
"""Smallest term to show, in GiB."""


@dataclass(frozen=True)
class Term:
    """One term of an amount."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Amount:
    """Bytes that are in use at the same time, as a sum of terms."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, **terms: float) -> Amount:
        """Build an amount from terms in bytes. `_` in a name stands for a space; terms of zero bytes are dropped."""
        return cls(tuple(Term(name.replace("_", " "), size) for name, size in terms.items() if size))

    def __add__(self, other: Amount) -> Amount:
        """Return the sum of both."""
        return Amount(self.terms + other.terms)

    @property
    def bytes(self) -> float:
        """The sum of all terms."""
        return sum(term.bytes for term in self.terms)

    @property
    def gib(self) -> int:
        """The sum in GiB, rounded up."""
        return math.ceil(self.bytes / GIB)

    @property
    def text(self) -> str:
        """The terms in GiB, largest first, without those that would print as 0.0."""
        return ", ".join(_said(term) for term in self._ordered if term.bytes >= _SMALLEST * GIB) or "next to nothing"

    @property
    def largest_terms(self) -> str:
        """The three largest terms in GiB."""
        return ", ".join(map(_said, self._ordered[:3]))

    @property
    def _ordered(self) -> list[Term]:
        return sorted(self.terms, key=lambda term: -term.bytes)


def largest(*phases: Amount) -> Amount:
    """Return the largest of several phases that follow one another."""
    return max(phases, key=lambda phase: phase.bytes)


def _said(term: Term) -> str:
    return f"{term.name} {term.bytes / GIB:.1f}"
