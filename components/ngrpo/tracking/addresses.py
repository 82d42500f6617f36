"""The address of an MLflow database file, for paths with any characters."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote


def database_uri(path: Path) -> str:
    """Return the SQLAlchemy address of a database file, which MLflow accepts too.

    SQLAlchemy parses the text after `sqlite:///` as part of a URL: a question mark ends the path, percent signs are decoded. If any
    character must be quoted, slashes are quoted too: otherwise MLflow takes the quoted text for a path and creates its directories.
    """
    text = str(path)
    return f"sqlite:///{text if quote(text) == text else quote(text, safe='')}"
