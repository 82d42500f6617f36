"""The neighbor index against brute force in float64, on friendly and on hostile matrices: built, refreshed, saved, loaded."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, TrainerControl, TrainerState, TrainingArguments

from made_up_run import PRESETS
from ngrpo.config import MixingConfig, NeighborIndexConfig, NeighborsConfig, load_config, select
from ngrpo.errors import DataError
from ngrpo.mixing.neighbor_mixing import candidate_sets
from ngrpo.neighbors import index as index_module
from ngrpo.neighbors.index import NeighborIndex, fingerprint, look_up
from ngrpo.report.index_facts import describe
from ngrpo.rollout.configured_mixer import build_mixer
from ngrpo.training.following_index import FollowingIndex
from tiny import WORDS, save_tiny_model
from tiny import eligible as words

COUNT = 6
METRICS = ("cosine", "dot", "l2", "l1")


def brute_force(embedding: torch.Tensor, eligible: torch.Tensor, metric: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Similarities to all other eligible tokens and their ids, best first, ties by id; one row after the other, in float64."""
    rows = embedding.double()
    norms = rows.norm(dim=1, p=1 if metric == "l1" else 2)
    largest = norms[eligible].max()
    ids = eligible.nonzero()[:, 0]
    similarities, order = [], []
    for token in ids.tolist():
        others = ids[ids != token]
        if metric == "cosine":
            values = (rows[others] @ rows[token]) / norms[others].clamp(min=1e-150) / norms[token].clamp(min=1e-150)
            size = torch.tensor(1.0, dtype=torch.float64)
        elif metric == "dot":
            values, size = rows[others] @ rows[token], norms[token] * largest
        else:
            difference = rows[others] - rows[token]
            values = -difference.norm(dim=1, p=1 if metric == "l1" else 2)
            size = norms[token] + largest
        # Equal is what differs by less than 2**-40 of the largest similarity that the row can have.
        grid = 2.0**-40 * size.clamp(min=1e-290).log2().ceil().exp2()
        values, best = ((values / grid).round() * grid).sort(descending=True, stable=True)
        similarities.append(values)
        order.append(others[best])
    return torch.stack(similarities), torch.stack(order)


def matrices() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(300, 16, generator=generator)
    clustered = torch.randn(5, 16, generator=generator).repeat_interleave(60, dim=0) + 1e-3 * plain
    duplicates = plain.clone()
    duplicates[50:140] = plain[0]
    zeros = plain.clone()
    zeros[10:14] = 0
    angle = torch.linspace(0, 1.5, 300)
    return {
        "plain": plain,
        "clustered": clustered,
        "duplicates": duplicates,
        "zero rows": zeros,
        "huge norms": plain * torch.logspace(-4, 4, 300)[:, None],
        "norms beyond float32's squares": plain * 1e25,
        "tiny margins": torch.ones(300, 16) + 1e-4 * plain,  # cosines differ by 1e-8: below float32
        "many ties": torch.randint(0, 2, (300, 8), generator=generator) * 2.0 - 1.0,
        "sorted, the best come last": torch.stack([angle.cos(), angle.sin()], dim=1),
        "fewer tokens than are kept": plain[:12],
    }


def everything(embedding: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(embedding), dtype=torch.bool)


def assert_bounds_hold(index: NeighborIndex, similarity: torch.Tensor, order: torch.Tensor) -> None:
    """Compare the bounds with all similarities, in descending order, and the tokens that they belong to."""
    eligible = index.eligible
    neighbors, reserve = index.neighbors[eligible].long(), index.reserve[eligible].long()
    place = order[:, :, None] == torch.cat([neighbors, reserve], dim=1)[:, None]
    left_out = similarity.masked_fill(place.any(dim=2), -torch.inf).max(dim=1).values
    assert (left_out <= index.bound[eligible].double()).all(), "something left out exceeds its bound"
    in_reserve = (similarity[:, :, None] * place[:, :, neighbors.shape[1] :]).sum(dim=1)
    assert (in_reserve <= index.reserve_bound[eligible].double()).all(), "something in reserve exceeds its bound"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", matrices())
@pytest.mark.parametrize("block_rows", [7, 64, 1000])
def test_neighbors_equal_brute_force(name, block_rows, metric):
    embedding = matrices()[name]
    eligible = everything(embedding)
    eligible[[0, 3]] = False
    index = NeighborIndex.build(embedding, eligible, candidates=COUNT, block_rows=block_rows, metric=metric)
    similarity, order = brute_force(embedding, eligible, metric)
    assert torch.equal(index.neighbors[eligible].long(), order[:, :COUNT])
    torch.testing.assert_close(index.similarity[eligible], similarity[:, :COUNT], rtol=1e-9, atol=1e-11)
    assert index.neighbors[3].tolist() == [3] * COUNT
    kept = torch.cat([index.neighbors, index.reserve], dim=1)[eligible]
    assert not torch.isin(kept, torch.tensor([0, 3])).any()
    assert all(len(set(row)) == len(row) for row in kept.tolist())
    assert_bounds_hold(index, similarity, order)


def test_float32_decides_almost_every_row_and_float64_the_rest():
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randn(2000, 64, generator=generator)
    index = NeighborIndex.build(embedding, everything(embedding), candidates=COUNT, block_rows=512)
    assert index.statistics == {"searched": 2000, "uncertified": 0}
    embedding[500:600] = embedding[0]
    index = NeighborIndex.build(embedding, everything(embedding), candidates=COUNT, block_rows=512)
    assert (
        101 <= index.statistics["uncertified"] < 200
    )  # more duplicates than are kept, and who has them among its neighbors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_type_of_the_weights_does_not_matter(dtype):
    embedding = matrices()["plain"].bfloat16()
    index = NeighborIndex.build(embedding.to(dtype), everything(embedding), candidates=COUNT, block_rows=64)
    same = NeighborIndex.build(embedding.float(), everything(embedding), candidates=COUNT, block_rows=64)
    assert torch.equal(index.neighbors, same.neighbors)
    assert index.fingerprint == same.fingerprint


def trained(embedding: torch.Tensor, learning_rate: float) -> torch.Tensor:
    """The matrix after a step of AdamW on a loss over a third of the tokens."""
    weight = torch.nn.Parameter(embedding.clone())
    optimizer = torch.optim.AdamW([weight], lr=learning_rate, weight_decay=0.0)
    tokens = torch.arange(0, len(embedding), 3)
    torch.nn.functional.embedding(tokens, weight).square().sum().backward()
    optimizer.step()
    return weight.detach()


def few_rows_far(embedding: torch.Tensor) -> torch.Tensor:
    """One row onto another, one through the origin, one to zero: close to rows that never had them as candidates."""
    moved = embedding.clone()
    moved[17], moved[400], moved[800] = embedding[1200] * 1.0001, -embedding[400], 0.0
    return moved


MOVES = {
    "none": (lambda embedding: embedding.clone(), 0.0),
    "a step at lr 1e-6": (lambda embedding: trained(embedding, 1e-6), 0.01),
    "a step at lr 1e-3": (lambda embedding: trained(embedding, 1e-3), 0.8),
    "a few rows, far": (few_rows_far, 0.25),
    "all rows": (lambda embedding: embedding + 0.3 * torch.randn_like(embedding), 1.0),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("move", MOVES)
def test_a_refresh_finds_what_a_rebuild_finds(move, metric):
    torch.manual_seed(11)
    before = 0.05 * torch.randn(1500, 24) * torch.linspace(0.5, 1.5, 1500)[:, None]
    before[600:603] = before[5]  # ties
    eligible = everything(before)
    eligible[[0, 3]] = False
    built = NeighborIndex.build(before, eligible, candidates=COUNT, block_rows=512, metric=metric, version=4)
    change, most = MOVES[move]
    after = change(before)
    index = built.refresh(before, after, block_rows=512)
    again = NeighborIndex.build(after, eligible, candidates=COUNT, block_rows=512, metric=metric)
    assert torch.equal(index.neighbors, again.neighbors)
    assert torch.equal(index.similarity, again.similarity)
    assert (index.version, index.fingerprint) == (5, None)
    assert index.fingerprinted(after).fingerprint == again.fingerprint
    print(f"{metric}, {move}: {index.statistics['searched']} of 1498 rows searched again")
    assert index.statistics["searched"] <= most * 1498
    similarity, order = brute_force(after, eligible, metric)
    assert_bounds_hold(index, similarity, order)


def test_refresh_after_refresh_stays_exact():
    torch.manual_seed(12)
    matrix = 0.05 * torch.randn(1000, 24)
    index = NeighborIndex.build(matrix, everything(matrix), candidates=COUNT, block_rows=256)
    searched = []
    for _ in range(12):
        moved = trained(matrix, 1e-3) + 2e-4 * torch.randn_like(matrix)
        index = index.refresh(matrix, moved, block_rows=256)
        matrix = moved
        searched.append(index.statistics["searched"])
        again = NeighborIndex.build(matrix, everything(matrix), candidates=COUNT, block_rows=256)
        assert torch.equal(index.neighbors, again.neighbors)
        assert torch.equal(index.similarity, again.similarity)
    assert 0 < sum(searched) < 0.5 * 12 * 1000, f"bounds wear out, and are renewed where a row is searched: {searched}"


def test_refuses_a_matrix_that_it_cannot_follow():
    before = matrices()["plain"]
    index = NeighborIndex.build(before, everything(before), candidates=COUNT, block_rows=64)
    broken = before.clone()
    broken[9] = torch.inf
    with pytest.raises(DataError, match=r"rows \[9\]"):
        index.refresh(before, broken, block_rows=64)


def test_saves_loads_and_knows_its_matrix(tmp_path):
    embedding = matrices()["plain"]
    eligible = everything(embedding)
    eligible[7] = False
    index = NeighborIndex.build(embedding, eligible, candidates=COUNT, block_rows=64, metric="dot", version=2)
    index.save(tmp_path)
    loaded = NeighborIndex.load(tmp_path)
    assert (loaded.version, loaded.metric, loaded.statistics) == (2, "dot", index.statistics)
    for name in ("neighbors", "similarity", "reserve", "bound", "eligible"):
        assert torch.equal(getattr(loaded, name), getattr(index, name))
    assert loaded.matches(embedding)
    assert loaded.matches(embedding.double())
    moved = embedding.clone()
    moved[7, 3] += 1e-6
    assert not loaded.matches(moved)
    assert not loaded.matches(embedding[:-1])
    index.save(tmp_path / "again")
    assert (tmp_path / "again" / "index.safetensors").read_bytes() == (tmp_path / "index.safetensors").read_bytes()


def test_loading_maps_the_file(tmp_path):
    embedding = matrices()["plain"]
    NeighborIndex.build(embedding, everything(embedding), candidates=2, block_rows=64).save(tmp_path)
    index = NeighborIndex.load(tmp_path)
    with open("/proc/self/maps") as maps:
        assert any(str(tmp_path / "index.safetensors") in line for line in maps)
    assert index.neighbors.shape == (300, 2)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "other description"])
def test_a_damaged_file_is_one_clear_error(tmp_path, damage):
    embedding = matrices()["plain"]
    NeighborIndex.build(embedding, everything(embedding), candidates=2, block_rows=64).save(tmp_path)
    path = tmp_path / "index.safetensors"
    payload = path.read_bytes()
    if damage == "cut":
        path.write_bytes(payload[: len(payload) // 2])
    elif damage == "changed":
        path.write_bytes(payload[:-400] + bytes([payload[-400] ^ 1]) + payload[-399:])
    elif damage == "gone":
        path.unlink()
    else:
        (tmp_path / "index.json").write_text('{"format": "of something else"}')
    with pytest.raises(DataError, match="build it again"):
        NeighborIndex.load(tmp_path)


def test_no_room_leaves_no_partial_index(tmp_path):
    embedding = matrices()["plain"]
    index = NeighborIndex.build(embedding, everything(embedding), candidates=COUNT, block_rows=64)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written .*; make room there"):
            index.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_impossible_requests_name_the_cure():
    embedding = matrices()["plain"]
    with pytest.raises(DataError, match=r"neighbors\.candidates to at most 299"):
        NeighborIndex.build(embedding, everything(embedding), candidates=300, block_rows=64)
    broken = embedding.clone()
    broken[4, 2] = float("nan")
    with pytest.raises(DataError, match=r"rows \[4\]"):
        NeighborIndex.build(broken, everything(embedding), candidates=3, block_rows=64)
    with pytest.raises(DataError, match="299 tokens were described"):
        NeighborIndex.build(embedding, everything(embedding)[:-1], candidates=3, block_rows=64)


def test_an_index_is_described_by_its_examples_hubs_and_duplicates(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path))
    torch.manual_seed(1)
    embedding = torch.randn(len(tokenizer), 16)
    embedding[20] = 2 * embedding[10]  # the words 16 and 6
    index = NeighborIndex.build(embedding, words(), candidates=COUNT, block_rows=64)
    description = describe(index, tokenizer)
    assert description["closest"][0] == {"tokens": ["6", "16"], "similarity": 1.0}
    assert description["near_duplicates"] == 2
    assert sum(description["nearest"]["counts"]) == sum(description["hubness"]["counts"]) == len(WORDS)
    _, order = brute_force(embedding, words(), "cosine")
    times = torch.bincount(order[:, :COUNT].flatten(), minlength=len(tokenizer))
    assert description["hubs"][0]["times"] == times.max()
    assert description["hubness"]["counts"][0] == int((times[words()] == 0).sum())
    first = description["examples"][0]
    assert [other["token"] for other in first["neighbors"]] == [tokenizer.decode([token]) for token in order[0, :5]]


def test_looking_up_tokens_finds_what_the_index_holds():
    embedding = matrices()["duplicates"]
    usable = everything(embedding)
    usable[[0, 3]] = False
    index = NeighborIndex.build(embedding, usable, candidates=COUNT, block_rows=64)
    found, similarity = look_up(embedding, usable, [60, 1, 299], count=COUNT, block_rows=64, metric="cosine")
    assert torch.equal(found, index.neighbors[[60, 1, 299]].long())
    assert torch.equal(similarity, index.similarity[[60, 1, 299]])


def test_k_is_chosen_without_another_build():
    embedding = matrices()["plain"]
    index = NeighborIndex.build(embedding, everything(embedding), candidates=COUNT, block_rows=64)
    anchor = torch.tensor([42])
    for k in (2, 3, COUNT + 1):
        mixer = build_mixer(MixingConfig(k=k), index, None)
        assert candidate_sets(anchor, mixer.neighbors, mixer.k).tolist() == [
            [42, *index.neighbors[42, : k - 1].tolist()]
        ]
    configs = [load_config(PRESETS / "tiny.toml", [f"mixing.k={k}"]) for k in (2, 5)]
    assert select(configs[0], NeighborIndexConfig) == select(configs[1], NeighborIndexConfig)


class Policy:
    """As much of a model as the index follows."""

    def __init__(self, embedding: torch.Tensor):
        self.module = torch.nn.Embedding.from_pretrained(embedding)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.module


def following(index: NeighborIndex, every_batch: bool) -> FollowingIndex:
    neighbors = NeighborsConfig(candidates=COUNT, block_rows=64)
    return FollowingIndex(index, neighbors=neighbors, mixing=MixingConfig(), end_marker=None, every_batch=every_batch)


def test_training_refreshes_the_index_instead_of_building_it(tmp_path):
    base = matrices()["plain"]
    index = NeighborIndex.build(base, everything(base), candidates=COUNT, block_rows=64)
    follower = following(index, every_batch=True)
    versions, searched = [], []
    embedding = base.clone()
    for change in (0.0, 1e-5, 0.0, 1e-5):
        embedding = embedding + change * torch.randn_like(embedding)
        mixer = follower.mixer(Policy(embedding))
        built = NeighborIndex.build(embedding, everything(base), candidates=COUNT, block_rows=64)
        assert torch.equal(mixer.neighbors, built.neighbors)
        assert follower.index.fingerprinted(embedding).matches(embedding)
        versions.append(mixer.index_version)
        searched.append(follower.index.statistics["searched"])
    assert versions == [0, 1, 1, 2]
    assert searched[1:] == [0, 0, 0]

    # After a resume the matrix of the saved index is gone: the first batch builds, the next ones refresh again.
    save(follower, tmp_path, 4)
    resumed = following(index, every_batch=True)
    resumed.resume(tmp_path / "checkpoint-4")
    for number, rows in ((3, len(base)), (4, 0)):
        embedding = embedding + 1e-5 * torch.randn_like(embedding)
        assert resumed.mixer(Policy(embedding)).index_version == number
        assert resumed.index.statistics["searched"] == rows
        assert resumed.index.fingerprinted(embedding).matches(embedding)


def save(follower: FollowingIndex, directory: Path, step: int) -> None:
    """Save the index as the trainer's callback does."""
    state = TrainerState(global_step=step, is_world_process_zero=True)
    follower.on_save(TrainingArguments(output_dir=str(directory)), state, TrainerControl())


def test_training_hashes_the_matrix_when_it_saves_and_never_to_follow_it(tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(index_module, "fingerprint", lambda *of: hashed.append(of) or fingerprint(*of))
    base = matrices()["plain"]
    follower = following(NeighborIndex.build(base, everything(base), candidates=COUNT, block_rows=64), every_batch=True)
    follower.mixer(Policy(base))
    assert len(hashed) == 2, "it is built, and verified once"
    embedding = base.clone()
    for _ in range(3):
        embedding += 1e-5 * torch.randn_like(embedding)  # in place, as an optimizer does
        follower.mixer(Policy(embedding))
    assert len(hashed) == 2
    followed = embedding.clone()
    embedding += 1e-5  # the step after the last rollout batch: the index saved is that of the batch
    for step in (3, 4):
        save(follower, tmp_path, step)
    assert len(hashed) == 3, "what is known is not hashed again"
    saved = NeighborIndex.load(tmp_path / "checkpoint-4" / "neighbor_index")
    assert saved.version == 3
    assert saved.matches(followed)
    assert not saved.matches(embedding)


def test_an_index_without_a_fingerprint_is_not_saved_nor_compared(tmp_path):
    base = matrices()["plain"]
    index = NeighborIndex.build(base, everything(base), candidates=COUNT, block_rows=64)
    refreshed = index.refresh(base, base + 0.1, block_rows=64)
    for use in (lambda: refreshed.save(tmp_path), lambda: refreshed.matches(base + 0.1)):
        with pytest.raises(DataError, match=r"^neighbor index of version 1: refreshed, .* `index\.fingerprinted"):
            use()
    assert not list(tmp_path.iterdir())


def test_at_start_the_index_is_built_for_other_weights_once():
    base = matrices()["plain"]
    follower = following(
        NeighborIndex.build(base, everything(base), candidates=COUNT, block_rows=64), every_batch=False
    )
    first = follower.mixer(Policy(base + 0.1))
    assert first.index_version == 1
    assert follower.mixer(Policy(base + 0.2)).neighbors is first.neighbors


def test_the_index_of_another_model_is_refused():
    base = matrices()["plain"]
    follower = following(NeighborIndex.build(base, everything(base), candidates=COUNT, block_rows=64), every_batch=True)
    with pytest.raises(DataError, match=r"index has 300 rows but the policy's embedding matrix 299: .* another model"):
        follower.mixer(Policy(base[:-1]))


@contextmanager
def faster(how):
    """What a training in bfloat16 or TF32 sets around the index."""
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            if how == "bfloat16 kernels":
                matmul.fp32_precision = "bf16"
            yield
            assert matmul.fp32_precision == ("bf16" if how == "bfloat16 kernels" else before)
            assert torch.is_autocast_enabled("cpu") == (how == "autocast")
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("how", ["autocast", "bfloat16 kernels"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_index_is_the_same_where_a_training_computes_in_less_than_float32(how, metric):
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(300, 64, generator=generator)
    after = before + 0.02 * torch.randn(300, 64, generator=generator)
    everything = torch.ones(300, dtype=torch.bool)
    settings = {"candidates": 8, "block_rows": 128, "metric": metric}
    plain = NeighborIndex.build(before, everything, **settings)
    moved = plain.refresh(before, after, block_rows=128)
    with faster(how):
        rounded = before @ before.T
        index = NeighborIndex.build(before, everything, **settings)
        refreshed = index.refresh(before, after, block_rows=128)
        found, _ = look_up(before, everything, [3, 7], count=8, block_rows=128, metric=metric)
    if how == "bfloat16 kernels" and torch.equal(rounded.float(), before @ before.T):
        pytest.skip("this processor has no bfloat16 kernels")
    assert not torch.equal(rounded.float(), before @ before.T), "else nothing was rounded"
    for one, other in ((index, plain), (refreshed, moved)):
        assert torch.equal(one.neighbors, other.neighbors)
        assert torch.equal(one.bound, other.bound)
        assert torch.equal(one.similarity, other.similarity)
    assert torch.equal(found, plain.neighbors[[3, 7]].long())
