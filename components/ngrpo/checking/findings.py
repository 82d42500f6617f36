"""Findings: the results of checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ngrpo.errors import NGRPOError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    level: Level
    """`error`: a stage would fail, or the run would be useless. `warning`: the user should look at it. `ok`: the check passed."""
    subject: str
    """The setting that was checked, for example `data.train`."""
    found: str
    """What was found, in one line."""
    cure: str = ""
    """What to do; empty if nothing is wrong."""

    @property
    def line(self) -> str:
        """The finding as a one-line error message."""
        subject = "" if self.found.startswith(self.subject) else f"{self.subject}: "
        return f"{subject}{self.found}" + (f"; {self.cure}" if self.cure else "")


def refused(subject: str, error: NGRPOError, further: str = "") -> Finding:
    """Convert an error to a finding. The text after the last semicolon of its message is the cure.

    Args:
        subject: The setting that was checked.
        error: The error.
        further: An additional cure.
    """
    found, _, cure = str(error).replace("\n", "; ").rpartition("; ")
    cures = [cure if found else "", further]
    return Finding("error", subject, found or cure, "; ".join(filter(None, cures)))


@dataclass
class Examination:
    """All findings, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)
    prompt: str | None = None
    """The first training prompt, rendered with the chat template; None if it could not be rendered."""
    unseen: str | None = None
    """Why some checks were skipped; None if all were run."""

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings."""
        self.findings.extend(findings)

    @contextmanager
    def catch(self, subject: str) -> Iterator[None]:
        """Convert an `NGRPOError` of the body to a finding."""
        try:
            yield
        except NGRPOError as error:
            self.findings.append(refused(subject, error))

    @property
    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.findings if finding.level == "error"]

    def record(self) -> dict[str, Any]:
        """Return the findings as JSON-serializable values."""
        return {
            "passed": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "prompt": self.prompt,
            "unseen": self.unseen,
        }
