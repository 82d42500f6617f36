"""Fixtures of the tests that run the pipeline."""

import inspect
import os
import sys

import pytest
from filelock import FileLock
from small_house import House, build


def stack(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack` without source lines."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return frames


@pytest.fixture(scope="session", autouse=True)
def _quick_stacks():
    """kfp asks for the name of its caller often, and gets every frame's source with it: under pytest, that is most of a compilation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", stack)
        yield


@pytest.fixture(scope="session")
def finished_house(tmp_path_factory) -> House:
    """A workspace with one finished run, shared by all workers of a session: read and copy it, but do not change it."""
    workers = tmp_path_factory.getbasetemp()
    shared = workers.parent if "PYTEST_XDIST_WORKER" in os.environ else workers
    finished, done = shared / "finished", shared / "finished" / "done"
    with FileLock(shared / "finished.lock"):
        if not done.exists():
            finished.mkdir()
            house = build(finished)
            house.ngrpo("run")
            done.touch()
    return House(finished / "house", finished / "outputs")


@pytest.fixture
def house(finished_house, tmp_path) -> House:
    """A workspace of the test's own with one finished run."""
    house = finished_house.copy(tmp_path)
    house.ran()
    return house
