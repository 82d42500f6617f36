"""How a model was measured: what must be equal for two measurements to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ngrpo.grading
from ngrpo.config import EvaluationConfig
from ngrpo.config.grading import BY_LETTER, GradingConfig
from ngrpo.contracts.sources import SOURCES, read_sources
from ngrpo.errors import DataError

if TYPE_CHECKING:
    from ngrpo.config.grading import Gold
    from ngrpo.evaluation.benchmark import Benchmark  # imports pyarrow, which the planner does not need

PARTS: Mapping[str, str] = {
    "problems": "problems or gold answers",
    "revision": "data revision",
    "prompts": "prompts",
    "sampling": "sampling settings",
    "grader": "graders",
}
"""The parts of a protocol in words, ordered so that an earlier difference explains later ones."""

GRADER_LIBRARIES = ("latex2sympy2_extended", "sympy", "mpmath")
"""The libraries that compare expressions; the keys of the stages that grade cover their versions too."""

_GRADERS = Path(ngrpo.grading.__file__).parent


def benchmark_protocol(
    benchmark: Benchmark, prompts: Sequence[str], config: EvaluationConfig, revision: str | None
) -> dict[str, Any]:
    """Return how a model is measured on a benchmark: `PARTS`, as digests where they are long.

    Seeds and engines are not part of it: they change which samples are drawn, not their distribution.

    Args:
        benchmark: The benchmark.
        prompts: The whole text that the model continues, for each problem.
        config: How samples are drawn.
        revision: Pinned revision of the data; None if it has none.
    """
    sampling = {"samples", "temperature", "top_p", "max_tokens", "mixing"}
    return {
        "problems": problems_digest(dict(zip(benchmark.ids, benchmark.answers, strict=True))),
        "revision": revision,
        "prompts": _digest(sorted(zip(benchmark.ids, prompts, strict=True))),
        "sampling": config.model_dump(mode="json", include=sampling),
        "grader": grader_version(benchmark.grading),
    }


def problems_digest(answers: Mapping[str, Gold]) -> str:
    """Return the digest of gold answers by problem id."""
    return _digest(sorted(answers.items()))


def revisions(dataset: Path) -> dict[str, str | None]:
    """Return the pinned revision of each benchmark of a data set; None for generated problems.

    Args:
        dataset: Artifact of the stage `prepare_data`.

    Raises:
        DataError: The artifact has no `sources.json`.
        StoreError: Its `sources.json` is damaged or has another layout version.
    """
    if not (dataset / SOURCES).is_file():
        raise DataError(
            f"{dataset}: no sources.json, so it is not known where its problems come from: prepare the data again"
        )
    tables = read_sources(dataset, "prepare the data again")["tables"]
    return {
        name.removeprefix("benchmarks/").removesuffix(".parquet"): table["source"].get("revision")
        for name, table in tables.items()
        if name.startswith("benchmarks/")
    }


def grader_version(grading: GradingConfig | None = None) -> str:
    """Return the digest of everything that verdicts depend on: the graders' code, the versions of their libraries, and the settings.

    Args:
        grading: Settings of the benchmark, including the code of a user's grader; None for the default.
    """
    sources = [path.read_text(encoding="utf-8") for path in sorted(_GRADERS.glob("*.py"))]
    rules = _digest([*sources, *(version(name) for name in GRADER_LIBRARIES)])
    chosen = GradingConfig() if grading is None else grading.of_response
    # The two original graders are identified by the rules alone.
    return rules if chosen in (GradingConfig(), BY_LETTER) else _digest([rules, chosen.model_dump(mode="json")])


def is_grader_source(path: str) -> bool:
    """Whether a source file is part of the graders; `path` is relative to the package, as in `ngrpo.stages.keys.source_files`."""
    return path.rpartition("/")[0] == _GRADERS.name


def differ_in_graders_alone(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> bool:
    """Whether two protocols differ, and only in their graders: grading the samples again then makes them comparable."""
    if first is None or second is None:
        return False
    return [part for part in PARTS if first.get(part) != second.get(part)] == ["grader"]


def difference(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> str | None:
    """Return in words how two protocols differ; None if they do not. An unknown protocol differs from every other."""
    if first is None or second is None:
        return "protocol, which one of them does not state"
    return next((words for part, words in PARTS.items() if first.get(part) != second.get(part)), None)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")).hexdigest()[:32]
