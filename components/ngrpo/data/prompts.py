"""Build the prompt of a problem."""

from __future__ import annotations

from ngrpo.config import DataConfig
from ngrpo.data.chat import Turns, user_turn
from ngrpo.data.problem import Problem


def prompt_of(problem: Problem, data: DataConfig, suffix: str | None = None) -> Turns:
    """Return the prompt of a problem: earlier turns, the default system message if they have none, and the problem with its instruction.

    Args:
        problem: The problem.
        data: Settings with `system_prompt` and `prompt_suffix`.
        suffix: Instruction to use instead of `data.prompt_suffix`.
    """
    before = [{"role": role, "content": content} for role, content in problem.before]
    if data.system_prompt and not (before and before[0]["role"] == "system"):
        before = [{"role": "system", "content": data.system_prompt}, *before]
    return before + user_turn(problem.problem, data.prompt_suffix if suffix is None else suffix)
