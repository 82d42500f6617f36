"""Errors that a user can act on. Their message is one clear line with the cure; the command line prints it and exits with 2."""


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
