"""Free room: remove everything that no champion, no kept run and no possible resume needs. First plan, then remove.

What is kept is named first, and all that it needs; what is left goes. Whatever is killed in between, what is kept stays readable: of an
artifact the manifest goes first, without which there is no artifact, and directories of runs go last, so that the next pruning still knows
what they had made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from rich.console import Console

from ngrpo.errors import ConfigError
from ngrpo.report.phases import PREPARING, phase
from ngrpo.stages.declarations import DECLARED
from ngrpo.stages.tries import tries_of
from ngrpo.storage.manifest import MANIFEST
from ngrpo.storage.objects import ObjectStore
from ngrpo.storage.seaweed_vacuum import vacuum
from ngrpo.storage.state import DamagedStateError
from ngrpo_kfp.pipelines.local.run_artifacts import Artifact, disk_size, made_artifacts, needed_artifacts
from ngrpo_kfp.pipelines.local.run_views import look
from ngrpo_kfp.pipelines.local.runs import Kind, everything, find_run, name_of
from ngrpo_kfp.pipelines.local.services import Services, services
from ngrpo_kfp.pipelines.local.stage_records import read_settings
from ngrpo_kfp.pipelines.local.store_ahead import embeds_store
from ngrpo_kfp.pipelines.local.superseded_deployments import superseded_deployments
from ngrpo_kfp.pipelines.local.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CHECKPOINTS = "checkpoints"
_REGISTERED = "registered_models"
"""Folder of the cache with copies of registered models, by digest."""
_MODELS = "models"
"""Folder of logged models below the place of MLflow's artifacts."""


@dataclass(frozen=True)
class Wish:
    """Options of a pruning."""

    keep: int
    """Number of newest runs to keep, and of newest measurements."""
    keep_runs: Sequence[str] = ()
    """Further runs to keep, by name."""
    drop: Sequence[str] = ()
    """Runs and experiments to remove even if something else would keep them."""
    shared: bool = False
    """Whether this workspace's data may be removed from a store that others use too."""


@dataclass(frozen=True)
class Item:
    """Something that goes."""

    what: str
    name: str
    size: int
    """Bytes."""
    why: str
    remove: Callable[[], None] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Pruning:
    """The plan of a pruning: items to remove, in order, and why the others are kept."""

    items: Sequence[Item]
    kept: Mapping[str, str]
    """Why runs and versions are kept, by name."""

    @property
    def size(self) -> int:
        """Bytes of all items to remove."""
        return sum(item.size for item in self.items)


def prune(
    workspace: Workspace, wish: Wish, show: Callable[[Pruning], None], console: Console, *, really: bool
) -> tuple[Pruning, bool]:
    """Plan a pruning, show it, and carry it out if requested.

    Args:
        workspace: The workspace.
        wish: Options of the pruning.
        show: Shows the plan before anything is removed.
        console: Where it is shown how far the removal is.
        really: Remove it.

    Returns:
        The plan, and whether the room is free; else the embedded store gives it back when it has served for longer.

    Raises:
        ConfigError: There is no such run, a run is going on here, the store is shared with others and nobody said `shared`, a stage is
            running on a cluster that uses the store, or it is not known what a kept run needs.
        TrackingError: MLflow, which knows the versions that need something, cannot be reached.
        StoreError: The object store cannot be reached.
    """
    ours_alone = embeds_store()  # asked for now: inside `services` the environment names a store
    if not ours_alone and not wish.shared:
        raise ConfigError(
            "the object store that AWS_ENDPOINT_URL or NGRPO_STORE names may have other users: add --shared to remove there what runs of "
            "this workspace made, and nothing else; anyone else who needs it has to make it again"
        )
    with (
        workspace.lock() if really else nullcontext(),
        phase(console, PREPARING) as shown,
        services(workspace) as around,
    ):
        plan = plan_pruning(workspace, wish, around, ours_alone=ours_alone)
        show(plan)
        if really:
            shown.now("removing")
            _finish(workspace)
            for item in shown.each(plan.items, "removing", "items"):
                item.remove()
            if not workspace.latest.exists():
                workspace.latest.unlink(missing_ok=True)
            deleted = sum(item.size for item in plan.items if item.what in _IN_STORE)
            if ours_alone and deleted:
                shown.now("freeing the deleted bytes")
                return plan, vacuum(workspace.store, deleted)
    return plan, True


_IN_STORE = ("artifact", "checkpoints", "model files", "replaced service")


def plan_pruning(workspace: Workspace, wish: Wish, around: Services, *, ours_alone: bool) -> Pruning:
    """Return the plan of a pruning without changing anything. See `prune`.

    Args:
        workspace: The workspace.
        wish: What is to be kept.
        around: Its services, which are up.
        ours_alone: Whether nobody else uses the store: then all artifacts that nothing needs go, whoever made them.
    """
    objects = ObjectStore(around.store_uri)
    objects.check()
    tags = objects.tags()
    dropped = _dropped(workspace, wish)
    kept, why = _kept_runs(workspace, wish, dropped, set(tags))
    needed = set[Artifact]()
    for kind, directory in kept:
        needed |= _needs_of(kind, directory)
    registered = _registered(around, workspace)
    needed |= registered.needs
    going = [one for one in everything(workspace) if one not in kept]
    stored = _groups(tags)
    candidates = set(stored) - needed
    checkpoints = {place[1:]: size for place, size in _checkpoints(tags).items() if place[1:] not in needed}
    if not ours_alone:
        ours = {artifact for kind, directory in going for artifact in made_artifacts(kind, directory)}
        _require_nothing_running(objects, tags)
        candidates &= ours - _built_on(objects, stored, ours, tags)
        checkpoints = {artifact: size for artifact, size in checkpoints.items() if artifact in ours}
    items = [
        *_copies(workspace, needed, registered.digests),  # first: who prunes may have no room at all
        *_unfinished_work(workspace, needed),
        *(_model_files(around, registered, kept) if ours_alone else ()),
        *(_artifact(objects, artifact, stored[artifact], tags) for artifact in sorted(candidates)),
        *(_saves(objects, artifact, size) for artifact, size in sorted(checkpoints.items())),
        *(_service(objects, key, size) for key, size in sorted(superseded_deployments(objects, tags).items())),
        *(
            _run(workspace, kind, directory, "dropped" if directory in dropped else f"not among the {wish.keep} newest")
            for kind, directory in going
        ),
    ]
    return Pruning(items, {**why, **registered.why})


# --- what is kept -------------------------------------------------------------------------------------------------------


def _dropped(workspace: Workspace, wish: Wish) -> set[Path]:
    """Return the directories to remove on request, whatever else would keep them."""
    return {place for what in wish.drop for place in _all_of(_named("--drop", what, workspace), what, workspace)}


def _kept_runs(
    workspace: Workspace, wish: Wish, dropped: set[Path], keys: set[str]
) -> tuple[list[tuple[Kind, Path]], dict[str, str]]:
    """Return the kept runs, and why they are kept, by name."""
    named = {_named("--keep-run", what, workspace)[1]: what for what in wish.keep_runs}
    both = next((what for place, what in named.items() if place in dropped), None)
    if both is not None:
        raise ConfigError(f"--keep-run {both}: --drop names it too; leave one of them out")
    counted: dict[Kind, int] = {}
    resumed: set[Artifact] = set()
    kept, why = [], {}
    latest = workspace.latest.resolve()
    for kind, directory in everything(workspace):
        if directory in dropped:
            continue
        view = look(kind, directory, workspace)
        counted[kind] = counted.get(kind, 0) + 1
        begun = {(node.node.partition(".")[0], node.key) for node in view.nodes if node.state in ("failed", "stopped")}
        open_resume = {artifact for artifact in begun - resumed if _can_resume(workspace, artifact, keys)}
        reason = None
        if directory in named:
            reason = "named"
        elif view.state == "running":
            reason = "running"
        elif kind == "experiment":
            reason = "an experiment; --drop gives it up"
        elif counted[kind] <= wish.keep:
            reason = f"among the {wish.keep} newest"
        elif directory == latest:
            reason = "the latest that finished"
        elif open_resume:
            reason = f"{view.stage} can go on from a checkpoint; --drop gives it up"
        if reason is not None:
            resumed |= begun
            kept.append((kind, directory))
            why[name_of(kind, directory)] = reason
    return kept, why


def _named(option: str, what: str, workspace: Workspace) -> tuple[Kind, Path]:
    found = find_run(what, workspace)
    if found is None:
        raise ConfigError(f"{option} {what!r}: no run of {workspace.root} has that name; `ngrpo runs` lists them")
    return found


def _all_of(found: tuple[Kind, Path], what: str, workspace: Workspace) -> list[Path]:
    """Return the directories of a name; those of an experiment include each time it was run."""
    kind, directory = found
    if kind != "experiment" or what != directory.parent.name:
        return [directory]
    return [place for one, place in everything(workspace) if one == kind and place.parent == directory.parent]


def _can_resume(workspace: Workspace, artifact: Artifact, keys: set[str]) -> bool:
    """Say whether an unfinished stage can resume, from this disk or from the store."""
    stage, key = artifact
    work = workspace.work / stage / key / "work"
    place = f"{_CHECKPOINTS}/{stage}/{key}/"
    return any(path.is_file() for path in work.rglob("*")) or any(name.startswith(place) for name in keys)


def _needs_of(kind: Kind, directory: Path) -> frozenset[Artifact]:
    try:
        return needed_artifacts(kind, directory)
    except DamagedStateError as error:
        name = name_of(kind, directory)
        raise ConfigError(
            f"run {name} is kept, but what it needs is not known: {str(error).rpartition('; ')[0]}; restore that file, or give the run up "
            f"(--drop {name})"
        ) from error


@dataclass(frozen=True)
class _Registered:
    """Facts from MLflow: artifacts that its versions need, their logged models, and why versions are kept."""

    needs: frozenset[Artifact] = frozenset()
    models: frozenset[str] = frozenset()
    """Ids of the logged models of versions."""
    digests: frozenset[str] = frozenset()
    """Of the files of versions with an alias."""
    why: Mapping[str, str] = field(default_factory=dict)
    client: MlflowClient | None = None


def _registered(around: Services, workspace: Workspace) -> _Registered:
    """Read all versions of all models from MLflow.

    A version keeps its own weights and evaluation; of the store it needs the samples that it was judged by, so that they can be graded
    again. One with an alias keeps all that it was made of too.
    """
    if around.owns_database and not workspace.database.exists():
        return _Registered()
    from ngrpo.tracking.connection import connect, explained
    from ngrpo.tracking.model_registry import ALIASES, DIGEST, ModelRegistry, evaluation_key

    client = connect()
    with explained():
        names = [model.name for model in client.search_registered_models()]
    needs: set[Artifact] = set()
    models: set[str] = set()
    digests: set[str] = set()
    why: dict[str, str] = {}
    for name in names:
        registry = ModelRegistry(name)
        aliases = registry.aliases()
        for version in registry.versions():
            models.add(str(version.source).removeprefix("models:/"))
            lineage = {
                stage: version.tags[f"ngrpo.input.{source}"]
                for source, stage in DECLARED["ngrpo_training"].inputs.items()
                if version.tags.get(f"ngrpo.input.{source}")
            }
            judged = evaluation_key(version)
            if judged is not None:
                needs.add(("benchmark_evaluation", judged))
                needs |= {(stage, key) for stage, key in lineage.items() if stage == "prepare_data"}
            held = [alias for alias in ALIASES if aliases[alias] == str(version.version)]
            if held:
                digests.add(version.tags.get(DIGEST, ""))
                needs |= set(lineage.items())
                if version.tags.get("ngrpo.key"):
                    needs.add(("ngrpo_training", version.tags["ngrpo.key"]))
            why[f"{name} version {version.version}"] = ", ".join(held) or "the samples that it was judged by"
    return _Registered(frozenset(needs), frozenset(models), frozenset(digests), why, client)


# --- what the store has -------------------------------------------------------------------------------------------------


def _groups(tags: Mapping[str, tuple[str, int]]) -> dict[Artifact, int]:
    """Return the total size of each artifact's objects, complete or not; nothing else in the store is looked at."""
    found: dict[Artifact, int] = {}
    for key, (_, size) in tags.items():
        stage, _, rest = key.partition("/")
        result, slash, _ = rest.partition("/")
        if stage in DECLARED and slash:
            found[stage, result] = found.get((stage, result), 0) + size
    return found


def _checkpoints(tags: Mapping[str, tuple[str, int]]) -> dict[tuple[str, str, str], int]:
    found: dict[tuple[str, str, str], int] = {}
    for key, (_, size) in tags.items():
        folder, *parts = key.split("/")
        if folder == _CHECKPOINTS and len(parts) > 2 and parts[0] in DECLARED:
            place = (folder, parts[0], parts[1])
            found[place] = found.get(place, 0) + size
    return found


def _require_nothing_running(objects: ObjectStore, tags: Mapping[str, tuple[str, int]]) -> None:
    """Refuse to prune while a stage runs on a cluster with this store, because its inputs are unknown.

    Raises:
        ConfigError: One runs, as far as the records of tries tell.
    """
    for stage, key in sorted({tuple(name.split("/")[1:3]) for name in tags if name.startswith("tries/")}):
        if f"{stage}/{key}/{MANIFEST}" in tags:
            continue
        last = next(reversed(tries_of(objects, stage, key)), None)
        if last is not None and last.outcome == "running":
            raise ConfigError(
                f"{stage} of run {last.pipeline_run} is running on a cluster that uses this store: wait for it to end; if its pod is gone, "
                f"delete {objects.uri}/{last.place}.json"
            )


def _built_on(
    objects: ObjectStore, stored: Mapping[Artifact, int], ours: set[Artifact], tags: Mapping[str, tuple[str, int]]
) -> set[Artifact]:
    """Return the inputs, direct and indirect, of artifacts that were made elsewhere."""
    found: set[Artifact] = set()
    open_ends = [artifact for artifact in stored if artifact not in ours]
    while open_ends:
        stage, key = open_ends.pop()
        if f"{stage}/{key}/{MANIFEST}" not in tags:
            continue
        inputs = _inputs(objects.get_bytes(f"{stage}/{key}/{MANIFEST}"))
        sources = {(DECLARED[stage].inputs[name], of) for name, of in inputs.items() if name in DECLARED[stage].inputs}
        open_ends += sources - found
        found |= sources
    return found


def _inputs(manifest: bytes | None) -> Mapping[str, str]:
    """Return the keys of an artifact's inputs by name; none for a damaged manifest, whose artifact is made again anyway."""
    try:
        inputs = json.loads(manifest or b"{}").get("inputs", {})
    except (ValueError, AttributeError):
        return {}
    return inputs if isinstance(inputs, dict) else {}


# --- what goes ----------------------------------------------------------------------------------------------------------


def _artifact(objects: ObjectStore, artifact: Artifact, size: int, tags: Mapping[str, tuple[str, int]]) -> Item:
    place = "/".join(artifact)
    whole = f"{place}/{MANIFEST}" in tags
    why = "no run that is kept and no version needs it" if whole else "left half uploaded, or half removed"
    return Item("artifact", place, size, why, lambda: _remove(objects, place))


def _saves(objects: ObjectStore, artifact: Artifact, size: int) -> Item:
    place = f"{_CHECKPOINTS}/{'/'.join(artifact)}"
    return Item(
        "checkpoints", place, size, "no run that is kept could go on from them", lambda: _remove(objects, place)
    )


def _service(objects: ObjectStore, key: str, size: int) -> Item:
    why = "a later run deployed a service of that name"
    return Item("replaced service", key, size, why, partial(objects.delete, key))


def _remove(objects: ObjectStore, place: str) -> None:
    """Delete all objects below a place, manifests first: without them there is no artifact."""
    for key in sorted(objects.list(f"{place}/"), key=lambda key: not key.endswith(f"/{MANIFEST}")):
        objects.delete(key)


def _model_files(around: Services, registered: _Registered, kept: Iterable[tuple[Kind, Path]]) -> Iterator[Item]:
    """Yield logged models without a version: left by a killed registration, or by a deleted version.

    Only in a store and an MLflow of the workspace's own: elsewhere they may be of another registry, or being registered.
    """
    client = registered.client
    if client is None or not around.owns_database or not around.artifact_location:
        return
    objects = ObjectStore(around.artifact_location)
    sources = {_base_model(kind, directory) for kind, directory in kept}
    places: dict[str, int] = {}
    for key, (_, size) in objects.tags(f"{_MODELS}/").items():
        model = key.split("/")[1]
        places[model] = places.get(model, 0) + size
    for model, size in sorted(places.items()):
        place = f"{_MODELS}/{model}"
        used = any(source is not None and source.startswith(f"{objects.uri}/{place}/") for source in sources)
        if model not in registered.models and not used:
            yield Item(
                "model files",
                place,
                size,
                "of no registered version",
                partial(_remove_model, client, objects, model, place),
            )


def _base_model(kind: Kind, directory: Path) -> str | None:
    """Return where the registered model lies that a run started from; none if it started from another."""
    try:
        settings = read_settings(directory) or {}
    except DamagedStateError:
        return None
    source = settings.get("model", {}).get("source", {})
    return str(source.get("id")) if source.get("kind") == "registered" else None


def _remove_model(client: MlflowClient, objects: ObjectStore, model: str, place: str) -> None:
    from mlflow.exceptions import MlflowException

    from ngrpo.tracking.connection import explained

    with explained():
        try:
            client.delete_logged_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else it was deleted, and its files were left
                raise
    _remove(objects, place)


def _unfinished_work(workspace: Workspace, needed: set[Artifact]) -> Iterator[Item]:
    why = "no run that is kept could go on from it"
    for name, place in _unneeded(workspace.work, needed):
        yield Item("unfinished work", name, disk_size(place), why, partial(shutil.rmtree, place))


def _copies(workspace: Workspace, needed: set[Artifact], digests: Collection[str]) -> Iterator[Item]:
    why = "a copy of what no run that is kept and no version needs"
    for name, place in _unneeded(workspace.cache, needed):
        yield Item("copy", name, disk_size(place), why, partial(_remove_copy, place))
    why = "a copy of a version without an alias, which the registry has"
    for place in sorted((workspace.cache / _REGISTERED).glob("[!.]*")):
        if place.name not in digests:
            name = f"{_REGISTERED}/{place.name}"
            yield Item("copy", name, disk_size(place), why, partial(_remove_copy, place))


def _unneeded(root: Path, needed: set[Artifact]) -> Iterator[tuple[str, Path]]:
    """Yield name and path of each directory `<stage>/<key>` below a root that nothing needs."""
    for stage in DECLARED:
        for place in sorted((root / stage).glob("[!.]*")):
            if place.is_dir() and (stage, place.name) not in needed:
                yield f"{stage}/{place.name}", place


def _remove_copy(place: Path) -> None:
    """Delete a directory under its lock, so that no download writes to it (`ArtifactStore.fetch`)."""
    with FileLock(place.with_name(f".{place.name}.lock")):
        shutil.rmtree(place)


def _run(workspace: Workspace, kind: Kind, directory: Path, why: str) -> Item:
    name, size = name_of(kind, directory), disk_size(directory)
    return Item(kind, name, size, why, lambda: _remove_run(workspace, kind, directory))


def _remove_run(workspace: Workspace, kind: Kind, directory: Path) -> None:
    """Delete the directory of a run, after moving it aside: half a directory would look like a stopped run."""
    aside = workspace.root / "pruned" / directory.name
    aside.parent.mkdir(mode=0o700, exist_ok=True)
    directory.rename(aside)
    if kind == "experiment" and not any(path.is_dir() for path in directory.parent.iterdir()):
        directory.parent.rename(aside / "experiment")
    _finish(workspace)


def _finish(workspace: Workspace) -> None:
    """Delete directories that a killed pruning had moved aside."""
    aside = workspace.root / "pruned"
    if aside.is_dir():
        shutil.rmtree(aside)
