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
    """One stage of the run, memory in bytes; inputs and code version are empty if its artifact is not available."""

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
        manifests: `manifest.json` of the available artifacts, by stage.
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


@dataclass(frozen=True)
class CostsView:
    """What the run took, what its cache hits saved, and what a point gained cost, in words; stages with their numbers."""

    spent: str
    saved: str | None
    point: str | None
    unknown: list[str]
    currency: str
    stages: list[tuple[str, dict[str, Any]]]

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """The quantities that at least one stage has: name, title and format."""
        known = {name for _, stage in self.stages for name, value in stage.items() if value}
        titles = (
            ("hours", "hours", ".3f"),
            ("processor_hours", "processor-hours", ".3f"),
            ("gpu_hours", "GPU-hours", ".2f"),
            ("kwh", "kWh", ".2f"),
            ("money", self.currency, ",.2f"),
        )
        return [column for column in titles if column[0] in known]


def costs_view(costs: Mapping[str, Any] | None) -> CostsView | None:
    """Return what a run took; `costs` is that of `summary.json`, none in those of earlier versions."""
    if costs is None:
        return None
    point = costs.get("point_gained")
    return CostsView(
        spent=costs["spent"]["in_words"],
        saved=None if costs["saved"] is None else costs["saved"]["in_words"],
        point=None if point is None else f"on {point['benchmark']}: {point['in_words']}",
        unknown=list(costs["unknown"]),
        currency=costs["currency"],
        stages=list(costs["stages"].items()),
    )


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
    return Timings(wall, outside, share, bar_chart(bars, label="Seconds of each stage", width=440))


def settings_text(config: RunConfig) -> str:
    """Return the settings of a run in the form of a preset, without paths of this machine.

    Settings of value none are left out, and those of a cluster: the run is one on this machine.
    """
    settings = config.model_dump(mode="json", exclude_none=True, exclude={"cluster"})
    return tomli_w.dumps(public(without_code(settings))).strip()
