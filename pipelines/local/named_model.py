"""Find a model by the user's name for it (champion, challenger, version number or run), and fetch its files verified."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ngrpo.config import RunConfig, validate
from ngrpo.errors import ConfigError, StoreError, TrackingError
from ngrpo.storage.digest import model_digest
from ngrpo.storage.manifest import MANIFEST, Manifest
from ngrpo.tracking.listed_versions import listed_versions
from ngrpo_kfp.pipelines.local.run_artifacts import settings_behind
from ngrpo_kfp.pipelines.local.runs import RunSettings, latest_settings
from ngrpo_kfp.pipelines.local.services import Services, services, tracked_elsewhere
from ngrpo_kfp.pipelines.local.stage_records import read_settings, read_summary
from ngrpo_kfp.pipelines.local.workspace import Workspace, written
from ngrpo_kfp.pipelines.planning.nodes import stage_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from ngrpo.tracking.model_registry import ModelRegistry

ALIASES = ("champion", "challenger", "previous_champion", "candidate")
"""Aliases of the registry that a model can be named by."""
FORMS = "name champion, challenger, the number of a version, or a run"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_TRAINING = "ngrpo_training"
_FOLDER = "registered_models"
"""Folder of the workspace's cache with verified copies of registered models, one directory per digest."""


@dataclass(frozen=True)
class NamedModel:
    """A named model with its files."""

    name: str
    """The user's name for it: champion | challenger | a version's number | a run's name or directory."""
    directory: Path
    """Verified local copy: safetensors, tokenizer and chat template as `save_pretrained` wrote them. Do not write there."""
    digest: str
    """`ngrpo.storage.digest.model_digest` of it."""
    version: ModelVersion | None
    """Its version in the registry; none for a run whose model is not registered."""
    model_name: str
    """The registered model."""
    key: str | None = None
    """Key of the training that made it, in the artifact store; none if its version does not say."""


def named_model(what: str, model_name: str | None, around: Services, workspace: Workspace) -> NamedModel:
    """Find a model, and download its files unless they are here already.

    Args:
        what: `champion`, `challenger`, the number of a version, or a run by its name or directory.
        model_name: The registered model; by default that of the run, or of the latest run.
        around: Object storage and tracking, open.
        workspace: Where runs and cache are.

    Raises:
        ConfigError: There is no such run, it did not finish, or it has no single trained model.
        DamagedStateError: A file of the run cannot be read.
        TrackingError: There is no such version, its files are gone or are not those that were registered, or MLflow cannot be reached.
        StoreError: The artifact of the run is gone, or the object store cannot be reached.
    """
    from ngrpo.tracking.model_registry import DIGEST, KEY, ModelRegistry

    if is_version(what):
        registry = ModelRegistry(model_name or latest_configuration(workspace).promotion.model_name)
        version = registered_version(registry, what)
        directory, digest = _registered_files(registry, version, workspace)
        return NamedModel(what, directory, digest, version, registry.name, version.tags.get(KEY))
    run = run_directory(what, workspace)
    registry = ModelRegistry(model_name or configuration_of(run).promotion.model_name)
    directory, key = _trained_files(what, run, around, workspace)
    digest = model_digest(directory)
    version = next((each for each in registry.versions() if each.tags.get(DIGEST) == digest), None)
    return NamedModel(what, directory, digest, version, registry.name, key)


def is_version(what: str) -> bool:
    """Whether a name refers to a version in the registry, by alias or number, and not to a run."""
    return what in ALIASES or _VERSION.fullmatch(what) is not None


def require_name(what: str, model_name: str | None, workspace: Workspace) -> None:
    """Refuse a name of neither a version nor a run of the workspace, before anything is started.

    Args:
        what: See `named_model`.
        model_name: The registered model; see `named_model`.
        workspace: Where runs are.

    Raises:
        ConfigError: There is no such run, or no run that says which registered model is meant.
        TrackingError: There is no such version.
    """
    if is_version(what):
        require_version(what, model_name or latest_configuration(workspace).promotion.model_name, workspace)
    else:
        run_directory(what, workspace)


def require_version(what: str, model_name: str, workspace: Workspace) -> None:
    """Refuse a version that the workspace's own registry does not have, before anything is started.

    Nothing is refused if the environment names another registry, if the file cannot be read, or if the model has no version at all:
    MLflow is asked later, and names the models that there are.

    Args:
        what: An alias, or the number of a version.
        model_name: The registered model.
        workspace: Where the registry is.

    Raises:
        TrackingError: There is no such version.
    """
    if tracked_elsewhere():
        return
    listed = listed_versions(workspace.database, model_name)
    if listed is not None and listed.numbers and what not in listed.aliases and what not in listed.numbers:
        raise _no_version(what, model_name, f"its versions are {', '.join(listed.numbers)}", others=True)


def run_directory(what: str, workspace: Workspace) -> Path:
    """Return the directory of a run.

    Args:
        what: Its name, `latest`, or its directory.
        workspace: Where runs are.

    Raises:
        ConfigError: There is no such run.
    """
    try:
        for place in (workspace.runs / what, workspace.root / what, Path(what)):
            if what and (place / "config.json").is_file():
                if any(place.glob("*.safetensors")):
                    raise ConfigError(
                        f"model {what!r}: the directory of a model, which needs no export (`ngrpo evaluate` measures it); {FORMS}"
                    )
                return place.resolve()
    except (OSError, ValueError) as error:  # a name that is too long
        raise ConfigError(f"model {what!r}: {error}; {FORMS}") from error
    raise ConfigError(f"model {what!r}: no run of that name in {workspace.runs}, and no such directory; {FORMS}")


def latest_configuration(workspace: Workspace, model_name: str | None = None) -> RunConfig:
    """Return the configuration of the latest run that has one, finished or not.

    Args:
        workspace: Where the runs are.
        model_name: The registered model, if the user has named it.

    Raises:
        ConfigError: There is none.
    """
    latest = latest_settings(workspace)
    if latest is None:
        unknown = (
            "which registered model is meant: name it with --model," if model_name is None else "how it is served:"
        )
        raise ConfigError(
            f"workspace {workspace.root}: there is no run there whose settings can be read, so it is not known {unknown} set NGRPO_HOME to "
            "a workspace with runs, or run once"
        )
    return latest.config


def settings_of(found: NamedModel, workspace: Workspace) -> RunSettings | None:
    """Return the configuration that a model was made and measured by; none of a version that no run of the workspace made.

    Args:
        found: The model.
        workspace: Where the runs are.

    Raises:
        ConfigError: The configuration of the named run is not valid in this version of ngrpo.
        DamagedStateError: It cannot be read.
    """
    if is_version(found.name):
        return None if found.version is None else settings_of_version(found.version, workspace)
    run = run_directory(found.name, workspace)
    return RunSettings(run.name, configuration_of(run))


def settings_of_version(version: ModelVersion, workspace: Workspace) -> RunSettings | None:
    """Return the configuration of the run that trained and evaluated a version, or None if no run of the workspace did.

    A run of another registered model may have the same results; it counts only if there is no run of this model.
    """
    from ngrpo.tracking.model_registry import KEY, evaluation_key

    trained, judged = version.tags.get(KEY), evaluation_key(version)
    if trained is None:
        return None
    behind = [(_TRAINING, trained), *([] if judged is None else [("benchmark_evaluation", judged)])]
    return settings_behind(behind, workspace, version.name)


def configuration_of_version(version: ModelVersion, workspace: Workspace) -> RunConfig | None:
    """Return the configuration of `settings_of_version` without the name of its run."""
    own = settings_of_version(version, workspace)
    return None if own is None else own.config


def looked_up_settings(what: str, model_name: str, workspace: Workspace) -> RunSettings | None:
    """Look up a version in the registry, and return the configuration of the run that trained and evaluated it.

    Args:
        what: An alias, or the number of a version.
        model_name: The registered model.
        workspace: Workspace with the runs.

    Returns:
        The configuration, or None if there is no such version or no run of the workspace trained it.

    Raises:
        TrackingError: The registry cannot be reached.
        StoreError: The embedded object store does not start.
    """
    with services(workspace):
        from ngrpo.tracking.model_registry import ModelRegistry

        registry = ModelRegistry(model_name)
        version = registry.by_alias(what) if what in ALIASES else registry.version(what)
        return None if version is None else settings_of_version(version, workspace)


def configuration_of(run: Path) -> RunConfig:
    """Return the configuration of a run.

    Raises:
        ConfigError: It is missing, or not of this version.
        DamagedStateError: It cannot be read.
    """
    path = run / "config.json"
    settings = read_settings(run)
    if settings is None:
        raise ConfigError(f"run {run}: no config.json there; name the directory of a run")
    try:
        return validate(RunConfig, settings)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: invalid in this version: {str(error).splitlines()[0]}; run the preset again: its results are in the store"
        ) from error


def registered_version(registry: ModelRegistry, what: str) -> ModelVersion:
    """Return the version with an alias or a number.

    Raises:
        TrackingError: There is none.
    """
    version = registry.by_alias(what) if what in ALIASES else registry.version(what)
    if version is not None:
        return version
    raise _no_version(what, registry.name, registry.choices(), others=bool(registry.versions()))


def _no_version(what: str, model_name: str, choices: str, *, others: bool) -> TrackingError:
    """Return the error about a missing version.

    Args:
        what: An alias, or the number of a version.
        model_name: The registered model.
        choices: What can be named in its place.
        others: Whether the model has other versions.
    """
    cure = "; promote one of them (`ngrpo promote VERSION`), or name one" if what == "champion" and others else ""
    said = what if what in ALIASES else f"version {what}"
    return TrackingError(f"model {model_name} has no {said}: {choices}{cure}")


def _registered_files(registry: ModelRegistry, version: ModelVersion, workspace: Workspace) -> tuple[Path, str]:
    """Return the directory with a version's files, downloaded unless they are in the cache, and their digest."""
    from ngrpo.tracking.model_registry import DIGEST

    label = f"model {registry.name}: version {version.version}"
    digest = version.tags.get(DIGEST)
    if digest is None:
        raise TrackingError(
            f"{label} was not registered by a run (it has no tag {DIGEST}), so its files cannot be verified"
        )
    place = workspace.cache / _FOLDER
    directory, partial = place / digest, place / f".{digest}.partial"
    with written(place):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(place / f".{digest}.lock"):
            if directory.is_dir() and model_digest(directory) == digest:
                return directory, digest
            lost = registry.missing(version)
            if lost:
                raise TrackingError(
                    f"{label} has lost files ({lost[0]}): restore them, or name another version (`ngrpo rollback` undoes a promotion)"
                )
            for left in (directory, partial):  # damaged, or left by a killed process
                shutil.rmtree(left, ignore_errors=True)
            try:
                files = registry.download(version, partial)
                found = model_digest(files)
                if found != digest:
                    raise TrackingError(
                        f"{label}: the files in {registry.location(version)} are not those that were registered (digest {found} instead "
                        f"of {digest}): restore them, or name another version (`ngrpo rollback` undoes a promotion)"
                    )
                files.rename(directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return directory, digest


def adapter_files(found: NamedModel, around: Services, workspace: Workspace) -> Path | None:
    """Return the directory with the adapter that was merged into a model, or None if the artifact store has none.

    Args:
        found: The model.
        around: Object storage and tracking, open.
        workspace: Where the cache is.

    Raises:
        StoreError: The object store cannot be reached, or the adapter in it is damaged.
    """
    store = around.artifact_store(workspace)
    reference = None if found.key is None else store.find(_TRAINING, found.key)
    if reference is None:
        return None
    # The manifest comes with any file.
    manifest = store.fetch(reference, only="model/config.json") / MANIFEST
    files = Manifest.from_bytes(manifest.read_bytes(), manifest).files
    if not any(name.startswith("adapter/") for name in files):
        return None
    return store.fetch(reference, only="adapter/") / "adapter"


def _trained_files(what: str, run: Path, around: Services, workspace: Workspace) -> tuple[Path, str]:
    """Return the directory of the model that a run trained, and the key of that training."""
    summary = read_summary(run)
    if summary is None:
        raise ConfigError(
            f"run {what}: it did not finish (no summary.json in {run}); run its preset again, or name another"
        )
    trained = [node for node in summary["stages"] if stage_of(node) == _TRAINING]
    if len(trained) != 1:
        found = f"several trained models ({', '.join(trained)}): name a version" if trained else "no trained model"
        raise ConfigError(f"run {what}: it has {found}; `ngrpo history` lists the versions")
    node = summary["stages"][trained[0]]
    store = around.artifact_store(workspace)
    reference = store.find(_TRAINING, node["key"])
    if reference is None:
        raise StoreError(f"artifact {node['artifact']} is gone: run the preset of {what} again")
    return store.fetch(reference, only="model/") / "model", reference.key
