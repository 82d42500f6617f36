"""One measurement of the served champion, in the series of all measurements ("looks").

Problems, prompts and gold answers are those of the evaluation that the champion was promoted on; its samples are fresh. There is no plan
and no run: everything needed is in the registry and in the artifact store.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from mlflow.entities.model_registry import ModelVersion

from ngrpo.config import EvaluationConfig, RunConfig, select, validate
from ngrpo.config.notifications import EventKind
from ngrpo.config.run import watch_settings
from ngrpo.config.stages import BenchmarkEvaluationConfig
from ngrpo.config.watch import WatchConfig
from ngrpo.contracts.evaluation import Evaluation, parse_evaluation
from ngrpo.data.model_directory import read_config
from ngrpo.errors import DataError, NGRPOError, StoreError, TrackingError
from ngrpo.evaluation.benchmark import Benchmark, read_benchmark
from ngrpo.evaluation.drift import Drift, drifts
from ngrpo.evaluation.endpoint_names import OtherModelError
from ngrpo.evaluation.endpoint_sampler import start_endpoint_sampler
from ngrpo.evaluation.protocol import benchmark_protocol, difference, revisions
from ngrpo.evaluation.samples import Sampler, parts
from ngrpo.evaluation.stored_evaluation import MODEL, protocol_of
from ngrpo.evaluation.verdicts import graded
from ngrpo.grading.cores import usable_cores
from ngrpo.grading.grader import Grader
from ngrpo.notifications.events import Event, Fact
from ngrpo.notifications.webhooks import announce
from ngrpo.report.sampling_progress import SamplingProgress
from ngrpo.rollout.loading import load_tokenizer
from ngrpo.stages.context import say
from ngrpo.stages.decision_seal import decision_key, sign_decision
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.tracking.model_registry import PREVIOUS_CHAMPION, evaluation_key
from ngrpo.tracking.promotions import Promotions
from ngrpo.tracking.watches import Look, Series, Terms, Watches

if TYPE_CHECKING:
    from ngrpo.signing.keys import PrivateKey
    from ngrpo.stages.decision_seal import MadeBy

_DATASET = "ngrpo.input.dataset"
"""Tag of a version: key of the data that it was trained on, and measured by (`ngrpo.stages.model_promotion`)."""


@dataclass(frozen=True)
class Champion:
    """The champion of a registered model, with its files.

    Attributes:
        model_name: The registered model.
        version: Its version.
        directory: Its files, verified.
        digest: Their digest.
    """

    model_name: str
    version: ModelVersion
    directory: Path
    digest: str

    @property
    def number(self) -> str:
        """Number of its version."""
        return str(self.version.version)


@dataclass(frozen=True)
class Seen:
    """Result of a look.

    Attributes:
        model_name: The registered model.
        version: Number of the measured champion.
        summary: The finding, in one line.
        alert: Whether webhooks should be told.
        rolled_back: Whether the promotion of the champion was undone.
        facts: The finding, for programs.
        drifts: Drift over all looks by benchmark; empty if nothing was measured.
        before: mean@n in the evaluation by benchmark, a fraction.
    """

    model_name: str
    version: str
    summary: str
    alert: bool
    rolled_back: bool
    facts: Mapping[str, Any]
    drifts: Mapping[str, Drift] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)


def announce_alert(config: RunConfig, seen: Seen) -> None:
    """Notify the webhooks of an alert, and of a rollback; do nothing without an alert."""
    if not seen.alert:
        return
    facts: dict[str, Fact] = {
        name: value for name, value in seen.facts.items() if isinstance(value, Fact) and name != "rolled_back"
    }
    facts |= {f"{name}: points lost": round(100.0 * drift.drop, 2) for name, drift in seen.drifts.items()}
    kinds: list[EventKind] = ["watch_alert", "rolled_back"] if seen.rolled_back else ["watch_alert"]
    for kind in kinds:
        announce(config.notifications, Event(kind, None, seen.model_name, int(seen.version), seen.summary, facts))


def look(
    config: RunConfig,
    champion: Champion,
    promotions: Promotions,
    store: ArtifactStore,
    made_by: MadeBy = lambda version: None,
    say: Callable[[str], None] = say,
) -> Seen:
    """Measure the served champion, compare it with the evaluation it was promoted on, and act as the settings say.

    An endpoint that serves another model is an alert, not a look. One that cannot be reached is an error, because the model's state is
    unknown then, and monitoring the service itself is the task of other tools.

    Args:
        config: Configuration with `watch`, and with the protocol that the champion was measured by.
        champion: The champion.
        promotions: Promotions of the model.
        store: The artifact store, which has the problems.
        made_by: Gives the settings of the run that made the champion, for the statement on a rollback.
        say: Receives lines of progress.

    Raises:
        ConfigError: There are no settings, or they are not those that the champion was measured by; the endpoint refuses the token or a
            request; a rollback could not be signed, as there is no key of the kind that the settings name.
        EngineError: The endpoint cannot be reached or fails.
        TrackingError: The champion's evaluation is gone, or the registry cannot be reached.
        DataError: Its evaluation is of other weights, or cannot be compared, or its problems are gone.
        StoreError: The store cannot be reached, or the series or the evaluation is damaged.
    """
    settings = watch_settings(config)
    signer = decision_key(config) if settings.action == "rollback" else None
    evaluation, key = _evaluation(promotions, champion)
    names = sorted(set(settings.benchmarks or (config.promotion.benchmark,)))
    dataset = _dataset(champion, names, store)
    benchmarks = [
        read_benchmark(dataset / "benchmarks" / f"{name}.parquet", config.benchmark_gradings.get(name))
        for name in names
    ]
    seed = secrets.randbits(32)
    stage = _stage_settings(config, settings, seed)
    _require_comparable(champion, evaluation, benchmarks, stage, revisions(dataset))
    try:
        correct = _measured(stage, settings, champion, benchmarks, say)
    except OtherModelError as error:
        summary = f"{_who(champion)}: the endpoint does not serve the champion: {error}"
        facts = _facts(champion, settings) | {"problem": str(error)}
        return Seen(champion.model_name, champion.number, summary, alert=True, rolled_back=False, facts=facts)
    series, found = _recorded(settings, promotions, champion, evaluation, key, benchmarks, correct, seed)
    before = {name: evaluation["models"][MODEL][name]["mean"] for name in found}
    seen = _judged(settings, champion, series, found, before)
    if not seen.alert or settings.action != "rollback":
        return seen
    rolled_back, more = _rolled_back(promotions, champion.number, len(series["looks"]), signer, made_by)
    facts = {**seen.facts, "rolled_back": rolled_back}
    return replace(seen, summary=f"{seen.summary}; {more}", rolled_back=rolled_back, facts=facts)


def _evaluation(promotions: Promotions, champion: Champion) -> tuple[Evaluation, str]:
    """Return the evaluation that the champion is judged by, and its key."""
    label = f"model {champion.model_name}: the evaluation of the champion, version {champion.number},"
    stored, key = promotions.registry.evaluation(champion.version), evaluation_key(champion.version)
    if stored is None or key is None:
        raise TrackingError(
            f"{label} is gone, so there is nothing to compare with: run the pipeline that made it again"
        )
    evaluation = parse_evaluation(stored, where=label, cure="run the pipeline that made it again")
    if evaluation.get("weights", {}).get(MODEL) != champion.digest:
        raise DataError(
            f"{label} is of other weights than its files ({champion.digest}): run the pipeline that made it again"
        )
    return evaluation, key


def _dataset(champion: Champion, names: Sequence[str], store: ArtifactStore) -> Path:
    """Return the directory with the problems that the champion was measured on."""
    key = champion.version.tags.get(_DATASET)
    reference = store.find("prepare_data", key) if key else None
    if reference is None:
        raise StoreError(
            f"the problems that the champion of {champion.model_name} was measured on are gone (prepare_data {key}): run its preset again, "
            "which prepares them again"
        )
    files = {name: f"benchmarks/{name}.parquet" for name in names}
    directory = store.fetch(reference, only=(*files.values(), "sources.json"))
    for name, file in files.items():
        if not (directory / file).is_file():
            raise DataError(f"watch.benchmarks: the champion was not measured on {name!r}; name another")
    return directory


def _stage_settings(config: RunConfig, settings: WatchConfig, seed: int) -> BenchmarkEvaluationConfig:
    """Return the settings of the evaluation stage, as it would measure the served model with the samples of a look."""
    own = {
        "endpoint": settings.endpoint.model_dump(mode="json"),
        "samples": settings.samples,
        "pass_at": (1,),
        "early_stop": None,
    }
    evaluation = validate(EvaluationConfig, config.evaluation.model_dump(mode="json") | own)
    return select(config, BenchmarkEvaluationConfig).model_copy(
        update={"evaluation": evaluation, "gate": None, "seed": seed}
    )


def _require_comparable(
    champion: Champion,
    evaluation: Evaluation,
    benchmarks: Sequence[Benchmark],
    stage: BenchmarkEvaluationConfig,
    revision: Mapping[str, str | None],
) -> None:
    """Refuse to compare samples that are drawn differently from those of the evaluation; their number may differ."""
    vocabulary = read_config(champion.directory, f"model directory {champion.directory}").get_text_config().vocab_size
    tokenizer = load_tokenizer(champion.directory, vocabulary, stage.model.template_date)
    for benchmark in benchmarks:
        theirs = protocol_of(evaluation, MODEL, benchmark.name)
        result = evaluation["models"][MODEL].get(benchmark.name)
        if theirs is None or result is None:
            raise DataError(
                f"the evaluation of the champion of {champion.model_name} does not say how {benchmark.name} was measured: evaluate it again"
            )
        prompts = tokenizer.apply_chat_template(benchmark.prompts, add_generation_prompt=True, tokenize=False)
        planned = theirs.get("sampling", {}).get("samples", result["n_samples"])
        # Apart from counts, the two must be equal.
        asked = stage.evaluation.model_copy(update={"samples": planned})
        ours = benchmark_protocol(benchmark, prompts, asked, revision.get(benchmark.name))
        problem = difference(ours, theirs)
        if problem is None and set(result["per_problem"]) != set(benchmark.ids):
            problem = "problems"
        if problem is not None:
            raise DataError(
                f"the evaluation of the champion of {champion.model_name} and these settings differ on {benchmark.name} in their "
                f"{problem}; watch with the preset and the settings of the run that made it, or run it again, which "
                "evaluates the champion anew"
            )


def _measured(
    stage: BenchmarkEvaluationConfig,
    settings: WatchConfig,
    champion: Champion,
    benchmarks: Sequence[Benchmark],
    say: Callable[[str], None],
) -> dict[str, list[int]]:
    """Return the number of correct samples of each problem by benchmark, in the order of the problems."""
    chats = [chat for benchmark in benchmarks for chat in benchmark.prompts]
    correct = {}
    progress = SamplingProgress(len(chats) * settings.samples, say)
    sampler = start_endpoint_sampler(stage, settings.endpoint, champion.directory, chats)
    with closing(sampler.engine), Grader(workers=usable_cores()) as grader:
        for benchmark in benchmarks:
            requests = [(place, sample) for place in range(len(benchmark.ids)) for sample in range(settings.samples)]
            table = graded(_sampled(sampler, benchmark, requests, progress), benchmark, grader)
            right = dict.fromkeys(benchmark.ids, 0)
            for problem, verdict in zip(table["problem_id"].to_pylist(), table["correct"].to_pylist(), strict=True):
                right[problem] += verdict
            correct[benchmark.name] = list(right.values())
    return correct


def _sampled(
    sampler: Sampler, benchmark: Benchmark, requests: Sequence[tuple[int, int]], progress: SamplingProgress
) -> pa.Table:
    """Return the samples of a benchmark, in the order of the requests."""
    waiting = deque(enumerate(parts(0, requests, 1)))
    add = progress.of(benchmark.name, len(requests), len(requests))
    done = {}
    for number, table in sampler.tables([benchmark], lambda *, wait: waiting.popleft() if waiting else None):
        done[number] = table
        add(table.num_rows)
    return pa.concat_tables(done[number] for number in sorted(done))


def _recorded(
    settings: WatchConfig,
    promotions: Promotions,
    champion: Champion,
    evaluation: Evaluation,
    key: str,
    benchmarks: Sequence[Benchmark],
    correct: dict[str, list[int]],
    seed: int,
) -> tuple[Series, dict[str, Drift]]:
    """Add the look to its series, and return the drift over all looks by benchmark."""
    results = evaluation["models"][MODEL]
    terms: Terms = {
        "version": champion.number,
        "digest": champion.digest,
        "evaluation": key,
        "margin": settings.margin,
        "confidence": settings.confidence,
        "problems": {benchmark.name: list(benchmark.ids) for benchmark in benchmarks},
    }
    newest: Look = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "samples": settings.samples,
        "correct": correct,
    }

    def judged(series: Series) -> dict[str, list[Drift]]:
        found = {}
        for name, ids in series["terms"]["problems"].items():
            first, n = [results[name]["per_problem"][problem] for problem in ids], results[name]["n_samples"]
            looks = [(each["correct"][name], each["samples"]) for each in series["looks"]]
            # The allowed error is shared among the benchmarks.
            alpha = (1.0 - settings.confidence) / len(correct)
            found[name] = drifts(first, n, looks, margin=settings.margin / 100.0, alpha=alpha)
        return found

    series = Watches.in_store(promotions.artifacts, champion.model_name).add(
        terms, newest, lambda so_far: any(each[-1].alarm for each in judged(so_far).values())
    )
    return series, {name: each[-1] for name, each in judged(series).items()}


def _judged(
    settings: WatchConfig,
    champion: Champion,
    series: Series,
    found: Mapping[str, Drift],
    before: Mapping[str, float],
) -> Seen:
    """Return the result of a look, in words and facts."""
    number, version = len(series["looks"]), champion.number
    said = ", ".join(f"{name} {interval_text(drift)}" for name, drift in found.items())
    facts = _facts(champion, settings) | {
        "looks": number,
        "seed": series["looks"][-1]["seed"],
        "alarm_since_look": series["alarm"],
        "benchmarks": {
            name: {
                "drop": 100.0 * drift.drop,
                "interval": [100.0 * drift.low, 100.0 * drift.high],
                "alarm": drift.alarm,
            }
            for name, drift in found.items()
        },
    }
    who = _who(champion)
    if series["alarm"] is None:
        summary = f"{who}: look {number}, as it was: {said}"
        return Seen(champion.model_name, version, summary, False, False, facts, found, before)
    since = "" if series["alarm"] == number else f", since look {series['alarm']}"
    summary = (
        f"{who}: worse by more than {settings.margin:g} points than it was promoted for{since}, at {settings.confidence:.0%} confidence "
        f"over all looks; look {number}: {said}"
    )
    return Seen(champion.model_name, version, summary, True, False, facts | {"rolled_back": False}, found, before)


def _rolled_back(
    promotions: Promotions, version: str, look: int, signer: PrivateKey | None, made_by: MadeBy
) -> tuple[bool, str]:
    """Undo the promotion of a version, unless that leaves the model without a champion, and sign the decision; return what was done."""
    if promotions.registry.aliases()[PREVIOUS_CHAMPION] is None:
        return False, "not rolled back: there is no champion before it"
    try:
        entry = promotions.rollback(f"the watch found it worse than it was promoted for, at look {look}", of=version)
    except TrackingError as error:
        return False, f"not rolled back: {error}"
    said = f"rolled back: the champion is version {entry['after']['champion']}; serve that one"
    if signer is None:
        return True, said
    try:
        signed = sign_decision(promotions, {**entry, "model": promotions.registry.name}, signer, made_by)
    except NGRPOError as error:  # the rollback stands, and is reported in any case
        signed = f"version {version} is not signed: {error}"
    return True, f"{said}; {signed}"


def _who(champion: Champion) -> str:
    return f"model {champion.model_name}, version {champion.number}"


def _facts(champion: Champion, settings: WatchConfig) -> dict[str, Any]:
    return {"endpoint": settings.endpoint.url, "digest": champion.digest, "action": settings.action}


def interval_text(drift: Drift) -> str:
    """Return a drop with its interval over all looks."""
    return f"{100.0 * drift.drop:+.2f} ({100.0 * drift.low:+.2f} to {100.0 * drift.high:+.2f}) points lost"
