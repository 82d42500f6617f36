"""The model registry: versions without pickles, and the aliases that say which one is in use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ngrpo.errors import TrackingError

CHAMPION, PREVIOUS_CHAMPION, CHALLENGER = "champion", "previous_champion", "challenger"
DIGEST = "ngrpo.digest"
"""Tag of a version: digest of the files of its model."""
MODEL_FOLDER = "model"
_DEFAULT_EXPERIMENT = "0"


class ModelRegistry:
    """Versions of one registered model in the MLflow that the environment names."""

    def __init__(self, name: str):
        """Open the registered model `name`; it is made with its first version."""
        self.name = name
        self._client = MlflowClient()

    def versions(self) -> list[ModelVersion]:
        """Return every version, newest first."""
        found = self._client.search_model_versions(f"name='{self.name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    def register(self, model: Path, evidence: Path, *, digest: str, tags: Mapping[str, str]) -> ModelVersion:
        """Add a version, unless there is one of the same files.

        The version holds a copy of the model's files as `save_pretrained` wrote them, in the folder `model`, and beside it the
        evaluation that speaks for it. `mlflow.artifacts.download_artifacts("models:/<name>@champion")` gives them back.

        Args:
            model: Model directory.
            evidence: File to keep beside the model.
            digest: Digest of the model's files.
            tags: Tags of the version.

        Returns:
            The version.
        """
        for version in self.versions():
            if version.tags.get(DIGEST) == digest:
                return version
        if not self._exists():
            self._client.create_registered_model(self.name)
        run_id = os.environ.get("MLFLOW_RUN_ID")
        experiment = self._client.get_run(run_id).info.experiment_id if run_id else _DEFAULT_EXPERIMENT
        logged = self._client.create_logged_model(
            experiment, name=self.name, source_run_id=run_id, tags={DIGEST: digest}, model_type="transformers"
        )
        self._client.log_model_artifacts(logged.model_id, str(model), MODEL_FOLDER)
        self._client.log_model_artifact(logged.model_id, str(evidence))
        self._client.finalize_logged_model(logged.model_id, "READY")
        return self._client.create_model_version(
            self.name,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            tags={**tags, DIGEST: digest},
            model_id=logged.model_id,
        )

    def by_alias(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias names; none if there is no such alias, or no such model yet.

        Deleting a version deletes its aliases: a champion that was deleted is no champion.
        """
        if not self._exists():
            return None
        # Asking for an alias that is not there is an error that looks like any wrong argument: list them instead.
        aliases = self._client.get_registered_model(self.name).aliases
        return self._client.get_model_version_by_alias(self.name, alias) if alias in aliases else None

    def evidence(self, version: ModelVersion, file: str) -> Path:
        """Download the evidence of a version.

        Raises:
            TrackingError: The version's files are gone.
        """
        try:
            return Path(mlflow.artifacts.download_artifacts(f"models:/{self.name}/{version.version}/{file}"))
        except (MlflowException, OSError) as error:
            raise TrackingError(
                f"model {self.name} version {version.version}: its {file} is gone; delete the version and promote again"
            ) from error

    def crown(self, version: ModelVersion) -> None:
        """Make a version the champion, and the champion until now the previous one."""
        before = self.by_alias(CHAMPION)
        if before is not None and before.version != version.version:
            self._client.set_registered_model_alias(self.name, PREVIOUS_CHAMPION, before.version)
        self._client.set_registered_model_alias(self.name, CHAMPION, version.version)
        challenger = self.by_alias(CHALLENGER)
        if challenger is not None and challenger.version == version.version:
            self._client.delete_registered_model_alias(self.name, CHALLENGER)

    def challenge(self, version: ModelVersion) -> None:
        """Mark a version as the last one that did not become champion."""
        self._client.set_registered_model_alias(self.name, CHALLENGER, version.version)

    def set_tags(self, version: ModelVersion, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for name, value in tags.items():
            self._client.set_model_version_tag(self.name, version.version, name, value)

    def _exists(self) -> bool:
        return bool(self._client.search_registered_models(f"name='{self.name}'"))
