"""What the report says of the base model's neighbor index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from ngrpo.report.figures import Bar, bar_chart, histogram

_SIMILARITY = {
    "cosine": "cosine",
    "dot": "dot product",
    "l2": "Euclidean distance, negative",
    "l1": "L1 distance, negative",
}


@dataclass(frozen=True)
class NeighborsView:
    """The neighbor index of the base model; tokens are quoted.

    Attributes:
        similarity: What its similarities are.
        vocabulary: Rows of the matrix.
        eligible: Tokens that may be mixed.
        candidates: Neighbors kept for each.
        nearest: Histogram of the similarity to the nearest token.
        hubness: Chart of how often tokens are neighbors of others.
        hubs: Tokens that are most often, with the number of times.
        closest: Pairs of tokens most alike, with their similarity.
        near_duplicates: Tokens with a nearly equal one; none where the metric has no such threshold.
        examples: Tokens with their neighbors and similarities.
    """

    similarity: str
    vocabulary: int
    eligible: int
    candidates: int
    nearest: Markup
    hubness: Markup
    hubs: list[tuple[str, int]]
    closest: list[tuple[str, str, float]]
    near_duplicates: int | None
    examples: list[tuple[str, list[tuple[str, float]]]]


def neighbors_view(description: Mapping[str, Any]) -> NeighborsView:
    """Return what there is to say of an index; `description` is `neighbors.json` of the stage `neighbor_index`."""
    similarity = _SIMILARITY[description["metric"]]
    nearest, hubness = description["nearest"], description["hubness"]
    edges = hubness["edges"]
    names = ["never", *(f"{low:,} to {high - 1:,} times" for low, high in pairwise(edges[1:]))]
    bars = [
        Bar(name, count, f"{count:,}", "second")
        for name, count in zip([*names, f"{edges[-1]:,} times or more"], hubness["counts"], strict=True)
    ]
    return NeighborsView(
        similarity=similarity,
        vocabulary=description["vocabulary"],
        eligible=description["eligible"],
        candidates=description["candidates"],
        nearest=histogram(
            nearest["edges"],
            nearest["counts"],
            label="Histogram of the similarity of tokens to their nearest",
            x_label=f"{similarity} of a token and its nearest",
            mark=nearest["median"],
        ),
        hubness=bar_chart(bars, label="How often tokens are neighbors of others"),
        hubs=[(repr(hub["token"]), hub["times"]) for hub in description["hubs"]],
        closest=[(*map(repr, pair["tokens"]), pair["similarity"]) for pair in description["closest"]],
        near_duplicates=description["near_duplicates"],
        examples=quoted_examples(description["examples"]),
    )


@dataclass(frozen=True)
class Neighbor:
    """A neighbor of a token, quoted: its similarity after training, or before where it is one no longer."""

    token: str
    similarity: float
    change: str
    """`kept`, `new` or `gone`."""


def neighbor_changes(
    before: list[tuple[str, list[tuple[str, float]]]], after: list[tuple[str, list[tuple[str, float]]]]
) -> list[tuple[str, list[Neighbor]]]:
    """Return what training changed in example neighbor sets, as one list for each token: those after, then those that are gone.

    Args:
        before: Sets of the index of the base model (`quoted_examples`).
        after: Sets of the index as of the last rollout batch.
    """
    old = {token: dict(neighbors) for token, neighbors in before}
    changes = []
    for token, neighbors in after:
        now, then = dict(neighbors), old.get(token)
        shown = [
            Neighbor(other, similarity, "kept" if then is None or other in then else "new")
            for other, similarity in neighbors
        ]
        gone = [Neighbor(other, similarity, "gone") for other, similarity in (then or {}).items() if other not in now]
        changes.append((token, shown + gone))
    return changes


def quoted_examples(examples: Any) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return example neighbor sets, their tokens quoted."""
    return [
        (repr(example["token"]), [(repr(other["token"]), other["similarity"]) for other in example["neighbors"]])
        for example in examples
    ]
