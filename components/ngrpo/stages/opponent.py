"""Compare a candidate for promotion with the champion.

If the two were measured alike but graded by different graders, their stored samples are graded again, so that every champion stays
comparable. Nothing is generated for that, and the evaluations in the registry do not change.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion

from ngrpo.config import PromotionConfig
from ngrpo.contracts.evaluation import Evaluation, parse_evaluation
from ngrpo.contracts.promotion import Verdict
from ngrpo.errors import DataError, StoreError
from ngrpo.evaluation.gate import Measured, compare, kept
from ngrpo.evaluation.grading_again import GradedAgain, grade_again
from ngrpo.evaluation.protocol import differ_in_graders_alone, grader_version
from ngrpo.evaluation.stored_evaluation import MODEL, grading_of, protocol_of
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.state import DamagedStateError
from ngrpo.tracking.model_registry import EVALUATION, ModelRegistry, evaluation_key

BY_HAND = "`ngrpo promote {version} --override REASON` makes this version champion all the same"


@dataclass(frozen=True)
class Judgement:
    """A verdict that is not carried out yet.

    Attributes:
        verdict: `decision`, `reason` and `comparison`.
        champion: The champion's evaluation as it was compared; none if there is none.
    """

    verdict: Verdict
    champion: Evaluation | None = None


def judge(
    config: PromotionConfig,
    registry: ModelRegistry,
    store: str,
    candidate: ModelVersion,
    evaluation: Evaluation,
    champion: ModelVersion | None,
    seed: int,
) -> Judgement:
    """Decide between a candidate and the champion. A candidate without a champion to beat must beat the model it started from.

    A champion that cannot be compared stays champion until a person decides.

    Args:
        config: The gate.
        registry: The registered model.
        store: Address of the artifact store, which keeps the samples.
        candidate: The candidate's version.
        evaluation: The candidate's evaluation.
        champion: The champion's version; none where there is none.
        seed: Seed of the statistics.

    Raises:
        TrackingError: The registry cannot be reached.
        StoreError: The object store cannot be reached.
    """
    if champion is None:
        start = Measured.of(evaluation, "warm_start", "the warm start")
        return Judgement(compare(config, Measured.of(evaluation, MODEL, "the candidate"), start, seed))
    by_hand = BY_HAND.format(version=candidate.version)
    missing = registry.missing(champion)
    if missing:
        return Judgement(
            kept(
                f"the files of the champion, version {champion.version}, are gone ({missing[0]}); restore them; {by_hand}"
            )
        )
    stored = registry.evaluation(champion)
    if stored is None:
        return Judgement(kept(f"the champion, version {champion.version}, has no evaluation ({EVALUATION}); {by_hand}"))
    where = f"the evaluation of the champion, version {champion.version}"
    try:
        theirs = parse_evaluation(stored, where=where, cure=f"run the pipeline that made it again; {by_hand}")
    except DamagedStateError as error:
        return Judgement(kept(str(error)))
    try:
        ours, theirs, again = _graded_alike(registry, store, (candidate, evaluation), (champion, theirs))
    except _CannotGradeError as error:
        reason = f"{error}: run the pipeline that made it again, which evaluates it anew; {by_hand}"
        return Judgement(kept(reason), theirs)
    verdict = compare(
        config, Measured.of(ours, MODEL, "the candidate"), Measured.of(theirs, MODEL, "the champion"), seed
    )
    for name, graded in again.items():
        verdict["reason"] += (
            f"; before, {graded.samples:,} stored samples of {name} were graded again, for its graders were others: "
            f"{graded.changed:,} verdicts changed"
        )
    if again and verdict["comparison"] is not None:
        verdict["comparison"]["graded_again"] = {
            name: {"samples": graded.samples, "changed": graded.changed} for name, graded in again.items()
        }
    return Judgement(verdict, theirs)


class _CannotGradeError(Exception):
    """Samples to be graded again are missing or damaged."""


def _graded_alike(
    registry: ModelRegistry,
    store: str,
    candidate: tuple[ModelVersion, Evaluation],
    champion: tuple[ModelVersion, Evaluation],
) -> tuple[Evaluation, Evaluation, Mapping[str, GradedAgain]]:
    """Return both evaluations with verdicts of the same graders, and a note on what was graded again."""
    ours, theirs = candidate[1], champion[1]
    names = [
        name
        for name in ours["models"]["trained"]
        if name in theirs["models"]["trained"]
        and differ_in_graders_alone(protocol_of(ours, MODEL, name), protocol_of(theirs, MODEL, name))
    ]
    answers = {**theirs.get("answers", {}), **ours.get("answers", {})}
    # Both are graded with the candidate's graders.
    gradings = {name: grading_of(each) for name, each in answers.items()}
    evaluations: list[Evaluation] = []
    again: dict[str, GradedAgain] = {}
    for who, (version, evaluation) in (("the candidate", candidate), ("the champion", champion)):
        old = [
            name
            for name in names
            if (protocol_of(evaluation, MODEL, name) or {}).get("grader") != grader_version(gradings.get(name))
        ]
        if old:
            label = f"{who}, version {version.version},"
            print(f"grading the stored samples of {label} again: other graders judged them", flush=True)
            with tempfile.TemporaryDirectory() as cache:
                directory = _samples(registry, store, version, old, label, Path(cache))
                try:
                    again[who] = grade_again(
                        evaluation,
                        old,
                        directory,
                        answers=answers,
                        statistics=ours.get("statistics") or theirs.get("statistics"),
                    )
                except DataError as error:
                    raise _CannotGradeError(f"{label} was graded by other graders, and {error}") from error
            evaluation = again[who].evaluation
        evaluations.append(evaluation)
    return evaluations[0], evaluations[1], again


def _samples(
    registry: ModelRegistry, store: str, version: ModelVersion, names: list[str], label: str, cache: Path
) -> Path:
    """Fetch the samples that an evaluation was made of, and return their directory."""
    current = registry.version(str(version.version))
    key = None if current is None else evaluation_key(current)
    artifacts = ArtifactStore(ObjectStore(store), cache)
    found = artifacts.find("benchmark_evaluation", key) if key else None
    if found is None:
        raise _CannotGradeError(f"{label} was graded by other graders, and its samples are gone (evaluation {key})")
    try:
        for name in names:
            directory = artifacts.fetch(found, only=f"samples/{MODEL}/{name}.parquet")
    except StoreError as error:
        # A failing service proves nothing about the samples, so its errors are raised.
        problems = artifacts.verify(found)
        if not problems:
            raise
        raise _CannotGradeError(
            f"{label} was graded by other graders, and its samples in {found.uri} are damaged ({problems[0]})"
        ) from error
    return directory / "samples" / MODEL
