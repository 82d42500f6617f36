"""Origin of a schedule: the file and its owner, stored in Kubeflow as the description of the schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_TEXT = re.compile(r"applied by ngrpo from (?P<file>.{1,100}), owner (?P<owner>\S+)")


@dataclass(frozen=True)
class Origin:
    """A file of schedules, as named in the schedules created from it."""

    file: str
    """Name of the file, without its directory."""
    owner: str
    """Its `owner`: the file changes and removes only schedules with this owner."""

    @classmethod
    def of(cls, schedule: Any) -> Origin | None:
        """Return the origin of a schedule on the cluster, a `V2beta1RecurringRun`; None for one that was created by hand."""
        match = _TEXT.fullmatch(schedule.description or "")
        return None if match is None else cls(match["file"], match["owner"])

    @property
    def text(self) -> str:
        """The description of such a schedule: Kubeflow's database keeps 255 characters (backend/src/apiserver/model/job.go)."""
        return f"applied by ngrpo from {self.file[-100:]}, owner {self.owner}"
