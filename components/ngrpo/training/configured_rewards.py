"""Make the rewards of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ngrpo.config import RolloutConfig, TrainingConfig
from ngrpo.config.rewards import RewardConfig
from ngrpo.grading.grader import Grader
from ngrpo.training import ready_rewards as ready
from ngrpo.training.rewards import CorrectnessReward
from ngrpo.training.user_rewards import user_reward

Reward = Callable[..., Any]


def configured_rewards(
    training: TrainingConfig, rollout: RolloutConfig, grader: Grader, columns: Sequence[str], work: Path
) -> list[Reward]:
    """Return the rewards of `training.rewards`, in order, each under its name there; none if none is set.

    Args:
        training: Its settings.
        rollout: Settings with the longest response.
        grader: Grades for `correctness`; the caller closes it.
        columns: Columns of the data set.
        work: Directory of the stage, for files of the user.

    Raises:
        UserCodeError: A user's function cannot be imported, or does not accept its options or TRL's arguments.
    """
    return [
        _Named(name, _ready(reward, rollout.max_tokens, grader))
        if reward.function in RewardConfig.ready
        else user_reward(name, reward, columns, work)
        for name, reward in training.rewards.items()
    ]


class _Named:
    """A built-in reward under its name in the configuration."""

    def __init__(self, name: str, function: Reward):
        self.__name__ = name
        self._function = function

    def __call__(self, **arguments: Any) -> list[float]:
        """Reward a rollout batch."""
        rewards: list[float] = self._function(**arguments)
        return rewards


def _ready(reward: RewardConfig, longest: int, grader: Grader) -> Reward:
    makers: dict[str, Callable[[Any], Reward]] = {
        "correctness": lambda _: CorrectnessReward(grader),
        "format": ready.format_reward,
        "letter": lambda _: ready.letter,
        "exact": ready.exact,
        "regex": ready.matching,
        "json": ready.json_answer,
        "overlong": lambda options: ready.overlong(options, longest),
    }
    return makers[reward.function](reward.ready_options())
