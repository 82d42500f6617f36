r"""The built-in rewards besides `correctness`, with TRL's signature. None of them executes a model's text.

An answer is the text after the thought or, if it has a \boxed{}, the content of the last one.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from ngrpo.config.rewards import ExactOptions, FormatOptions, JsonOptions, OverlongOptions, RegexOptions
from ngrpo.grading.grader import extract_answer, grade_letter

Completion = str | Sequence[Mapping[str, str]]
Function = Callable[..., list[float]]

_BEGIN, _END = "<think>", "</think>"
_FENCED = re.compile(r"```[A-Za-z]*\n(.*?)```", re.DOTALL)
_PATTERN_SECONDS = 5.0
"""Time limit of a regular expression on one response in seconds: some take years on malicious text."""
_LONGEST_JSON = 1_000_000
"""Characters."""


def text_of(completion: Completion) -> str:
    """Return the response: a text, or the last turn of a chat."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def format_reward(options: FormatOptions) -> Function:
    """Return the reward `format`: 1 for a response of the right form, whatever its answer."""

    def reward(completions: Sequence[Completion], **_: Any) -> list[float]:
        return [float(_has_form(text_of(completion), options)) for completion in completions]

    return reward


def letter(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
    """Reward 1 where the last line that is `Answer: X` names the letter of the gold answer."""
    pairs = zip(completions, answer, strict=True)
    return [float(grade_letter(text_of(completion), gold.strip()).correct) for completion, gold in pairs]


def exact(options: ExactOptions) -> Function:
    """Return the reward `exact`: 1 where the answer is the text of the gold answer."""

    def reward(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
        pairs = [
            (_answer(text_of(completion)), gold.strip()) for completion, gold in zip(completions, answer, strict=True)
        ]
        if options.ignore_case:
            pairs = [(found.casefold(), gold.casefold()) for found, gold in pairs]
        return [float(found == gold) for found, gold in pairs]

    return reward


def matching(options: RegexOptions) -> Function:
    """Return the reward `regex`: 1 where the expression is found, with the gold answer in its group `answer` if it has one."""
    pattern = regex.compile(options.pattern)

    def reward(
        completions: Sequence[Completion],
        answer: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        found = [
            _matches(pattern, text_of(completion), gold.strip())
            for completion, gold in zip(completions, answer, strict=True)
        ]
        if log_metric is not None:
            log_metric("grading/out_of_time", sum(one is None for one in found) / len(found))
        return [float(one is True) for one in found]

    return reward


def json_answer(options: JsonOptions) -> Function:
    """Return the reward `json`: 1 where the response holds the JSON value that the gold answer is."""

    def reward(completions: Sequence[Completion], answer: Sequence[str], **_: Any) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        return [float(_holds(text_of(completion), gold, options.key)) for completion, gold in pairs]

    return reward


def overlong(options: OverlongOptions, longest: int) -> Function:
    """Return the reward `overlong`, TRL's soft overlong punishment (equation 13 of DAPO): from 0 down to -1 as a response becomes too long.

    Args:
        options: Its options.
        longest: Longest response in tokens.
    """
    from trl.rewards import get_soft_overlong_punishment  # takes a second, which no other reward needs

    most = options.max_tokens or longest
    function: Function = get_soft_overlong_punishment(most, options.buffer or max(1, most // 5))
    return function


def _has_form(text: str, options: FormatOptions) -> bool:
    if options.thought:
        thought, end, text = text.partition(_END)
        thought = thought.lstrip().removeprefix(_BEGIN)
        if not end or not thought.strip() or _BEGIN in thought or _BEGIN in text or _END in text:
            return False
    return extract_answer(text) is not None if options.boxed else bool(text.strip())


def _after_thought(text: str) -> str:
    return text.rpartition(_END)[2].strip()


def _answer(text: str) -> str:
    return extract_answer(text) or _after_thought(text)


def _matches(pattern: Any, text: str, gold: str) -> bool | None:
    """Say whether an expression is found, with the gold answer where it has a place for it; none where that took too long."""
    try:
        if "answer" not in pattern.groupindex:
            return pattern.search(text, timeout=_PATTERN_SECONDS) is not None
        last = deque(pattern.finditer(text, timeout=_PATTERN_SECONDS), maxlen=1)
    except TimeoutError:
        return None
    return any((match["answer"] or "").strip() == gold for match in last)


def _holds(text: str, gold: str, key: str | None) -> bool:
    after = _after_thought(text)
    fenced = _FENCED.findall(after)
    try:
        found = _parse(fenced[-1] if fenced else after)
    except ValueError:
        return False
    if key is not None:
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    try:
        wanted = _parse(gold)
    except ValueError:  # a text without the quotes that it has in JSON
        wanted = gold.strip()
    return _equal(found, wanted)


def _parse(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is none, or too long or too deeply nested to be looked at.
    """
    if len(text) > _LONGEST_JSON:
        raise ValueError("too long")
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _equal(first: Any, second: Any) -> bool:
    """Compare two values of JSON; Python would take true for 1."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)
