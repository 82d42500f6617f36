"""The text after which mixing ends, found in what a response's tokens spell, however they divide it.

A response is read byte by byte, but nothing is decoded while it grows: how far each token gets from each stage of the marker is
worked out beforehand, so that a step is one look-up a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class EndMarker:
    """An automaton over tokens. Its states are how many bytes of the marker a text ends with; the last one is never left.

    Attributes:
        transitions: int16 `[bytes of the marker + 1, V]`, state after a token, by the state before it.
    """

    transitions: Tensor

    @classmethod
    def of(cls, marker: str, texts: Sequence[bytes]) -> EndMarker:
        """Build the automaton of a marker.

        Args:
            marker: The text, not empty.
            texts: What each token adds to a text, by id.
        """
        by_byte = _by_byte(marker.encode())
        states = len(by_byte)
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        # Longest first: the tokens that still have a byte at some place are then the first ones.
        order = lengths.argsort(descending=True, stable=True)
        stream = torch.frombuffer(bytearray(b"".join(texts) or b"\0"), dtype=torch.uint8).long()
        starts = (lengths.cumsum(0) - lengths)[order]
        lengths = lengths[order]
        reached = torch.arange(states)[:, None].repeat(1, len(texts))
        for place in range(int(lengths.max())):
            count = int((lengths > place).sum())
            reached[:, :count] = by_byte[reached[:, :count], stream[starts[:count] + place]]
        transitions = torch.empty(states, len(texts), dtype=torch.int16)
        transitions[:, order] = reached.to(torch.int16)
        return cls(transitions)

    def to(self, device: torch.device | str) -> EndMarker:
        """Return the automaton on a device."""
        return EndMarker(self.transitions.to(device))

    def advance(self, progress: Tensor, tokens: Tensor) -> Tensor:
        """Return the states `[N]` after tokens `[N]`, given those before; a response begins in state 0."""
        return self.transitions[progress, tokens].long()

    def passed(self, progress: Tensor) -> Tensor:
        """Return which states `[N]` are past the marker, bool `[N]`."""
        return progress == len(self.transitions) - 1

    def reachable(self) -> bool:
        """Return whether any sequence of tokens spells the marker."""
        known = {0}
        new = {0}
        while new:
            new = set(self.transitions[sorted(new)].unique().tolist()) - known
            known |= new
        return len(self.transitions) - 1 in known

    def same_as(self, other: EndMarker | None) -> bool:
        """Return whether another automaton does the same."""
        return other is not None and (self is other or torch.equal(self.transitions, other.transitions))


def _by_byte(marker: bytes) -> Tensor:
    """Return the state after each byte, by the state before it; int64 `[len(marker) + 1, 256]` (Knuth, Morris and Pratt)."""
    states = len(marker)
    table = torch.zeros(states + 1, 256, dtype=torch.long)
    table[0, marker[0]] = 1
    fallback = 0  # state of what follows the first byte, which is where a mismatch goes on
    for state in range(1, states):
        table[state] = table[fallback]
        table[state, marker[state]] = state + 1
        fallback = int(table[fallback, marker[state]])
    table[states] = states
    return table
