"""MLflow databases for tests: one is made for the session, each test gets a copy."""

import functools
import shutil

import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils

from ngrpo.tracking.database import prepare_database


@pytest.fixture(scope="session")
def _asked_once():
    """What MLflow asks again and again, and what cannot change here: its newest schema, and that a model is no prompt."""
    require_no_prompt, models = MlflowClient._raise_if_prompt, set()

    def require_once(self, name):
        if (self._registry_uri, name) not in models:
            require_no_prompt(self, name)
            models.add((self._registry_uri, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_get_latest_schema_revision", functools.cache(utils._get_latest_schema_revision))
        patch.setattr(MlflowClient, "_raise_if_prompt", require_once)
        yield


@pytest.fixture(scope="session")
def prepared_database(tmp_path_factory, _asked_once):
    """The file of an empty database; to copy, not to use."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_database(f"sqlite:///{path}")
    return path


@pytest.fixture
def database(prepared_database, tmp_path, monkeypatch):
    """The address of an empty database of the test's own, which its environment names."""
    uri = f"sqlite:///{shutil.copy(prepared_database, tmp_path)}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return uri
