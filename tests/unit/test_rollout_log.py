"""What is measured of a rollout batch."""

import torch
from torch import nn

from ngrpo.mixing.end_marker import EndMarker
from ngrpo.mixing.inputs import mixed_inputs
from ngrpo.mixing.mixer import Mixer
from ngrpo.mixing.records import RolloutRecords, collate
from ngrpo.mixing.strategies import Neighbor
from ngrpo.report.rollout_log import anchor_cosines, eligible_tokens
from ngrpo.rollout.engine import Rollout
from ngrpo.training.rollout_batch import RolloutBatch

V, K = 50, 3


class Counting(nn.Embedding):
    looked_up = 0

    def forward(self, ids):
        self.looked_up += ids.numel()
        return super().forward(ids)


def test_only_mixed_tokens_are_embedded():
    torch.manual_seed(0)
    embedding = Counting(V, 8)
    neighbors = torch.stack([(torch.arange(V) + shift) % V for shift in (1, 2, 3)], dim=1)
    rollouts = []
    for length, mixed in ((9, [0, 4, 8]), (30, [7]), (12, [])):
        weights = torch.rand(len(mixed), K).softmax(dim=-1)
        records = RolloutRecords(torch.tensor(mixed).long(), weights, length, 0)
        rollouts.append(Rollout(torch.randint(V, (length,)).tolist(), [0.0] * length, "length", records))
    mixture = collate(
        [rollout.records for rollout in rollouts],
        [rollout.token_ids for rollout in rollouts],
        30,
        strategy=Neighbor(K),
        neighbors=neighbors,
        index_version=0,
        device="cpu",
    )
    cosines = anchor_cosines(RolloutBatch(0, [[1]] * 3, rollouts, [0.0] * 3, mixture, embedding))
    assert embedding.looked_up == 4 * (K + 1)
    tokens = torch.tensor([[*rollout.token_ids, *[0] * (30 - len(rollout.token_ids))] for rollout in rollouts])
    with mixed_inputs(embedding, mixture):
        seen = embedding(tokens)
    expected = nn.functional.cosine_similarity(seen[mixture.mask], embedding(tokens)[mixture.mask], dim=-1)
    assert torch.equal(cosines, expected)
    assert cosines.max() < 0.999


def test_the_anchor_of_a_mixture_is_not_the_token_that_was_sampled():
    torch.manual_seed(0)
    embedding = nn.Embedding(V, 8)
    record = RolloutRecords(torch.tensor([1]), torch.tensor([[1.0, 0.0, 0.0]]), 0, 0, torch.tensor([[5, 6, 7]]))
    rollout = Rollout([1, 2, 3], [0.0] * 3, "length", record)
    mixture = collate(
        [record],
        [rollout.token_ids],
        3,
        strategy=Neighbor(3, label="sampled"),
        neighbors=torch.zeros(V, 3).long(),
        index_version=0,
        device="cpu",
    )
    cosines = anchor_cosines(RolloutBatch(0, [[1]], [rollout], [0.0], mixture, embedding))
    torch.testing.assert_close(cosines, torch.ones(1))


def test_tokens_that_may_be_mixed_are_those_of_the_index_before_the_end_marker():
    texts = [b"", b"a", b"b", b"</", b"t>", b"</t"]
    eligible = torch.tensor([False, True, True, True, True, True])
    mixer = Mixer(Neighbor(2), 0.1, torch.zeros(6, 2).long(), eligible, 0)
    responses = [[1, 0, 2], [1, 3, 4, 2, 1], []]
    assert eligible_tokens(responses, mixer) == 2 + 5
    marked = Mixer(Neighbor(2), 0.1, torch.zeros(6, 2).long(), eligible, 0, EndMarker.of("</t>", texts))
    assert eligible_tokens(responses, marked) == 2 + 3, (
        "the step that ends the marker may still be mixed, none after it"
    )
    assert eligible_tokens([], marked) == 0
