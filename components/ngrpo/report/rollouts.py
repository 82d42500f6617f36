"""What the report shows of rollouts: their text, with the mixed tokens marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_HEAD_TOKENS, _TAIL_TOKENS = 400, 200
_LONGEST_TEXT = 3000
_LISTED = 4


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        text: The text.
        mixture: Of a mixed token what was mixed into the next input, else none.
        strength: Of a mixed token the weight of all but the anchor, 0 to 1.
        left_out: Tokens left out before this piece.
    """

    text: str
    mixture: str | None = None
    strength: float = 0.0
    left_out: int = 0


@dataclass(frozen=True)
class RolloutView:
    """One rollout; its reward is none where no reward was for it."""

    step: int
    reward: float | None
    prompt: str
    tokens: int
    mixed: int
    pieces: list[Piece]

    @property
    def mixtures(self) -> list[Piece]:
        """The first mixed tokens, whose mixtures stand below the text: not everybody has a pointer."""
        return [piece for piece in self.pieces if piece.mixture is not None][:_LISTED]


def rollout_views(samples: Sequence[Mapping[str, Any]]) -> list[RolloutView]:
    """Return the example rollouts; `samples` is `rollout_samples.json` of the stage `ngrpo_training`."""
    return [
        RolloutView(
            step=sample["step"],
            reward=sample["reward"],
            prompt=shorten(sample["prompt"]),
            tokens=len(sample["tokens"]),
            mixed=sum(sample["mixed"]),
            pieces=_pieces(sample),
        )
        for sample in samples
    ]


def shorten(text: str) -> str:
    """Leave out the middle of a long text, and say how much."""
    surplus = len(text) - _LONGEST_TEXT
    if surplus <= 0:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {surplus:,} characters left out …]\n{text[-half:]}"


def _pieces(sample: Mapping[str, Any]) -> list[Piece]:
    """Join neighboring plain tokens, so that the page has an element for mixed tokens only."""
    mixtures = iter(zip(sample["neighbors"], sample["weights"], strict=True))
    tokens = [
        _mixed_piece(text, *next(mixtures)) if mixed else Piece(text)
        for text, mixed in zip(sample["tokens"], sample["mixed"], strict=True)
    ]
    surplus = max(0, len(tokens) - _HEAD_TOKENS - _TAIL_TOKENS)
    head, tail = (tokens[:_HEAD_TOKENS], tokens[-_TAIL_TOKENS:]) if surplus else (tokens, [])
    gap = [Piece("", left_out=surplus)] if surplus else []
    return [*_joined(head), *gap, *_joined(tail)]


def _mixed_piece(text: str, candidates: Sequence[str], weights: Sequence[float]) -> Piece:
    if len(candidates) == 1:
        return Piece(text, "noise added to the embedding")
    parts = (f"{candidate!r} {weight:.2f}" for candidate, weight in zip(candidates, weights, strict=True))
    return Piece(text, " + ".join(parts), strength=min(1.0, max(0.0, 1.0 - weights[0])))


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        if joined and piece.mixture is None and joined[-1].mixture is None:
            joined[-1] = Piece(joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined
