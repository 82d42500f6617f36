"""The stages with the modules that do their work; what is declared of each stands beside its settings (`ngrpo.config.stages`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ngrpo.checking.light_imports import light_imports
from ngrpo.config.declared import Declaration, StageSection
from ngrpo.stages.context import Context

StageFunction = Callable[[Any, Mapping[str, Path], Path, Context], None]
"""Does the work of a stage, given settings, the directory of each input, an empty output directory and the context."""


@dataclass(frozen=True, kw_only=True)
class Stage(Declaration):
    """One stage of the pipeline."""

    config: type[StageSection]
    """The part of a run's configuration that the stage reads."""

    @property
    def module(self) -> str:
        """Dotted name of the module that does the work."""
        return f"ngrpo.stages.{self.name}"

    def function(self) -> StageFunction:
        """Import the stage's module, with all the libraries it works with, and return its `run`."""
        with light_imports():
            run: StageFunction = importlib.import_module(self.module).run
        return run


DECLARED: Mapping[str, Stage] = {
    section.stage.name: Stage(config=section, **vars(section.stage)) for section in StageSection.__subclasses__()
}
"""All stages."""
STAGES: Mapping[str, Stage] = {name: stage for name, stage in DECLARED.items() if stage.wanted is None}
"""The stages that every run has."""
TRAININGS = ("sft_warm_start", "ngrpo_training")
"""Stages that train."""
