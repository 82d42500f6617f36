"""MLflow databases for tests: one is made for the session, each test gets a copy."""

import shutil

import pytest

from ngrpo.tracking.database import prepare_database


@pytest.fixture(scope="session")
def prepared_database(tmp_path_factory):
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
