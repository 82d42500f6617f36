"""Rewards for tests of training."""


class LengthReward:
    """Takes the place of `CorrectnessReward`: a random model answers nothing correctly, and this gives it something to learn."""

    __name__ = "correctness"

    def __init__(self, grader):
        pass

    def __call__(self, completions, **_):
        return [len(one[0]["content"]) % 7 / 7 for one in completions]
