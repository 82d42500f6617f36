"""What a stage is, declared once: beside the settings that it reads (`ngrpo.config.stages`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from ngrpo.section import Section


@dataclass(frozen=True)
class Declaration:
    """One stage of the pipeline, but for its settings. Its order among the stages is not known here: see `pipelines/post_training.py`."""

    name: str
    """Name of the stage, of its module in `ngrpo.stages` and of its folder in the artifact store."""
    artifact: Literal["Artifact", "Dataset", "Model"] = "Artifact"
    """What kfp calls its artifact."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """By name of an input, the stage whose artifact it is."""
    cacheable: bool = True
    """Whether a result found in the store may stand for a run; not for a stage with effects outside the store."""
    parallel: bool = False
    """Whether it works as several processes, one a GPU, where its pod has several."""
    libraries: tuple[str, ...] = ()
    """Names of the distributions whose versions decide its result; see `ngrpo.stages.libraries` for those that settings select."""
    wanted: Callable[[Any], bool] | None = None
    """Says whether a run with a configuration, a `RunConfig`, has the stage; none where every run does."""


class StageSection(Section):
    """What a stage reads of a run's configuration."""

    stage: ClassVar[Declaration]
    """The stage."""


def stage_names() -> list[str]:
    """Return the names of all stages."""
    return [section.stage.name for section in StageSection.__subclasses__()]


def _check_stage(name: str) -> str:
    if name not in stage_names():
        raise ValueError(f"no stage; the stages are {', '.join(map(repr, stage_names()))}")
    return name


class _ListsStages:
    """Lists the stages in the schema of what a name is part of; that is made once all of them are declared."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": stage_names()}


StageName = Annotated[str, AfterValidator(_check_stage), _ListsStages]
"""Name of a stage that is declared."""
