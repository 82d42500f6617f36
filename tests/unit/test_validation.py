"""Validation: its result depends only on the policy, not on the number of processes."""

import pyarrow as pa
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from ngrpo.config import SelectionConfig
from ngrpo.evaluation.benchmark import Benchmark
from ngrpo.grading.grader import Grader
from ngrpo.rollout.transformers_engine import TransformersEngine
from ngrpo.training import validation
from ngrpo.training.validation import Validation
from tiny import EOS, PAD, save_tiny_model


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("policy"))


def test_processes_share_the_answers_that_one_would_give(policy, monkeypatch):
    seen = []

    def by_parity(samples: pa.Table, benchmark: Benchmark, grader: Grader) -> pa.Table:
        seen.append(samples)
        return pa.table({"correct": [tokens % 2 == 0 for tokens in samples["tokens"].to_pylist()]})

    monkeypatch.setattr(validation, "graded", by_parity)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    engine = TransformersEngine(model, [EOS], PAD, 64)
    chats = [[{"role": "user", "content": f"{number} + 1 ="}] for number in range(5)]
    benchmark = Benchmark("validation", [str(number) for number in range(5)], chats, ["0"] * 5)
    with Grader() as grader:
        measured = Validation(
            benchmark, SelectionConfig(benchmark="validation", samples=3), 24, tokenizer, grader, seed=7
        )
        whole = measured.verdicts(engine, process=0, processes=1)
        shares = [measured.verdicts(engine, process=process, processes=4) for process in range(4)]
        assert [measured.verdicts(engine, process=15, processes=16)] == [[]], "a process may have nothing to do"
    assert len(whole) == 15
    assert 0 < sum(whole) < 15
    for process, share in enumerate(shares):
        assert share == whole[process::4]
    requests = list(zip(seen[0]["problem_id"].to_pylist(), seen[0]["sample_id"].to_pylist(), strict=True))
    assert requests == [(str(problem), sample) for problem in range(5) for sample in range(3)]


def test_a_boxed_answer_counts(policy):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
    engine = TransformersEngine(model, [EOS], PAD, 64)
    benchmark = Benchmark("validation", ["a", "b"], [[{"role": "user", "content": "1 + 1 ="}]] * 2, ["2", "3"])
    said = {"a": "\\boxed{2}", "b": "\\boxed{2}"}
    with Grader() as grader:
        measured = Validation(
            benchmark, SelectionConfig(benchmark="validation", samples=1), 4, tokenizer, grader, seed=7
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(tokenizer), "batch_decode", lambda *_, **__: list(said.values()))
            assert measured.verdicts(engine, process=0, processes=1) == [True, False]
