"""Fixtures of the tests that run the pipeline."""

import pytest
from small_house import House, build


@pytest.fixture(scope="session")
def finished_house(tmp_path_factory) -> House:
    """A house in which one run has finished; to look at and to copy, not to change."""
    house = build(tmp_path_factory.mktemp("finished"))
    house.ngrpo("run")
    return house


@pytest.fixture
def house(finished_house, tmp_path) -> House:
    """A house of its own for a test, in which one run has finished."""
    house = finished_house.copy(tmp_path)
    house.ran()
    return house
