"""The model registry: versions without pickles, and aliases for those in use."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_METRICS_PER_BATCH
from pydantic import Field
from typing_extensions import TypedDict  # pydantic refuses the one of `typing` before Python 3.12

from ngrpo.environment import environment
from ngrpo.errors import TrackingError
from ngrpo.storage.digest import model_digest
from ngrpo.storage.state import DamagedStateError, parse_state
from ngrpo.tracking.connection import connect, explained
from ngrpo.tracking.mlflow_runs import DATASET_DIGEST_LENGTH, experiment_of_this_process, metrics_of
from ngrpo.tracking.model_flavor import MLMODEL, write_flavor

CANDIDATE, CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "candidate", "challenger", "champion", "previous_champion"
ALIASES = (CANDIDATE, CHALLENGER, PREVIOUS_CHAMPION, CHAMPION)
"""`candidate` waits for a decision; `challenger` is the last one that did not beat the champion."""
DIGEST = "ngrpo.digest"
"""Tag of a version: digest of the files of its model."""
KEY = "ngrpo.key"
"""Tag of a version: key of the training that made it, in the artifact store."""
EVALUATION = "ngrpo.evaluation_key"
"""Tag of a version: key of the evaluation used to judge it."""
BASE_MODEL = "ngrpo.base_model"
"""Tag of a version, and of the run that made it: the registered version that the run started from."""
MODEL_FOLDER = "model"
MANIFEST = "manifest.json"
_NO_PROGRESS_BAR: Mapping[str, str | None] = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_EVALUATION_FILE = "evaluation.json"
MODEL_CARD = "README.md"
_MODELS_NAMED = 8
"""Most registered models that an error names."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _File(TypedDict):
    size: Annotated[int, Field(ge=0)]


class _Manifest(TypedDict):
    files: dict[str, _File]


class ModelRegistry:
    """Versions of one registered model in the MLflow that the environment names.

    A version holds a copy of its files, because the artifact store is a cache that may be cleared: `model/` as `save_pretrained`
    wrote it, the `manifest.json` of the artifact it comes from, `evaluations/<key>/evaluation.json`, a model card, and the files that let
    MLflow load and serve it (`ngrpo.tracking.model_flavor`). `mlflow.artifacts.download_artifacts("models:/<name>@champion")` downloads
    the champion. Every method raises a `TrackingError` if MLflow or its object storage cannot be reached.
    """

    def __init__(self, name: str):
        """Open the registered model `name`; it is created with its first version."""
        self.name = name
        self._client: MlflowClient = connect()

    @explained()
    def versions(self) -> list[ModelVersion]:
        """Return every version, newest first."""
        found = self._client.search_model_versions(f"name='{self.name}'")
        return sorted(found, key=lambda version: int(version.version), reverse=True)

    @explained()
    def register(self, model: Path, manifest: Path, *, digest: str, tags: Mapping[str, str]) -> ModelVersion:
        """Return the version with a model's files; one is added unless it exists.

        The stored files are read back and compared with the digest, for new and existing versions alike.
        The version is created last, so that a failed upload leaves none.

        Args:
            model: Model directory.
            manifest: Manifest of the artifact whose `model/` is the model directory.
            digest: Digest of the model's files (`model_digest`).
            tags: Tags of a new version.

        Raises:
            TrackingError: The stored files differ from those that were uploaded.
        """
        for version in self.versions():
            if version.tags.get(DIGEST) == digest and self.stored_digest(version) == digest:
                return version
        self._ensure_model()
        experiment_id, run_id = experiment_of_this_process(self._client)
        logged = self._client.create_logged_model(
            experiment_id, name=self.name, source_run_id=run_id, tags={DIGEST: digest}, model_type="transformers"
        )
        with environment(_NO_PROGRESS_BAR):
            self._client.log_model_artifacts(logged.model_id, str(model), MODEL_FOLDER)
        self._client.log_model_artifact(logged.model_id, str(manifest))
        stored = _stored_digest(logged.artifact_location)
        if stored != digest:
            raise TrackingError(
                f"model {self.name}: object storage returned other weights (sha256 {stored}) than those that were "
                f"uploaded ({digest}): see the log of the storage, then run again"
            )
        self._client.finalize_logged_model(logged.model_id, "READY")
        return self._client.create_model_version(
            self.name,
            source=f"models:/{logged.model_id}",
            run_id=run_id,
            tags={**tags, DIGEST: digest},
            model_id=logged.model_id,
        )

    @explained()
    def version(self, number: str) -> ModelVersion | None:
        """Return a version by its number; None if there is no such version."""
        return next((version for version in self.versions() if str(version.version) == number), None)

    @explained()
    def choices(self) -> str:
        """Return what can be named in place of a version that does not exist: other versions, or without any the registered models."""
        numbers = ", ".join(str(version.version) for version in self.versions())
        if numbers:
            return f"its versions are {numbers}"
        models = [model.name for model in self._client.search_registered_models(max_results=_MODELS_NAMED + 1)]
        if not models:
            return "no model is registered yet: run a preset"
        more = " and others" if len(models) > _MODELS_NAMED else ""
        return f"it has no version; registered are {', '.join(models[:_MODELS_NAMED])}{more}"

    @explained()
    def stored_digest(self, version: ModelVersion) -> str | None:
        """Download the files of a version's model and return their digest; None if there are no files."""
        return _stored_digest(self._uri(version, "")) if dict(self._files(version, MODEL_FOLDER)) else None

    @explained()
    def download(self, version: ModelVersion, directory: Path) -> Path:
        """Download the files of a version's model below a directory, which is created if missing; return their directory."""
        directory.mkdir(parents=True, exist_ok=True)
        with environment(_NO_PROGRESS_BAR):
            return Path(mlflow.artifacts.download_artifacts(self._uri(version, MODEL_FOLDER), dst_path=str(directory)))

    @explained()
    def location(self, version: ModelVersion) -> str:
        """Return the address of a version's model files in object storage."""
        logged = self._client.get_logged_model(_logged_model(version))
        return f"{logged.artifact_location.rstrip('/')}/{MODEL_FOLDER}"

    @explained()
    def missing(self, version: ModelVersion) -> list[str]:
        """Return the files of a version's model that are missing from object storage or have the wrong size.

        For a version that was registered by other means the expected files are unknown, so none counts as missing. A damaged manifest
        counts as missing, and its entry describes the damage.
        """
        if DIGEST not in version.tags:
            return []
        there = dict(self._files(version))
        if MANIFEST not in there:
            return [MANIFEST]
        try:
            files = parse_state(self._read(version, MANIFEST), _Manifest, where=MANIFEST, cure="restore it")["files"]
        except DamagedStateError as error:
            return [str(error)]
        model = {name: entry["size"] for name, entry in files.items() if name.startswith(f"{MODEL_FOLDER}/")}
        return sorted(name for name, size in model.items() if there.get(name) != size)

    @explained()
    def add_flavor(self, version: ModelVersion, model: Path, *, max_new_tokens: int) -> None:
        """Let MLflow load and serve a version (`mlflow.transformers.load_model`, `mlflow models serve`), unless it can already.

        Args:
            version: The version.
            model: Directory with the files of its model.
            max_new_tokens: Most tokens of a response, unless a request sets another limit.
        """
        if MLMODEL in dict(self._files(version)):
            return
        with tempfile.TemporaryDirectory() as directory, environment(_NO_PROGRESS_BAR):
            write_flavor(
                model,
                Path(directory),
                MODEL_FOLDER,
                model_id=_logged_model(version),
                run_id=version.run_id,
                max_new_tokens=max_new_tokens,
            )
            self._client.log_model_artifacts(_logged_model(version), directory)

    @explained()
    def add_evaluation(self, version: ModelVersion, evaluation: Path, key: str) -> None:
        """Store an evaluation with a version; from now on the version is judged by it.

        Args:
            version: The version.
            evaluation: `evaluation.json`.
            key: Key of the evaluation.
        """
        self._client.log_model_artifact(_logged_model(version), str(evaluation), f"evaluations/{key}")
        self.set_tags(version, {EVALUATION: key})

    @explained()
    def add_metrics(
        self, version: ModelVersion, benchmark: str, problems: str | None, values: Mapping[str, float]
    ) -> None:
        """Show the results of a benchmark on the page of a version's model, linked to the run of this process; does nothing outside a run.

        Args:
            version: The version.
            benchmark: Name of the benchmark.
            problems: Digest of its problems; None if unknown.
            values: The numbers by name.
        """
        _, run_id = experiment_of_this_process(self._client)
        if run_id is None:
            return
        dataset = None if problems is None else problems[:DATASET_DIGEST_LENGTH]
        metrics = metrics_of(
            {f"{benchmark}/{name}": value for name, value in values.items()},
            model_id=_logged_model(version),
            dataset_name=None if dataset is None else benchmark,
            dataset_digest=dataset,
        )
        for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])

    @explained()
    def evaluation(self, version: ModelVersion) -> bytes | None:
        """Return the stored evaluation that a version is judged by; None if there is none."""
        key = evaluation_key(version)
        path = f"evaluations/{key}/{_EVALUATION_FILE}"
        if key is None or path not in dict(self._files(version, f"evaluations/{key}")):
            return None
        return self._read(version, path)

    @explained()
    def by_alias(self, alias: str) -> ModelVersion | None:
        """Return the version that an alias names; None if there is no such alias, or no such model yet.

        Deleting a version deletes its aliases, so a deleted champion is champion no longer.
        """
        number = self.aliases()[alias]
        return None if number is None else self._client.get_model_version(self.name, number)

    @explained()
    def aliases(self) -> dict[str, str | None]:
        """Return the version number of each of `ALIASES`; None if it is not set."""
        # MLflow reports a missing alias like any invalid argument, so all are listed instead.
        found = self._client.get_registered_model(self.name).aliases if self._exists() else {}
        # A database returns numbers, a server strings.
        return {alias: str(found[alias]) if alias in found else None for alias in ALIASES}

    @explained()
    def set_alias(self, alias: str, number: str | None) -> None:
        """Set an alias to a version, or remove it."""
        if number is None:
            self._client.delete_registered_model_alias(self.name, alias)
        else:
            self._client.set_registered_model_alias(self.name, alias, number)

    @explained()
    def add_card(self, version: ModelVersion, text: str) -> None:
        """Store a model card with a version, replacing an earlier one."""
        self.add_file(version, MODEL_CARD, text.encode())

    @explained()
    def add_file(self, version: ModelVersion, name: str, data: bytes) -> None:
        """Store a file with a version, beside its model, replacing one of that name."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / name
            path.write_bytes(data)
            self._client.log_model_artifact(_logged_model(version), str(path))

    @explained()
    def file(self, version: ModelVersion, name: str) -> bytes | None:
        """Return a file stored with a version, beside its model; None if there is no such file."""
        beside = mlflow.artifacts.list_artifacts(self._uri(version, ""))
        return self._read(version, name) if any(entry.path == name for entry in beside) else None

    @explained()
    def describe(self, version: ModelVersion, text: str) -> None:
        """Set the description on the page of a version; Markdown."""
        self._client.update_model_version(self.name, version.version, description=text)

    @explained()
    def card(self, version: ModelVersion) -> str | None:
        """Return the model card stored with a version; None if there is none."""
        there = MODEL_CARD in dict(self._files(version))
        return self._read(version, MODEL_CARD).decode("utf-8", errors="replace") if there else None

    @explained()
    def model_tag(self, name: str) -> str | None:
        """Return a tag of the registered model; None if it has no such tag, or there is no such model."""
        tags: Mapping[str, str] = self._client.get_registered_model(self.name).tags if self._exists() else {}
        return tags.get(name)

    @explained()
    def set_model_tag(self, name: str, value: str) -> None:
        """Set a tag of the registered model."""
        self._client.set_registered_model_tag(self.name, name, value)

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
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process has created it
                raise

    def _files(self, version: ModelVersion, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield path and size in bytes of each file below a folder of a version; nothing if there is no such folder."""
        for entry in mlflow.artifacts.list_artifacts(self._uri(version, folder)):
            if entry.is_dir:
                yield from self._files(version, entry.path)
            else:
                yield entry.path, entry.file_size

    def _read(self, version: ModelVersion, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as directory, environment(_NO_PROGRESS_BAR):
            file = mlflow.artifacts.download_artifacts(self._uri(version, path), dst_path=directory)
            return Path(file).read_bytes()

    def _uri(self, version: ModelVersion, path: str) -> str:
        return f"models:/{self.name}/{version.version}/{path}".rstrip("/")


def evaluation_key(version: ModelVersion) -> str | None:
    """Return the key of the evaluation used to judge a version; None if its tag is missing or not a key."""
    key = version.tags.get(EVALUATION, "")
    return key if _KEY.fullmatch(key) else None


def _logged_model(version: ModelVersion) -> str:
    return str(version.source).removeprefix("models:/")  # MLflow stores it only in the source


def _stored_digest(uri: str) -> str:
    with tempfile.TemporaryDirectory() as directory, environment(_NO_PROGRESS_BAR):
        return model_digest(Path(mlflow.artifacts.download_artifacts(f"{uri}/{MODEL_FOLDER}", dst_path=directory)))
