"""Evaluations drawn from models of known accuracy: stopped by the rule, and a champion that is watched; and how often each is right."""

from dataclasses import dataclass

import numpy as np

from ngrpo.evaluation.curtailment import Counts, error_of_a_look, foresee, looks, values
from ngrpo.evaluation.drift import estimate, limits_of_looks

_DRAWS = 2000


@dataclass(frozen=True)
class Setting:
    """A benchmark, and by how much the candidate is truly better; both are fractions."""

    problems: int
    samples: int
    gain: float
    statistic: str = "mean"
    min_gain: float = 0.0
    difficulty: tuple[float, float] = (0.8, 1.2)
    """Beta distribution of the opponent's chance to solve a problem."""
    own_way: float = 0.5
    """Standard deviation, in logits, of what makes a problem easier for one model than for the other."""


@dataclass(frozen=True)
class Simulated:
    """Shares of the simulations, and of the candidate's samples."""

    promoted: float
    agreement: float
    saved: float
    stopped: float


def simulated(setting: Setting, repetitions: int, *, error: float = 0.01, confidence: float = 0.95, seed: int = 0):
    """Evaluate two models `repetitions` times, and stop each evaluation as soon as its verdict is settled."""
    random = np.random.default_rng(seed)
    shape = (repetitions, setting.problems)
    theirs = np.clip(random.beta(*setting.difficulty, size=shape), 1e-9, 1 - 1e-9)
    logits = np.log(theirs / (1 - theirs)) + random.normal(0.0, setting.own_way, size=shape)
    ours = shifted(logits, theirs.mean() + setting.gain)
    n = setting.samples
    opponent = Counts(random.binomial(n, theirs), n, n)
    correct = (random.random((n, *shape)) < ours).cumsum(axis=0)
    weights = _bootstrap(setting.problems)

    def bound(counts: Counts) -> np.ndarray:
        first, second = (values(setting.statistic, each.correct, each.generated) for each in (counts, opponent))
        return np.quantile(weights @ (first - second).T, 1 - confidence, axis=0)

    decision = bound(Counts(correct[-1], n, n)) > setting.min_gain
    verdict, generated, going = decision.copy(), np.full(repetitions, n), np.ones(repetitions, bool)
    for m in looks(n, setting.statistic):
        counts = Counts(correct[m - 1], m, n)
        foreseen = foresee(setting.statistic, counts, opponent, bound(counts), confidence=confidence)
        share = error_of_a_look(error, counts, opponent, setting.statistic, 1)
        side = foreseen.side(setting.min_gain, share)
        now = going & (side != 0)
        verdict[now], generated[now] = side[now] > 0, m
        going &= ~now
    agreement = float((verdict == decision).mean())
    return Simulated(float(decision.mean()), agreement, 1 - float(generated.mean()) / n, 1 - float(going.mean()))


def shifted(logits: np.ndarray, mean: float) -> np.ndarray:
    """Return chances whose mean is the one that is wanted."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-(logits + middle)))).mean() < mean else (low, middle)
    return 1 / (1 + np.exp(-(logits + low)))


def _bootstrap(problems: int) -> np.ndarray:
    """Return how often each draw holds each problem, as shares: the same draws for every simulation, as the gate's seed has it."""
    drawn = np.random.default_rng(99).integers(problems, size=(_DRAWS, problems))
    drawn += np.arange(_DRAWS)[:, None] * problems
    return np.bincount(drawn.ravel(), minlength=_DRAWS * problems).reshape(_DRAWS, problems) / problems


@dataclass(frozen=True)
class Watched:
    """A benchmark, how it is watched, and by how much the model gets worse; drops and margins are fractions."""

    problems: int = 200
    samples: int = 16
    """Samples of each problem in the evaluation that the model was promoted on."""
    each: int = 4
    """Samples of each problem at a look."""
    drop: float = 0.0
    since: int = 0
    """Look from which on the model is worse."""
    margin: float = 0.01
    alpha: float = 0.05
    lucky: bool = False
    """Whether only champions are watched whose evaluation says more than is true."""
    difficulty: tuple[float, float] = (0.8, 1.2)


def alarms(watched: Watched, times: int, repetitions: int, seed: int = 0) -> np.ndarray:
    """Watch as many models, and return the share that an alarm was sounded for by each look, `[times]`."""
    random = np.random.default_rng(seed)
    shape = (repetitions, watched.problems)
    chance = np.clip(random.beta(*watched.difficulty, size=shape), 1e-9, 1 - 1e-9)
    worse = shifted(np.log(chance / (1 - chance)), chance.mean() - watched.drop)
    first = random.binomial(watched.samples, chance)
    while watched.lucky:
        unlucky = first.mean(axis=1) < watched.samples * chance.mean(axis=1)
        if not unlucky.any():
            break
        first[unlucky] = random.binomial(watched.samples, chance[unlucky])
    limits = limits_of_looks([watched.each] * times, watched.samples, watched.alpha)
    later, sounded, shares = np.zeros(shape), np.zeros(repetitions, bool), []
    for number, limit in enumerate(limits):
        later += random.binomial(watched.each, worse if number >= watched.since else chance)
        drop, deviation = estimate(first.astype(float), watched.samples, later, watched.each * (number + 1))
        sounded |= drop - limit * deviation > watched.margin
        shares.append(sounded.mean())
    return np.array(shares)
