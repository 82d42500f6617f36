"""The task of a schedule that watches the champion: measure it once, in the task's pod."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from ngrpo.config import RunConfig, validate
from ngrpo.config.run import watch_settings
from ngrpo.environment import addresses_without_users, redacted
from ngrpo.errors import NGRPOError, TrackingError
from ngrpo.stages.champion_watch import Champion, Seen, announce_alert, look
from ngrpo.stages.surroundings import Surroundings
from ngrpo.storage.artifacts import ArtifactStore
from ngrpo.storage.digest import model_digest
from ngrpo.storage.objects import ObjectStore
from ngrpo.tracking.model_registry import CHAMPION, DIGEST, ModelRegistry
from ngrpo.tracking.promotions import Promotions

ALERT, FAILED = 1, 2
"""Exit codes, the same as those of `ngrpo watch`."""


@addresses_without_users()
def watch_in_pod(tree: dict[str, Any]) -> int:
    """Measure the champion, print the result, and return the exit code.

    Args:
        tree: Configuration of the run that made the champion, with `watch`.
    """
    try:
        config = validate(RunConfig, tree)
        seen = _look(config)
    except NGRPOError as error:
        print(redacted(str(error)), file=sys.stderr, flush=True)
        return FAILED
    print(f"{'alert' if seen.alert else 'watch'}  {redacted(seen.summary)}", flush=True)
    announce_alert(config, seen)
    return ALERT if seen.alert else 0


def _look(config: RunConfig) -> Seen:
    watch_settings(config)
    surroundings = Surroundings.from_environment()
    promotions = Promotions.in_store(surroundings.store, config.promotion.model_name)
    surroundings.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=surroundings.work) as scratch:
        champion = _champion(promotions.registry, Path(scratch))
        return look(config, champion, promotions, ArtifactStore(ObjectStore(surroundings.store), surroundings.cache))


def _champion(registry: ModelRegistry, scratch: Path) -> Champion:
    """Download the champion, and return it with its files.

    Raises:
        TrackingError: There is none, or its files are gone or are not those that were registered.
    """
    version = registry.by_alias(CHAMPION)
    if version is None:
        raise TrackingError(f"model {registry.name} has no champion to watch: promote a version")
    label = f"model {registry.name}: the champion, version {version.version},"
    lost = registry.missing(version)
    if lost:
        raise TrackingError(f"{label} has lost files ({lost[0]}): restore them, or `ngrpo rollback`")
    directory = registry.download(version, scratch / "champion")
    digest = model_digest(directory)
    if digest != version.tags.get(DIGEST):
        raise TrackingError(
            f"{label} has other files than were registered ({digest}): restore them, or `ngrpo rollback`"
        )
    return Champion(registry.name, version, directory, digest)
