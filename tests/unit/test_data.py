import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ngrpo.config import (
    ArithmeticSource,
    DataConfig,
    ExampleLimits,
    Generation,
    HubSource,
    InitializedModel,
    PrepareDataConfig,
    ReasoningGymSource,
    TokenizerConfig,
)
from ngrpo.data import mirror as mirrors
from ngrpo.data.chat import ChatLengths
from ngrpo.data.contamination import BenchmarkProblems, Match
from ngrpo.data.problem import Problem
from ngrpo.data.problems import load_problems
from ngrpo.data.word_tokenizer import word_tokenizer
from ngrpo.errors import DataError
from ngrpo.grading.grader import extract_answer
from ngrpo.stages import prepare_data
from ngrpo.stages.context import Context
from ngrpo.storage.objects import ObjectStore

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FOLDS = ("warm_start", "train", "selection", "held_out")


# --- arithmetic -------------------------------------------------------------------------------------------------------


def arithmetic(fold: str, size: int, **settings: float) -> list[Problem]:
    return load_problems(ArithmeticSource(fold=fold, size=size, **settings))


def test_folds_do_not_overlap_whatever_their_size() -> None:
    folds = [{problem.id for problem in arithmetic(fold, 1500)} for fold in FOLDS]
    assert all(len(fold) == 1500 for fold in folds)
    assert len(set.union(*folds)) == 6000


def test_folds_of_other_lengths_do_not_overlap_either() -> None:
    train = {problem.id for problem in arithmetic("train", 500, min_operands=2, max_operands=5)}
    assert not train & {problem.id for problem in arithmetic("held_out", 1500)}


def test_a_fold_and_its_size_do_not_change_how_hard_the_problems_are() -> None:
    shares = [
        sum(len(problem.id) == 5 for problem in arithmetic(fold, size)) / size
        for fold, size in [("warm_start", 8000), ("held_out", 400)]
    ]
    assert shares[0] == pytest.approx(shares[1], abs=0.03)


def test_the_worked_solution_is_right_at_every_step() -> None:
    for problem in arithmetic("train", 300):
        assert str(eval(problem.id)) == problem.answer == extract_answer(problem.solution)
        reasoning = problem.solution.removeprefix("<think>").partition("</think>")[0]
        steps = [word for word in reasoning.split() if "=" in word]
        assert len(steps) == problem.id.count("+") + problem.id.count("-")
        for step in steps:
            left, right = step.split("=")
            assert eval(left) == int(right) >= 0
        assert reasoning.split()[-1] == problem.answer


def test_the_direct_share_is_kept_and_direct_answers_stand_alone() -> None:
    problems = arithmetic("warm_start", 3000, direct_share=0.5)
    direct = [problem for problem in problems if problem.solution == rf"\boxed{{{problem.answer}}}"]
    assert len(direct) / len(problems) == pytest.approx(0.5, abs=0.03)
    assert all("</think>" in problem.solution for problem in problems if problem not in direct)


def test_words_of_one_role_are_equally_common() -> None:
    text = " ".join(problem.solution for problem in arithmetic("warm_start", 3000))
    for words in [("first", "start", "begin"), ("then", "now", "next"), ("so", "thus", "hence")]:
        counts = [text.count(word) for word in words]
        assert min(counts) > 0.9 * max(counts)


def test_more_problems_than_a_fold_holds_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"size=5000 .*fold 'held_out'.*3 to 3 operands.*lower size or raise max_operands"
    ):
        arithmetic("held_out", 5000, max_operands=3)


# --- reasoning-gym ----------------------------------------------------------------------------------------------------


def gym(**settings: object) -> ReasoningGymSource:
    return ReasoningGymSource(
        **{"kind": "reasoning_gym", "generator": "gsm_symbolic", "size": 300, "seed": 1, **settings}
    )


def test_word_problems_come_with_a_worked_solution_that_ends_in_the_answer() -> None:
    for problem in load_problems(gym()):
        assert extract_answer(problem.solution) == problem.answer
        assert "####" not in problem.solution
        assert len(problem.solution.splitlines()) > 1


def test_adjacent_seeds_do_not_share_problems() -> None:
    # The generator seeds problem i with seed + i: seeds 1 and 2 given to it as they are share some.
    first, second = ({problem.problem for problem in load_problems(gym(seed=seed, size=500))} for seed in (1, 2))
    assert not first & second


def test_word_problems_do_not_depend_on_the_process() -> None:
    script = (
        "import hashlib; from ngrpo.config import ReasoningGymSource; from ngrpo.data.problems import load_problems;"
        "source = ReasoningGymSource(kind='reasoning_gym', generator='gsm_symbolic', size=300, seed=1);"
        "print(hashlib.sha256(repr(load_problems(source)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {f"{hashlib.sha256(repr(load_problems(gym())).encode()).hexdigest()}\n".encode()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generator": "gsm_symbolik"}, r"generator='gsm_symbolik'.* gsm_symbolic"),
        ({"options": {"hardness": 2}}, r"hardness unknown; it has difficulty"),
        ({"generator": "chain_sum", "options": {"min_terms": 0}}, r"\{'min_terms': 0\} of 'chain_sum' are impossible"),
    ],
)
def test_a_generator_or_option_that_does_not_exist_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_problems(gym(**settings))


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(DataError, match=r"pip install reasoning-gym==0\.1\.25"):
        load_problems(gym())


# --- the hub's layout -------------------------------------------------------------------------------------------------

ROWS = [
    {"problem": "What is $1+1$?", "answer": "2", "solution": r"It is \boxed{2}."},
    {"problem": "What is $2+2$?", "answer": "4", "solution": r"First \boxed{3}, no, \boxed{4}."},
    {"problem": "What is $3+3$?", "answer": "6", "solution": r"\boxed{6}"},
]


def repository(directory: Path, rows: list[dict], form: str = "parquet", split: str = "train") -> HubSource:
    """Write a data set as its repository on the hub has it, and return the source that reads it."""
    directory.mkdir(exist_ok=True)
    if form == "parquet":
        (directory / "data").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), directory / "data" / f"{split}-00000-of-00001.parquet")
    elif form == "jsonl":
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        (directory / "problems.json").write_text(json.dumps(rows), encoding="utf-8")
    return HubSource(kind="hub", id=str(directory), revision=COMMIT, split=split)


def test_a_mirror_holds_the_same_problems(
    tmp_path: Path, objects: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub = HubSource(kind="hub", id="org/math", revision=COMMIT, split="train")

    def hub(name: str, *, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (name, repo_type, revision) == ("org/math", "dataset", COMMIT)
        repository(Path(local_dir), ROWS)
        (Path(local_dir) / ".cache").mkdir()
        (Path(local_dir) / ".cache" / "notes.json").write_text("{}")
        return str(local_dir)

    monkeypatch.setattr(mirrors, "snapshot_download", hub)
    source, copies = on_hub, []
    for target in (
        f"{tmp_path}/mirror",
        f"{objects.uri}/mirror",
        f"{tmp_path}/again",
    ):  # each copied from the one before
        told: list[tuple[int, int]] = []
        copies.append(mirrors.mirror(source, target, lambda *sizes, told=told: told.append(sizes)))
        assert told[-1] == (told[0][1],) * 2 != (0, 0), "all bytes of it"
        source = on_hub.model_copy(update={"id": copies[-1]})
        assert [(p.id, p.problem) for p in load_problems(source)] == [
            (f"math-{i}", row["problem"]) for i, row in enumerate(ROWS)
        ]
    assert copies[:2] == [f"{parent}/mirror/{COMMIT[:12]}/math" for parent in (tmp_path, objects.uri)]
    assert [path.name for path in Path(copies[0]).rglob("*") if path.is_file()] == ["train-00000-of-00001.parquet"]


def test_what_cannot_be_mirrored_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(*arguments: object, **options: object) -> str:
        raise OSError("401 Client Error")

    monkeypatch.setattr(mirrors, "snapshot_download", gated)
    source = HubSource(kind="hub", id="org/gpqa", revision=COMMIT, split="train")
    with pytest.raises(DataError, match=r"'org/gpqa' .*401 Client Error.*HF_TOKEN"):
        mirrors.mirror(source, str(tmp_path))


@pytest.mark.parametrize(
    ("form", "split"), [("parquet", "train"), ("parquet", "test"), ("jsonl", "test"), ("json", "train")]
)
def test_a_local_copy_is_read_in_every_layout_of_the_hub(tmp_path: Path, form: str, split: str) -> None:
    problems = load_problems(repository(tmp_path / "math", ROWS, form, split))
    assert [(problem.id, problem.problem, problem.answer, problem.solution) for problem in problems] == [
        (f"math-{index}", row["problem"], row["answer"], None) for index, row in enumerate(ROWS)
    ]


def test_columns_subset_and_limit(tmp_path: Path) -> None:
    rows = [{"question": row["problem"], "text": row["solution"], "number": int(row["answer"])} for row in ROWS]
    source = repository(tmp_path / "amc", rows).model_copy(
        update={"problem_column": "question", "answer_column": "number", "solution_column": "text", "limit": 2}
    )
    assert load_problems(source) == [
        Problem("amc-0", "What is $1+1$?", "2", r"It is \boxed{2}."),
        Problem("amc-1", "What is $2+2$?", "4", r"First \boxed{3}, no, \boxed{4}."),
    ]


def test_numbers_of_a_data_set_are_texts_and_what_is_no_text_is_refused_with_its_row(tmp_path: Path) -> None:
    rows = [{"problem": "a", "answer": 5.0}, {"problem": "b", "answer": None}, {"problem": "c", "answer": float("nan")}]
    assert [problem.answer for problem in load_problems(repository(tmp_path / "numbers", rows))] == ["5", "", ""]
    lists = repository(tmp_path / "lists", [{"problem": "a", "answer": ["3", "9"]}])
    with pytest.raises(
        DataError, match=r"lists', row 0, column 'answer' holds a list of 2 answers where one is expected"
    ):
        load_problems(lists)


def test_an_answer_inside_a_solution_is_taken_from_its_last_box(tmp_path: Path) -> None:
    source = repository(tmp_path / "aime", ROWS).model_copy(
        update={"answer_column": "solution", "answer_is_boxed": True}
    )
    assert [problem.answer for problem in load_problems(source)] == ["2", "4", "6"]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"problem_column": "question"}, r"problem_column='question' .*: problem, answer, solution"),
        ({"answer_column": "Answer"}, r"answer_column='Answer' .*: problem, answer, solution"),
        ({"solution_column": "cot"}, r"solution_column='cot' .*: problem, answer, solution"),
        ({"answer_is_boxed": True}, r"answer_column='answer' holds no answer inside \\boxed\{\} in any of its 3 rows"),
        ({"split": "validation"}, r"split 'validation'.* cannot be loaded: .*layout of the hub's repository"),
        ({"subset": "hard"}, r"subset hard.* cannot be loaded"),
        ({"id": "/nowhere/math"}, r"'/nowhere/math': no such directory"),
        ({"id": "./math"}, r"'\./math': no such directory"),
    ],
)
def test_what_a_copy_lacks_is_named(tmp_path: Path, update: dict, message: str) -> None:
    source = repository(tmp_path / "math", ROWS).model_copy(update=update)
    with pytest.raises(DataError, match=message) as failure:
        load_problems(source)
    assert "\n" not in str(failure.value)


@pytest.mark.pipeline
def test_a_copy_in_a_bucket_is_read_like_a_local_one(objects: ObjectStore, tmp_path: Path) -> None:
    local = repository(tmp_path / objects.uri.rpartition("/")[2], ROWS)
    for path in Path(local.id).rglob("*.parquet"):
        objects.put_file(path, str(path.relative_to(local.id)))
    assert load_problems(local.model_copy(update={"id": objects.uri})) == load_problems(local)


@pytest.mark.pipeline
def test_a_prefix_without_objects_is_refused(objects: ObjectStore) -> None:
    with pytest.raises(DataError, match=rf"id='{objects.uri}': nothing to read there"):
        load_problems(HubSource(kind="hub", id=objects.uri, revision=COMMIT, split="train"))


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_an_empty_data_set_is_refused(tmp_path: Path, form: str) -> None:
    source = repository(tmp_path / "math", ROWS if form == "parquet" else [], form)
    if form == "parquet":
        path = tmp_path / "math" / "data" / "train-00000-of-00001.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match=r"math' .*cannot be loaded: .* empty or damaged") as failure:
        load_problems(source)
    assert "\n" not in str(failure.value)


def test_a_split_without_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = datasets.Dataset.from_list(ROWS).select([])
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **options: empty)
    with pytest.raises(DataError, match=r"'org/math': split='test' is empty"):
        load_problems(HubSource(kind="hub", id="org/math", revision=COMMIT, split="test"))


@pytest.mark.parametrize("answer", [None, "", "  "])
def test_an_answer_column_without_answers_is_refused(tmp_path: Path, answer: str | None) -> None:
    source = repository(tmp_path / "math", [{"problem": "What?", "answer": answer}] * 2)
    with pytest.raises(
        DataError, match=r"answer_column='answer' holds no answer in any of its 2 rows; its columns are"
    ):
        load_problems(source)


def test_the_hub_is_asked_for_the_pinned_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(path: str, **options: object) -> datasets.Dataset:
        asked.update(path=path, **options)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_problems(HubSource(kind="hub", id="org/math", revision=COMMIT, split="test", subset="hard"))
    assert asked == {"path": "org/math", "revision": COMMIT, "split": "test", "name": "hard", "streaming": False}


def test_without_a_network_the_error_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **options: object) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach 'org/math' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as failure:
        load_problems(HubSource(kind="hub", id="org/math", revision=COMMIT, split="test"))
    message = str(failure.value)
    assert "\n" not in message
    for part in ("org/math", COMMIT, "Couldn't reach", "set id to a local copy or an s3:// copy"):
        assert part in message


# --- the stage --------------------------------------------------------------------------------------------------------


def stage_config(
    tmp_path: Path, *, max_prompt_tokens: int = 32, max_tokens: int = 64, **data: object
) -> PrepareDataConfig:
    settings = {
        "train": ArithmeticSource(fold="train", size=40),
        "warm_start": ArithmeticSource(fold="warm_start", size=30, direct_share=0.5),
        "benchmarks": {"arithmetic": ArithmeticSource(fold="held_out", size=20)},
        "max_prompt_tokens": max_prompt_tokens,
        **data,
    }
    return PrepareDataConfig(
        model=TokenizerConfig(source=InitializedModel(kind="initialized"), template_date="2024-07-26"),
        data=DataConfig(**settings),
        warm_start=ExampleLimits(max_tokens=max_tokens),
        rollout=Generation(max_tokens=44),
        evaluation=Generation(max_tokens=44),
    )


def prepare(config: PrepareDataConfig, tmp_path: Path, name: str = "output") -> Path:
    output = tmp_path / name
    output.mkdir()
    prepare_data.run(config, {}, output, Context(tmp_path / "work"))
    return output


def metrics(output: Path) -> dict[str, int]:
    return json.loads((output / "metrics.json").read_text(encoding="utf-8"))


def arithmetic_rows(problems: list[str], **more: str) -> list[dict]:
    """Rows that the tokenizer of the arithmetic task can spell."""
    return [
        {
            "problem": f"what is {problem}?",
            "answer": str(eval(problem)),
            "solution": rf"\boxed{{{eval(problem)}}}",
            **more,
        }
        for problem in problems
    ]


def test_the_tables_have_the_layout_that_the_other_stages_read(tmp_path: Path) -> None:
    output = prepare(stage_config(tmp_path), tmp_path)
    train = pq.read_table(output / "train.parquet").to_pylist()
    warm_start = pq.read_table(output / "warm_start.parquet").to_pylist()
    benchmark = pq.read_table(output / "benchmarks" / "arithmetic.parquet").to_pylist()
    assert (len(train), len(warm_start), len(benchmark)) == (40, 30, 20)
    for row in (train[0], benchmark[0]):
        assert set(row) == {"id", "prompt", "answer"}
        assert [turn["role"] for turn in row["prompt"]] == ["user"]
        assert str(eval(row["id"])) == row["answer"]
    assert set(warm_start[0]) == {"id", "prompt", "completion"}
    assert [turn["role"] for turn in warm_start[0]["completion"]] == ["assistant"]
    assert extract_answer(warm_start[0]["completion"][0]["content"]) == str(eval(warm_start[0]["id"]))


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    outputs = [prepare(stage_config(tmp_path), tmp_path, name) for name in ("first", "second")]
    contents = [
        {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
        for output in outputs
    ]
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "train.parquet",
        "warm_start.parquet",
        "benchmarks/arithmetic.parquet",
        "contamination.json",
        "sources.json",
        "metrics.json",
    }


def test_sources_say_where_each_table_comes_from(tmp_path: Path) -> None:
    config = stage_config(tmp_path)
    output = prepare(config, tmp_path)
    tables = json.loads((output / "sources.json").read_text(encoding="utf-8"))["tables"]
    assert tables["train.parquet"]["source"] == config.data.train.model_dump(mode="json")
    for name, table in tables.items():
        assert table["sha256"] == hashlib.sha256((output / name).read_bytes()).hexdigest()
        assert table["rows"] == pq.read_table(output / name).num_rows


def test_no_warm_start_gives_no_table(tmp_path: Path) -> None:
    output = prepare(stage_config(tmp_path, warm_start=None), tmp_path)
    assert not (output / "warm_start.parquet").exists()
    assert not any(name.startswith("warm_start") for name in metrics(output))


def test_every_dropped_training_problem_is_counted_by_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ngrpo.grading.grader.gold_parses", lambda answer: answer != "?")
    measured = arithmetic_rows(["1+1", "2+2"])
    train = [
        *arithmetic_rows(["3+3", "4+4", "5+5"]),
        *arithmetic_rows(["3+3"]),
        {"problem": "What is\t 1+1?", "answer": "2", "solution": ""},
        {"problem": "what is 6+6?", "answer": "?", "solution": ""},
        {"problem": "what is 7+7?", "answer": None, "solution": ""},
        {"problem": None, "answer": "1", "solution": ""},
        *arithmetic_rows(["1+1+1+1+1+1+1+1"]),
    ]
    config = stage_config(
        tmp_path,
        train=repository(tmp_path / "train", train),
        benchmarks={"sums": repository(tmp_path / "sums", measured)},
        warm_start=None,
        max_prompt_tokens=12,
    )
    output = prepare(config, tmp_path)
    assert metrics(output) == {
        "benchmarks/sums/kept": 2,
        "train/kept": 3,
        "train/dropped/empty": 2,
        "train/dropped/repeated": 1,
        "train/dropped/in_benchmark": 1,
        "train/dropped/unparseable_answer": 1,
        "train/dropped/long_prompt": 1,
    }
    assert [row["id"] for row in pq.read_table(output / "train.parquet").to_pylist()] == [
        "train-0",
        "train-1",
        "train-2",
    ]


def test_problems_of_a_benchmark_told_again_are_dropped_and_listed_without_their_text(tmp_path: Path) -> None:
    kind = "Find the number of pairs such that m plus n is prime where m and n are "
    told = "How much is one plus one plus one plus one plus one plus one"
    measured = [kind + "odd", kind + "even", f"{told} ?", "What is 1+1?"]
    train = [
        kind + "square",  # a phrase that several problems of the benchmark share proves nothing
        "Tell me: HOW much is $one$ plus one \\, plus one plus \\text{one}, plus one plus one if you can",
        "How much is one plus one plus one plus one plus one minus one",  # twelve words in a row
        "what is 1+1 ?",
    ]
    rows = [[{"problem": text, "answer": "2", "solution": ""} for text in texts] for texts in (measured, train)]
    found = BenchmarkProblems(13)
    found.add("sums", [Problem(f"sums-{i}", row["problem"], "2") for i, row in enumerate(rows[0])])
    matches = [found.match(row["problem"]) for row in rows[1]]
    assert matches == [None, Match("sums", "sums-2", "13 words"), None, Match("sums", "sums-3", "text")]
    assert BenchmarkProblems(13).match(told) is None


def test_contamination_is_listed(tmp_path: Path) -> None:
    config = stage_config(
        tmp_path,
        train=repository(tmp_path / "train", arithmetic_rows(["3+3", "1+1"])),
        benchmarks={"sums": repository(tmp_path / "sums", arithmetic_rows(["2+2", "1+1"]))},
        warm_start=None,
    )
    output = prepare(config, tmp_path)
    assert json.loads((output / "contamination.json").read_text()) == [
        {"source": "data.train", "id": "train-1", "benchmark": "sums", "problem": "sums-1", "how": "text"}
    ]


def test_a_prompt_of_exactly_the_limit_is_kept(tmp_path: Path) -> None:
    # <|user|>, "what is ", 1, +, 1, ?, <|assistant|>
    source = repository(tmp_path / "train", arithmetic_rows(["1+1"]))
    output = prepare(stage_config(tmp_path, train=source, max_prompt_tokens=7), tmp_path)
    assert metrics(output)["train/kept"] == 1
    with pytest.raises(DataError, match=r"data\.train: nothing is left.*1 long_prompt"):
        prepare(stage_config(tmp_path, train=source, max_prompt_tokens=6), tmp_path, "again")


def test_warm_start_examples_are_dropped_when_long_unsolved_or_measured(tmp_path: Path) -> None:
    rows = arithmetic_rows(["3+3", "4+4"])
    rows[1]["solution"] = None
    rows += arithmetic_rows(["1+1", "1+1+1+1+1+1"])
    config = stage_config(
        tmp_path,
        warm_start=repository(tmp_path / "examples", rows).model_copy(update={"solution_column": "solution"}),
        benchmarks={"sums": repository(tmp_path / "sums", arithmetic_rows(["1+1"]))},
        max_tokens=12,
    )
    counted = metrics(prepare(config, tmp_path))
    assert {name: count for name, count in counted.items() if name.startswith("warm_start")} == {
        "warm_start/kept": 1,
        "warm_start/dropped/no_solution": 1,
        "warm_start/dropped/in_benchmark": 1,
        "warm_start/dropped/long_example": 1,
    }


def test_a_benchmark_is_never_shortened_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*arithmetic_rows(["1+1", "2+2"]), {"problem": "what is 3+3?", "answer": "", "solution": ""}]
    broken = stage_config(tmp_path, benchmarks={"sums": repository(tmp_path / "sums", rows)})
    with pytest.raises(DataError, match=r"data\.benchmarks\.sums: problem 'sums-2' has no text or no answer"):
        prepare(broken, tmp_path)
    monkeypatch.setattr("ngrpo.grading.grader.gold_parses", lambda answer: answer != "4")
    ungradable = stage_config(tmp_path, benchmarks={"more": repository(tmp_path / "more", rows[:2])})
    counted = metrics(prepare(ungradable, tmp_path, "again"))
    assert (counted["benchmarks/more/kept"], counted["benchmarks/more/dropped/unparseable_answer"]) == (1, 1)


def test_ids_that_repeat_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = [Problem("a", "what is 1+1?", "2"), Problem("a", "what is 2+2?", "4")]
    monkeypatch.setattr(prepare_data, "load_problems", lambda source: twice)
    with pytest.raises(DataError, match=r"id 'a' occurs twice"):
        prepare(stage_config(tmp_path), tmp_path)


def test_a_source_is_named_when_it_fails(tmp_path: Path) -> None:
    missing = HubSource(kind="hub", id=str(tmp_path / "nowhere"), revision=COMMIT, split="train")
    with pytest.raises(DataError, match=r"^data\.train: id='.*nowhere': no such directory"):
        prepare(stage_config(tmp_path, train=missing), tmp_path)


def test_a_model_that_cannot_spell_the_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.train: the base model's tokenizer cannot encode problem 'gsm_symbolic-1-0'"
    ):
        prepare(stage_config(tmp_path, train=gym(size=5)), tmp_path)


def test_a_chat_template_that_drops_the_reasoning_is_refused() -> None:
    tokenizer = word_tokenizer()
    prompt = [{"role": "user", "content": "what is 1+2?"}]
    response = [{"role": "assistant", "content": r"<think>first 1+2=3 so 3</think>\boxed{3}"}]
    ChatLengths(tokenizer).require_prefix([(prompt, response)])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + '<|end|>'", "message['content'].split('</think>')[-1] + '<|end|>'"
    )
    with pytest.raises(DataError, match=r"changes prompts or responses.*warm_start\.steps=0"):
        ChatLengths(tokenizer).require_prefix([(prompt, response)])


def test_the_instruction_follows_every_problem(tmp_path: Path) -> None:
    output = prepare(stage_config(tmp_path, prompt_suffix="then 0"), tmp_path)
    for table in ("train", "warm_start", "benchmarks/arithmetic"):
        for row in pq.read_table(output / f"{table}.parquet").to_pylist():
            assert row["prompt"][0]["content"].endswith((". then 0", "? then 0"))


# --- imports ----------------------------------------------------------------------------------------------------------


def test_configuration_and_problems_are_cheap_to_import() -> None:
    script = (
        "import sys, ngrpo.config, ngrpo.data.problems;"
        "print([name for name in ('torch', 'transformers', 'datasets', 'reasoning_gym', 'boto3') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert result.stdout == "[]\n", result.stderr


def test_the_operand_counts_are_what_was_asked_for() -> None:
    counts = Counter(len(problem.id) // 2 + 1 for problem in arithmetic("train", 200, min_operands=2, max_operands=3))
    assert set(counts) == {2, 3}
