"""The model registry: versions without pickles, and the aliases that say which one is in use."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ngrpo.tracking.connection import connect, environment, explained
from ngrpo.tracking.runs import experiment_of_this_process

CHAMPION, PREVIOUS_CHAMPION, CHALLENGER = "champion", "previous_champion", "challenger"
DIGEST = "ngrpo.digest"
"""Tag of a version: digest of the files of its model."""
EVALUATION = "ngrpo.evaluation_key"
"""Tag of a version: key of the evaluation that speaks for it."""
MODEL_FOLDER = "model"
MANIFEST = "manifest.json"
_NO_PROGRESS_BAR: Mapping[str, str | None] = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_EVALUATION_FILE = "evaluation.json"
_LAST_CHAMPION = "ngrpo.champion"  # tag of the registered model: unlike the alias, it outlives its version


class ModelRegistry:
    """Versions of one registered model in the MLflow that the environment names.

    A version keeps a copy of its own, for the artifact store is a cache that may be cleared: `model/` as `save_pretrained`
    wrote it, the `manifest.json` of the artifact it comes from, and `evaluations/<key>/evaluation.json`. The champion's files are
    `mlflow.artifacts.download_artifacts("models:/<name>@champion")`. Every method raises a `TrackingError` where MLflow or its
    object storage cannot be reached.
    """

    def __init__(self, name: str):
        """Open the registered model `name`; it is made with its first version."""
        self.name = name
        self._client: MlflowClient = connect()

    @explained()
    def versions(self) -> list[ModelVersion]:
        """Return every version, newest first."""
        found = self._client.search_model_versions(f"name='{self.name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    @explained()
    def register(self, model: Path, manifest: Path, *, digest: str, tags: Mapping[str, str]) -> ModelVersion:
        """Return the version of a model's files; it is added unless there is one of the same files, all of them present.

        The version comes last: what a broken upload leaves behind is no version.

        Args:
            model: Model directory.
            manifest: Manifest of the artifact that the model directory is `model/` of.
            digest: Digest of the model's files.
            tags: Tags of a new version.
        """
        for version in self.versions():
            if version.tags.get(DIGEST) == digest and not self.missing(version):
                return version
        self._ensure_model()
        experiment_id, run_id = experiment_of_this_process(self._client)
        logged = self._client.create_logged_model(
            experiment_id, name=self.name, source_run_id=run_id, tags={DIGEST: digest}, model_type="transformers"
        )
        with environment(_NO_PROGRESS_BAR):
            self._client.log_model_artifacts(logged.model_id, str(model), MODEL_FOLDER)
        self._client.log_model_artifact(logged.model_id, str(manifest))
        self._client.finalize_logged_model(logged.model_id, "READY")
        return self._client.create_model_version(
            self.name,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            tags={**tags, DIGEST: digest},
            model_id=logged.model_id,
        )

    @explained()
    def missing(self, version: ModelVersion) -> list[str]:
        """Return the files of a version's model that are not in its object storage or not of the size they should have.

        Of a version that was not registered here it is not known what it should have: nothing is missing.
        """
        if DIGEST not in version.tags:
            return []
        there = dict(self._files(version))
        if MANIFEST not in there:
            return [MANIFEST]
        files = json.loads(self._read(version, MANIFEST))["files"]
        model = {name: entry["size"] for name, entry in files.items() if name.startswith(f"{MODEL_FOLDER}/")}
        return sorted(name for name, size in model.items() if there.get(name) != size)

    @explained()
    def add_evaluation(self, version: ModelVersion, evaluation: Path, key: str) -> None:
        """Keep an evaluation with a version; from now on it is the one that speaks for it.

        Args:
            version: The version.
            evaluation: `evaluation.json`.
            key: Key of the evaluation.
        """
        logged_model = version.source.removeprefix("models:/")  # MLflow keeps it in the source alone
        self._client.log_model_artifact(logged_model, str(evaluation), f"evaluations/{key}")
        self.set_tags(version, {EVALUATION: key})

    @explained()
    def evaluation(self, version: ModelVersion) -> str | None:
        """Return the text of the evaluation that speaks for a version, or none if there is none."""
        key = version.tags.get(EVALUATION)
        path = f"evaluations/{key}/{_EVALUATION_FILE}"
        if key is None or path not in dict(self._files(version, f"evaluations/{key}")):
            return None
        return self._read(version, path)

    @explained()
    def by_alias(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias names; none if there is no such alias, or no such model yet.

        Deleting a version deletes its aliases: a champion that was deleted is no champion.
        """
        if not self._exists():
            return None
        # Asking for an alias that is not there is an error that looks like any wrong argument: list them instead.
        number = self._client.get_registered_model(self.name).aliases.get(alias)
        return None if number is None else self._client.get_model_version(self.name, number)

    @explained()
    def last_champion(self) -> str | None:
        """Return the number of the version that was made champion last, though it may be deleted; none if none ever was."""
        number: str | None = (
            self._client.get_registered_model(self.name).tags.get(_LAST_CHAMPION) if self._exists() else None
        )
        return number

    @explained()
    def crown(self, version: ModelVersion) -> None:
        """Make a version the champion, and the champion until now the previous one."""
        before = self.by_alias(CHAMPION)
        if before is not None and before.version != version.version:
            self._client.set_registered_model_alias(self.name, PREVIOUS_CHAMPION, before.version)
        self._client.set_registered_model_alias(self.name, CHAMPION, version.version)
        self._client.set_registered_model_tag(self.name, _LAST_CHAMPION, version.version)
        challenger = self.by_alias(CHALLENGER)
        if challenger is not None and challenger.version == version.version:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)

    @explained()
    def challenge(self, version: ModelVersion) -> None:
        """Mark a version as the last one that did not become champion."""
        self._client.set_registered_model_alias(self.name, CHALLENGER, version.version)

    @explained()
    def set_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, version.version, name, value)

    def _exists(self) -> bool:
        return bool(self._client.search_registered_models(f"name='{self.name}'"))

    def _ensure_model(self) -> None:
        if self._exists():
            return
        try:
            self._client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another process was faster
                raise

    def _files(self, version: ModelVersion, folder: str = "") -> Iterator[tuple[str, int]]:
        """Path and size of each file below a folder of a version; nothing where there is no such folder."""
        for entry in mlflow.artifacts.list_artifacts(self._uri(version, folder)):
            if entry.is_dir:
                yield from self._files(version, entry.path)
            else:
                yield entry.path, entry.file_size

    def _read(self, version: ModelVersion, path: str) -> str:
        with tempfile.TemporaryDirectory() as directory, environment(_NO_PROGRESS_BAR):
            file = mlflow.artifacts.download_artifacts(self._uri(version, path), dst_path=directory)
            return Path(file).read_text(encoding="utf-8")

    def _uri(self, version: ModelVersion, path: str) -> str:
        return f"models:/{self.name}/{version.version}/{path}".rstrip("/")
