"""The neighbor index at the size of DeepSeek-R1-Distill-Qwen-1.5B, once: minutes of work, and about 4 GB."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from tests.benchmarks.measure import report
from tests.benchmarks.neighbor_index import (
    TOUCHED,
    after_a_step,
    build,
    differing_rows,
    faiss_search,
    half_product,
    refresh,
)
from torch import Tensor

VOCABULARY, DIMENSIONS, STD = 151936, 1536, 0.02
QUERIES, TILES = 4096, 60
"""Rows that FAISS searches for, and tiles of the product that are formed: the time for all is extrapolated."""


def run() -> list[dict]:
    """Measure a matrix of random rows, and one of clusters of about fifty with rows of different length."""
    results = []
    for name, make in (("random", _random), ("clustered", _clustered)):
        resident = _peak_bytes()
        matrix = make()
        index, seconds = _timed(lambda: build(matrix))  # noqa: B023 - called at once
        details = {
            "vocabulary": VOCABULARY,
            "dimensions": DIMENSIONS,
            "threads": torch.get_num_threads(),
            **index.statistics,
        }
        if not results:
            # The peak of a process only grows: later ones would show this one's.
            details["peak_memory_in_matrices"] = round((_peak_bytes() - resident) / (4 * matrix.numel()), 2)
        product = half_product(matrix, TILES)
        search = faiss_search(matrix, QUERIES)
        found, searched = _timed(search)
        details["rows_that_differ_beyond_ties"] = differing_rows(index, matrix, found)
        del search
        peers = {
            "faiss": ("FAISS IndexFlatIP", searched * VOCABULARY / QUERIES),
            "product": ("half of the product", product),
        }
        for peer, (what, theirs) in peers.items():
            results.append(
                report(
                    f"full_neighbor_index_{name}_{peer}",
                    [seconds],
                    [theirs],
                    unit="s",
                    scale=1.0,
                    peer_is=f"{what}, extrapolated",
                    **details,
                )
            )
        for kind, touched in (("sparse", TOUCHED), ("dense", VOCABULARY)):
            moved = after_a_step(matrix, touched)
            refreshed, taken = _timed(lambda: refresh(index, matrix, moved))  # noqa: B023
            results.append(
                report(
                    f"full_neighbor_index_{name}_refresh_{kind}",
                    [taken],
                    [seconds],
                    unit="s",
                    scale=1.0,
                    peer_is="a build",
                    rows_moved=touched,
                    searched_share=refreshed.statistics["searched"] / VOCABULARY,
                )
            )
    return results


def _random() -> Tensor:
    return torch.randn(VOCABULARY, DIMENSIONS, generator=torch.Generator().manual_seed(0)).mul_(STD)


def _clustered() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(VOCABULARY // 50, DIMENSIONS, generator=generator)
    matrix = torch.randn(VOCABULARY, DIMENSIONS, generator=generator).mul_(0.8)
    for rows in torch.arange(VOCABULARY).split(4096):
        matrix[rows] += centers[torch.randint(0, len(centers), (len(rows),), generator=generator)]
        matrix[rows] *= STD * (0.5 + torch.rand(len(rows), 1, generator=generator))
    return matrix


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
