"""Errors that a user can fix. The message is one line that says how; the command line prints it and exits with code 2."""

import os


class NGRPOError(Exception):
    """An error that the user can fix: the message says what is wrong and what to do."""


class ConfigError(NGRPOError):
    """A setting is unknown or impossible."""


class DataError(NGRPOError):
    """A data set, a tokenizer or a model directory cannot be used by a stage."""


class StoreError(NGRPOError):
    """Object storage is unreachable, refuses the credentials, or holds an artifact that does not match its manifest."""


class TrackingError(NGRPOError):
    """The tracking database or the model registry is unreachable or inconsistent."""


class EngineError(NGRPOError):
    """The rollout engine cannot be started, or crashed during generation."""


class GradingError(NGRPOError):
    """The processes that compare answers did not start."""


class TrainingError(NGRPOError):
    """Training has diverged: a loss, gradient or result is not finite, or the engine's outputs do not match the trained model."""


class UserCodeError(NGRPOError):
    """A function of the user cannot be loaded, raised an error, or returned an invalid value."""


class TrainJobError(NGRPOError):
    """A training job on several nodes was refused by the cluster, did not start, or failed."""


class ClusterError(NGRPOError):
    """The cluster refuses a request, cannot be reached, or has no such run, schedule or service."""


class DeploymentError(ConfigError):
    """A deployed model does not perform as it was evaluated. Repeating the deployment would fail again."""


class Preempted(SystemExit):
    """Training was stopped by SIGTERM, and its checkpoint is kept: the process exits with `EX_TEMPFAIL` (75), which means retry."""

    def __init__(self) -> None:
        super().__init__(os.EX_TEMPFAIL)

    def __str__(self) -> str:
        """Return what happened, in one line."""
        return "stopped by SIGTERM; the next try resumes from the checkpoint"
