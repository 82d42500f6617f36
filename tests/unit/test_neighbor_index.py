"""The neighbor index against brute force in float64, on friendly and on hostile matrices."""

import pytest
import torch

from ngrpo.errors import DataError
from ngrpo.neighbors.index import NeighborIndex

COUNT = 6


def brute_force(embedding: torch.Tensor, eligible: torch.Tensor, count: int) -> list[list[int]]:
    """For each token the ids with the highest cosine, ties by id, with python's own sort."""
    rows = embedding.double()
    norms = rows.norm(dim=1).clamp(min=1e-300)
    result = []
    for token in range(len(rows)):
        cosine = (rows @ rows[token] / norms / norms[token]).mul(2.0**40).round().tolist()
        others = [other for other in range(len(rows)) if eligible[other] and other != token]
        result.append(sorted(others, key=lambda other: (-cosine[other], other))[:count])
    return result


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(300, 16, generator=generator)
    clustered = torch.randn(12, 16, generator=generator).repeat_interleave(25, dim=0) + 1e-3 * plain
    duplicates = plain.clone()
    duplicates[50:90] = plain[0]
    zeros = plain.clone()
    zeros[10:14] = 0
    norms = plain * torch.logspace(-4, 4, 300)[:, None]
    tiny_margins = torch.ones(300, 16) + 1e-4 * plain  # cosines differ by 1e-8: below float32
    signs = torch.randint(0, 2, (300, 8), generator=generator) * 2.0 - 1.0
    return {
        "plain": plain,
        "clustered": clustered,
        "duplicates": duplicates,
        "zero rows": zeros,
        "huge norms": norms,
        "tiny margins": tiny_margins,
        "many ties": signs,
        "fewer tokens than spare proposals": plain[:12],
    }


@pytest.mark.parametrize("name", matrices())
@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_neighbors_equal_brute_force(name, block_rows):
    embedding = matrices()[name]
    eligible = torch.ones(len(embedding), dtype=torch.bool)
    eligible[[0, 3]] = False
    index = NeighborIndex.build(embedding, eligible, candidates=COUNT, block_rows=block_rows)
    expected = brute_force(embedding, eligible, COUNT)
    for token in eligible.nonzero()[:, 0].tolist():
        assert index.neighbors[token].tolist() == expected[token], f"token {token}"
    assert index.neighbors[3].tolist() == [3] * COUNT
    assert not torch.isin(index.neighbors[eligible], torch.tensor([0, 3])).any()


@pytest.mark.parametrize("name", ["plain", "clustered", "duplicates", "tiny margins"])
def test_nothing_left_out_exceeds_its_bound(name):
    embedding = matrices()[name]
    eligible = torch.ones(len(embedding), dtype=torch.bool)
    index = NeighborIndex.build(embedding, eligible, candidates=COUNT, block_rows=64)
    unit = torch.nn.functional.normalize(embedding.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-2)
    left_out = cosine.scatter(1, index.neighbors.long(), -2.0).max(dim=1).values
    assert (left_out <= index.bound.double() + 1e-6).all()
    assert (index.similarity[:, -1] + 1e-6 >= index.bound).all()


def test_saves_loads_and_knows_its_matrix(tmp_path):
    embedding = matrices()["plain"]
    index = NeighborIndex.build(
        embedding, torch.ones(300, dtype=torch.bool), candidates=COUNT, block_rows=64, version=2
    )
    index.save(tmp_path)
    loaded = NeighborIndex.load(tmp_path)
    assert loaded.version == 2
    assert torch.equal(loaded.neighbors, index.neighbors)
    assert loaded.matches(embedding)
    assert loaded.matches(embedding.double().float())
    moved = embedding.clone()
    moved[7, 3] += 1e-6
    assert not loaded.matches(moved)
    assert not loaded.matches(embedding[:-1])


def test_a_damaged_file_is_one_clear_error(tmp_path):
    index = NeighborIndex.build(matrices()["plain"], torch.ones(300, dtype=torch.bool), candidates=2, block_rows=64)
    index.save(tmp_path)
    payload = (tmp_path / "index.safetensors").read_bytes()
    (tmp_path / "index.safetensors").write_bytes(payload[: len(payload) // 2])
    with pytest.raises(DataError, match="build it again"):
        NeighborIndex.load(tmp_path)


def test_impossible_requests_name_the_cure():
    embedding = matrices()["plain"]
    everything = torch.ones(300, dtype=torch.bool)
    with pytest.raises(DataError, match=r"neighbors\.candidates to at most 299"):
        NeighborIndex.build(embedding, everything, candidates=300, block_rows=64)
    broken = embedding.clone()
    broken[4, 2] = float("nan")
    with pytest.raises(DataError, match=r"rows \[4\]"):
        NeighborIndex.build(broken, everything, candidates=3, block_rows=64)
    with pytest.raises(DataError, match="299 tokens were described"):
        NeighborIndex.build(embedding, everything[:-1], candidates=3, block_rows=64)
