"""Findings: what was looked at, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ngrpo.errors import NGRPOError

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    level: Level
    """`error`: a stage would refuse it, or the run would be in vain. `warning`: worth a look."""
    subject: str
    """The setting that it is about, for example `data.train`."""
    found: str
    """One line."""
    cure: str = ""
    """What to do; empty where all is well."""

    @property
    def line(self) -> str:
        """The finding in one line, as errors are written."""
        subject = "" if self.found.startswith(self.subject) else f"{self.subject}: "
        return f"{subject}{self.found}" + (f"; {self.cure}" if self.cure else "")


def refused(subject: str, error: NGRPOError, further: str = "") -> Finding:
    """Return the finding of an error, whose message says what is wrong and, after its last semicolon, what to do.

    Args:
        subject: The setting that it is about.
        error: The error.
        further: What else can be done.
    """
    found, _, cure = str(error).replace("\n", "; ").rpartition("; ")
    cures = [cure if found else "", further]
    return Finding("error", subject, found or cure, "; ".join(filter(None, cures)))


@dataclass
class Examination:
    """Everything that was found, in the order in which it was looked at."""

    findings: list[Finding] = field(default_factory=list)
    prompt: str | None = None
    """One training prompt, as the model gets it; none if there was no way to write it."""
    unseen: str | None = None
    """Why not everything was looked at; none where it was."""

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings."""
        self.findings.extend(findings)

    @contextmanager
    def catch(self, subject: str) -> Iterator[None]:
        """Turn an error of ours into a finding."""
        try:
            yield
        except NGRPOError as error:
            self.findings.append(refused(subject, error))

    @property
    def errors(self) -> list[Finding]:
        """The findings that are errors."""
        return [finding for finding in self.findings if finding.level == "error"]

    def record(self) -> dict[str, Any]:
        """Return the findings as JSON has them."""
        return {
            "passed": not self.errors,
            "findings": [asdict(finding) for finding in self.findings],
            "prompt": self.prompt,
            "unseen": self.unseen,
        }
