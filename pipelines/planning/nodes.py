"""What is known of a run's stages before anything runs, and what an earlier run recorded of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ngrpo.storage.manifest import Reference
from ngrpo_kfp.pipelines.planning.content import StageSettings


@dataclass(frozen=True)
class PlannedStage:
    """What is known of a stage before anything runs."""

    name: str
    key: str
    """Key of its result."""
    base_key: str
    """The key it would have without a rerun token."""
    config: str
    """Its settings as canonical JSON, as it gets them."""
    settings: StageSettings
    """Its settings, as it gets them and as they are in its key, and the content of the copies that it reads."""
    code_version: str
    sources: Mapping[str, str]
    """Hash of each source file behind `code_version`."""
    inputs: Mapping[str, PlannedStage]
    """The stages whose artifacts it reads, by the input's name."""
    reference: Reference | None
    """Its result, if the store has a sound one."""
    damaged: Reference | None
    """Its result, if the store has one that does not match its manifest."""
    reasons: tuple[str, ...]
    """Why it has to run; empty if it does not."""

    @property
    def cached(self) -> bool:
        """Whether the result in the store stands for a run."""
        return self.reference is not None


@dataclass(frozen=True)
class Plan:
    """All stages in order."""

    stages: Mapping[str, PlannedStage]

    def __iter__(self) -> Iterator[PlannedStage]:
        """Iterate over the stages in order."""
        return iter(self.stages.values())

    def __getitem__(self, name: str) -> PlannedStage:
        """Return a stage by name."""
        return self.stages[name]

    @property
    def to_run(self) -> list[PlannedStage]:
        """The stages that have to run, in order."""
        return [stage for stage in self if not stage.cached]


@dataclass(frozen=True)
class History:
    """What an earlier run recorded; an empty history explains a first run."""

    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `plan_record` said."""
    finished: frozenset[str] = frozenset()
    """Stages that had a result when the run ended."""
