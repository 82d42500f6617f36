"""Stage `prepare_data`: read all problems, drop those unfit for training or evaluation, write tables."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ngrpo.config import Columns, FilesSource, HubSource, PrepareDataConfig, Source, Weighted
from ngrpo.config.stages import Generation
from ngrpo.contracts.layout import LAYOUT
from ngrpo.contracts.metrics import write_metrics
from ngrpo.contracts.sources import SOURCES, Sources, Table
from ngrpo.data.adapter_targets import require_targets
from ngrpo.data.chat import ChatLengths, Turns
from ngrpo.data.contamination import BenchmarkProblems
from ngrpo.data.copies import identity
from ngrpo.data.model_check import ModelFacts, require_positions
from ngrpo.data.models import examine
from ngrpo.data.problem import SET, WEIGHT, Problem
from ngrpo.data.problems import load_problems
from ngrpo.data.prompts import prompt_of
from ngrpo.data.screening import Screen, fingerprint
from ngrpo.data.vllm_service import services
from ngrpo.errors import DataError
from ngrpo.grading.grader import gold_usable
from ngrpo.report.remaining import Remaining
from ngrpo.stages.context import Context

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROBLEMS = pa.schema([("id", pa.string()), ("prompt", _TURNS), ("answer", pa.string())])
_EXAMPLES = pa.schema([("id", pa.string()), ("prompt", _TURNS), ("completion", _TURNS)])


def run(config: PrepareDataConfig, inputs: Mapping[str, Path], output: Path, context: Context) -> None:
    """Write `train.parquet`, `warm_start.parquet`, `benchmarks/<name>.parquet`, `sources.json`, `contamination.json` and `metrics.json`.

    The same settings give the same bytes. Dropped problems are counted in `metrics.json` by reason; training problems that also occur in a
    benchmark are listed in `contamination.json`, by id and without their text.

    Args:
        config: Settings of the stage.
        inputs: None are read.
        output: Empty directory for the artifact.
        context: See `Context`.

    Raises:
        DataError: A source, the tokenizer or the model cannot be used, the model has no room for prompt and response, ids repeat, a
            benchmark has a problem without text or answer, or nothing is left of a source.
        StoreError: The object store that holds a copy of a source cannot be reached or refuses the credentials.
    """
    tokenizer, model = examine(
        config.model.source,
        context.work / "tokenizer",
        config.model.template_date,
        config.model,
        services(config, cluster=context.on_cluster),
    )
    for section, lora in config.adapters.items():
        require_targets(lora, model.linear, section)
    for note in model.notes:
        context.progress(note)
    stage = _Tables(config, ChatLengths(tokenizer, model.rows), model, output, context.progress)
    (output / "benchmarks").mkdir()
    for name, source in sorted(config.data.benchmarks.items()):
        stage.write_benchmark(name, source)
    stage.write_train(config.data.training_sets())
    if config.data.warm_start is not None:
        stage.write_warm_start(config.data.warm_start)
    stage.close()


class _Tables:
    """The tables of one run, written one after the other; benchmarks first, because training problems must not overlap them."""

    def __init__(
        self,
        config: PrepareDataConfig,
        lengths: ChatLengths,
        model: ModelFacts,
        output: Path,
        progress: Callable[[str], None],
    ) -> None:
        self.config = config
        self.lengths = lengths
        self.model = model
        self.output = output
        self.progress = progress
        self.measured = BenchmarkProblems(config.data.overlap_words)
        self.contamination: list[dict[str, str]] = []
        self.metrics: dict[str, float] = {}
        self.tables: dict[str, Table] = {}
        data = config.data
        self.expected = len(data.benchmarks) + 1 + (data.warm_start is not None)
        self.remaining = Remaining()

    def write_benchmark(self, name: str, source: Source) -> None:
        label = f"data.benchmarks.{name}"
        problems = _load(label, source)
        for problem in problems:
            if not problem.problem or not problem.answer:
                raise DataError(f"{label}: problem {problem.id!r} has no text or no answer; correct the data set")
        screen = Screen(label)
        problems = screen.drop("repeated", problems, _repeated(problems))
        suffix = source.prompt_suffix if isinstance(source, Columns) else None
        problems = screen.drop("unparseable_answer", problems, _unusable(problems, source))
        rows = self._problem_rows(problems, suffix)
        prompts = [row["prompt"] for row in rows]
        self.lengths.require_known(label, [p.id for p in problems], prompts)
        lengths = self.lengths.prompts(prompts)
        self._require_room(label, lengths, "evaluation", self.config.evaluation)
        if name == self.config.serving.selection:
            self._require_room(label, lengths, "rollout", self.config.rollout)
        self.measured.add(name, problems)
        self._write(f"benchmarks/{name}.parquet", _problems_schema(source), rows, _made_of(source), screen.dropped)

    def write_train(self, sources: Mapping[str, Source]) -> None:
        """Write the training problems; with several sets, each problem has its set, and its id begins with the set's name."""
        rows: list[dict[str, Any]] = []
        made_of: dict[str, dict[str, Any]] = {}
        dropped: Counter[str] = Counter()
        for setting, source in sources.items():
            screen, problems = self._train_problems(f"data.{setting}", source)
            kept = self._problem_rows(problems)
            name = setting.removeprefix("train.")
            if isinstance(source, Weighted):
                kept = [row | {"id": f"{name}/{row['id']}", SET: name, WEIGHT: source.weight} for row in kept]
                self._count(f"train/{name}", len(kept), screen.dropped)
            rows += kept
            made_of[name] = _made_of(source)
            dropped.update(screen.dropped)
        # The sets agree on how many answers are accepted (see `RunConfig`).
        schema = _problems_schema(next(iter(sources.values())))
        if isinstance(self.config.data.train, dict):
            for field in (pa.field(SET, pa.string()), pa.field(WEIGHT, pa.float64())):
                schema = schema.append(field)
            self._write("train.parquet", schema, rows, made_of, dropped)
        else:
            self._write("train.parquet", schema, rows, made_of["train"], dropped)

    def _train_problems(self, label: str, source: Source) -> tuple[Screen, list[Problem]]:
        screen, problems = self._unseen(label, source)
        problems = screen.drop("unparseable_answer", problems, _unusable(problems, source))
        prompts = [self._prompt(problem) for problem in problems]
        self.lengths.require_known(label, [problem.id for problem in problems], prompts)
        limit, lengths = self.config.data.max_prompt_tokens, self.lengths.prompts(prompts)
        kept = [length for length in lengths if length <= limit]
        self._require_room(label, kept, "rollout", self.config.rollout)
        return screen, screen.drop("long_prompt", problems, [length > limit for length in lengths])

    def write_warm_start(self, source: Source) -> None:
        label = "data.warm_start"
        screen, problems = self._unseen(label, source)
        problems = screen.drop("no_solution", problems, [problem.solution is None for problem in problems])
        examples = [(self._prompt(p), [{"role": "assistant", "content": self._completion(p)}]) for p in problems]
        whole = [prompt + completion for prompt, completion in examples]
        self.lengths.require_known(label, [problem.id for problem in problems], whole)
        self.lengths.require_prefix(examples, self.config.model.generation_prompt)
        limit = min(self.config.warm_start.max_tokens, self.model.positions or self.config.warm_start.max_tokens)
        too_long = [length > limit for length in self.lengths.conversations(whole)]
        kept = screen.drop("long_example", list(zip(problems, examples, strict=True)), too_long)
        rows = [
            {"id": problem.id, "prompt": prompt, "completion": completion} for problem, (prompt, completion) in kept
        ]
        self._write("warm_start.parquet", _EXAMPLES, rows, _made_of(source), screen.dropped)

    def close(self) -> None:
        sources: Sources = {"layout": LAYOUT, "tables": self.tables}
        _write_json(self.output / SOURCES, sources)
        _write_json(self.output / "contamination.json", self.contamination)
        write_metrics(self.output, self.metrics)

    def _unseen(self, label: str, source: Source) -> tuple[Screen, list[Problem]]:
        """Load training problems, without empty or repeated ones and without those of a benchmark."""
        problems, screen = _load(label, source), Screen(label)
        problems = screen.drop("empty", problems, [not problem.problem or not problem.answer for problem in problems])
        problems = screen.drop("repeated", problems, _repeated(problems))
        matches = [
            next(filter(None, (self.measured.match(text) for text in problem.texts)), None) for problem in problems
        ]
        self.contamination += [
            {"source": label, "id": problem.id, **asdict(match)}
            for problem, match in zip(problems, matches, strict=True)
            if match is not None
        ]
        return screen, screen.drop("in_benchmark", problems, [match is not None for match in matches])

    def _require_room(self, label: str, prompts: Sequence[int], section: str, generation: Generation) -> None:
        """Refuse prompts and responses that exceed the model's positions."""
        longest, setting = max(prompts, default=0), f"{section}.max_tokens"
        require_positions(self.model, label, longest, setting, generation.max_tokens, generation.engine)

    def _prompt(self, problem: Problem, suffix: str | None = None) -> Turns:
        return prompt_of(problem, self.config.data, suffix)

    def _completion(self, problem: Problem) -> str:
        """Return a solution as it follows the chat template's own text: with the text that responses begin after."""
        begun, solution = self.config.model.generation_prompt, problem.solution or ""
        return solution if solution.startswith(begun) else begun + solution

    def _problem_rows(self, problems: list[Problem], suffix: str | None = None) -> list[dict[str, Any]]:
        return [{"id": p.id, "prompt": self._prompt(p, suffix), "answer": p.answer} for p in problems]

    def _write(
        self,
        name: str,
        schema: pa.Schema,
        rows: Sequence[Mapping[str, object]],
        made_of: dict[str, Any],
        dropped: Mapping[str, int],
    ) -> None:
        path = self.output / name
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.tables[name] = {"source": made_of, "rows": len(rows), "sha256": sha256}
        left = self.remaining.words(len(self.tables), self.expected)
        self._count(name.removesuffix(".parquet"), len(rows), dropped, left)

    def _count(self, table: str, kept: int, dropped: Mapping[str, int], left: str = "") -> None:
        self.metrics[f"{table}/kept"] = kept
        self.metrics |= {f"{table}/dropped/{reason}": count for reason, count in dropped.items()}
        why = f" {dict(dropped)}" if dropped else ""
        self.progress(f"{table}: {kept} kept, {sum(dropped.values())} dropped{why}{left}")


def _made_of(source: Source) -> dict[str, Any]:
    """Return the record of where problems come from."""
    return identity(source) | ({"digest": source.digest} if isinstance(source, HubSource | FilesSource) else {})


def _problems_schema(source: Source) -> pa.Schema:
    """Return the columns of problems; where several answers may be accepted, each problem has a list of them."""
    answers = pa.string() if source.grading.accepted == "one" else pa.list_(pa.string())
    return _PROBLEMS.set(_PROBLEMS.get_field_index("answer"), pa.field("answer", answers))


def _unusable(problems: Sequence[Problem], source: Source) -> list[bool]:
    return [not gold_usable(problem.answer, source.grading) for problem in problems]


def _load(label: str, source: Source) -> list[Problem]:
    try:
        problems = load_problems(source)
    except DataError as error:
        raise DataError(f"{label}: {error}") from error
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"{label}: id {problem.id!r} occurs twice; ids must be unique")
        seen.add(problem.id)
    return problems


def _repeated(problems: list[Problem]) -> list[bool]:
    """Say which problems have the text of an earlier one."""
    texts = [(*problem.before, fingerprint(problem.problem)) for problem in problems]
    first = {text: problem.id for text, problem in zip(reversed(texts), reversed(problems), strict=True)}
    return [first[text] != problem.id for text, problem in zip(texts, problems, strict=True)]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from ngrpo.stages.standalone import main

    main("prepare_data")
