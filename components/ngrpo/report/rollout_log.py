"""What a training run keeps of its rollouts: metrics by step, samples to read, and how far mixtures stray from their anchors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ngrpo.evaluation.diversity import distinct_answers, distinct_ngrams
from ngrpo.grading.extraction import extract_answer
from ngrpo.mixing.mixer import Mixer
from ngrpo.training.rollout_batch import RolloutBatch

_SAMPLES_PER_STEP = 4
_NGRAM = 4
_FILE = "rollout_log.json"
_COSINE_EDGES = [round(0.5 + 0.01 * step, 2) for step in range(51)]
"""Bins of the histogram of cosines between a mixed embedding and its anchor; lower values fall into the first bin."""


def _boxed(texts: Sequence[str]) -> list[str | None]:
    return [extract_answer(text) for text in texts]


class RolloutLog(TrainerCallback):
    """Observer of a trainer: measures each rollout batch, and keeps a few rollouts of the first and of the last.

    Of several processes each sees its share of a batch; what is kept is that of the first. It is saved with the checkpoints.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        group_size: int,
        extract: Callable[[Sequence[str]], list[str | None]] = _boxed,
    ):
        """Begin an empty log.

        Args:
            tokenizer: Reads rollouts.
            group_size: Rollouts of a prompt.
            extract: Returns the answer of each response.
        """
        self._extract = extract
        self._tokenizer = tokenizer
        self._group_size = group_size
        self._kept: dict[str, Any] = {"anchor_cosine": [0] * (len(_COSINE_EDGES) - 1), "first": None, "last": None}

    @torch.no_grad()
    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Measure a rollout batch; see `RolloutObserver`."""
        responses = [rollout.token_ids for rollout in batch.rollouts]
        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        answers = self._extract(texts)
        metrics = {
            "diversity/distinct_answers": distinct_answers(self._groups(answers)),
            f"diversity/distinct_{_NGRAM}grams": distinct_ngrams(self._groups(responses), _NGRAM),
        }
        if batch.mixture is not None:
            mixed = int(batch.mixture.mask.sum())
            metrics["mixing/gate_rate"] = mixed / sum(len(tokens) for tokens in responses)
            eligible = 0 if batch.mixer is None else eligible_tokens(responses, batch.mixer)
            if eligible:
                metrics["mixing/eligible_gate_rate"] = mixed / eligible
            cosines = anchor_cosines(batch)
            if len(cosines):
                metrics["mixing/anchor_cosine"] = float(cosines.mean())
                metrics["mixing/anchor_cosine_min"] = float(cosines.min())
                clamped = cosines.clamp(_COSINE_EDGES[0], _COSINE_EDGES[-1]).cpu()
                histogram = torch.histogram(clamped.float(), torch.tensor(_COSINE_EDGES)).hist.int().tolist()
                self._kept["anchor_cosine"] = [
                    sum(pair) for pair in zip(self._kept["anchor_cosine"], histogram, strict=True)
                ]
        self._kept["last"] = self._samples(batch)
        self._kept["first"] = self._kept["first"] or self._kept["last"]
        return metrics

    def on_train_begin(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Go on with the log that the checkpoint was saved with, where training resumes from one."""
        if state.global_step:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
            self._kept = json.loads(path.read_text(encoding="utf-8"))

    def on_save(self, args, state, control, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Save the log in the checkpoint just written."""
        if state.is_world_process_zero:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}" / _FILE
            path.write_text(json.dumps(self._kept), encoding="utf-8")

    def write(self, output: Path) -> None:
        """Write `rollout_samples.json` and `anchor_cosine_histogram.json` of the whole run."""
        samples = [*self._kept["first"], *self._kept["last"]]
        (output / "rollout_samples.json").write_text(json.dumps(samples), encoding="utf-8")
        histogram = {"edges": _COSINE_EDGES, "counts": self._kept["anchor_cosine"]}
        (output / "anchor_cosine_histogram.json").write_text(json.dumps(histogram), encoding="utf-8")

    def _groups(self, values: list[Any]) -> list[list[Any]]:
        return [values[start : start + self._group_size] for start in range(0, len(values), self._group_size)]

    def _samples(self, batch: RolloutBatch) -> list[dict[str, Any]]:
        """Pick one rollout of each of the first groups."""
        rows = range(0, len(batch.rollouts), self._group_size)
        return [self._sample(batch, row) for row in list(rows)[:_SAMPLES_PER_STEP]]

    def _sample(self, batch: RolloutBatch, row: int) -> dict[str, Any]:
        rollout = batch.rollouts[row]
        positions = rollout.records.positions.tolist()
        candidates = batch.mixture.candidates[row, positions].tolist() if batch.mixture is not None else []
        return {
            "step": batch.step,
            "prompt": self._tokenizer.decode(batch.prompts[row]),
            "tokens": [self._tokenizer.decode([token]) for token in rollout.token_ids],
            "mixed": [position in set(positions) for position in range(len(rollout.token_ids))],
            "neighbors": [
                [self._tokenizer.decode([token]) for token in row_candidates] for row_candidates in candidates
            ],
            "weights": [[round(weight, 4) for weight in weights] for weights in rollout.records.weights.tolist()],
            "reward": batch.rewards[row],
        }


def eligible_tokens(responses: Sequence[Sequence[int]], mixer: Mixer) -> int:
    """Return how many tokens of some responses might have been mixed: those that the index allows, up to the end marker.

    Args:
        responses: Token ids.
        mixer: What mixed.
    """
    longest = max(map(len, responses), default=0)
    tokens = torch.zeros(len(responses), longest, dtype=torch.long)
    there = torch.zeros_like(tokens, dtype=torch.bool)
    for row, response in enumerate(responses):
        tokens[row, : len(response)] = torch.tensor(response, dtype=torch.long)
        there[row, : len(response)] = True
    allowed = there & mixer.eligible.cpu()[tokens]
    if mixer.end_marker is None:
        return int(allowed.sum())
    marker, count = mixer.end_marker.to("cpu"), 0
    progress = torch.zeros(len(responses), dtype=torch.long)
    for column in range(longest):
        # A step is mixed or not by what was there before it.
        count += int((allowed[:, column] & ~marker.passed(progress)).sum())
        progress = marker.advance(progress, tokens[:, column])
    return count


def anchor_cosines(batch: RolloutBatch) -> Tensor:
    """Cosine between each mixed embedding of a batch and the embedding of its anchor, the first of the candidates; float32 `[n]`."""
    mixture = batch.mixture
    assert mixture is not None
    rows, columns = mixture.mask.nonzero(as_tuple=True)
    mixed = mixture.strategy.embed(
        batch.embedding(mixture.candidates[rows, columns]),
        mixture.weights[rows, columns],
        mixture.seeds[rows],
        mixture.positions[rows] + columns,
    )
    anchors = batch.embedding(mixture.candidates[rows, columns, 0])
    return torch.nn.functional.cosine_similarity(mixed.float(), anchors.float(), dim=-1)
