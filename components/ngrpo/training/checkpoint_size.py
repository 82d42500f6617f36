"""Size of a training's checkpoints, computed from its number of parameters."""

from __future__ import annotations

KEPT = 2
"""Number of checkpoints kept besides the best, on disk and in object storage: while one is uploaded, only older ones are deleted."""
_WEIGHTS = 4
"""Bytes of a weight, in float32."""
_MOMENTS = 8
"""Bytes of Adam's two moments of a weight, in float32."""


def checkpoint_bytes(parameters: int, *, weights_alone: bool = False) -> int:
    """Return the bytes of a checkpoint of all processes together.

    The rest (the index, random numbers, the trainer's state) is not counted: megabytes.

    Args:
        parameters: Trained parameters; tied ones count once.
        weights_alone: Count only the weights, as for the best checkpoint once it is not one of the newest.
    """
    return parameters * (_WEIGHTS if weights_alone else _WEIGHTS + _MOMENTS)


def checkpoints_bytes(parameters: int, *, nodes: int = 1, selection: bool = False) -> int:
    """Return the most bytes that checkpoints take on the disk of one node at a time.

    A node writes the shards of its own processes. One that resumes from object storage begins with a complete checkpoint, and at the end
    each node reads all of the best one.

    Args:
        parameters: Trained parameters; tied ones count once.
        nodes: Nodes that train together.
        selection: Whether the best checkpoint is kept (`training.selection`).
    """
    newest = checkpoint_bytes(parameters)
    best = checkpoint_bytes(parameters, weights_alone=True) if selection else 0
    return newest + (KEPT - 1) * -(-newest // nodes) + best
