"""A sampler keeps an engine busy that accepts requests while it decodes others."""

import torch

from ngrpo.config import BenchmarkEvaluationConfig
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.evaluation.samples import Part, Sampler, parts
from ngrpo.mixing.records import RolloutRecords
from ngrpo.rollout.engine import ContinuousEngine, Rollout, Sampling
from ngrpo.rollout.seeds import request_seed
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.rollout.vllm.engine import VLLMEngine
from ngrpo.stages import benchmark_evaluation
from ngrpo.stages.context import Context

RECORDS = RolloutRecords(torch.zeros(0, dtype=torch.long), torch.zeros(0, 1), 0, 0)


class Continuous:
    """Ends one response a step, the newest first, so that batches end in another order than they began in."""

    def __init__(self):
        self.waiting: list[tuple[int, int, int]] = []
        self.done: dict[int, dict[int, Rollout]] = {}
        self.sizes: dict[int, int] = {}
        self.most = 0

    def submit(self, number, prompts, seeds, sampling, mixer=None):
        self.waiting += [(number, row, seed) for row, seed in enumerate(seeds)]
        self.sizes[number], self.done[number] = len(prompts), {}
        self.most = max(self.most, len(self.waiting))

    def step(self):
        number, row, seed = self.waiting.pop()
        self.done[number][row] = Rollout([seed % 97], [0.0], "stop", RECORDS)
        if len(self.done[number]) < self.sizes[number]:
            return []
        return [(number, [self.done[number][row] for row in range(self.sizes[number])])]

    def generate(self, prompts, seeds, sampling, mixer=None):
        raise AssertionError("one call after the other leaves it empty in between")

    def load_weights(self, weights):
        raise NotImplementedError

    def sleep(self):
        raise NotImplementedError

    def close(self):
        self.closed = True


class Tokenizer:
    def apply_chat_template(self, chats, **_):
        return [[len(chat[0]["content"])] for chat in chats]

    def batch_decode(self, ids, **_):
        return [str(each) for each in ids]


def benchmark(name: str, size: int) -> Benchmark:
    prompts = [[{"role": "user", "content": "x" * number}] for number in range(size)]
    return Benchmark(name, [f"p{number}" for number in range(size)], prompts, ["1"] * size)


def test_which_engines_take_up_requests_while_they_decode():
    assert isinstance(Continuous(), ContinuousEngine)
    assert not hasattr(TransformersEngine, "submit")
    assert {"submit", "step"} <= set(vars(VLLMEngine))


def test_parts_overlap_and_each_gets_its_own_samples(tmp_path, monkeypatch):
    benchmarks = [benchmark("first", 7), benchmark("second", 3)]
    engine = Continuous()
    sampler = Sampler(engine, Tokenizer(), Sampling(5, 1.0), seed=3)
    monkeypatch.setattr(benchmark_evaluation, "start_sampler", lambda *_: sampler)
    requests = [[(problem, sample) for problem in range(len(each.ids)) for sample in range(2)] for each in benchmarks]
    waiting = [part for place, each in enumerate(requests) for part in parts(place, each, 2)]
    tables = list(benchmark_evaluation._sampled_here(None, {"model": "m"}, benchmarks, waiting, tuple, ahead=6))
    assert engine.closed
    assert engine.most == 6, "never more are under way than are to be"
    assert [part for part, _ in tables] != waiting, "what is ready first comes first"
    assert sorted((part.benchmark, part.requests) for part, _ in tables) == [
        (part.benchmark, part.requests) for part in waiting
    ]
    for part, table in tables:
        own = benchmarks[part.benchmark]
        expected = [
            {
                "problem_id": own.ids[problem],
                "sample_id": sample,
                "text": str([request_seed(3, own.name, own.ids[problem], sample) % 97]),
                "tokens": 1,
                "finish_reason": "stop",
            }
            for problem, sample in part.requests
        ]
        assert table.to_pylist() == expected


def test_a_sampler_waits_for_parts_only_when_it_has_nothing_to_decode():
    asked = []
    given = iter([(0, Part(0, [(0, 0), (0, 1)])), None, (1, Part(0, [(1, 0)])), None, None, None])

    def take(*, wait):
        asked.append(wait)
        return next(given)

    sampler = Sampler(Continuous(), Tokenizer(), Sampling(5, 1.0), seed=3)
    numbers = [number for number, _ in sampler.tables([benchmark("first", 2)], take)]
    assert numbers == [1, 0]
    assert asked == [True, False, False, False, False, True]


def test_vllm_keeps_the_samples_of_a_problem_together_and_transformers_a_batch(tmp_path, monkeypatch):
    given: dict[str, list[Part]] = {}

    def sampled(task, parts, devices, *, ahead, **_):
        given[engine] = [ahead, *(len(part.requests) for part in parts)]
        yield from ()

    class Missing:
        def __init__(self, place: Benchmark):
            self.benchmark, self.samples = place, 4
            self.missing = [(problem, sample) for problem in range(len(place.ids)) for sample in range(4)]

    monkeypatch.setattr(benchmark_evaluation, "sampled_by_processes", sampled)
    monkeypatch.setattr(benchmark_evaluation, "devices_of_processes", lambda *_: ["0", "1"])
    monkeypatch.setattr(benchmark_evaluation, "require_weights", lambda *_: None)
    for engine in ("vllm", "transformers"):
        config = BenchmarkEvaluationConfig.model_validate(
            {
                "seed": 0,
                "model": {"source": {"kind": "initialized"}},
                "neighbors": {},
                "warm_start": {"steps": 0},
                "evaluation": {"engine": engine, "samples": 4, "pass_at": [1], "batch_size": 10},
            }
        )
        kept = [Missing(benchmark("first", 3)), Missing(benchmark("second", 2))]
        benchmark_evaluation._generate(
            config, "base", {"model": "m"}, kept, Context(tmp_path), [lambda count: None] * 2, None
        )
    assert given == {"vllm": [20, 4, 4, 4, 4, 4], "transformers": [10, 10, 2, 8]}
