"""The command lines that the documentation shows: those in its blocks of code, and the commands that its text names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("components/*/README.md")]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SHELL = ("", "bash", "sh", "console")
_REDIRECTIONS = ("<", ">", "|", "&&", ">>")
_NAMED = re.compile(r"`(?:\.venv/bin/)?ngrpo ([a-z][a-z -]*?[a-z])(?:[^a-z-][^`]*)?`")
_MADE = re.compile(r"`make ([a-z][a-z-]*)[^`]*`")
_LEFT_OUT = ("CHANGELOG.md", "cli.md")
"""Pages that are history, or written by the command line itself."""


@dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        """Return it as it was written."""
        return f"{self.page.relative_to(ROOT)}: {shlex.join(self.words)}"


def lines() -> Iterator[Line]:
    """Yield the command lines of `ngrpo` and `make` in blocks of code; comments and `...` are left out."""
    for page in _pages():
        for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines() if language in _SHELL else ():
                command = re.match(r"(?:\$ )?(?:\.venv/bin/)?((?:ngrpo|make) .*)", line)
                if command:
                    words = shlex.split(command[1], comments=True)
                    redirected = next((at for at, word in enumerate(words) if word in _REDIRECTIONS), None)
                    yield Line(page, tuple(word for word in words[:redirected] if word not in ("...", "…")))


def named() -> Iterator[tuple[Path, str]]:
    """Yield the commands that the text names, with their page: `schedule create` of `ngrpo schedule create weekly`, perhaps with more."""
    for page in _pages():
        for words in _NAMED.findall(page.read_text(encoding="utf-8")):
            yield page, words


def targets() -> Iterator[tuple[Path, str]]:
    """Yield the targets of make that the text names, with their page."""
    for page in _pages():
        for target in _MADE.findall(page.read_text(encoding="utf-8")):
            yield page, target


def _pages() -> list[Path]:
    return sorted(page for page in PAGES if page.name not in _LEFT_OUT)
