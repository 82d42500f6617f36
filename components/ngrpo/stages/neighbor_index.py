"""Stage `neighbor_index`: build the neighbor index of the base model's embedding matrix."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ngrpo.config import NeighborIndexConfig
from ngrpo.contracts.metrics import write_metrics
from ngrpo.data.embedding import load_embedding
from ngrpo.data.models import usable_tokens
from ngrpo.neighbors.index import NeighborIndex
from ngrpo.report.index_facts import describe
from ngrpo.report.remaining import Remaining
from ngrpo.stages.context import Context


def run(config: NeighborIndexConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `index.safetensors`, `index.json`, `neighbors.json` for the report, and `metrics.json`.

    Args:
        config: Settings of the stage.
        inputs: None are read: the base model comes from its own source.
        output: Empty directory for the artifact.
        context: See `Context`.

    Raises:
        DataError: The model has no usable embedding matrix, or too few tokens for `neighbors.candidates`.
    """
    embedding, tokenizer = load_embedding(config.model.source, context.work / "base_model")
    eligible = usable_tokens(tokenizer, len(embedding))
    context.progress(f"embedding matrix {tuple(embedding.shape)}, {int(eligible.sum())} tokens may be mixed")
    started, remaining = time.perf_counter(), Remaining()
    index = NeighborIndex.build(
        embedding.to(_device()),
        eligible,
        candidates=config.neighbors.candidates,
        block_rows=config.neighbors.block_rows,
        metric=config.neighbors.metric,
        progress=lambda done, total: context.progress(
            f"neighbor index: {100 * done // total} % of the tiles{remaining.words(done, total)}"
        ),
    ).to("cpu")
    seconds = time.perf_counter() - started
    index.save(output)
    (output / "neighbors.json").write_text(json.dumps(describe(index, tokenizer)), encoding="utf-8")
    metrics = {
        "vocabulary": embedding.shape[0],
        "eligible": int(eligible.sum()),
        "candidates": config.neighbors.candidates,
        "mean_nearest_similarity": float(index.similarity[index.eligible, 0].mean()),
        "uncertified_rows": index.statistics["uncertified"],
        "build_seconds": round(seconds, 3),
    }
    write_metrics(output, metrics)


def _device() -> str:
    """Return the device to build the index on: a GPU if the stage has one. Its neighbors are the same, except for ties."""
    return "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("neighbor_index")
