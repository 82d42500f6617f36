"""Differences between the schedules of a file and those on a cluster, field by field.

The cluster's side is read from the cluster: the times in Kubeflow, and the pipeline of the schedule, which contains the configuration.
So manual changes show up as differences too.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kfp import Client
from rich.console import Console
from rich.markup import escape

from ngrpo.environment import CREDENTIAL
from ngrpo_kfp.pipelines.kubeflow.client import explained
from ngrpo_kfp.pipelines.kubeflow.compilation import load_ir
from ngrpo_kfp.pipelines.kubeflow.scheduling.origin import Origin
from ngrpo_kfp.pipelines.kubeflow.scheduling.recurring_runs import ENABLED, version_name, version_used
from ngrpo_kfp.pipelines.kubeflow.scheduling.schedule_file import Wanted, WantedSchedules
from ngrpo_kfp.pipelines.kubeflow.scheduling.timing import Timing

Kind = Literal["add", "change", "remove", "keep", "same", "refuse"]
_SIGNS: Mapping[Kind, str] = {"add": "+", "change": "~", "remove": "-", "keep": "?", "same": "=", "refuse": "!"}
_WORDS: Mapping[Kind, str] = {
    "add": "to add",
    "change": "to change",
    "remove": "to remove",
    "keep": "not in the file",
    "same": "unchanged",
    "refuse": "refused",
}
_SECRET = re.compile(r"cluster\.(environment|secrets)\.")
"""Settings with hidden values, which may contain a credential."""
_LONGEST = 60
_UNSET = object()


@dataclass(frozen=True)
class Change:
    """The change that applying a file makes to one schedule."""

    name: str
    kind: Kind
    wanted: Wanted | None = None
    text: str = ""
    """The compiled pipeline of the file's schedule."""
    found: Any = None
    """The schedule on the cluster, a `V2beta1RecurringRun`."""
    fields: Sequence[tuple[str, str, str]] = field(default=())
    """The differences: name, value on the cluster, value in the file."""
    why: str = ""
    """Why it is refused."""

    @property
    def version(self) -> str:
        """Name of the pipeline version of the file's schedule."""
        if self.wanted is None:
            raise ValueError(f"{self.name} is wanted by nobody")
        return version_name(self.wanted.config.preset, self.text)


def differences(
    client: Client, wanted: WantedSchedules, texts: Mapping[str, str], found: Sequence[Any], *, prune: bool
) -> list[Change]:
    """Return the changes that applying a file makes, schedule by schedule.

    Args:
        client: Client of Kubeflow Pipelines.
        wanted: The schedules of the file.
        texts: Their compiled pipelines by name.
        found: The schedules on the cluster.
        prune: Whether schedules of the file's owner that are not in the file are removed.

    Raises:
        ClusterError: The API refuses or cannot be reached.
    """
    by_name = {schedule.display_name: schedule for schedule in found}
    changes = [
        _of_one(client, wanted.origin, each, texts[each.name], by_name.get(each.name)) for each in wanted.schedules
    ]
    named = {each.name for each in wanted.schedules}
    for schedule in found:
        origin = Origin.of(schedule)
        if origin is not None and origin.owner == wanted.origin.owner and schedule.display_name not in named:
            changes.append(Change(schedule.display_name, "remove" if prune else "keep", found=schedule))
    return changes


def show(changes: Sequence[Change], console: Console) -> None:
    """Show the changes that applying a file makes."""
    for change in changes:
        told = change.name
        if change.wanted is not None and change.kind == "add":
            told += f"  {change.wanted.wishes.cron or change.wanted.timing.cron}"
            told += f" {change.wanted.wishes.time_zone or 'UTC'}, preset {change.wanted.config.preset}"
        if change.kind == "keep":
            told += "  (not in the file: --prune removes it)"
        if change.why:
            told += f"  ({change.why})"
        console.print(escape(f"{_SIGNS[change.kind]} {told}"), soft_wrap=True)
        for name, old, new in change.fields:
            console.print(escape(f"    {name}: {old} -> {new}"), soft_wrap=True)
    counts = {kind: sum(change.kind == kind for change in changes) for kind in _SIGNS}
    told = ", ".join(f"{count} {_WORDS[kind]}" for kind, count in counts.items() if count)
    console.print(f"schedules  {told or 'none in the file, and none of its owner on the cluster'}", soft_wrap=True)


def _of_one(client: Client, origin: Origin, wanted: Wanted, text: str, found: Any) -> Change:
    if found is None:
        return Change(wanted.name, "add", wanted, text)
    its = Origin.of(found)
    if its is None or its.owner != origin.owner:
        whose = "was made by hand" if its is None else f"comes from {its.file} of owner {its.owner}"
        why = f"a schedule of this name {whose}: `ngrpo schedule delete {wanted.name}`, or choose another name"
        return Change(wanted.name, "refuse", wanted, text, found, why=why)
    pipeline, version = version_used(found)
    with explained(f"schedule {wanted.name}"):
        used = client.get_pipeline_version(pipeline, version)
    spec = used.pipeline_spec
    old = facts(spec.get("pipeline_spec", spec), Timing.of(found), enabled=found.status == ENABLED)
    new = facts(load_ir(text)[0], wanted.timing, enabled=wanted.enabled)
    fields = list(_different(old, new))
    change = Change(wanted.name, "change" if fields else "same", wanted, text, found, fields)
    if not fields and used.display_name != change.version:
        # Another version of ngrpo compiles the same settings to another text.
        fields.append(("pipeline", used.display_name, change.version))
        return Change(wanted.name, "change", wanted, text, found, fields)
    return change


def facts(spec: Mapping[str, Any], timing: Timing, *, enabled: bool) -> dict[str, Any]:
    """Return the fields of a schedule, with the names used in the file.

    Args:
        spec: The pipeline that it runs.
        timing: When it runs.
        enabled: Whether it runs, or is paused.
    """
    inputs = spec["root"]["dag"]["tasks"]["scheduled-run"]["inputs"]["parameters"]
    given = {name: value["runtimeValue"]["constant"] for name, value in inputs.items()}
    settings = json.loads(given["config"])
    preset, seed = settings.pop("preset"), settings.pop("seed", 0)
    return {
        "file": timing.description,
        "cron": given["cron"] or timing.cron,
        "cron in UTC": timing.cron,
        "time_zone": given["time_zone"] or "UTC",
        "enabled": enabled,
        "max_concurrency": timing.max_concurrency,
        "catch_up": timing.catch_up,
        "preset": preset,
        "base": given["base"] or None,
        "seed": given["seed"] or seed,
        **dict(_flat("", settings)),
        **dict(_flat("images", tomllib.loads(given["images"]))),
    }


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree by their path; a list is a leaf."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat(f"{path}.{name}" if path else name, each)
    else:
        yield path, value


def _different(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys((*new, *old)):
        before, after = old.get(name, _UNSET), new.get(name, _UNSET)
        if before != after and not (name == "cron in UTC" and old["cron"] != new["cron"]):
            yield name, _shown(name, before), _shown(name, after)


def _shown(name: str, value: Any) -> str:
    if value is _UNSET or value is None:
        return "none"
    if _SECRET.match(name) or CREDENTIAL.search(name):
        return "(not shown)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2 - 1]}…{text[-_LONGEST // 2 :]}"
