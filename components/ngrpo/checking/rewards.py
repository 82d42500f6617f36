"""Call each reward with a correct and a wrong answer."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from ngrpo.checking.findings import Finding, refused
from ngrpo.checking.samples import in_words
from ngrpo.config import RunConfig
from ngrpo.config.grading import Gold, GradingConfig
from ngrpo.config.rewards import RewardConfig
from ngrpo.data.chat import Turns
from ngrpo.data.problem import Problem
from ngrpo.errors import NGRPOError
from ngrpo.grading.grader import Grader
from ngrpo.training.configured_rewards import configured_rewards
from ngrpo.training.rewards import CorrectnessReward

_WRONG = ("0", "1")
_FORMS = {
    "text": "{}",
    "boxed": r"\boxed{{{}}}",
    "####": "#### {}",
    "<answer>": "<answer>{}</answer>",
    "regex": "{}",
    "letter": "Answer: {}",
}
"""How a response presents its answer, by `grading.response`; for a regular expression this is a guess."""
_COLUMNS = ("id", "prompt", "answer")
"""Columns of the training problems, which TRL passes to every reward."""
_SECONDS = 20.0
"""Time limit of a reward for two responses; a judge that is called over the network takes a while."""


class _TookTooLong(KeyboardInterrupt):
    """Derived from `KeyboardInterrupt`, because a user's function may catch every `Exception`."""


def check_rewards(
    config: RunConfig,
    problems: Sequence[Problem],
    prompts: Sequence[Turns],
    tokenizer: PreTrainedTokenizerBase,
    work: Path,
) -> Iterator[Finding]:
    """Call each reward with a correct and a wrong answer to the first training problem.

    Args:
        config: Configuration of the run.
        problems: The first training problems.
        prompts: Their prompts.
        tokenizer: Tokenizer of the base model.
        work: Directory to write the user's source files to.
    """
    row = next((row for row, each in enumerate(problems) if each.answer), None)
    if row is None:
        return
    gold = problems[row].answer
    other = next(each for each in (*(problem.answer for problem in problems), *_WRONG) if each and each != gold)
    grading = config.train_grading
    texts = [response(gold, grading), response(other, grading)]
    batch = {
        "prompts": [prompts[row]] * 2,
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": tokenizer(texts, add_special_tokens=False)["input_ids"],
        "id": [problems[row].id] * 2,
        "answer": [gold] * 2,
        "log_extra": _discard,
        "log_metric": _discard,
    }
    if any(reward.function not in RewardConfig.ready for reward in config.training.rewards.values()):
        from transformers import TrainerState  # takes a second to import; only user functions can read it

        batch["trainer_state"] = TrainerState()
    with Grader(workers=1, grading=grading) as grader:
        try:
            rewards = configured_rewards(config.training, config.rollout, grader, _COLUMNS, work)
        except NGRPOError as error:
            yield refused("training.rewards", error)
            return
        named: list[tuple[str, Callable[..., Any]]] = [(_name(reward), reward) for reward in rewards]
        yield from _compare(
            named or [("correctness", CorrectnessReward(grader))],
            batch,
            in_words(gold),
            in_words(other),
            unknown_form=grading.response == "regex",
        )


def response(gold: Gold, grading: GradingConfig) -> str:
    """Return a response with the gold answer as a model would write it; of several answers, all, or the first if one is enough."""
    answers = [gold] if isinstance(gold, str) else gold if grading.accepted == "all" else gold[:1]
    written = " and ".join(_FORMS[grading.response].format(answer) for answer in answers)
    return f"<think>\nLet me see.\n</think>\n\n{written}"


def _compare(
    rewards: Sequence[tuple[str, Callable[..., Any]]],
    batch: dict[str, Any],
    gold: str,
    other: str,
    *,
    unknown_form: bool,
) -> Iterator[Finding]:
    differs = False
    for name, reward in rewards:
        subject = f"training.rewards.{name}"
        try:
            with _bounded():
                right, wrong = _called(reward, batch)
        except _TookTooLong:
            yield Finding(
                "error",
                subject,
                f"no answer within {_SECONDS:.0f} s for two responses",
                "set a time limit for what it waits for; processes that it starts must be forked "
                '(multiprocessing.get_context("fork")): a spawned process cannot import the file',
            )
            differs = True
            continue
        except NGRPOError as error:
            yield refused(subject, error)
            differs = True
            continue
        differs |= right != wrong
        found = f"{gold!r}, the gold answer, earns {_shown(right)}, and {other!r} {_shown(wrong)}"
        if name == "correctness" and not right and not unknown_form:
            yield Finding(
                "error", subject, found, "correct the gold answer, or set how answers are read and compared (grading)"
            )
        else:
            yield Finding("ok", subject, found)
    if not differs and not unknown_form:
        yield Finding(
            "warning",
            "training.rewards",
            f"no reward distinguishes the gold answer {gold!r} from {other!r}",
            "add one that does, for example correctness, unless only the form counts",
        )


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit the time of the body. Only the main thread can be interrupted; other threads have no limit.

    Raises:
        _TookTooLong: The body exceeded the limit.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _TookTooLong

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _called(reward: Callable[..., Any], batch: dict[str, Any]) -> Any:
    result = reward(**batch)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def _name(reward: Any) -> str:
    return str(reward.__name__)


def _shown(value: float | None) -> str:
    return "nothing (left out)" if value is None else f"{value:g}"


def _discard(name: str, value: Any) -> None:
    """Log nothing."""
