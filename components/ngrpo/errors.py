"""Errors that a user can act on. Their message is one clear line with the cure; the command line prints it and exits with 2."""

import os


class NGRPOError(Exception):
    """Something the user can put right: the message says what is wrong and what to do."""


class ConfigError(NGRPOError):
    """A setting is unknown or impossible."""


class DataError(NGRPOError):
    """A data set, a tokenizer or a model directory is not what a stage needs."""


class StoreError(NGRPOError):
    """Object storage is unreachable, refuses the credentials, or holds an artifact that does not match its manifest."""


class TrackingError(NGRPOError):
    """The tracking database or the model registry is unreachable or inconsistent."""


class EngineError(NGRPOError):
    """The rollout engine cannot be started, or died while it generated."""


class GradingError(NGRPOError):
    """The processes that compare answers do not start."""


class TrainingError(NGRPOError):
    """Training has diverged: a loss, a gradient or a result is not finite, or the engine does not compute what is trained."""


class UserCodeError(NGRPOError):
    """A function of the user's cannot be loaded, raised an error, or returned what it must not."""


class TrainJobError(NGRPOError):
    """A training on several nodes was refused by the cluster, did not start, or failed."""


class ClusterError(NGRPOError):
    """The cluster refuses, cannot be reached, or has no such run, schedule or service."""


class DeploymentError(ConfigError):
    """A deployed model does not do as it was evaluated: the same again would be refused again."""


class Preempted(SystemExit):
    """Training was told to stop, and its checkpoint is kept: the process ends with `EX_TEMPFAIL` (75), which means try again."""

    def __init__(self) -> None:
        super().__init__(os.EX_TEMPFAIL)

    def __str__(self) -> str:
        """Say what happened in one line."""
        return "told to stop; the next try goes on from its checkpoint"
