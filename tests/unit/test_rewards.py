"""Rewards by name: the ready ones, and functions of the user's as TRL calls them."""

import asyncio
import copy
import json
from pathlib import Path

import pytest
from transformers import TrainerState
from trl.trainer.utils import get_callable_name, is_async_callable

from ngrpo.config import NGRPOTrainingConfig, load_config, select
from ngrpo.config.rewards import READY
from ngrpo.errors import ConfigError, UserCodeError
from ngrpo.grading.grader import Grader
from ngrpo.training.configured_rewards import configured_rewards

TINY = Path(__file__).parents[2] / "pipelines" / "presets" / "tiny.toml"
COLUMNS = ("id", "prompt", "answer")


@pytest.fixture
def preset(tmp_path):
    """Write a preset with rewards, and the files beside it, and load it."""

    def load(rewards: str, /, **files: str):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        (tmp_path / "mine.toml").write_text(f"{TINY.read_text()}\n{rewards}")
        return load_config(tmp_path / "mine.toml")

    return load


@pytest.fixture
def rewards(preset, tmp_path):
    """Make the rewards that a preset names, by name."""

    def make(table: str, columns=COLUMNS, /, **files: str):
        config = preset(table, **files)
        made = configured_rewards(config.training, config.rollout, Grader(), columns, tmp_path / "work")
        return {get_callable_name(reward): reward for reward in made}

    return make


def chats(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def batch(*texts: str, answer=None, **columns) -> dict:
    """What TRL passes for a rollout batch."""
    size = len(texts)
    return {
        "prompts": [[{"role": "user", "content": f"problem {row}"}] for row in range(size)],
        "completions": chats(*texts),
        "completion_ids": [list(range(len(text))) for text in texts],
        "id": [f"p{row}" for row in range(size)],
        "answer": answer or ["1"] * size,
        "trainer_state": TrainerState(global_step=3),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
        **columns,
    }


def call(reward, arguments):
    return asyncio.run(reward(**arguments)) if is_async_callable(reward) else reward(**arguments)


# --- what a preset may name -----------------------------------------------------------------------------------------


def test_rewards_are_named_in_order_and_travel_with_their_files(preset):
    config = preset(
        "[training.rewards.correctness]\n[training.rewards.short]\nfunction = 'rewards.py:short'\nweight = 0.1\n"
        "options = {target = 20, words = ['a', 'b']}",
        rewards="import helper\ndef short(completions, **kwargs): ...",
        helper="",
    )
    found = config.training.rewards
    assert list(found) == ["correctness", "short"]
    assert (found["correctness"].function, found["correctness"].weight, found["correctness"].code) == (
        "correctness",
        1.0,
        {},
    )
    assert (found["short"].weight, found["short"].options) == (0.1, {"target": 20, "words": ["a", "b"]})
    assert list(found["short"].code) == ["helper.py", "rewards.py"]
    assert type(found["short"].options["words"][0]) is str
    whole = select(config, NGRPOTrainingConfig).model_dump_json()
    assert NGRPOTrainingConfig.model_validate_json(whole).training.rewards == found


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[training.rewards.corectness]", "training.rewards.corectness.function='corectness': no ready one"),
        ("[training.rewards.corectness]", "did you mean 'correctness'?"),
        ("[training.rewards.letter]\nweight = 0", "training.rewards.letter.weight: a reward of weight 0"),
        ("[training.rewards.letter]\nweight = nan", "training.rewards.letter.weight: Input should be a finite number"),
        ("[training.rewards.letter]\nweight = 'much'", "training.rewards.letter.weight"),
        ("[training.rewards.letter]\n[training.rewards.Letter]", "would be the same file, letter: rename one"),
        ("[training.rewards.letter]\noptions = {k = 1}", "options.k=1: no option of letter, which has none"),
        ("[training.rewards.overlong]\noptions = {bufer = 1}", "options.bufer=1: no option of overlong, which has"),
        ("[training.rewards.overlong]\noptions = {bufer = 1}", "did you mean 'buffer'?"),
        (
            "[training.rewards.overlong]\noptions = {buffer = '1'}",
            "options.buffer='1': Input should be a valid integer",
        ),
        (
            "[training.rewards.overlong]\noptions = {buffer = 9, max_tokens = 8}",
            "buffer=9 must not exceed max_tokens=8",
        ),
        ("[training.rewards.overlong]\noptions = {buffer = 9999}", "exceeds rollout.max_tokens=44"),
        ("[training.rewards.regex]", "options.pattern: missing; regex needs it"),
        (
            "[training.rewards.regex]\noptions = {pattern = '('}",
            "options.pattern='(': no regular expression: missing )",
        ),
        ("[training.rewards.x]\nfunction = 'math:sqrt'\noptions = {answer = 1}", "TRL passes answer to every reward"),
        (
            "[training.rewards.x]\nfunction = 'math:sqrt'\noptions = {a = 2020-01-01}",
            "training.rewards.x.options.a: an option is",
        ),
        (
            "[training.rewards.x]\nfunction = 'math:sqrt'\noptions = {a = inf}",
            "training.rewards.x.options.a: an option is",
        ),
        ("[training.rewards.x]\nfunction = 'mine.py:f'", "no such file: 'mine.py' is relative to"),
        ("[training.rewards.x]\nfunction = 3", "training.rewards.x.function"),
        ("[training.rewards.x]\nfunction = 'letter'\nmore = 1", "training.rewards.x.more: unknown setting"),
    ],
)
def test_what_a_preset_may_not_name_is_said_in_one_line(preset, table, said):
    with pytest.raises(ConfigError) as failure:
        preset(table)
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)


def test_the_names_that_trl_has_are_refused_with_ours():
    with pytest.raises(ConfigError, match=r"training\.reward_funcs: unknown setting .* here: training\.rewards$"):
        load_config(TINY, ["training.reward_funcs=1"])


@pytest.mark.parametrize("name", ["letter", "exact", "regex", "json"])
def test_a_reward_that_knows_one_gold_answer_is_refused_where_there_are_several(preset, tmp_path, name):
    (tmp_path / "own.jsonl").write_text('{"problem": "1+1?", "answer": ["2", "two"]}\n')
    source = {"kind": "files", "path": str(tmp_path / "own.jsonl"), "grading": {"accepted": "any"}}
    options = "options.pattern = 'x'" if name == "regex" else ""
    preset(f"[training.rewards.{name}]\n{options}\n[training.rewards.correctness]")
    with pytest.raises(ConfigError) as failure:
        load_config(tmp_path / "mine.toml", [f"data.train={json.dumps(source)}"])
    assert str(failure.value) == (
        f"training.rewards.{name}: {name} knows one gold answer, but data.train.grading.accepted='any' gives lists: name correctness, or a "
        "function of yours"
    )


def test_all_code_of_a_run_is_limited(preset):
    long = "def f(completions, **kwargs): ...\n#" + "x" * 60_000
    tables = "".join(f"[training.rewards.{name}]\nfunction = '{name}.py:f'\n" for name in ("a", "b"))
    with pytest.raises(ConfigError, match=r"training\.rewards\.a, training\.rewards\.b: together more than 100,000"):
        preset(tables, a=long, b=long)


# --- the ready ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text", "answer", "reward"),
    [
        ("correctness", "", r"<think>a</think>\boxed{\frac12}", "0.5", 1),
        ("correctness", "", r"\boxed{2}", "1", 0),
        ("format", "", r"<think>a</think> so \boxed{2}", "1", 1),
        ("format", "", r"a</think>\boxed{2}", "1", 1),
        ("format", "", r"<think></think>\boxed{2}", "1", 0),
        ("format", "", r"x <think>a</think>\boxed{2}", "1", 0),
        ("format", "", r"<think>a</think>b</think>\boxed{2}", "1", 0),
        ("format", "", r"<think>a</think>2", "1", 0),
        ("format", "", r"\boxed{2}", "1", 0),
        ("format", "thought = false", r"\boxed{2}", "1", 1),
        ("format", "boxed = false", r"<think>a</think>2", "1", 1),
        ("format", "boxed = false", r"<think>a</think> ", "1", 0),
        ("letter", "", "because\nAnswer: B", "B", 1),
        ("letter", "", "because\nAnswer: B", "C", 0),
        ("letter", "", "B", "B", 0),
        ("exact", "", "<think>b</think> Paris ", "Paris", 1),
        ("exact", "", r"<think>b</think>So \boxed{Paris}.", "Paris", 1),
        ("exact", "", "paris", "Paris", 0),
        ("exact", "ignore_case = true", "paris", "Paris", 1),
        ("regex", r"pattern = '\d+ apples'", "3 apples", "x", 1),
        ("regex", r"pattern = '\d+ apples'", "apples", "x", 0),
        ("regex", r"pattern = '#### (?P<answer>\d+)'", "#### 4 #### 5", "5", 1),
        ("regex", r"pattern = '#### (?P<answer>\d+)'", "#### 5 #### 4", "5", 0),
        ("json", "", '<think>{}</think> {"a": [1, 2.0]}', '{"a": [1.0, 2]}', 1),
        ("json", "", '```json\n{"a": 1}\n```', '{"a": 1}', 1),
        ("json", "", '{"a": true}', '{"a": 1}', 0),
        ("json", "", '{"a": 1', '{"a": 1}', 0),
        ("json", "", "NaN", "NaN", 0),
        ("json", "key = 'city'", '{"city": "Paris"}', "Paris", 1),
        ("json", "key = 'city'", '["city"]', "city", 0),
        ("json", "", "[" * 100_000, "[]", 0),
        ("overlong", "", "x" * 35, "1", 0),
        ("overlong", "", "x" * 40, "1", -0.5),
        ("overlong", "", "x" * 44, "1", -1),
        ("overlong", "max_tokens = 20\nbuffer = 10", "x" * 15, "1", -0.5),
    ],
)
def test_a_ready_reward(rewards, name, options, text, answer, reward):
    table = f"[training.rewards.mine]\nfunction = '{name}'\n[training.rewards.mine.options]\n{options}"
    (made,) = rewards(table).values()
    for completions in (chats(text), [text] if name != "correctness" else chats(text)):
        assert made(**batch(text, answer=[answer]) | {"completions": completions}) == [reward]


def test_every_ready_reward_is_tried():
    cases = test_a_ready_reward.pytestmark[0].args[1]
    assert {case[0] for case in cases} == set(READY)


def test_an_expression_that_takes_years_is_stopped(rewards, monkeypatch):
    monkeypatch.setattr("ngrpo.training.ready_rewards._PATTERN_SECONDS", 0.2)
    (made,) = rewards("[training.rewards.regex]\noptions = {pattern = '(?P<answer>(a|aa)+)$b'}").values()
    logged = {}
    given = batch("a" * 100 + "!", "no") | {"log_metric": logged.__setitem__}
    assert made(**given) == [0, 0]
    assert logged == {"grading/out_of_time": 0.5}


# --- functions of the shapes that TRL documents ------------------------------------------------------------------------

LENGTH = """
def by_length(completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]
"""
STANDARD = """
import re
def has_tags(completions, **kwargs):
    return [1.0 if re.search(r"^<a>.*</a>$", text) else 0.0 for text in completions]
"""
CONVERSATIONAL = """
import re
def has_tags(completions, **kwargs):
    texts = [turns[0]["content"] for turns in completions]
    return [1.0 if re.search(r"^<a>.*</a>$", text) else 0.0 for text in texts]
"""
REFERENCE = """
import re
def equals(completions, answer, **kwargs):
    found = [re.search(r"boxed\\{(.*?)\\}", turns[-1]["content"]) for turns in completions]
    return [1.0 if match and match.group(1) == gold else 0.0 for match, gold in zip(found, answer)]
"""
TASKS = """
def for_math(completions, task, **kwargs):
    rewards = []
    for turns, kind in zip(completions, task):
        rewards.append(float("2" in turns[0]["content"]) if kind == "math" else None)
    return rewards
def for_code(completions, task, **kwargs):
    return [float("def" in turns[0]["content"]) if kind == "code" else None for turns, kind in zip(completions, task)]
"""
ASYNC = """
import asyncio
async def judged(prompts, completions, **kwargs):
    async def one(turns):
        await asyncio.sleep(0)
        return float(len(turns[0]["content"]) > 1)
    return await asyncio.gather(*(one(turns) for turns in completions))
"""
LOGGING = """
def logs(completions, log_extra=None, log_metric=None, trainer_state=None, **kwargs):
    if log_extra:
        log_extra("length", [len(turns[0]["content"]) for turns in completions])
    if log_metric:
        log_metric("step", trainer_state.global_step)
    return [0.0] * len(completions)
"""


@pytest.mark.parametrize(
    ("source", "name", "given", "expected"),
    [
        (LENGTH, "by_length", batch("a", "bcd"), [1.0, 3.0]),
        (STANDARD, "has_tags", batch("", "") | {"completions": ["<a>b</a>", "b"]}, [1.0, 0.0]),
        (CONVERSATIONAL, "has_tags", batch("<a>b</a>", "b"), [1.0, 0.0]),
        (REFERENCE, "equals", batch(r"\boxed{3}", "3", answer=["3", "3"]), [1.0, 0.0]),
        (TASKS, "for_code", batch("def", "2", task=["code", "math"]), [1.0, None]),
        (TASKS, "for_math", batch("def", "2", task=["code", "math"]), [None, 1.0]),
        (ASYNC, "judged", batch("a", "bcd"), [0.0, 1.0]),
        (LOGGING, "logs", batch("a", "bcd"), [0.0, 0.0]),
    ],
)
def test_a_function_written_for_trl_runs_unchanged(rewards, source, name, given, expected):
    columns = [*COLUMNS, "task"]
    table = f"[training.rewards.mine]\nfunction = 'rewards.py:{name}'"
    (reward,) = rewards(table, columns, rewards=source).values()
    assert get_callable_name(reward) == "mine"
    assert call(reward, given) == expected


def test_a_reward_of_trls_own_and_a_class_with_options(rewards):
    made = rewards(
        "[training.rewards.think]\nfunction = 'trl.rewards:think_format_reward'\n"
        "[training.rewards.judge]\nfunction = 'judge.py:Judge'\noptions = {least = 2}",
        judge="class Judge:\n    def __init__(self, least):\n        self.least = least\n"
        "    async def __call__(self, completions, **kwargs):\n"
        "        return [len(turns[0]['content']) >= self.least for turns in completions]",
    )
    given = batch("<think>a</think>b", "b")
    assert [call(reward, given) for reward in made.values()] == [[1.0, 0.0], [1.0, 0.0]]


def test_options_are_arguments(rewards):
    source = "async def f(completions, *, scale, words=(), **kwargs): return [scale + len(words)] * len(completions)"
    table = "[training.rewards.f]\nfunction = 'a.py:f'\noptions = {scale = 2, words = ['a', 'b']}"
    (reward,) = rewards(table, a=source).values()
    assert call(reward, batch("a")) == [4.0]


def test_what_is_logged_reaches_the_trainer(rewards):
    logged = {}
    given = batch("a", "bcd") | {"log_extra": logged.__setitem__, "log_metric": logged.__setitem__}
    (reward,) = rewards("[training.rewards.f]\nfunction = 'a.py:logs'", a=LOGGING).values()
    reward(**given)
    assert logged == {"length": [1, 3], "step": 3.0}


def test_a_reward_that_changes_its_inputs_changes_nothing(rewards):
    source = (
        "def f(prompts, completions, completion_ids, answer, trainer_state, **kwargs):\n"
        "    prompts[0][0]['content'] = 'x'; completions[0].clear(); completions.pop(); completion_ids[0].clear()\n"
        "    answer[0] = 'x'; trainer_state.global_step = 99; trainer_state.log_history.clear(); kwargs['meta'][0]['a'].append(1)\n"
        "    return [1.0, 2.0]"
    )
    columns = [*COLUMNS, "meta"]
    made = rewards(
        "[training.rewards.f]\nfunction = 'a.py:f'\n[training.rewards.g]\nfunction = 'a.py:g'",
        columns,
        a=f"{source}\ndef g(completions, answer, **kwargs): return [len(turns[0]['content']) for turns in completions]",
    )
    given = batch("a", "bcd", meta=[{"a": []}, {"a": []}])
    given["trainer_state"].log_history.append({"step": 1})
    before = copy.deepcopy({name: value for name, value in given.items() if not name.startswith("log_")})
    assert [reward(**given) for reward in made.values()] == [[1.0, 2.0], [1.0, 3.0]]
    assert {name: value for name, value in given.items() if not name.startswith("log_")} == before


OTHERS = """
def fails(error):
    raise error
import asyncio
class Mute(Exception):
    __str__ = None
async def later():
    return 1.0
"""

# --- what a function does wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "[1 / (len(turns[0]['content']) - 1) for turns in completions]",
            "sample 'p1': a.py:f raised a.py, line 2: ZeroDivisionError: division by zero",
        ),
        ("[1.0]", "a.py:f returned 1 rewards for 3 samples, the first of which is 'p0'"),
        ("[1.0, float('nan'), None]", "a.py:f returned nan for sample 'p1'"),
        ("[1.0, 1.0, float('-inf')]", "a.py:f returned -inf for sample 'p2'"),
        ("[1.0, '1', 1.0]", "a.py:f returned a value of type str for sample 'p1'"),
        ("[1.0, [1.0], 1.0]", "a.py:f returned a value of type list for sample 'p1'"),
        ("[1.0, 1e300, 1.0]", "a.py:f returned a number beyond the range of float32 for sample 'p1'"),
        ("[1.0, 10 ** 400, 1.0]", "a.py:f returned a number beyond the range of float32 for sample 'p1'"),
        ("'abc'", "a.py:f returned a value of type str for 3 samples, the first of which is 'p0'"),
        ("None", "a.py:f returned a value of type NoneType for 3 samples"),
        ("1.0", "a.py:f returned a value of type float for 3 samples"),
        ("(1 / 0 for _ in completions)", "sample 'p0': a.py:f raised a.py, line 2: ZeroDivisionError"),
        ("exit(3)", "sample 'p0': a.py:f raised a.py, line 2: SystemExit: 3"),
        ("fails(BaseException('out of time'))", "sample 'p0': a.py:f raised a.py, line 5: BaseException: out of time"),
        ("fails(asyncio.CancelledError())", "sample 'p0': a.py:f raised a.py, line 5: CancelledError"),
        ("fails(Mute())", "sample 'p0': a.py:f raised a.py, line 5: Mute: correct the function"),
        (
            "open('words.txt')",
            "(only Python files beside a function go along with it: name any other by its whole path)",
        ),
        ("later()", "a.py:f returned a coroutine: write `async def` before the function, and await it there"),
        ("[later() for _ in completions]", "a.py:f returned a coroutine: write `async def`"),
        ("kwargs['log_metric']('m', float('nan')) or [1.0] * 3", "ValueError: log_metric('m', ...) got nan"),
        ("kwargs['log_extra']('m', [1]) or [1.0] * 3", "ValueError: log_extra('m', ...) got 1 values for 3 samples"),
    ],
)
def test_what_a_function_does_wrong_is_one_line_with_the_reward_and_the_sample(rewards, kind, body, said):
    source = f"{kind} f(completions, **kwargs):\n    return {body}\n{OTHERS}"
    (reward,) = rewards("[training.rewards.mine]\nfunction = 'a.py:f'", a=source).values()
    with pytest.raises(UserCodeError) as failure:
        call(reward, batch("ab", "c", "de"))
    assert said in str(failure.value)
    assert str(failure.value).startswith("training.rewards.mine: ")
    assert "\n" not in str(failure.value)


def test_numbers_of_other_libraries_are_numbers(rewards):
    source = (
        "import numpy, torch\n"
        "def f(completions, **kwargs): return [numpy.float32(1), torch.tensor(2.0), True]\n"
        "def g(completions, **kwargs): return torch.tensor([1.0, 2.0, 3.0])\n"
        "def h(completions, **kwargs): return [torch.tensor([1.0, 2.0])] * 3"
    )
    table = "".join(f"[training.rewards.{name}]\nfunction = 'a.py:{name}'\n" for name in "fgh")
    made = rewards(table, a=source)
    assert made["f"](**batch("a", "b", "c")) == [1.0, 2.0, 1.0]
    assert made["g"](**batch("a", "b", "c")) == [1.0, 2.0, 3.0]
    with pytest.raises(UserCodeError, match="a value of type Tensor for sample 'p0'"):
        made["h"](**batch("a", "b", "c"))


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("def f(completions): ...", "", "cannot be called as TRL does"),
        ("def f(completions, target, **kwargs): ...", "", "missing a required argument: 'target'"),
        (
            "def f(completions, prompts, completion_ids, id, answer, trainer_state, log_extra, log_metric): ...",
            "x = 1",
            "options.x: no argument",
        ),
        ("def f(completions, **kwargs): ...", "task = 1", "options.task: TRL passes task to every reward"),
        ("import not_there\ndef f(completions, **kwargs): ...", "", "imports not_there, which is not installed here"),
        (
            "class f:\n    def __init__(self): 1 / 0\n    def __call__(self, **kwargs): ...",
            "",
            "raised a.py, line 2: ZeroDivisionError",
        ),
        ("class f: ...", "", "a class without __call__"),
        ("class f:\n    def __call__(self, **kwargs): ...", "x = 1", "options.x: no argument of the function"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_training(rewards, source, options, said):
    table = f"[training.rewards.mine]\nfunction = 'a.py:f'\noptions = {{{options}}}"
    with pytest.raises(UserCodeError) as failure:
        rewards(table, [*COLUMNS, "task"], a=source)
    assert said in str(failure.value)
    assert str(failure.value).startswith("training.rewards.mine: ")
