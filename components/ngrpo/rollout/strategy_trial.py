"""Test a strategy on random logits before a run uses it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ngrpo.errors import ConfigError
from ngrpo.mixing.neighbor_mixing import candidate_sets
from ngrpo.mixing.strategy import Decision, Step, Strategy
from ngrpo.user_code.loading import said

_ROWS, _WIDTH = 4, 16
_TOLERANCE = 1e-5


def try_strategy(strategy: Strategy, name: str | None = None) -> None:
    """Make sure that a strategy can be used by every engine and replayed in training.

    Args:
        strategy: The strategy.
        name: Its name in the settings; by default its class.

    Raises:
        ConfigError: It raises an error, or returns something that cannot be mixed or replayed.
    """
    what = f"mixing.strategy={name or type(strategy).__name__!r}"
    try:
        # Rollouts, before which this runs, need no gradients; training does.
        with torch.inference_mode(False), torch.enable_grad():
            problem = next(_problems(strategy), None)
    except Exception as error:  # a user's strategy can raise anything
        raise ConfigError(f"{what} raised an error on random logits: {said(error)}") from error
    if problem is not None:
        raise ConfigError(f"{what}: {problem}")


def _problems(strategy: Strategy) -> Iterator[str]:
    k = getattr(strategy, "k", None)
    if type(k) is not int or k < 1:
        yield f"k={k!r} is no number of candidates: set k to an integer of at least 1"
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step = _step(k)
        vectors = torch.randn(_ROWS, k, _WIDTH)
    before = step.scaled_logits.clone(), step.sampled.clone()
    decision = strategy.decide(step)
    yield from _of_decision(decision, step, k)
    if not (torch.equal(step.scaled_logits, before[0]) and torch.equal(step.sampled, before[1])):
        yield "decide changes the step that it is given: work on copies"
    if not strategy.records_candidates and not torch.equal(
        decision.candidates, candidate_sets(decision.tokens, step.neighbors, k)
    ):
        yield "records_candidates=False, but the candidates are not the token and its nearest neighbors: leave it True"
    # The same row again, in another batch.
    for rows in (slice(None), slice(1, 2)):
        again = strategy.decide(_rows(step, rows))
        if not all(torch.allclose(ours, theirs[rows], atol=_TOLERANCE) for ours, theirs in _pairs(again, decision)):
            yield (
                "decide gives a row another result at another time or in another batch: draw from seed and position "
                "(ngrpo.mixing.counter) and decide each row by itself"
            )
    yield from _of_embedding(strategy, vectors, decision, step)


def _step(k: int) -> Step:
    vocabulary = max(64, 2 * k)
    return Step(
        scaled_logits=3 * torch.randn(_ROWS, vocabulary),
        sampled=torch.randint(vocabulary, (_ROWS,)),
        seeds=torch.arange(_ROWS) + 2**40,
        positions=torch.arange(_ROWS) * 7,
        neighbors=(torch.arange(vocabulary)[:, None] + torch.arange(1, k + 1)) % vocabulary,
        eligible=torch.ones(vocabulary, dtype=torch.bool),
    )


def _rows(step: Step, rows: slice) -> Step:
    rowwise = {name: getattr(step, name)[rows] for name in ("scaled_logits", "sampled", "seeds", "positions")}
    return replace(step, **rowwise)


def _pairs(one: Decision, other: Decision) -> list[tuple[Tensor, Tensor]]:
    return [
        (one.tokens, other.tokens),
        (one.candidates, other.candidates),
        (one.weights.float(), other.weights.float()),
    ]


def _of_decision(decision: Decision, step: Step, k: int) -> Iterator[str]:
    if not isinstance(decision, Decision):
        yield f"decide returns {type(decision).__name__}: return ngrpo.mixing.strategy.Decision"
        return
    vocabulary = step.scaled_logits.shape[1]
    for name, shape in (("tokens", (_ROWS,)), ("candidates", (_ROWS, k)), ("weights", (_ROWS, k))):
        value = getattr(decision, name)
        if not isinstance(value, Tensor) or value.shape != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            yield f"decide returns {name} of {found} for {_ROWS} rows and k={k}: return a tensor of {shape}"
            return
        if name == "weights":
            if not value.is_floating_point() or not value.isfinite().all():
                yield "decide returns weights that are no finite numbers: return float32"
        elif value.dtype != torch.long or value.min() < 0 or value.max() >= vocabulary:
            yield f"decide returns {name} that are no token ids: return int64 from 0 to {vocabulary - 1}, the last of these logits"


def _of_embedding(strategy: Strategy, vectors: Tensor, decision: Decision, step: Step) -> Iterator[str]:
    vectors.requires_grad_()
    weights = decision.weights.float()
    embedded = strategy.embed(vectors, weights, step.seeds, step.positions)
    if not isinstance(embedded, Tensor) or embedded.shape != (_ROWS, _WIDTH) or embedded.dtype != vectors.dtype:
        yield f"embed must return a tensor of {(_ROWS, _WIDTH)} in the type of the vectors: one embedding a row"
        return
    if not embedded.isfinite().all():
        yield "embed returns numbers that are not finite"
    if not embedded.requires_grad:
        yield "embed passes no gradient on to the vectors: keep them out of detach and no_grad"
    for rows in (slice(None), slice(1, 2)):
        again = strategy.embed(vectors[rows], weights[rows], step.seeds[rows], step.positions[rows])
        if not torch.allclose(again, embedded[rows], atol=_TOLERANCE):
            yield (
                "embed gives a row another result at another time or in another batch: draw from seed and position "
                "(ngrpo.mixing.counter)"
            )
    half = strategy.embed(vectors.bfloat16(), weights, step.seeds, step.positions)
    if half.dtype != torch.bfloat16:
        yield f"embed returns {half.dtype} for vectors of bfloat16: return the type of the vectors"
