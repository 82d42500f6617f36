"""What the report says of the run itself: where results come from, what took how long, and its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tomli_w
from markupsafe import Markup

from ngrpo.config import RunConfig
from ngrpo.config.code import without_code
from ngrpo.contracts.sources import Sources
from ngrpo.report.figures import Bar, bar_chart
from ngrpo.report.wording import describe, public


@dataclass(frozen=True)
class StageView:
    """One stage of the run, memory in bytes; inputs and code version are empty where its artifact is not at hand."""

    name: str
    cached: bool
    seconds: float
    peak_memory: int
    key: str
    artifact: str
    inputs: dict[str, str]
    code_version: str


@dataclass(frozen=True)
class TableView:
    """A table of the data set: its name, rows, digest and where it comes from."""

    name: str
    rows: int
    sha256: str
    source: str


@dataclass(frozen=True)
class Timings:
    """Where the time went, in seconds; `share` of `wall` is what was spent outside the stages."""

    wall: float
    outside: float
    share: float
    figure: Markup


def stage_views(stages: Mapping[str, Any], manifests: Mapping[str, Mapping[str, Any]]) -> list[StageView]:
    """Return the stages of a run.

    Args:
        stages: `stages` of `summary.json`.
        manifests: `manifest.json` of the artifacts that are at hand, by stage.
    """
    return [
        StageView(
            name=name,
            cached=stage["cached"],
            seconds=stage["seconds"],
            peak_memory=stage["peak_memory_bytes"],
            key=stage["key"],
            artifact=stage["artifact"],
            inputs=dict(manifests.get(name, {}).get("inputs", {})),
            code_version=manifests.get(name, {}).get("code_version", ""),
        )
        for name, stage in stages.items()
    ]


def table_views(sources: Sources) -> list[TableView]:
    """Return the tables of the data set; `sources` is `sources.json` of the stage `prepare_data`."""
    return [
        TableView(name.removesuffix(".parquet"), table["rows"], table["sha256"], describe(table["source"]))
        for name, table in sources["tables"].items()
    ]


def timings(stages: list[StageView], wall: float) -> Timings:
    """Return where the time of a run went.

    Args:
        stages: Its stages.
        wall: Seconds from its beginning to its end.
    """
    # Stages that ran side by side can add up to more than the wall time; then nothing is known of the rest.
    outside = max(0.0, wall - sum(stage.seconds for stage in stages))
    share = outside / wall if wall else 0.0
    bars = [
        Bar(stage.name, stage.seconds, "cached" if stage.cached else f"{stage.seconds:.1f} s", "second")
        for stage in stages
    ]
    bars.append(Bar("outside the stages", outside, f"{outside:.1f} s ({share:.1%})", "first"))
    return Timings(wall, outside, share, bar_chart(bars, label="Seconds of each stage"))


def settings_text(config: RunConfig) -> str:
    """Return the settings of a run in the form of a preset, without paths of this machine; settings of value none are left out."""
    return tomli_w.dumps(public(without_code(config.model_dump(mode="json", exclude_none=True)))).strip()
