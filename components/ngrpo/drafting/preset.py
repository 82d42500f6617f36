"""The text of a drafted preset: settings with comments. It is written by hand, for what writes TOML writes no comments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ngrpo.config import RunConfig
from ngrpo.drafting.guesses import Columns
from ngrpo.drafting.own_data import OwnData
from ngrpo.drafting.own_model import OwnModel

_SUFFIX = r"Let's think step by step and output the final answer within \boxed{}."
_TEMPLATE_TOKENS = 40
"""Room for what a chat template and the instruction add to a problem."""
_STEP = 32
"""Lengths are rounded up to multiples of it."""
_LONGEST_RESPONSE = 1024
_ROWS_COUNTED = 1000
_GROUP = 8
_LARGEST_BATCH = 8


@dataclass(frozen=True)
class Draft:
    """What a preset is drafted from."""

    file: Path
    """Where it is written: paths in it are relative to it."""
    model: OwnModel
    data: OwnData
    benchmark: OwnData
    benchmark_name: str
    rewards: Sequence[tuple[str, Path, str]]
    """Of each reward its name, its file and the function in it."""
    chat_template: Path | None = None
    inherited: RunConfig | None = None
    """The preset that it extends."""


def preset_text(draft: Draft) -> str:
    """Return the text of the preset."""
    return "\n".join(_lines(draft)) + "\n"


def _lines(draft: Draft) -> Iterator[str]:
    name = draft.file.name
    yield f"# Written by `ngrpo init`. Look it over, then: ngrpo check {name}, ngrpo run {name}"
    yield "# `ngrpo config SECTION` says what every setting means. Paths are relative to this file."
    if draft.inherited is not None:
        yield ""
        yield "# What is not set here is as in this preset; NAME = false removes a table of it."
        yield f"extends = {_text(draft.inherited.preset)}"
    yield from _model(draft)
    yield from _data(draft)
    yield from _recipe(draft)
    _prompt, response = _lengths(draft)
    yield ""
    yield "[rollout]"
    if draft.inherited is None:
        yield f"group_size = {_GROUP}  # responses to each problem, compared with each other"
        yield "temperature = 0.7"
    yield f"max_tokens = {response}  # longest response; {_positions(draft)}"
    yield from _training(draft)
    yield ""
    yield "[evaluation]"
    if draft.inherited is None:
        yield "samples = 4  # responses to each problem of a benchmark"
        yield "pass_at = [1, 4]"
        yield "batch_size = 64"
    elif draft.inherited.evaluation.string_match:
        yield "string_match = []"
    yield f"max_tokens = {response}"
    yield ""
    yield "# The gate: the trained model becomes the champion only if it gains on this benchmark."
    yield "[promotion]"
    yield f'model_name = "ngrpo-{draft.file.stem}"'
    yield f"benchmark = {_text(draft.benchmark_name)}"
    if draft.inherited is not None and draft.inherited.promotion.tolerated_regression:
        yield "tolerated_regression = false"


def _model(draft: Draft) -> Iterator[str]:
    yield ""
    yield "[model]"
    if draft.inherited is None:
        yield 'dtype = "float32"  # of the arithmetic; "bfloat16" on a GPU'
    if draft.chat_template is not None:
        yield f"chat_template = {_path(draft, draft.chat_template)}  # in place of the model's"
    elif not draft.model.has_template:
        yield 'chat_template = "plain"  # the model has none: problems as they are; or name a Jinja file'
    yield '# generation_prompt = "<think>\\n"  # every response begins after this text'
    yield '# end_of_turn = ["<|im_end|>"]  # tokens that end a response, besides those that the model declares'
    yield ""
    yield "[model.source]"
    yield 'kind = "directory"'
    yield f"path = {_path(draft, draft.model.path)}"


def _data(draft: Draft) -> Iterator[str]:
    prompt, _ = _lengths(draft)
    yield ""
    yield "[data]"
    if draft.model.spells(_SUFFIX):
        yield f"prompt_suffix = {_text(_SUFFIX)}  # after every problem"
    else:
        yield 'prompt_suffix = ""  # an instruction after every problem: the tokenizer cannot encode the usual one'
    yield '# system_prompt = "You are a careful mathematician."'
    yield f"max_prompt_tokens = {prompt}  # longer training problems are dropped; {_longest(draft)}"
    if draft.inherited is not None and draft.inherited.data.warm_start is not None:
        yield "warm_start = false  # none: the model answers chats already"
    yield ""
    yield "[data.train]"
    yield from _source(draft, draft.data)
    yield ""
    if draft.inherited is not None:
        yield "[data.benchmarks]"
        yield from (f"{name} = false" for name in draft.inherited.data.benchmarks)
        yield ""
    if draft.benchmark is not draft.data and draft.benchmark.path.stem.endswith("-held-out"):
        yield "# Every tenth problem, held out: training problems that a benchmark holds are dropped."
    yield f"[data.benchmarks.{draft.benchmark_name}]"
    yield from _source(draft, draft.benchmark)


def _source(draft: Draft, data: OwnData) -> Iterator[str]:
    yield 'kind = "files"'
    yield f"path = {_path(draft, data.path)}"
    columns = data.columns
    yield f"problem_column = {_text(columns.problem)}{_choices(columns)}"
    if data.form == "plain":
        yield f"answer_column = {_text(columns.answer)}"
    else:
        said = "#### 5" if data.form == "hashes" else r"\boxed{5}"
        yield f"answer_column = {_text(columns.answer)}  # a worked solution with the answer in the form {said}"
        yield from _GRADING[data.form]
    if columns.solution is not None:
        yield f"# solution_column = {_text(columns.solution)}  # needed for a warm start only"


_GRADING = {"hashes": ['grading = { gold = "####" }'], "boxed": ["answer_is_boxed = true"]}
"""The settings that say in which form the gold answers of a source are."""


def _recipe(draft: Draft) -> Iterator[str]:
    if draft.inherited is not None:
        if draft.inherited.warm_start.steps:
            yield ""
            yield "[warm_start]"
            yield "steps = 0"
        return
    yield ""
    yield "# No warm start: the model answers chats already. For one, name [data.warm_start] with a solution_column."
    yield "[warm_start]"
    yield "steps = 0"
    yield ""
    yield "# N-GRPO: on a tenth of the steps the next token's embedding is mixed with its nearest neighbors'."
    yield "[mixing]"
    yield "rate = 0.1  # 0 is GRPO"
    yield "k = 3"


def _training(draft: Draft) -> Iterator[str]:
    yield ""
    yield "[training]"
    if draft.inherited is not None and draft.inherited.training.selection is not None:
        yield "selection = false  # the last checkpoint is the result; else name a benchmark that chooses"
    if draft.inherited is None:
        batch = max(size for size in (1, 2, 4, _LARGEST_BATCH) if size <= max(1, len(draft.data.rows) // 2))
        yield "steps = 100"
        yield f"prompts_per_batch = {batch}  # problems of a step"
        yield f"micro_batch_size = {_GROUP}  # sequences of a forward pass; lower it if memory is short"
        yield "learning_rate = 1e-6"
        yield "kl_coefficient = 0.001"
        yield "save_steps = 20"
    yield ""
    yield "# Rewards are added up, each times its weight. Ready ones: correctness, format, letter, exact, regex, json, overlong."
    yield "[training.rewards.correctness]"
    for name, file, function in draft.rewards:
        yield ""
        yield f"[training.rewards.{name}]"
        yield f"function = {_text(f'{_relative(draft, file)}:{function}')}"
        yield "weight = 1.0"


def _lengths(draft: Draft) -> tuple[int, int]:
    """Return the longest prompt and the longest response, in tokens."""
    longest = max(_counted(draft), default=0)
    prompt = -(-(longest + _TEMPLATE_TOKENS + len(_SUFFIX) // 3) // _STEP) * _STEP
    positions = draft.model.positions
    if positions is None:
        return prompt, _LONGEST_RESPONSE
    prompt = min(prompt, max(1, 3 * positions // 4))
    return prompt, max(1, min(_LONGEST_RESPONSE, positions - prompt - 1))


def _counted(draft: Draft) -> list[int]:
    return draft.model.tokens(draft.data.questions()[:_ROWS_COUNTED])


def _longest(draft: Draft) -> str:
    counted = _counted(draft)
    return f"the longest of {'the first ' if len(counted) == _ROWS_COUNTED else ''}{len(counted)} problems has about {max(counted)}"


def _positions(draft: Draft) -> str:
    positions = draft.model.positions
    return (
        f"the model has {positions} positions"
        if positions is not None
        else "the model does not say how many positions it has"
    )


def _choices(columns: Columns) -> str:
    return f"  # guessed {columns.why}" + (f"; further columns: {', '.join(columns.others)}" if columns.others else "")


def _path(draft: Draft, path: Path) -> str:
    return _text(_relative(draft, path))


def _relative(draft: Draft, path: Path) -> str:
    return Path(os.path.relpath(path.absolute(), draft.file.absolute().parent)).as_posix()


def _text(value: str) -> str:
    """Return a text as TOML writes it."""
    return json.dumps(value, ensure_ascii=False)
