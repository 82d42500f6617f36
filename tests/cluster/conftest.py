"""The session on the cluster: connection, environment, and clean-up."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from forwards import reachable
from place import Place, find
from session import Session

from ngrpo.environment import environment
from ngrpo.errors import NGRPOError

KEEP = "NGRPO_TEST_KEEP"
"""Environment variable: set to keep what a failed test leaves on the cluster, to look at."""
_MINUTES_A_TEST = 90
_PLACE = pytest.StashKey[Place]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on a cluster the time that they need."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(60 * _MINUTES_A_TEST))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Find the cluster before the first test; without one no test passes, and none is skipped."""
    if session.config.option.collectonly:
        return
    try:
        session.config.stash[_PLACE] = find()
    except NGRPOError as error:
        raise pytest.UsageError(str(error)) from error


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, request) -> Iterator[Session]:
    """The session. Services of the cluster are reached through port-forwards unless the environment names them."""
    place = pytestconfig.stash[_PLACE]
    with ExitStack() as stack:
        variables: dict[str, str | None] = {"KF_PIPELINES_NAMESPACE": place.namespace}
        for name, suffix in (
            ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_ENDPOINT"),
            ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_URI"),
            ("AWS_ENDPOINT_URL", "_ENDPOINT_URL"),
        ):
            if name not in os.environ:
                variables[name] = stack.enter_context(reachable(place.address(suffix)))
        if "AWS_ENDPOINT_URL" in variables:
            variables |= {"AWS_DEFAULT_REGION": place.address("_REGION"), **place.credentials()}
        stack.enter_context(environment(variables))
        session = Session(place, tmp_path_factory.mktemp("cluster"), f"cluster-test-{uuid.uuid4().hex[:8]}")
        print(f"\nnamespace {place.namespace}, settings {place.settings}, store {session.store}", flush=True)
        yield session
        if not (request.session.testsfailed and os.environ.get(KEEP)):
            import leftovers  # imports MLflow, which takes seconds

            leftovers.remove(session)
