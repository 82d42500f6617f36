"""The address of an MLflow database file, for paths with any characters."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def database_uri(path: Path) -> str:
    """Return the address by which SQLAlchemy and MLflow find a database file.

    SQLAlchemy reads the text after `sqlite:///` as part of a URL: a question mark ends it, percent signs are decoded. Slashes are quoted
    too where anything is, for MLflow takes them for those of a path and makes the directories of one that does not exist.
    """
    text = str(path)
    return f"sqlite:///{text if quote(text) == text else quote(text, safe='')}"
