"""The evaluation stage: paired samples, their statistics, and a result that a kill does not change."""

import errno
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from ngrpo.config import BenchmarkEvaluationConfig, InitializedModel
from ngrpo.config.grading import GradingConfig
from ngrpo.data.models import materialize
from ngrpo.errors import ConfigError, DataError, StoreError
from ngrpo.evaluation import configured_sampler, protocol
from ngrpo.evaluation.protocol import difference
from ngrpo.evaluation.samples import parts
from ngrpo.grading.grader import Grader
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import Rollout
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context
from ngrpo.stages.keys import source_files
from ngrpo.stages.surroundings import processes
from ngrpo.storage.digest import model_digest

MODELS = ("warm_start", "trained")
RESULT_FIELDS = {
    "mean",
    "mean_ci",
    "maj",
    "maj_ci",
    "pass_at_k",
    "pass_at_k_ci",
    "best_at_k",
    "best_at_k_ci",
    "n_problems",
    "n_samples",
    "mean_tokens",
    "truncated_rate",
    "ungraded_rate",
    "grader_errors",
    "distinct_answers",
    "per_problem",
    "per_problem_maj",
}


SOURCE = {
    "kind": "initialized",
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 16,
}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> Path:
    return materialize(InitializedModel.model_validate(SOURCE), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def inputs(tmp_path, base_model) -> dict[str, Path]:
    """Artifacts of the stages before: two benchmarks and two models."""
    for name, size in (("addition", 12), ("words", 5)):
        write_benchmark(tmp_path / "dataset", name, [problem(f"p{i}", f"{i}+{i % 3}", i % 10) for i in range(size)])
    for name in MODELS:
        model = tmp_path / name / "model"
        model.mkdir(parents=True)
        for file in base_model.iterdir():
            (model / file.name).symlink_to(file)
        (model / "name.txt").write_text(name)  # else the two were one model, whose samples are generated once
    return {name: tmp_path / name for name in ("dataset", *MODELS)}


def problem(identifier, text, answer):
    return {"id": identifier, "prompt": [{"role": "user", "content": f"what is {text}?"}], "answer": str(answer)}


def write_benchmark(dataset: Path, name: str, rows) -> None:
    (dataset / "benchmarks").mkdir(parents=True, exist_ok=True)
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("id", pa.string()), ("prompt", turns), ("answer", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), dataset / "benchmarks" / f"{name}.parquet")
    tables = {
        "benchmarks/addition.parquet": {"source": {"kind": "hub", "revision": "a" * 40}, "rows": 12, "sha256": "0"}
    }
    (dataset / "sources.json").write_text(json.dumps({"layout": 1, "tables": tables}))


def settings(*, warm_start_steps: int = 0, **evaluation) -> BenchmarkEvaluationConfig:
    defaults = {"samples": 4, "pass_at": (1, 2, 4), "max_tokens": 12, "batch_size": 8, "bootstrap_draws": 200}
    return BenchmarkEvaluationConfig.model_validate(
        {
            "seed": 7,
            "model": {"source": SOURCE},
            "neighbors": {"candidates": 4},
            "warm_start": {"steps": warm_start_steps},
            "evaluation": defaults | evaluation,
        }
    )


class FakeEngine:
    """Answers that depend on the seed alone: a digit, or, for one seed in seven, no answer at the length limit."""

    def __init__(self, tokenizer, limit: int | None = None):
        self.tokenizer = tokenizer
        self.limit = limit
        self.requests: list[tuple[tuple[int, ...], int]] = []
        self.mixers: list[object] = []
        self.closed = False

    def generate(self, prompts, seeds, sampling, mixer=None):
        self.mixers.append(mixer)
        rollouts = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if self.limit is not None and len(self.requests) >= self.limit:
                raise KeyboardInterrupt
            self.requests.append((tuple(prompt), seed))
            cut = seed % 7 == 0
            text = "<think>first 1+1=2" if cut else rf"<think>\boxed{{3}}</think>\boxed{{{seed // 7 % 10}}}<|end|>"
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            records = RolloutRecords(torch.zeros(0, dtype=torch.long), torch.zeros(0, 1), seed, 0)
            rollouts.append(Rollout(ids, [0.0] * len(ids), "length" if cut else "stop", records))
        return rollouts

    def close(self):
        self.closed = True


@pytest.fixture
def engines(monkeypatch):
    """Replace the engine; returns the engines that were made, and a way to have the next one interrupted."""
    made: list[FakeEngine] = []
    limits: list[int] = []

    def fake(config, *, tokenizer, **_):
        made.append(FakeEngine(tokenizer, limits.pop() if limits else None))
        return made[-1]

    monkeypatch.setattr(configured_sampler, "start_engine", fake)
    made_and_limits = type("Engines", (), {"made": made, "limits": limits})
    return made_and_limits


def evaluate(config, inputs, tmp_path, name="output", work="work", store=None) -> Path:
    output = tmp_path / name
    output.mkdir()
    (tmp_path / work).mkdir(exist_ok=True)
    context = Context(tmp_path / work, store=None if store is None else store.uri)
    benchmark_evaluation.run(config, inputs, output, context)
    return output


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_the_artifact(inputs, engines, tmp_path):
    output = evaluate(settings(), inputs, tmp_path)
    assert set(contents(output)) == {
        "evaluation.json",
        "metrics.json",
        *(f"samples/{model}/{name}.parquet" for model in MODELS for name in ("addition", "words")),
    }
    evaluation = json.loads((output / "evaluation.json").read_text())
    models = evaluation["models"]
    assert evaluation["weights"] == {name: model_digest(inputs[name] / "model") for name in MODELS}
    metrics = json.loads((output / "metrics.json").read_text())
    assert all(isinstance(value, int | float) for value in metrics.values())
    for model in MODELS:
        for name, size in (("addition", 12), ("words", 5)):
            table = pq.read_table(output / "samples" / model / f"{name}.parquet")
            rows = table.to_pylist()
            assert [(row["problem_id"], row["sample_id"]) for row in rows] == [
                (f"p{i}", sample) for i in range(size) for sample in range(4)
            ]
            result = models[model][name]
            assert set(result) == RESULT_FIELDS
            counts = {f"p{i}": sum(row["correct"] for row in rows[4 * i : 4 * i + 4]) for i in range(size)}
            assert result["per_problem"] == counts
            assert (result["n_problems"], result["n_samples"]) == (size, 4)
            assert result["mean"] == pytest.approx(np.mean([row["correct"] for row in rows]))
            for k in (1, 2, 4):
                expected = np.mean([1 - comb(4 - c, k) / comb(4, k) for c in counts.values()])
                assert result["pass_at_k"][str(k)] == pytest.approx(expected)
                low, high = result["pass_at_k_ci"][str(k)]
                assert 0 <= low <= expected <= high <= 1
                expected = np.mean([1 - (1 - c / 4) ** k for c in counts.values()])
                assert result["best_at_k"][str(k)] == pytest.approx(expected)
                low, high = result["best_at_k_ci"][str(k)]
                assert 0 <= low <= expected <= high <= 1
            assert result["mean_ci"][0] <= result["mean"] <= result["mean_ci"][1]
            cut = [row["finish_reason"] == "length" for row in rows]
            assert result["truncated_rate"] == result["ungraded_rate"] == pytest.approx(np.mean(cut))
            assert result["mean_tokens"] == pytest.approx(np.mean([row["tokens"] for row in rows]))
            assert result["grader_errors"] == 0
            given = [{row["extracted"] for row in rows[4 * i : 4 * i + 4]} - {None} for i in range(size)]
            assert result["distinct_answers"] == pytest.approx(np.mean([len(answers) / 4 for answers in given]))
            assert metrics[f"{model}/{name}/mean"] == result["mean"]
            assert metrics[f"{model}/{name}/pass_at_2"] == result["pass_at_k"]["2"]
            assert metrics[f"{model}/{name}/best_at_2"] == result["best_at_k"]["2"]
    assert 0 < models["trained"]["addition"]["mean"] < 1
    row = next(row for row in rows if row["finish_reason"] == "stop")
    assert row["text"] == rf"<think>\boxed{{3}}</think>\boxed{{{row['extracted']}}}", "special tokens are left out"


def test_the_base_model_is_measured_where_the_warm_start_is_another(inputs, engines, base_model, tmp_path):
    output = evaluate(settings(warm_start_steps=3), inputs, tmp_path)
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert list(evaluation["models"]) == list(evaluation["protocols"]) == ["base", *MODELS]
    assert evaluation["weights"]["base"] == model_digest(base_model)
    assert evaluation["protocols"]["base"] == evaluation["protocols"]["trained"]
    assert pq.read_table(output / "samples" / "base" / "addition.parquet").num_rows == 12 * 4
    assert "base/addition/mean" in json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (
            lambda inputs: write_benchmark(inputs["dataset"], "addition", [problem("p0", "0+0", 1)]),
            "problems or gold answers",
        ),
        (
            lambda inputs: (inputs["dataset"] / "sources.json").write_text('{"layout": 1, "tables": {}}'),
            "data revision",
        ),
        (lambda inputs: write_benchmark(inputs["dataset"], "addition", [problem("p0", "0 + 0", 0)]), "prompts"),
        (lambda inputs: None, None),
    ],
)
def test_the_protocol_tells_how_a_model_was_measured(inputs, engines, tmp_path, change, differs):
    def measured(name: str, **evaluation) -> dict:
        output = evaluate(settings(**evaluation), inputs, tmp_path, name, f"work-{name}")
        return json.loads((output / "evaluation.json").read_text())["protocols"]["trained"]["addition"]

    write_benchmark(inputs["dataset"], "addition", [problem("p0", "0+0", 0)])
    before = measured("before", bootstrap_draws=100)
    change(inputs)
    assert difference(before, measured("after")) == differs
    if differs is None:
        for more in (
            {"samples": 5},
            {"temperature": 0.5},
            {"top_p": 1.0},
            {"max_tokens": 13},
            {"mixing": {"rate": 0.5}},
        ):
            other = measured(next(iter(more)), **{"batch_size": 9} | more)
            assert difference(before, other) == "sampling settings"


def test_another_grader_is_another_protocol(monkeypatch):
    before = protocol.grader_version()
    monkeypatch.setattr(protocol, "version", lambda name: "0.0")
    assert protocol.grader_version() != before


def test_the_grader_of_a_protocol_is_all_that_the_grader_imports():
    # What brings the code of a grader of the user's decides nothing: that code is in the version by itself.
    user_code = {"user_code/__init__.py", "user_code/loading.py"}
    reached = set(source_files("ngrpo.grading.grader")) - {"__init__.py"} - user_code
    assert "grading/comparison.py" in reached
    assert all(protocol.is_grader_source(file) for file in reached)


def test_samples_have_another_key_with_another_version_of_what_generates_them(monkeypatch):
    def key(engine, **versions):
        with monkeypatch.context() as patched:
            patched.setattr(
                benchmark_evaluation, "installed", lambda _, names: {name: versions.get(name, "1") for name in names}
            )
            return benchmark_evaluation._samples_key(settings(engine=engine), "weights", "prompts")

    assert key("transformers") == key("transformers", vllm="2", trl="2", sympy="2")
    assert key("transformers") != key("transformers", torch="2")
    assert key("vllm") != key("vllm", vllm="2")


def test_samples_have_another_key_with_other_arguments_of_the_engine_that_generates_them():
    def key(engine, **options):
        return benchmark_evaluation._samples_key(
            settings(engine=engine, vllm={"options": options}), "weights", "prompts"
        )

    assert key("vllm") != key("vllm", quantization="fp8")
    assert key("transformers") == key("transformers", quantization="fp8")


def test_progress_goes_to_whom_the_context_names(inputs, engines, tmp_path, capsys):
    lines = []
    (tmp_path / "output").mkdir()
    context = Context(tmp_path / "work", progress=lines.append)
    benchmark_evaluation.run(settings(), inputs, tmp_path / "output", context)
    assert [line.partition(":")[0] for line in lines if "mean@4" in line] == [
        f"{model} {benchmark}" for model in ("warm_start", "trained") for benchmark in ("addition", "words")
    ]
    assert capsys.readouterr().out == ""


def test_both_models_get_the_same_prompts_and_seeds(inputs, engines, tmp_path):
    evaluate(settings(), inputs, tmp_path)
    first, second = engines.made
    assert first.requests == second.requests
    seeds = [seed for _, seed in first.requests]
    assert len(set(seeds)) == len(seeds) == 4 * (12 + 5)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert first.closed
    assert second.closed
    assert first.mixers == [None] * len(first.mixers), "mixing is off unless it is asked for"
    tokenizer = AutoTokenizer.from_pretrained(inputs["trained"] / "model")
    assert tokenizer.decode(first.requests[0][0]) == "<|user|>what is 0+0?<|assistant|>"


def test_seeds_depend_on_the_sample_alone(inputs, engines, tmp_path):
    few = pq.read_table(evaluate(settings(), inputs, tmp_path, "few", "w1") / "samples/trained/addition.parquet")
    more = (
        evaluate(settings(samples=6, batch_size=5), inputs, tmp_path, "more", "w2") / "samples/trained/addition.parquet"
    )
    assert [row for row in pq.read_table(more).to_pylist() if row["sample_id"] < 4] == few.to_pylist()
    # Another order and another benchmark beside it change nothing; another seed changes everything.
    rows = pq.read_table(inputs["dataset"] / "benchmarks/addition.parquet").to_pylist()
    write_benchmark(inputs["dataset"], "addition", rows[::-1])
    (inputs["dataset"] / "benchmarks/words.parquet").unlink()
    turned = evaluate(settings(), inputs, tmp_path, "turned", "w3") / "samples/trained/addition.parquet"
    key = "problem_id", "sample_id"
    by_id = {tuple(row[name] for name in key): row for row in pq.read_table(turned).to_pylist()}
    assert by_id == {tuple(row[name] for name in key): row for row in few.to_pylist()}
    before = engines.made[-1].requests
    evaluate(settings().model_copy(update={"seed": 8}), inputs, tmp_path, "other", "w4")
    assert not {seed for _, seed in before} & {seed for _, seed in engines.made[-1].requests}


@pytest.mark.parametrize(
    ("killed_after", "kept"), [((0,), 0), ((1,), 0), ((20,), 16), ((60,), 56), ((68, 0), 68), ((68, 50), 68 + 48)]
)
def test_a_kill_changes_nothing_and_repeats_little(inputs, engines, tmp_path, killed_after, kept):
    """A kill after so many samples of each model, in parts of 8, keeps the whole parts."""
    whole = contents(evaluate(settings(), inputs, tmp_path, "whole", "work-whole"))
    engines.limits.extend(reversed(killed_after))
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(), inputs, tmp_path, "killed")
    assert sum(pq.read_table(path).num_rows for path in (tmp_path / "work").rglob("*.parquet")) == kept
    engines.made.clear()
    assert contents(evaluate(settings(), inputs, tmp_path, "resumed")) == whole
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 68 - kept


def test_parts_are_the_same_batches_whichever_were_generated():
    requests = [(problem, sample) for problem in range(121) for sample in range(5)]
    batches = [requests[start : start + 4] for start in range(0, 605, 4)]
    all_parts = [part.requests for part in parts(2, requests, 4)]
    assert len(all_parts) <= 100
    assert {part.benchmark for part in parts(2, requests, 4)} == {2}
    assert [request for part in all_parts for request in part] == requests
    for seed in range(20):
        done = random.Random(seed).sample(all_parts, len(all_parts) * seed // 20)
        missing = [request for request in requests if not any(request in part for part in done)]
        again = [part.requests for part in parts(2, missing, 4)]
        cut = [part[start : start + 4] for part in again for start in range(0, len(part), 4)]
        assert all(batch in batches for batch in cut), "another batch would round in another way"
    assert parts(0, [], 4) == []


@pytest.mark.parametrize(("asked", "message"), [("0", "'0'"), ("-1", "'-1'"), ("two", "'two'"), ("1.5", "'1.5'")])
def test_a_bad_number_of_processes_is_refused(monkeypatch, asked, message):
    monkeypatch.setenv("NGRPO_PROCESSES", asked)
    with pytest.raises(
        ConfigError, match=rf"NGRPO_PROCESSES={message}: not a positive number of processes; set it to 2"
    ):
        processes()


def test_the_number_of_processes_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("NGRPO_PROCESSES", raising=False)
    assert processes() is None
    monkeypatch.setenv("NGRPO_PROCESSES", "3")
    assert processes() == 3


KILL_POINTS = (
    (FakeEngine, "generate"),
    (pq, "write_table"),
    (os, "fsync"),
    (Path, "replace"),
    (Grader, "grade"),
)


def evaluate_until_killed(point: int, *arguments) -> None:
    """In a process of its own: evaluate, and be killed before so many calls of generating, grading and writing."""
    calls = itertools.count()
    for owner, name in KILL_POINTS:
        original = getattr(owner, name)

        def counting(*given, original=original, **options):
            if next(calls) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*given, **options)

        setattr(owner, name, counting)
    evaluate(*arguments)


def test_ten_kills_at_random_change_nothing(inputs, engines, tmp_path):
    """Kills that no process survives to clean up after, anywhere between the first sample and the last table."""
    whole = contents(evaluate(settings(), inputs, tmp_path, "whole", "work-whole"))
    random_ = random.Random(10)
    kept = []
    for number in range(10):
        point = random_.randrange(8 if number < 8 else 24)
        child = multiprocessing.get_context("fork").Process(
            target=evaluate_until_killed, args=(point, settings(), inputs, tmp_path, f"killed-{number}")
        )
        child.start()
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        kept.append(sum(pq.read_table(path).num_rows for path in (tmp_path / "work").rglob("*.parquet")))
    print(f"samples kept after each of ten kills: {kept} of {2 * 68}")
    assert 0 < kept[4] < kept[-1] < 2 * 68
    engines.made.clear()
    assert contents(evaluate(settings(), inputs, tmp_path, "last")) == whole
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 68 - kept[-1]


def test_a_kill_while_samples_are_written_leaves_none(inputs, engines, tmp_path, monkeypatch):
    whole = contents(evaluate(settings(), inputs, tmp_path, "whole", "work-whole"))

    def cut_short(descriptor):
        os.truncate(f"/proc/self/fd/{descriptor}", 4)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", cut_short)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a kill cleans nothing up
        with pytest.raises(KeyboardInterrupt):
            evaluate(settings(), inputs, tmp_path, "killed")
    assert [path.stat().st_size for path in (tmp_path / "work").rglob("*") if path.is_file()] == [4]
    assert contents(evaluate(settings(), inputs, tmp_path, "resumed")) == whole


def test_a_model_whose_samples_are_finished_is_not_loaded(inputs, engines, tmp_path, monkeypatch):
    evaluate(settings(), inputs, tmp_path, "first")
    engines.made.clear()
    monkeypatch.setattr(benchmark_evaluation, "start_sampler", lambda *_: pytest.fail("loaded"))
    again = evaluate(settings(), inputs, tmp_path, "second")
    assert contents(again) == contents(tmp_path / "first")
    assert not engines.made


def test_more_samples_reuse_those_that_exist(inputs, engines, tmp_path):
    fresh = contents(evaluate(settings(samples=7), inputs, tmp_path, "fresh", "another"))
    evaluate(settings(samples=4), inputs, tmp_path, "few")
    engines.made.clear()
    assert contents(evaluate(settings(samples=7), inputs, tmp_path, "more")) == fresh
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 3 * (12 + 5)
    engines.made.clear()
    evaluate(settings(samples=4), inputs, tmp_path, "few again")
    assert not engines.made


def test_with_an_object_store_another_machine_goes_on(inputs, engines, tmp_path, objects):
    whole = contents(evaluate(settings(), inputs, tmp_path, "whole", "work-whole"))
    engines.limits.append(20)
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(), inputs, tmp_path, "killed", "one machine", store=objects)
    engines.made.clear()
    assert contents(evaluate(settings(), inputs, tmp_path, "resumed", "another machine", store=objects)) == whole
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 68 - 16
    assert {key.partition("/")[0] for key in objects.list()} == {"samples"}


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"top_p": 0.9}, {"max_tokens": 13}, {"mixing": {"rate": 0.5}}, {"seed": 8}]
)
def test_samples_of_other_settings_are_not_reused(inputs, engines, tmp_path, change):
    evaluate(settings(), inputs, tmp_path, "first")
    engines.made.clear()
    config = settings(**{name: value for name, value in change.items() if name != "seed"})
    evaluate(config.model_copy(update={"seed": change.get("seed", 7)}), inputs, tmp_path, "second")
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 4 * (12 + 5)


@pytest.mark.parametrize(
    "change", [{"model": {"dtype": "bfloat16"}}, {"evaluation": {"engine": "vllm"}}, {"neighbors": {"candidates": 5}}]
)
def test_samples_that_are_generated_in_another_way_are_not_reused(inputs, engines, tmp_path, change):
    before = settings(mixing={"rate": 0.5}).model_dump()
    after = before | {section: before[section] | values for section, values in change.items()}
    for name, config in (("first", before), ("second", after)):
        engines.made.clear()
        evaluate(BenchmarkEvaluationConfig.model_validate(config), inputs, tmp_path, name)
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 4 * (12 + 5)


def test_samples_of_another_generator_are_not_reused(inputs, engines, tmp_path, monkeypatch):
    evaluate(settings(), inputs, tmp_path, "first")
    engines.made.clear()
    monkeypatch.setattr(benchmark_evaluation, "code_version", lambda module: f"another version of {module}")
    evaluate(settings(), inputs, tmp_path, "second")
    assert sum(len(engine.requests) for engine in engines.made) == 2 * 4 * (12 + 5)


def test_samples_of_other_prompts_are_not_reused(inputs, engines, tmp_path):
    """The same problems by id, asked in other words: another suffix of prompts, or another chat template."""
    evaluate(settings(), inputs, tmp_path, "first")
    engines.made.clear()
    write_benchmark(inputs["dataset"], "words", [problem(f"p{i}", f"{i} plus {i % 3}", i % 10) for i in range(5)])
    evaluate(settings(), inputs, tmp_path, "second")
    assert [len(engine.requests) for engine in engines.made] == [4 * 5, 4 * 5], "one benchmark of two has changed"


def test_another_gold_answer_needs_no_generation(inputs, engines, tmp_path):
    """Verdicts are a function of what is kept and of the gold answers."""
    first = evaluate(settings(), inputs, tmp_path, "first") / "samples/trained/words.parquet"
    engines.made.clear()
    write_benchmark(inputs["dataset"], "words", [problem(f"p{i}", f"{i}+{i % 3}", 3) for i in range(5)])
    second = evaluate(settings(), inputs, tmp_path, "second") / "samples/trained/words.parquet"
    assert not engines.made
    first, second = (pq.read_table(path) for path in (first, second))
    assert first.select(["text", "extracted"]) == second.select(["text", "extracted"])
    assert second["correct"].to_pylist() == [answer == "3" for answer in second["extracted"].to_pylist()]
    assert first["correct"] != second["correct"]


def changed(part: Path) -> bytes:
    """A sound part with another response."""
    table = pq.read_table(part)
    buffer = io.BytesIO()
    texts = pa.array([r"\boxed{3}"] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("text"), "text", texts), buffer)
    return buffer.getvalue()


PART_DAMAGE = {
    "empty": lambda part: b"",
    "cut": lambda part: part.read_bytes()[:-8],
    "no Parquet": lambda part: b"PAR1",
    "one bit": lambda part: bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:],
    "other responses": changed,
    "another part": lambda part: next(
        other for other in (p.read_bytes() for p in part.parents[2].rglob("*.parquet")) if other != part.read_bytes()
    ),
    "of another benchmark": lambda part: next(
        p for p in part.parents[2].rglob("*.parquet") if p.parent.name != part.parent.name
    ).read_bytes(),
}


@pytest.mark.parametrize("damage", PART_DAMAGE.values(), ids=PART_DAMAGE)
def test_damaged_samples_are_generated_again(inputs, engines, tmp_path, capsys, damage):
    whole = contents(evaluate(settings(), inputs, tmp_path, "first"))
    part = next(path for path in sorted((tmp_path / "work").rglob("*.parquet")) if pq.read_table(path).num_rows == 8)
    good = contents(tmp_path / "work")
    part.write_bytes(damage(part))
    engines.made.clear()
    capsys.readouterr()
    # Other batches than before, so that what is generated again has another name.
    assert contents(evaluate(settings(batch_size=5), inputs, tmp_path, "second")) == whole
    assert sum(len(engine.requests) for engine in engines.made) == 8
    name = part.relative_to(tmp_path / "work" / "samples")
    assert capsys.readouterr().err == f"samples {name} are damaged and will be generated again\n"
    assert contents(tmp_path / "work").keys() != good.keys(), "what was damaged is gone"
    engines.made.clear()
    assert contents(evaluate(settings(), inputs, tmp_path, "third")) == whole
    assert not engines.made
    assert capsys.readouterr().err == ""


def test_samples_that_were_moved_to_another_model_are_not_used(inputs, engines, tmp_path):
    whole = contents(evaluate(settings(), inputs, tmp_path, "first"))
    first, second = sorted((tmp_path / "work" / "samples").glob("*/addition"))
    shutil.rmtree(second)
    first.rename(second)
    assert contents(evaluate(settings(), inputs, tmp_path, "second")) == whole


def test_damaged_samples_in_an_object_store_are_generated_again(inputs, engines, tmp_path, objects):
    whole = contents(evaluate(settings(), inputs, tmp_path, "first", store=objects))
    keys = objects.list("samples/")
    objects.put_bytes(b"", keys[0])
    objects.put_bytes(objects.get_bytes(keys[1]), keys[-1])
    assert contents(evaluate(settings(), inputs, tmp_path, "second", store=objects)) == whole
    assert objects.list("samples/") == keys, "each is as it was"


def test_a_fault_of_a_read_is_no_damage(inputs, engines, tmp_path, monkeypatch):
    whole = contents(evaluate(settings(), inputs, tmp_path, "first"))
    kept = contents(tmp_path / "work")
    engines.made.clear()
    read, flipped = Path.read_bytes, []

    def one_bit_once(path):
        data = read(path)
        if path.suffix == ".parquet" and path not in flipped:
            flipped.append(path)
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", one_bit_once)
        output = evaluate(settings(), inputs, tmp_path, "second")
    assert contents(output) == whole
    assert flipped

    def refuse(path):
        if path.suffix == ".parquet":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(StoreError, match=r"\.parquet: cannot be read \(Input/output error\)"):
            evaluate(settings(), inputs, tmp_path, "third")
    assert not engines.made
    assert contents(tmp_path / "work") == kept


def test_progress_is_a_few_plain_lines(inputs, engines, tmp_path, capsys):
    write_benchmark(inputs["dataset"], "addition", [problem(f"p{i}", f"{i % 9}+{i % 8}", 3) for i in range(100)])
    evaluate(settings(batch_size=3), inputs, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trained addition: ")]
    assert len(lines) == 11
    assert re.fullmatch(r"trained addition: 42/400 samples(, about \d+ s left)?", lines[0])
    assert re.fullmatch(r"trained addition: 400/400 samples(, about \d+ s left)?", lines[-2])
    assert lines[-1].startswith("trained addition: mean@4 ")


def test_the_string_match_stands_beside_the_verdict_where_it_is_asked_for(inputs, engines, tmp_path):
    gold = r"\frac{6}{2}"  # every third answer is 3, and none is written like this
    write_benchmark(inputs["dataset"], "addition", [problem(f"p{i}", f"{i}+1", gold) for i in range(12)])
    write_benchmark(inputs["dataset"], "words", [problem(f"p{i}", f"{i}+2", 3) for i in range(12)])
    output = evaluate(settings(samples=8, string_match=["addition", "words"]), inputs, tmp_path)
    results = json.loads((output / "evaluation.json").read_text())["models"]["trained"]
    metrics = json.loads((output / "metrics.json").read_text())
    assert results["addition"]["mean"] > 0
    assert results["addition"]["string_match"] == 0 == metrics["trained/addition/string_match"]
    words = results["words"]
    assert 0 < words["string_match"] == metrics["trained/words/string_match"]
    assert words["per_problem_string_match"] == words["per_problem"]
    assert words["string_match_ci"] == words["mean_ci"]
    table = pq.read_table(output / "samples/trained/words.parquet")
    assert table["string_match"].to_pylist() == table["correct"].to_pylist()
    plain = evaluate(settings(samples=8), inputs, tmp_path, "plain")
    assert pq.read_table(plain / "samples/trained/words.parquet")["string_match"].null_count == 96
    without = json.loads((plain / "evaluation.json").read_text())["models"]["trained"]["words"]
    assert set(without) == RESULT_FIELDS
    assert {name: words[name] for name in RESULT_FIELDS} == without


def test_answers_that_cannot_be_graded_are_counted(inputs, engines, tmp_path):
    write_benchmark(inputs["dataset"], "addition", [problem("only", "1+1", "⑤")])
    result = json.loads((evaluate(settings(samples=20), inputs, tmp_path) / "evaluation.json").read_text())
    result = result["models"]["trained"]["addition"]
    assert result["mean"] == 0
    assert result["grader_errors"] == 20 - round(20 * result["ungraded_rate"]) > 0


def test_the_code_of_the_users_graders_is_in_the_artifact_beside_what_they_decided(inputs, engines, tmp_path):
    code = {
        "graders.py": "from helper import RIGHT\ndef grade(response, answer): return RIGHT\n",
        "helper.py": "RIGHT = 0.5\n",
    }
    compare = {"function": "graders.py:grade", "code": code}
    own = settings().model_copy(
        update={"benchmark_gradings": {"words": GradingConfig.model_validate({"compare": compare})}}
    )
    output = evaluate(own, inputs, tmp_path)
    assert {name: text.decode() for name, text in contents(output / "code").items()} == {
        f"words/{name}": text for name, text in code.items()
    }
    results = json.loads((output / "evaluation.json").read_text())["models"]["trained"]
    assert results["words"]["mean"] == 1.0
    assert results["addition"]["mean"] < 1.0


# --- with the real engine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mixing", [None, {"rate": 0.5, "k": 3}, {"strategy": "gaussian", "rate": 0.5}, {"strategy": "token"}]
)
def test_the_real_engine_with_and_without_mixing(inputs, tmp_path, monkeypatch, mixing):
    seen = []
    generate = TransformersEngine.generate

    def watch(self, prompts, seeds, sampling, mixer=None):
        rollouts = generate(self, prompts, seeds, sampling, mixer)
        seen.append((mixer, sum(len(rollout.records.positions) for rollout in rollouts)))
        return rollouts

    monkeypatch.setattr(TransformersEngine, "generate", watch)
    output = evaluate(settings(mixing=mixing), inputs, tmp_path)
    tables = {model: pq.read_table(output / "samples" / model / "addition.parquet").to_pylist() for model in MODELS}
    assert tables["warm_start"] == tables["trained"], "equal weights and equal seeds give equal samples"
    assert {row["finish_reason"] for row in tables["trained"]} <= {"stop", "length"}
    assert all(1 <= row["tokens"] <= 12 for row in tables["trained"])
    mixes = mixing is not None and mixing.get("strategy") != "token"
    assert all((mixer is not None) == mixes for mixer, _ in seen)
    assert (sum(mixed for _, mixed in seen) > 0) == mixes


def test_mixing_needs_enough_neighbors(inputs, tmp_path):
    with pytest.raises(ConfigError, match=r"mixing\.k=9"):
        evaluate(settings(mixing={"k": 9}), inputs, tmp_path)


# --- bad input --------------------------------------------------------------------------------------------------------


def fails(inputs, tmp_path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate(settings(), inputs, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "output/evaluation.json").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "'addition': it has no problems"),
        ([problem("a", "1+1", 2), problem("b", "1+2", 3), problem("a", "1+3", 4)], "id 'a' occurs 2 times"),
        ([problem("a", "1+1", "")], "problem 'a' has no id, prompt or answer"),
        ([problem("a", "1+1", 2) | {"prompt": []}], "problem 'a' has no id, prompt or answer"),
        ([problem(None, "1+1", 2)], "problem None has no id, prompt or answer"),
    ],
)
def test_bad_benchmarks_are_refused(inputs, engines, tmp_path, rows, message):
    write_benchmark(inputs["dataset"], "addition", rows)
    fails(inputs, tmp_path, message)
    assert not engines.made


def test_unreadable_benchmarks_are_refused(inputs, engines, tmp_path):
    path = inputs["dataset"] / "benchmarks/addition.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["id", "question", "answer"]), path)
    fails(inputs, tmp_path, "column prompt is missing")
    (tmp_path / "output").rmdir()
    path.write_bytes(b"not parquet")
    fails(inputs, tmp_path, "is not a readable Parquet file")
    (tmp_path / "output").rmdir()
    for file in path.parent.iterdir():
        file.unlink()
    fails(inputs, tmp_path, "no .*parquet file")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("model.safetensors", "no .*safetensors"), ("chat_template.jinja", "no chat template")],
)
def test_incomplete_models_are_refused(inputs, engines, tmp_path, missing, message):
    (inputs["trained"] / "model" / missing).unlink()
    fails(inputs, tmp_path, message)
