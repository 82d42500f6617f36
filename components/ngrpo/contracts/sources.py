"""`sources.json` of the stage `prepare_data`: the tables of the data set, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.contracts.layout import read_layout

SOURCES = "sources.json"


class Table(TypedDict):
    """A table: the settings of its source (`ngrpo.config.Source`), its rows and the digest of its file."""

    source: dict[str, Any]
    rows: Annotated[int, Field(ge=0)]
    sha256: str


class Sources(TypedDict):
    """The file: tables by path in the artifact."""

    layout: Literal[1]
    tables: dict[str, Table]


def read_sources(artifact: Path, cure: str) -> Sources:
    """Return the sources of a data set.

    Raises:
        StoreError: The file cannot be read, is damaged or of another layout.
    """
    return read_layout(artifact / SOURCES, Sources, cure=cure)
