"""Rounds of an evaluation that may stop early: each gives every problem more samples, until the gate's verdict is settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ngrpo.config import PromotionConfig
from ngrpo.contracts.evaluation import EarlyStop, Protocol, Result
from ngrpo.evaluation.curtailment import looks, saved
from ngrpo.evaluation.gate import Measured, compare
from ngrpo.evaluation.samples import KeptSamples, Part, parts


class Rounds:
    """Decides which samples of a model to generate next.

    A round ends when every problem of every benchmark of the gate has the same number of samples; other benchmarks get all theirs in the
    first. So the verdict never rests on a selection of problems or samples. The looks depend on seed and settings alone, not on stored
    samples: an evaluation that was killed, or that follows a longer one, stops where any other would.
    """

    def __init__(
        self,
        gate: PromotionConfig,
        error: float,
        kept: Sequence[KeptSamples],
        protocols: Mapping[str, Protocol],
        opponent: Measured,
        *,
        result: Callable[[KeptSamples], Result],
        seed: int,
        unit: int,
        say: Callable[[str], None],
    ):
        """Set the number of samples of the first round (`KeptSamples.samples`).

        Args:
            gate: Settings of the gate.
            error: Probability that its verdict may differ from that of all samples.
            kept: The model's samples of each benchmark.
            protocols: Their protocols, by benchmark.
            opponent: The model to compare with, with all its samples.
            result: Grades the wanted samples of a benchmark.
            seed: Seed of the statistics.
            unit: Number of requests that stay together (`parts`).
            say: Receives lines of progress.
        """
        names = {gate.benchmark, *gate.tolerated_regression}
        self._gate, self._error, self._protocols, self._opponent = gate, error, protocols, opponent
        self._result, self._seed, self._unit, self._say = result, seed, unit, say
        self._kept = kept
        self._of_gate = [samples for samples in kept if samples.benchmark.name in names]
        self._planned = self._of_gate[0].samples if self._of_gate else 0
        unequal = len(self._of_gate) < len(names) or any(
            opponent.protocols.get(name) != protocols.get(name) for name in names
        )
        self._looks = [] if unequal else looks(self._planned, gate.statistic)
        self._verdict: str | None = None
        self._widen()

    def parts(self) -> list[Part]:
        """Return the missing samples of this round, or of the next round with missing samples; nothing once the evaluation has ended.

        Call it again only once everything returned before is stored.
        """
        while True:
            missing = [
                part for place, samples in enumerate(self._kept) for part in parts(place, samples.missing, self._unit)
            ]
            if missing:
                return missing
            if not self._of_gate or self._of_gate[0].samples == self._planned or self._is_settled():
                return []
            self._widen()

    def stopped(self, samples: KeptSamples) -> bool:
        """Whether a benchmark has fewer samples than were planned."""
        return samples in self._of_gate and samples.samples < self._planned

    def marked(self, samples: KeptSamples, result: Result) -> Result:
        """Return a benchmark's result, marked if it has fewer samples than planned."""
        if self.stopped(samples):
            result["stopped"] = {"planned_samples": self._planned, "error": self._error}
        return result

    def summary(self) -> EarlyStop:
        """Return how the evaluation ended."""
        planned, left = saved(
            [(len(samples.benchmark.ids), self._planned, samples.samples) for samples in self._of_gate]
        )
        verdict = self._verdict if left else None
        return {
            "against": self._opponent.name,
            "verdict": "promoted" if verdict == "promoted" else "kept" if verdict == "kept" else "open",
            "planned": planned,
            "saved": left,
        }

    def _widen(self) -> None:
        """Set the number of samples of the next round."""
        wanted = self._looks.pop(0) if self._looks else self._planned
        for samples in self._of_gate:
            samples.samples = wanted

    def _is_settled(self) -> bool:
        results = {samples.benchmark.name: self.marked(samples, self._result(samples)) for samples in self._of_gate}
        candidate = Measured("the trained model", results, self._protocols)
        verdict = compare(self._gate, candidate, self._opponent, self._seed)
        few = self._of_gate[0].samples
        evidence = verdict["comparison"]
        settled = evidence is not None and evidence.get("settled", False)
        if settled:
            self._verdict = verdict["decision"]
        self._say(
            f"{few} of {self._planned} samples of each problem: against {self._opponent.name} the verdict "
            + (f"is settled, {self._verdict}" if settled else "is open")
        )
        return settled
