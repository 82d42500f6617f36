"""Small text files that a configuration is made of: presets, and what they name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ngrpo.errors import ConfigError

_LARGEST_FILE = 1 << 20
"""Bytes; a preset has a few thousand."""


def read_text(what: str, path: Path) -> str:
    """Read a small text file.

    Args:
        what: What the file is, for the message.
        path: The file.

    Raises:
        ConfigError: It is not a regular file, cannot be read, is larger than a megabyte or not UTF-8.
    """
    named = f"{what} {str(path)!r}"
    try:
        # A named pipe would wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{named}: no regular file; name a file")
            data = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{named}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL or a surrogate in the path
        raise ConfigError(f"{named}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > _LARGEST_FILE:
        raise ConfigError(
            f"{named}: larger than {_LARGEST_FILE} bytes; name a file of settings, which has a few thousand"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
