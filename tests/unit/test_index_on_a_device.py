"""The neighbor index works where its matrix is, and the stage puts the matrix on a GPU where it has one.

There is no GPU here. Tensors that are made without naming a device are made on the device `meta`, which has no content: an operation
that mixes one with the matrix fails, as it would with a matrix on a GPU.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ngrpo.config import InitializedModel, NeighborIndexConfig, NeighborsConfig
from ngrpo.neighbors import index as building
from ngrpo.neighbors.index import NeighborIndex, look_up
from ngrpo.neighbors.precision import ieee_float32
from ngrpo.stages import neighbor_index
from ngrpo.stages.context import Context

METRICS = ["cosine", "dot", "l2", "l1"]
TENSORS = ("neighbors", "similarity", "reserve", "reserve_bound", "bound", "eligible")


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Make tensors on no device of use unless one is named."""
    with torch.device("meta"):
        yield


def matrix(seed: int = 0) -> Tensor:
    return torch.randn(300, 16, generator=torch.Generator().manual_seed(seed), device="cpu")


def eligible() -> Tensor:
    return torch.arange(300, device="cpu") % 7 != 3


def build(embedding: Tensor, metric: str) -> NeighborIndex:
    return NeighborIndex.build(embedding, eligible(), candidates=5, block_rows=64, metric=metric)


def same(one: NeighborIndex, other: NeighborIndex) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def test_this_test_can_fail(elsewhere):
    with pytest.raises((RuntimeError, NotImplementedError)):
        matrix() + torch.zeros(300, 16)


@pytest.mark.parametrize("metric", METRICS)
def test_build_refresh_and_look_up_make_nothing_on_another_device(metric, elsewhere):
    found = build(matrix(), metric)
    moved = matrix()
    moved[:40] += 0.05 * matrix(1)[:40]
    moved[7] *= 3
    refreshed = found.refresh(matrix(), moved, block_rows=64)
    near, _ = look_up(matrix(), eligible(), [0, 5], count=5, block_rows=64, metric=metric)
    devices = {getattr(each, name).device.type for each in (found, refreshed) for name in TENSORS}
    assert devices == {"cpu"}
    assert torch.equal(near, found.neighbors[[0, 5]].long())
    assert torch.equal(refreshed.neighbors, build(moved, metric).neighbors)


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_float32_cannot_decide_are_searched_on_the_device_too(metric, elsewhere):
    crowd = matrix()[:1].repeat(300, 1) + 1e-7 * matrix(1)
    assert build(crowd, metric).statistics["uncertified"] > 0


@pytest.mark.parametrize(("available", "device"), [(False, "cpu"), (True, "cuda")])
def test_the_stage_builds_on_its_gpu_if_it_has_one(monkeypatch, available, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert neighbor_index._device() == device


def test_the_stage_moves_the_matrix_there_and_the_index_back(monkeypatch, tmp_path):
    """The device `meta` stands for the GPU: the matrix that arrives there is the one to build from."""
    seen = []

    def built(embedding, eligible, **settings):
        seen.append((embedding.device.type, tuple(embedding.shape)))
        return real(torch.randn(embedding.shape), eligible, **settings)

    real = NeighborIndex.build
    monkeypatch.setattr(neighbor_index, "_device", lambda: "meta")
    monkeypatch.setattr(neighbor_index.NeighborIndex, "build", built)
    settings = {"source": InitializedModel(kind="initialized", hidden_size=16, layers=1, heads=2, kv_heads=1)}
    config = NeighborIndexConfig(model=settings, neighbors=NeighborsConfig(candidates=4))
    output = tmp_path / "output"
    output.mkdir()
    neighbor_index.run(config, {}, output, Context(work=tmp_path, progress=lambda line: None))
    assert seen == [("meta", (63, 16))]
    assert NeighborIndex.load(output).neighbors.device.type == "cpu"


def test_products_are_those_of_ieee_whatever_a_gpu_would_do():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with ieee_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert not torch.is_autocast_enabled("cuda")
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    for name in ("build", "refresh"):
        assert getattr(NeighborIndex, name).__wrapped__ is not None, "both run within it"
    assert building.look_up.__wrapped__ is not None
