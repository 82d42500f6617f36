"""Fixtures of the tests that run the pipeline."""

import inspect
import sys

import pytest
from small_house import House, build


def stack(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack` without source lines."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
        frame = frame.f_back
    return frames


@pytest.fixture(autouse=True)
def _quick_stacks(monkeypatch):
    """kfp asks for the name of its caller often, and gets every frame's source with it: under pytest, that is half of a compilation."""
    monkeypatch.setattr(inspect, "stack", stack)


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
